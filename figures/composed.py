"""A figure of one's own, as docs/figures.md composes it: two panels and a curve, for print."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.style
from matplotlib.figure import Figure
from xarray import Dataset

from figures import default_scan
from landscape.analysis import analysis_of
from landscape.plots import PRINT_STYLE_FILE, STYLE_FILE, draw_confidence, draw_map

RUNS = default_scan.RUNS


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw a map, what is told apart, and the row through the start, both columns wide."""
    dataset = runs["fashion_vit"]
    found = analysis_of(dataset)
    with matplotlib.style.context([STYLE_FILE, PRINT_STYLE_FILE]):
        figure = Figure(figsize=(6.75, 2.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        draw_map(dataset, found, loss="loss", axes=left)
        draw_confidence(dataset, found, axes=middle)
        row = dataset.sel(y=0, method="nearest")
        error = found.changes.test_loss_change_error.sel(y=0, method="nearest")
        right.errorbar(row.x, row.test_loss, error)
        right.set_title("Row at y = 0")
        right.set_xlabel(dataset.x.attrs["long_name"])
        right.set_ylabel("Test loss (nats)")
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    dataset = runs["fashion_vit"]
    found = analysis_of(dataset)
    start = found.start_test_accuracy
    return (
        "The calibration loss of a 4-bit vision transformer, where its test loss is told apart "
        f"from the start, and one row of it with paired standard errors; {start.estimate:.1%} at "
        f"the start ({start.low:.1%} to {start.high:.1%}); minima above the noise of "
        f"{dataset.sizes['image']} images: {len(found.minima.minima)}."
    )
