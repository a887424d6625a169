"""Probes of the loss surface around a quantized network.

The names below are loaded when they are first used (PEP 562), so that `import landscape` costs
nothing and command lines can refuse bad input before PyTorch is imported.
"""

from typing import TYPE_CHECKING

from evolq.lazy import lazy_names

if TYPE_CHECKING:
    from landscape.analysis import Analysis, analyze, read_analysis, with_analysis
    from landscape.comparisons import Comparison
    from landscape.landscaper import to_landscaper
    from landscape.paths.trajectories import (
        measure_path,
        pca_plane,
        plane_through,
        project_path,
    )
    from landscape.plots.kinds import draw
    from landscape.probes.bit_widths import sample_bits, sample_layers
    from landscape.probes.directions import (
        DIRECTIONS,
        NORMALIZATIONS,
        normalize,
        orthogonal_pair,
        orthogonal_to,
    )
    from landscape.probes.sampling import Radius, auto_radius, axis, sample_plane, sample_rays
    from landscape.probes.slices import Line, Plane
    from landscape.scans import (
        BitScan,
        CliffScan,
        LayerScan,
        PlaneScan,
        RayScan,
        WalkScan,
    )
    from landscape.statistics.minima import Minima, Minimum, find_minima, significant_minima
    from landscape.statistics.null_counts import null_counts
    from landscape.statistics.numerical_noise import noise_floor
    from landscape.statistics.roughness import (
        Reliability,
        paired_noise,
        split_half_reliability,
        total_variation,
    )
    from landscape.store import load, save

_MODULES = {
    "comparisons": ("Comparison",),
    "analysis": ("Analysis", "analyze", "read_analysis", "with_analysis"),
    "plots.kinds": ("draw",),
    "scans": ("BitScan", "CliffScan", "LayerScan", "PlaneScan", "RayScan", "WalkScan"),
    "probes.bit_widths": ("sample_bits", "sample_layers"),
    "probes.directions": (
        "DIRECTIONS",
        "NORMALIZATIONS",
        "normalize",
        "orthogonal_pair",
        "orthogonal_to",
    ),
    "statistics.minima": ("Minima", "Minimum", "find_minima", "significant_minima"),
    "statistics.null_counts": ("null_counts",),
    "statistics.numerical_noise": ("noise_floor",),
    "statistics.roughness": (
        "Reliability",
        "paired_noise",
        "split_half_reliability",
        "total_variation",
    ),
    "probes.sampling": ("Radius", "auto_radius", "axis", "sample_plane", "sample_rays"),
    "probes.slices": ("Line", "Plane"),
    "store": ("load", "save"),
    "landscaper": ("to_landscaper",),
    "paths.trajectories": (
        "measure_path",
        "pca_plane",
        "plane_through",
        "project_path",
    ),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "DIRECTIONS",
    "NORMALIZATIONS",
    "Analysis",
    "BitScan",
    "CliffScan",
    "Comparison",
    "LayerScan",
    "Line",
    "Minima",
    "Minimum",
    "Plane",
    "PlaneScan",
    "Radius",
    "RayScan",
    "Reliability",
    "WalkScan",
    "analyze",
    "auto_radius",
    "axis",
    "draw",
    "find_minima",
    "load",
    "measure_path",
    "noise_floor",
    "normalize",
    "null_counts",
    "orthogonal_pair",
    "orthogonal_to",
    "paired_noise",
    "pca_plane",
    "plane_through",
    "project_path",
    "read_analysis",
    "sample_bits",
    "sample_layers",
    "sample_plane",
    "sample_rays",
    "save",
    "significant_minima",
    "split_half_reliability",
    "to_landscaper",
    "total_variation",
    "with_analysis",
]
