"""How long evaluations of a quantized DeiT-Tiny take, in units of the full-precision pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE

STORED = Path(__file__).parents[1] / "benchmarks" / "speed.json"
COMMAND = "EVOLQ_DATA=FOLDER python benchmarks/speed.py --json benchmarks/speed.json"
# What benchmarks/speed.py measures, in ratios to timm's fp32 pass.
TASKS = {
    "full_evaluation": "one Point, all scales new",
    "linear_evaluation": "the same, scheme linear, W8A8",
    "simulated_evaluation": "the same, simulated and compiled",
    "fitness_evaluation": "one child of a search, mean block",
    "last_block_evaluation": "the same, last block",
    "scale_gradient": "loss and gradient of all scales",
}
OURS = "ours"  # so begin names of engines that are this package's
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def draw(found: Mapping[str, Any]) -> Figure:
    """Draw tasks, and other engines where they were measured: median and range of repeats."""
    tasks = {words: found["details"][key]["values"] for key, words in _measured(found).items()}
    engines = found["profile"].get("engines", {}).get("ratios", {})
    engines = dict(sorted(engines.items(), key=lambda item: median(item[1])))
    parts = [part for part in (tasks, engines) if part]
    with matplotlib.rc_context(STYLE):
        rows = [len(part) for part in parts]
        figure = Figure(figsize=(7.5, 1.4 + 0.36 * sum(rows)), layout="constrained")
        panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=rows)
        for axes, part in zip(panels[:, 0], parts, strict=True):
            _draw(axes, part)
        every = [value for part in parts for values in part.values() for value in values]
        ticks = [tick for tick in TICKS if min(every) / 2 < tick < 2 * max(every)]
        axes.set_xticks(ticks, minor=False)
        panels[0, 0].set_title("DeiT-Tiny, W4A8, scheme full")
        if engines:
            panels[1, 0].set_title("One pass in other engines")
        axes.set_xlabel("time, relative to timm's fp32 pass of the same images (left is faster)")
    return figure


def _measured(found: Mapping[str, Any]) -> dict[str, str]:
    return {key: words for key, words in TASKS.items() if key in found["details"]}


def _draw(axes: Axes, part: Mapping[str, list[float]]) -> None:
    for place, (name, values) in enumerate(part.items()):
        look = LOOKS[0] if name.startswith(OURS) or name in TASKS.values() else LOOKS[1]
        axes.plot([min(values), max(values)], [place] * 2, color=look.color)
        axes.plot(median(values), place, look.marker, color=look.color)
    axes.axvline(1, color="0.5", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(part)), list(part))
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter("")


def caption(found: Mapping[str, Any]) -> str:
    """Return what the figure shows, with its numbers."""
    numbers = []
    for key, words in _measured(found).items():
        values = found["details"][key]["values"]
        numbers.append(
            f"{words} {median(values):.3f} ({min(values):.3f} to {max(values):.3f}, "
            f"{len(values)} repeats)"
        )
    return (
        "Time of evaluations of a quantized DeiT-Tiny (scheme full, W4A8, integer execution, 2 "
        "threads, batches of 50) over that of timm's fp32 pass of the same images, interleaved; "
        f"marks are medians, lines the range of repeats. {found['machine']}. {'; '.join(numbers)}."
    )
