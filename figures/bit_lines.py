"""The test loss along one line of scales at 8 to 2 bits, and how often a code changes on it."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import analysis_of
from landscape.plots import draw_line
from landscape.plots.style import STYLE

BITS = (8, 4, 3, 2)
RUNS = {
    str(bits): (
        *("landscape.scan", "--probe", "cliffs", "--weight-bits", str(bits)),
        *("--radius", "0.2", "--points", "81", "--test-images", "1000"),
        *("--cliffs", "1", "--intervals", "10"),
    )
    for bits in BITS
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw the line at each number of bits, below each other, in one scale."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 9), layout="constrained")
        panels = figure.subplots(len(runs), 1, sharex=True)
        for axes, (bits, dataset) in zip(panels, runs.items(), strict=True):
            found = analysis_of(dataset)
            draw_line(dataset, found, axes=axes)
            axes.set_title(f"{bits}-bit weights: {rate(dataset):,.0f} changes of a code per 1 %")
            label = axes.get_ylabel().replace("\n", " ")
            axes.set_ylabel("")
            axes.get_legend().remove()
            if axes is not panels[-1]:
                axes.set_xlabel("")
        values = np.concatenate([line.get_ydata() for axes in panels for line in axes.lines])
        margin = 0.05 * np.ptp(values)
        for axes in panels:
            axes.set_ylim(values.min() - margin, values.max() + margin)
        figure.supylabel(label, fontsize="medium")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure


def rate(dataset: Dataset) -> float:
    """Return how many codes of weights change while scales change by 1 %."""
    return analysis_of(dataset).cliffs.rate / 100


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = "; ".join(f"{bits} bits {rate(dataset):,.0f}" for bits, dataset in runs.items())
    images = next(iter(runs.values())).sizes["image"]
    return (
        f"The test loss of the bundled vision transformer ({images} test images) along one random "
        "line through its calibrated scales, the same direction at each number of bits. Codes of "
        f"weights that change while scales change by 1 %: {words}."
    )
