"""What benchmarks of speed share: a clock, the machine, Points where nothing was evaluated."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection
from pathlib import Path

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


def machine(threads: int) -> str:
    """Return the processor, and the version and threads of torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    vnni = "AVX-512 VNNI" if "avx512_vnni" in flags else "no AVX-512 VNNI"
    name = names[0] if names else platform.processor()
    return f"{name}, {len(names)} cores, {vnni}; torch {torch.__version__}, {threads} threads"
