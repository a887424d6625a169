"""Calibration: from images to the Point at which everything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evolq.data.pixels import Images, batches
from evolq.declared import check_batch_size, check_seed, check_value
from evolq.errors import InputError
from evolq.network.layer_norms import fold_layer_norms
from evolq.network.placement import Site
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.starts.rounding import COSTS, ROUNDINGS, OnRounded
from evolq.tensor.observers import (
    OBSERVERS,
    outlier_factor,
    power_of_two_factor,
    wide_power_of_two_factor,
)
from evolq.tensor.quantizers import PerChannel

# Images of which the published Evol-Q code scores what it observes: the last batch.
PUBLISHED_BATCH = 100

# Observed values kept in memory at a time. Networks that make more are observed in several passes.
MEMORY_BYTES = 2 * 2**30


def calibrate(
    network: QuantizedNetwork,
    images: Images,
    batch_size: int = BATCH_SIZE,
    *,
    seed: int = 0,
    on_rounded: OnRounded | None = None,
) -> dict[str, Tensor]:
    """Return a complete start Point: what the observers find, and the model's weights, rounded.

    The network's `quantization` names the observers and the rounding. Activations are observed in
    the full-precision network, LayerNorm inputs by their power-of-two factors whatever the observer
    is. Weights whose inputs have channels far out are multiplied by the factors of these, and those
    behind LayerNorms by what `fold_layer_norms` takes out of the latter. All
    weights are then rounded on what the layers see in the quantized network.

    Args:
        network: from `quantize`.
        images: (n, channels, height, width) calibration images.
        batch_size: images per pass, and per batch of `ema`, `percentile` and `omse`; in scheme
            published there are 100 of them.
        seed: of what rounding draws.
        on_rounded: called with the number of layers or blocks that are rounded, and that of all.

    Raises:
        InputError: for an unknown observer or rounding, no images, or values that are not finite
            (the quantizer is named).
    """
    check_value("network", network, QuantizedNetwork)
    network.check_images(images)
    check_batch_size(batch_size)
    check_seed(seed)
    for role in ("weight_observer", "activation_observer"):
        name = getattr(network.quantization, role)
        if name not in OBSERVERS:
            raise InputError(f"unknown `{role}` {name!r}; choose from {', '.join(OBSERVERS)}")
    rounding = network.quantization.rounding
    if rounding not in ROUNDINGS:
        raise InputError(f"unknown `rounding` {rounding!r}; choose from {', '.join(ROUNDINGS)}")
    if network.quantization.scheme == "published":
        batch_size = PUBLISHED_BATCH
    if network.quantization.fold_layer_norms:
        network = fold_layer_norms(network, images, batch_size)
    point = dict(network.weights)
    folded: dict[str, Tensor] = {}  # factors of a weight's input columns
    for group in _groups(network, images):
        for name, values in _observed(network, images, batch_size, group).items():
            site = network.sites[name]
            chosen = observer_of(network, site)
            if name in folded:
                values = [value * folded[name] for value in values]
            try:
                found = start_of(site, values, chosen)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            point |= {f"{name}.{role}": value for role, value in found.items()}
            if site.folded is not None:
                folded[site.folded] = found["factor"]
                point[site.folded] = point[site.folded] * found["factor"]
    start = {name: point[name] for name in network.names}
    return ROUNDINGS[rounding](network, start, images, batch_size, seed, on_rounded)


def calibration_cost(
    network: QuantizedNetwork, images: Images, batch_size: int = BATCH_SIZE
) -> float:
    """Return what rounding costs in `calibrate`, in forward passes of `images`.

    Observers take one pass at least, as any start does; it is not counted.
    """
    return COSTS[network.quantization.rounding](network, len(images), batch_size)


def observer_of(network: QuantizedNetwork, site: Site) -> str:
    """Return the name of the observer that a quantizer's scale starts from."""
    weights, activations = (
        network.quantization.weight_observer,
        network.quantization.activation_observer,
    )
    chosen = weights if site.kind == "weight" else activations
    assert chosen is not None  # a network's quantization is resolved
    return chosen


def start_of(site: Site, values: Sequence[Tensor], observer: str) -> dict[str, Tensor]:
    """Return scale, zero point, bits and factor, as far as the quantizer has them, by role."""
    spec = site.spec
    found: dict[str, Tensor] = {}
    zero_point: Tensor | None
    if site.folded is not None:
        factor = found["factor"] = outlier_factor(values, -1)
        if not bool((factor == 1).all()):  # mostly no channel is far out
            values = [value / factor for value in values]
        scale, zero_point = OBSERVERS[observer](values, spec)
    elif site.channels is not None:
        per_channel = replace(spec, granularity=PerChannel(site.channels))
        observe = power_of_two_factor if spec.published else wide_power_of_two_factor
        scale, zero_point, factor = observe(values, per_channel)
        shape = (-1, *[1] * (-1 - site.channels))  # beside the channels
        found["factor"] = factor.reshape(shape)
        if zero_point is not None and zero_point.ndim:
            zero_point = zero_point.reshape(shape)
    else:
        scale, zero_point = OBSERVERS[observer](values, spec)
    found["scale"] = scale
    if zero_point is not None:
        found["zero_point"] = zero_point
    found["bits"] = torch.tensor(float(spec.bits), device=scale.device)
    return found


def _groups(network: QuantizedNetwork, images: Images) -> list[list[str]]:
    """Split the quantizers so that the values that each group observes fit in `MEMORY_BYTES`."""
    sizes: dict[str, int] = {}
    few = images[:2]

    def measure(name: str, value: Tensor) -> None:
        # of all images: the first dimension may be more than them (windows, attention heads)
        weight = network.sites[name].kind == "weight"
        sizes[name] = value.nbytes if weight else value.nbytes * len(images) // len(few)

    network.observe(few, measure)
    # from the end on: each group takes a pass up to its last quantizer, and the first is the least
    groups: list[list[str]] = [[]]
    total = 0
    for name in reversed(list(network.sites)):
        if total and total + sizes[name] > MEMORY_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    return [group[::-1] for group in reversed(groups)]


def _observed(
    network: QuantizedNetwork, images: Images, batch_size: int, wanted: list[str]
) -> Mapping[str, Sequence[Tensor]]:
    """Return what each quantizer in `wanted` sees, batch by batch; a weight once."""
    sites = {name: network.sites[name] for name in wanted}
    values: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for batch in batches(images, batch_size):
        made = network.record({site.value for site in sites.values()}, batch)
        for name, site in sites.items():
            if not (site.kind == "weight" and values[name]):
                values[name].append(made[site.value])
    return values
