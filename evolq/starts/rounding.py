"""Roundings by name: which code each weight of a calibrated Point gets, and what that costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evolq.data.pixels import Images
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.starts.adaround import adaround, adaround_cost
from evolq.starts.gptq import gptq, gptq_cost

# Called with the number of layers or blocks that are rounded, and that of all.
OnRounded = Callable[[int, int], None]


def round_nearest(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    batch_size: int,
    seed: int,
    on_rounded: OnRounded | None,
) -> dict[str, Tensor]:
    """Return `start`: every evaluation rounds to nearest by itself."""
    return dict(start)


def round_gptq(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    batch_size: int,
    seed: int,
    on_rounded: OnRounded | None,
) -> dict[str, Tensor]:
    """Return what `gptq` does; nothing is drawn."""
    return gptq(network, start, images, batch_size, on_rounded=on_rounded)


def round_adaround(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    batch_size: int,
    seed: int,
    on_rounded: OnRounded | None,
) -> dict[str, Tensor]:
    """Return what `adaround` does with its own number of iterations."""
    generator = torch.Generator().manual_seed(seed)
    return adaround(
        network, start, images, generator=generator, batch_size=batch_size, on_rounded=on_rounded
    )


# Name -> from (network, Point, images, batch size, seed, progress or None) to the rounded Point.
ROUNDINGS: dict[
    str,
    Callable[[QuantizedNetwork, Point, Images, int, int, OnRounded | None], dict[str, Tensor]],
] = {"nearest": round_nearest, "gptq": round_gptq, "adaround": round_adaround}

# Name -> from (network, number of images, batch size) to the cost in passes of these images.
COSTS: dict[str, Callable[[QuantizedNetwork, int, int], float]] = {
    "nearest": lambda network, count, batch_size: 0.0,
    "gptq": lambda network, count, batch_size: gptq_cost(network),
    "adaround": adaround_cost,
}
