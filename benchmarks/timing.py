"""What benchmarks of speed share: a clock, and Points that nothing has been evaluated at."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from evolq.points import Point, displace


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def moved(start: Point, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Return `start` with the scales `names` moved by about 1 %, each by another amount."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(start[name].shape, generator=generator) for name in names}
    return displace(start, noise, 0.01)
