"""What each choice of the default recipe is worth: change of the selection loss without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.egg_carton import NETWORKS
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE

# The means over seeds, and half of their 95 % intervals, that this command's tables hold.
STORED, COMMAND = Path(__file__).parent / "choices.jsonl", "python benchmarks/ablation.py choices"
REFERENCE, LOSS = "default", "selection_loss"
TICKS = (-0.05, 0, 0.05, 0.2, 1)

Row = Mapping[str, Any]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a line for each choice, both networks on it; what hurts most stands above."""
    changed = [row for row in rows if row["choice"] != REFERENCE]
    worst = {row["choice"]: 0.0 for row in changed}
    for row in changed:
        worst[row["choice"]] = max(worst[row["choice"]], row[LOSS][0])
    names = sorted(worst, key=lambda name: -worst[name])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.6), layout="constrained")
        axes = figure.add_subplot()
        for shift, (network, name), look in zip(
            (-0.13, 0.13), NETWORKS.items(), LOOKS, strict=False
        ):
            own = [row for row in changed if row["network"] == network]
            axes.errorbar(
                [row[LOSS][0] for row in own],
                [names.index(row["choice"]) + shift for row in own],
                xerr=[row[LOSS][1] for row in own],
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
    for network, name in NETWORKS.items():
        own = [row for row in rows if row["network"] == network and row["choice"] != REFERENCE]
        apart = [row for row in own if row[LOSS][0] > row[LOSS][1]]
        named = ", ".join(
            f"{row['choice']} {row[LOSS][0]:+.3f} ± {row[LOSS][1]:.3f}"
            for row in sorted(apart, key=lambda row: -row[LOSS][0])
        )
        words.append(f"{name}, {len(apart)} of {len(own)} worse: {named}")
    bits = rows[0]["bits"]
    return (
        f"One choice of the default recipe changed at a time, {bits}-bit weights, 60 forward "
        "passes of 200 calibration images, paired over five seeds with 95 % intervals: change of "
        f"the loss on 1,000 selection images (nats). {'; '.join(words)}."
    )
