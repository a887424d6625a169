"""Accuracy of exported networks against the size of their files and their latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import Interval, accuracy_difference

STORED = Path(__file__).parents[1] / "benchmarks" / "deploy.jsonl"
COMMAND = "python benchmarks/deploy.py"
NAMES = {"deit_tiny_patch16_224": "DeiT-Tiny", "tf_efficientnet_lite0": "EfficientNet-Lite0"}
SCHEME, BATCH = "linear", 8
RUNTIMES = ("onnxruntime", "openvino", "compact", "inductor", "integer")
# How the mark of a recipe is filled.
FILLED = {"W8A8": "full", "W8A8, symmetric weights": "left", "W4A8, moments matched": "none"}

Row = Mapping[str, Any]


def change(row: Row, rows: Sequence[Row]) -> Interval:
    """Return the change of top-1 accuracy from full precision, on the same images.

    Raises:
        StopIteration: if its network has no row of full precision.
    """
    before, after = (
        [int(right) for right in one["right"]]
        for one in (
            next(o for o in rows if o["network"] == row["network"] and o["scheme"] == "none"),
            row,
        )
    )
    return accuracy_difference(before, after)


def latency(row: Row) -> float:
    """Return the time of a batch relative to full precision in the same runtime."""
    one = next(one for one in row["latency"] if one["batch"] == BATCH)
    return one["milliseconds"] / one["full_precision"]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the change of accuracy against size and latency, a row of panels for each network."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        panels = figure.subplots(len(NAMES), 2, sharey="row", sharex="col")
        for (network, name), (left, right) in zip(NAMES.items(), panels, strict=True):
            own = [row for row in rows if row["network"] == network and row["scheme"] == SCHEME]
            for row in own:
                found = change(row, rows)
                if "size" in row:
                    _mark(left, row["size"] / 1e6, found, row)
                _mark(right, latency(row), found, row)
            plain = next(r for r in rows if r["network"] == network and r["scheme"] == "none")
            left.plot(plain["size"] / 1e6, 0, "*", color="black", markersize=13)
            right.plot(1, 0, "*", color="black", markersize=13)
            right.axvline(1, color="0.5", linewidth=1, linestyle=":")
            left.set_ylabel(f"{name}\nchange of top-1 accuracy (points)")
        left.set_xlabel("size of the file (MB)")
        right.set_xlabel(f"time of a batch of {BATCH}, relative to fp32 in the same runtime")
        right.set_xscale("log")
        right.set_xticks([0.5, 1, 2, 5, 10, 20], minor=False)
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.xaxis.set_minor_formatter("")
        panels[0][0].set_xlim(0, None)
        panels[0][0].set_title("smaller is to the left")
        panels[0][1].set_title("faster is to the left")
        handles = [
            Line2D([], [], linestyle="", marker=look.marker, color=look.color, label=runtime)
            for runtime, look in zip(RUNTIMES, LOOKS, strict=False)
            if any(row["runtime"] == runtime for row in rows)
        ]
        for recipe, fill in FILLED.items():
            style = {"marker": "o", "color": "0.3", "fillstyle": fill}
            handles.append(Line2D([], [], linestyle="", **style, label=recipe))  # type: ignore[arg-type]
        handles.append(Line2D([], [], linestyle="", marker="*", color="black", label="fp32"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _mark(axes: Axes, place: float, found: Interval, row: Row) -> None:
    look = LOOKS[RUNTIMES.index(row["runtime"])]
    low, high = found.estimate - found.low, found.high - found.estimate
    axes.errorbar(
        place,
        100 * found.estimate,
        [[100 * low], [100 * high]],
        marker=look.marker,
        color=look.color,
        fillstyle=FILLED[row["recipe"]],
        elinewidth=0.8,
        alpha=0.9,
    )


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for row in rows:
        if row["scheme"] == SCHEME and row["runtime"] in RUNTIMES[:2]:
            found = change(row, rows)
            words.append(
                f"{NAMES[row['network']]} {row['recipe']} in {row['runtime']} "
                f"{100 * found.estimate:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}) "
                f"points at {latency(row):.2f} of the time of fp32"
            )
    images = len(rows[0]["right"])
    return (
        f"Change of top-1 accuracy from full precision, scheme {SCHEME}, with 95 % intervals over "
        f"{images} test images (paired; one calibration), against the size of the file and the "
        f"time of a batch of {BATCH} on one thread: {'; '.join(words)}."
    )
