"""A scan of any kind, drawn by either library."""

from __future__ import annotations

from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import Analysis, analyze
from landscape.findings import describe
from landscape.plots.bits import bits_panels, draw_bits
from landscape.plots.cliffs import cliffs_panels, draw_cliffs
from landscape.plots.info import subtitle_of, table_of, title_of
from landscape.plots.page import Section
from landscape.plots.plane import draw_plane
from landscape.plots.plane_html import plane_panels
from landscape.plots.rays import draw_rays, rays_panels
from landscape.plots.walks import draw_walks, walks_panels

# A dimension that only this kind of scan has -> static figure and interactive panels.
KINDS = {
    "bits": (draw_bits, bits_panels),
    "walk": (draw_walks, walks_panels),
    "cliff": (draw_cliffs, cliffs_panels),
    "ray": (draw_rays, rays_panels),
    "x": (draw_plane, plane_panels),
}


def draw(dataset: Dataset, analysis: Analysis | None = None) -> Figure:
    """Draw a scan of any kind: raw values, nothing smoothed, nothing left out.

    Args:
        dataset: the result of a scan.
        analysis: of it, if it has been computed already.
    """
    return KINDS[_kind(dataset)][0](dataset, analysis or analyze(dataset))


def interactive(dataset: Dataset, analysis: Analysis | None = None) -> Section:
    """Say what a scan found, and draw it to be turned, zoomed and asked.

    Args:
        dataset: the result of a scan of any kind.
        analysis: of it, if it has been computed already.
    """
    found = analysis or analyze(dataset)
    panels = KINDS[_kind(dataset)][1](dataset, found)
    over = tuple(str(name) for name in dataset.test_loss.dims)
    return Section(
        title_of(dataset),
        subtitle_of(dataset),
        describe(dataset, found),
        tuple(panel for panel in panels if panel),
        table_of(dataset.assign(found.changes.data_vars), over),
        dataset.attrs.get("provenance", ""),
    )


def _kind(dataset: Dataset) -> str:
    return next(dimension for dimension in KINDS if dimension in dataset.dims)
