"""Figures of a scan, static and interactive; the only user of matplotlib and plotly."""

from landscape.plots.figures import (
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

__all__ = [
    "BitsInfo",
    "PlaneInfo",
    "RaysInfo",
    "bits_info",
    "draw_bits",
    "draw_confidence",
    "draw_map",
    "draw_plane",
    "draw_rays",
    "draw_surface",
    "interactive",
    "plane_info",
    "rays_info",
    "save_figure",
    "write_html",
]
