"""What `python -m landscape.scan` draws without any option."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import analysis_of
from landscape.plots import draw as draw_scan

RUNS = {"fashion_vit": ("landscape.scan",)}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw what the command writes as scan.png."""
    dataset = runs["fashion_vit"]
    return draw_scan(dataset, analysis_of(dataset))


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    dataset = runs["fashion_vit"]
    minima = analysis_of(dataset).minima
    return (
        "A 4-bit vision transformer on a plane of two random directions in scale space. Above: the "
        "calibration loss, the test loss, and where the test loss is told apart from the start "
        f"(star) on {dataset.sizes['image']} images; circles: local minima deeper than noise makes "
        f"them, {len(minima.minima)} of {len(minima.minima) + minima.below}. "
        "Below: the same losses as surfaces."
    )
