"""Figures of scans and comparisons; the only user of matplotlib and plotly."""

from landscape.plots.comparison_figures import draw_comparison
from landscape.plots.comparison_html import interactive_comparison
from landscape.plots.comparison_info import ComparisonInfo, comparison_info
from landscape.plots.figures import (
    draw,
    draw_bits,
    draw_confidence,
    draw_map,
    draw_plane,
    draw_rays,
    draw_surface,
    save_figure,
)
from landscape.plots.html import interactive, write_html
from landscape.plots.info import BitsInfo, PlaneInfo, RaysInfo, bits_info, plane_info, rays_info
from landscape.plots.transfer_figures import draw_transfer

__all__ = [
    "BitsInfo",
    "ComparisonInfo",
    "PlaneInfo",
    "RaysInfo",
    "bits_info",
    "comparison_info",
    "draw",
    "draw_bits",
    "draw_comparison",
    "draw_confidence",
    "draw_map",
    "draw_plane",
    "draw_rays",
    "draw_surface",
    "draw_transfer",
    "interactive",
    "interactive_comparison",
    "plane_info",
    "rays_info",
    "save_figure",
    "write_html",
]
