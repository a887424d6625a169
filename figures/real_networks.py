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
from figures.claims.networks import REAL_NETWORKS
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import accuracy_difference

STORED = Path(__file__).parents[1] / "benchmarks" / "real_networks.jsonl"
COMMAND = "EVOLQ_DATA=FOLDER python benchmarks/real_networks.py benchmarks/real_networks.jsonl"
BITS = ((8, 8), (4, 8), (3, 8), (4, 4))
ROUNDINGS = ("nearest", "gptq", "adaround")
SCHEMES = {"linear": "full", "full": "none"}  # how its marks are filled

Row = Mapping[str, Any]


def right(rows: Sequence[Row], network: str, quantization: Quantization) -> list[int] | None:
    """Return a 0 or 1 for each image that a network gets wrong or right; None if not measured."""
    wanted = {"network": network, **asdict(quantization.resolved())}
    found = (r for r in rows if all(wanted[name] == r[name] for name in wanted.keys() & r.keys()))
    row = next(found, None)
    return None if row is None else [int(image) for image in row["right"]]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each network: accuracy against bits, by rounding and scheme."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        panels = figure.subplots(1, len(REAL_NETWORKS), sharey=True)
        for axes, (network, name) in zip(panels, REAL_NETWORKS.items(), strict=True):
            plain = right(rows, network, Quantization("none"))
            axes.set_title(name)
            axes.set_xticks(range(len(BITS)), [f"W{w}A{a}" for w, a in BITS])
            axes.set_xlim(-0.5, len(BITS) - 0.5)
            if not any(row["network"] == network and row["scheme"] in SCHEMES for row in rows):
                axes.text(0.5, 0.5, "not measured yet", ha="center", transform=axes.transAxes)
            if plain is None:
                continue
            level = 100 * sum(plain) / len(plain)
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


def _draw_marks(axes: Axes, rows: Sequence[Row], network: str, plain: list[int]) -> None:
    for place, (weights, activations) in enumerate(BITS):
        for number, (scheme, fill) in enumerate(SCHEMES.items()):
            for rounding, look in zip(ROUNDINGS, LOOKS, strict=False):
                quantization = Quantization(scheme, weights, activations, rounding=rounding)
                after = right(rows, network, quantization)
                if after is None:
                    continue
                change = accuracy_difference(plain, after)
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
    for network, name in REAL_NETWORKS.items():
        plain = right(rows, network, Quantization("none"))
        changes = []
        for weights, activations in BITS:
            best = None
            for rounding in ROUNDINGS:
                quantization = Quantization("linear", weights, activations, rounding=rounding)
                own = right(rows, network, quantization)
                if plain is not None and own is not None:
                    change = accuracy_difference(plain, own)
                    if best is None or change.estimate > best[1].estimate:
                        best = rounding, change
            if best is not None:
                rounding, change = best
                changes.append(
                    f"W{weights}A{activations} {rounding} {100 * change.estimate:+.1f} "
                    f"({100 * change.low:+.1f} to {100 * change.high:+.1f})"
                )
        words.append(
            f"{name} ({len(plain or ())} images) " + (", ".join(changes) or "not measured")
        )
    return (
        "Top-1 of real networks as calibration leaves them, by bits, rounding and scheme; each "
        "half of the images is tested by the network that the other half calibrates; change from "
        "full precision in points with 95 % intervals over images, scheme linear, the best "
        "rounding: "
        f"{'; '.join(words)}."
    )
