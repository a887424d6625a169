"""Accuracy of three real networks by bits and rounding, as calibration leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evolq.quantization import Quantization
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import accuracy_difference

STORED = Path(__file__).parents[1] / "benchmarks" / "real_networks.jsonl"
COMMAND = "EVOLQ_DATA=FOLDER python benchmarks/real_networks.py benchmarks/real_networks.jsonl"
NETWORKS = {
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "vit_tiny_patch16_224": "ViT-Tiny",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}
BITS = ((8, 8), (4, 8), (3, 8), (4, 4))
ROUNDINGS = ("nearest", "gptq", "adaround")
SCHEMES = {"linear": "full", "full": "none"}  # how its marks are filled

Row = Mapping[str, Any]
Halves = dict[int | None, str]
"""Half of the images that is tested -> a 0 or 1 for each of them; the other half calibrates."""


def halves(rows: Sequence[Row], network: str, quantization: Quantization) -> Halves:
    """Return which images a network gets right, by half; empty where nothing is measured."""
    wanted = {"network": network, **asdict(quantization.resolved())}
    return {
        row.get("half"): row["right"]
        for row in rows
        if all(wanted[name] == row[name] for name in wanted.keys() & row.keys())
    }


def shares(plain: Halves, own: Halves) -> tuple[list[int], list[int]] | None:
    """Return which images are right in full precision and quantized, of the halves of both."""
    both = [half for half in plain if half in own]
    if not both:
        return None
    before, after = ([int(one) for half in both for one in each[half]] for each in (plain, own))
    return before, after


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each network: accuracy against bits, by rounding and scheme."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        panels = figure.subplots(1, len(NETWORKS), sharey=True)
        for axes, (network, name) in zip(panels, NETWORKS.items(), strict=True):
            plain = halves(rows, network, Quantization("none"))
            axes.set_title(name)
            axes.set_xticks(range(len(BITS)), [f"W{w}A{a}" for w, a in BITS])
            axes.set_xlim(-0.5, len(BITS) - 0.5)
            if not any(row["network"] == network and row["scheme"] in SCHEMES for row in rows):
                axes.text(0.5, 0.5, "not measured yet", ha="center", transform=axes.transAxes)
            if not plain:
                continue
            right = "".join(plain.values())
            level = 100 * right.count("1") / len(right)
            axes.axhline(level, color="0.3", linewidth=1, linestyle=":")
            axes.annotate(f"full precision {level:.1f} %", (-0.45, level), (0, 3), **_OFFSET)
            _draw_marks(axes, rows, network, plain)
        panels[0].set_ylabel("top-1 (%)\nbars: 95 %, paired with full precision")
        panels[0].set_ylim(0, 100)
        figure.supxlabel("bits of weights and activations", fontsize="medium")
        handles = [
            Line2D([], [], linestyle="", marker=look.marker, color=look.color, label=rounding)
            for rounding, look in zip(ROUNDINGS, LOOKS, strict=False)
            if any(row["rounding"] == rounding for row in rows)
        ]
        for scheme, fill in SCHEMES.items():
            style: Any = {"marker": "o", "color": "0.3", "fillstyle": fill, "linestyle": ""}
            handles.append(Line2D([], [], label=f"scheme {scheme}", **style))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


_OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}


def _draw_marks(axes: Axes, rows: Sequence[Row], network: str, plain: Halves) -> None:
    for place, (weights, activations) in enumerate(BITS):
        for number, (scheme, fill) in enumerate(SCHEMES.items()):
            for rounding, look in zip(ROUNDINGS, LOOKS, strict=False):
                quantization = Quantization(scheme, weights, activations, rounding=rounding)
                found = shares(plain, halves(rows, network, quantization))
                if found is None:
                    continue
                before, after = found
                change = accuracy_difference(before, after)
                accuracy = 100 * sum(after) / len(after)
                ends = (change.estimate - change.low, change.high - change.estimate)
                axes.errorbar(
                    place + 0.14 * (ROUNDINGS.index(rounding) - 1) + 0.06 * (2 * number - 1),
                    accuracy,
                    [[100 * end] for end in ends],
                    marker=look.marker,
                    color=look.color,
                    fillstyle=fill,
                    elinewidth=0.8,
                )


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for network, name in NETWORKS.items():
        plain = halves(rows, network, Quantization("none"))
        changes, images = [], sum(map(len, plain.values()))
        for weights, activations in BITS:
            best = None
            for rounding in ROUNDINGS:
                own = halves(
                    rows, network, Quantization("linear", weights, activations, rounding=rounding)
                )
                found = shares(plain, own)
                if found is not None:
                    change = accuracy_difference(*found)
                    if best is None or change.estimate > best[1].estimate:
                        best = rounding, change
            if best is not None:
                rounding, change = best
                changes.append(
                    f"W{weights}A{activations} {rounding} {100 * change.estimate:+.1f} "
                    f"({100 * change.low:+.1f} to {100 * change.high:+.1f})"
                )
        words.append(f"{name} ({images} images) " + (", ".join(changes) or "not measured"))
    split = " each half of the images is tested by the network that the other half calibrates;"
    return (
        "Top-1 of real networks as calibration leaves them, by bits, rounding and scheme;"
        f"{split if any('half' in row for row in rows) else ''} change from full precision in "
        "points with 95 % intervals over images, scheme linear, the best rounding: "
        f"{'; '.join(words)}."
    )
