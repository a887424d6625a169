"""What a scale does: codes, the cliffs at which they change, and the test loss between cliffs."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import analysis_of
from landscape.plots import draw_exact
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE

RUNS = {
    "fashion_vit": (
        *("landscape.scan", "--probe", "cliffs", "--weight-bits", "3"),
        *("--radius", "0.1", "--points", "9"),
    )
}
WEIGHTS = (0.62, 2.3)
CODES = range(4)  # those that the axes show
FACTORS = np.linspace(-0.4, 0.4, 4001)  # logarithms


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw weights against their scale, and the exact line of a real weight beside them."""
    dataset = runs["fashion_vit"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_weights(left)
        draw_exact(dataset, analysis_of(dataset), axes=right)
        right.set_title(f"{analysis_of(dataset).cliffs.exact.weight}: what codes do to the loss")
    return figure


def _draw_weights(axes: Axes) -> None:
    scale = np.exp(FACTORS)
    for code in CODES:
        axes.plot(FACTORS, code * scale, color="0.8", linewidth=1)
        axes.annotate(f"code {code}", (0.41, code * scale[-1]), va="center", fontsize="small")
    for weight, look in zip(WEIGHTS, LOOKS, strict=False):
        codes = np.round(weight / scale)
        ends = np.flatnonzero(np.diff(codes)) + 1
        values = codes * scale
        for part in np.split(np.arange(len(scale)), ends):
            axes.plot(FACTORS[part], values[part], color=look.color, linewidth=2.5)
        axes.vlines(FACTORS[ends], values[ends - 1], values[ends], look.color, ":", linewidth=2)
        axes.axhline(weight, color=look.color, linewidth=0.8, linestyle="--")
        axes.annotate(f"w = {weight}", (-0.4, weight), (0, 3), textcoords="offset points")
    axes.set_xlim(-0.42, 0.54)
    axes.set_title("Two weights that share a scale (dotted: cliffs)")
    axes.set_xlabel("Logarithm of the factor on the scale")
    axes.set_ylabel("Value that a weight gets")


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    dataset = runs["fashion_vit"]
    found = analysis_of(dataset).cliffs
    return (
        "Left: a scale s gives a weight w the code round(w / s) and the value code times s; as s "
        "grows, the code jumps at places that are known: cliffs. Right: the test "
        f"loss of a 3-bit vision transformer along the scales of {found.exact.weight}, measured "
        f"once between each two cliffs, on {dataset.sizes['image']} images; gray is numerical "
        f"noise. A step of 1 % in all scales crosses {0.01 * found.rate:,.0f} cliffs."
    )
