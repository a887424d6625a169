"""A scan of any kind, drawn by either library."""

from __future__ import annotations

from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import Analysis, analyze
from landscape.plots.bits import draw_bits, interactive_bits
from landscape.plots.cliffs import draw_cliffs, interactive_cliffs
from landscape.plots.page import Page
from landscape.plots.plane import draw_plane
from landscape.plots.plane_html import interactive_plane
from landscape.plots.rays import draw_rays, interactive_rays
from landscape.plots.walks import draw_walks, interactive_walks

# A dimension that only this kind of scan has -> static figure and interactive page.
KINDS = {
    "bits": (draw_bits, interactive_bits),
    "walk": (draw_walks, interactive_walks),
    "cliff": (draw_cliffs, interactive_cliffs),
    "ray": (draw_rays, interactive_rays),
    "x": (draw_plane, interactive_plane),
}


def draw(dataset: Dataset, analysis: Analysis | None = None) -> Figure:
    """Draw a scan of any kind: raw values, nothing smoothed, nothing left out.

    Args:
        dataset: the result of a scan.
        analysis: of it, if it has been computed already.
    """
    return KINDS[_kind(dataset)][0](dataset, analysis or analyze(dataset))


def interactive(dataset: Dataset, analysis: Analysis | None = None) -> Page:
    """Draw a scan to be turned, zoomed and asked: hovering names a point and its values.

    Args:
        dataset: the result of a scan of any kind.
        analysis: of it, if it has been computed already.
    """
    return KINDS[_kind(dataset)][1](dataset, analysis or analyze(dataset))


def _kind(dataset: Dataset) -> str:
    return next(dimension for dimension in KINDS if dimension in dataset.dims)
