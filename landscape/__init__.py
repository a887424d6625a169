"""Probes of the loss surface around a quantized network.

The names below are loaded when they are first used (PEP 562), so that `import landscape` costs
nothing and command lines can refuse bad input before PyTorch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.bit_widths import sample_bits, sample_layers
    from landscape.directions import (
        DIRECTIONS,
        NORMALISATIONS,
        between,
        normalise,
        orthogonal_pair,
        orthogonal_to,
    )
    from landscape.minima import Minima, Minimum, find_minima, significant_minima
    from landscape.roughness import (
        Reliability,
        paired_noise,
        split_half_reliability,
        total_variation,
    )
    from landscape.sampling import Radius, auto_radius, axis, sample_plane, sample_rays
    from landscape.slices import Line, Plane
    from landscape.store import load, save

_MODULES = {
    "bit_widths": ("sample_bits", "sample_layers"),
    "directions": (
        "DIRECTIONS",
        "NORMALISATIONS",
        "between",
        "normalise",
        "orthogonal_pair",
        "orthogonal_to",
    ),
    "minima": ("Minima", "Minimum", "find_minima", "significant_minima"),
    "roughness": ("Reliability", "paired_noise", "split_half_reliability", "total_variation"),
    "sampling": ("Radius", "auto_radius", "axis", "sample_plane", "sample_rays"),
    "slices": ("Line", "Plane"),
    "store": ("load", "save"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DIRECTIONS",
    "NORMALISATIONS",
    "Line",
    "Minima",
    "Minimum",
    "Plane",
    "Radius",
    "Reliability",
    "auto_radius",
    "axis",
    "between",
    "find_minima",
    "load",
    "normalise",
    "orthogonal_pair",
    "orthogonal_to",
    "paired_noise",
    "sample_bits",
    "sample_layers",
    "sample_plane",
    "sample_rays",
    "save",
    "significant_minima",
    "split_half_reliability",
    "total_variation",
]


def __getattr__(name: str) -> Any:
    """Load the module that defines the public `name`."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(import_module(f"landscape.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
