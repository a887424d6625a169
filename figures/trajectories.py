"""Gradient against evolution on the loss surface of a 3-bit vision transformer."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from xarray import Dataset

from landscape.paths.comparison import outcomes
from landscape.plots import draw_comparison
from landscape.plots.comparison_info import interval_words, seeds_words

RUNS = {
    "fashion_vit": (
        *("landscape.compare", "--weight-bits", "3", "--budget", "60", "--seeds", "5"),
        *("--points", "15", "--test-images", "500"),
    )
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw losses against cost, the paths on one plane, and what each optimizer reached."""
    return draw_comparison(runs["fashion_vit"])


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    dataset = runs["fashion_vit"]
    reached = "; ".join(
        f"{one.optimizer} {interval_words(*one.test_accuracy_change, percent=True)}"
        for one in outcomes(dataset)
    )
    return (
        "Optimizers of scales from one start at equal cost. Change of the test accuracy in points, "
        f"with 95 % intervals: {reached}; {seeds_words(dataset.sizes['seed'])}."
    )
