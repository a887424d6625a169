"""Figures of scans and comparisons; the only user of matplotlib and plotly."""

from landscape.plots.bits import BitsInfo, bits_info, draw_bits
from landscape.plots.cliffs import draw_exact, draw_jumps, draw_line, draw_rates
from landscape.plots.comparison_figures import (
    draw_barrier,
    draw_comparison,
    draw_distances,
    draw_losses,
    draw_paths,
)
from landscape.plots.comparison_html import interactive_comparison, outcome_rows
from landscape.plots.comparison_info import ComparisonInfo, comparison_info
from landscape.plots.kinds import draw, interactive
from landscape.plots.minima import draw_counts, draw_persistence
from landscape.plots.noise import draw_noise, draw_nulls
from landscape.plots.page import Panel, Section, html, write_html
from landscape.plots.plane import (
    PlaneInfo,
    draw_confidence,
    draw_map,
    draw_plane,
    draw_surface,
    plane_info,
)
from landscape.plots.rays import RaysInfo, draw_curves, draw_rays, rays_info
from landscape.plots.report import sections_of
from landscape.plots.style import PRINT_STYLE_FILE, STYLE_FILE, save_figure
from landscape.plots.transfer import draw_transfer
from landscape.plots.walks import draw_correlogram

__all__ = [
    "PRINT_STYLE_FILE",
    "STYLE_FILE",
    "BitsInfo",
    "ComparisonInfo",
    "Panel",
    "PlaneInfo",
    "RaysInfo",
    "Section",
    "bits_info",
    "comparison_info",
    "draw",
    "draw_barrier",
    "draw_bits",
    "draw_comparison",
    "draw_confidence",
    "draw_correlogram",
    "draw_counts",
    "draw_curves",
    "draw_distances",
    "draw_exact",
    "draw_jumps",
    "draw_line",
    "draw_losses",
    "draw_map",
    "draw_noise",
    "draw_nulls",
    "draw_paths",
    "draw_persistence",
    "draw_plane",
    "draw_rates",
    "draw_rays",
    "draw_surface",
    "draw_transfer",
    "html",
    "interactive",
    "interactive_comparison",
    "outcome_rows",
    "plane_info",
    "rays_info",
    "save_figure",
    "sections_of",
    "write_html",
]
