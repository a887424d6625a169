"""What each choice of the default recipe is worth: change of the selection loss without it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.egg_carton import NETWORKS
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import Interval, mean_interval

STORED = Path(__file__).parent / "choices.jsonl"
COMMAND = "python benchmarks/ablation.py choices figures/choices.jsonl"
REFERENCE, LOSS = "default", "selection_loss"
TICKS = (-0.05, 0, 0.05, 0.2, 1)

Row = Mapping[str, Any]


def changes(rows: Sequence[Row]) -> dict[str, dict[str, Interval]]:
    """Return by network and choice how the loss changes, over seeds, paired with the default."""
    found: dict[str, dict[str, Interval]] = {}
    for network in NETWORKS:
        losses: dict[str, dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row["network"] == network:
                losses[row["name"]][row["seed"]] = row[LOSS]
        reference = losses.pop(REFERENCE)
        found[network] = {
            name: mean_interval([own[seed] - reference[seed] for seed in own])
            for name, own in losses.items()
        }
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a line for each choice, both networks on it; what hurts most stands above."""
    found = changes(rows)
    worst: dict[str, float] = defaultdict(float)
    for own in found.values():
        for name, change in own.items():
            worst[name] = max(worst[name], change.estimate)
    names = sorted(worst, key=lambda name: -worst[name])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        axes = figure.add_subplot()
        for shift, (network, name), look in zip(
            (-0.13, 0.13), NETWORKS.items(), LOOKS, strict=False
        ):
            own = found[network]
            axes.errorbar(
                [change.estimate for change in own.values()],
                [names.index(choice) + shift for choice in own],
                xerr=[change.high - change.estimate for change in own.values()],
                linestyle="",
                marker=look.marker,
                color=look.color,
                label=name,
            )
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=0.05)
        axes.set_xticks(TICKS, minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("loss on selection images less that of the default (nats), 95 %")
        axes.set_title("One choice of the recipe changed: worse to the right")
        axes.legend(loc="lower right")
    return figure


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for network, own in changes(rows).items():
        apart = {choice: change for choice, change in own.items() if change.low > 0}
        named = ", ".join(
            f"{choice} {change.estimate:+.3f} ± {change.high - change.estimate:.3f}"
            for choice, change in sorted(apart.items(), key=lambda item: -item[1].estimate)
        )
        words.append(f"{NETWORKS[network]}, {len(apart)} of {len(own)} worse: {named}")
    bits, seeds = rows[0]["bits"], len({row["seed"] for row in rows})
    return (
        f"One choice of the default recipe changed at a time, {bits}-bit weights, 60 forward "
        f"passes of 200 calibration images, paired over {seeds} seeds with 95 % intervals: change "
        f"of the loss on 1,000 selection images (nats). {'; '.join(words)}."
    )
