"""Figures for print: panels of a run, drawn anew at the width of a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from evolq.errors import InputError
from landscape.analysis import analysis_of
from landscape.plots.bits import draw_bits
from landscape.plots.cliffs import draw_exact, draw_jumps, draw_line, draw_rates
from landscape.plots.comparison_figures import (
    draw_barrier,
    draw_distances,
    draw_losses,
    draw_paths,
)
from landscape.plots.minima import draw_counts, draw_persistence
from landscape.plots.noise import draw_noise, draw_nulls
from landscape.plots.plane import draw_confidence, draw_map, draw_surface
from landscape.plots.rays import draw_curves
from landscape.plots.style import PRINT_STYLE
from landscape.plots.walks import draw_correlogram
from landscape.runs import Run

Draw = Callable[..., Figure]

_MINIMA: dict[str, Draw] = {
    "minima": draw_persistence,
    "counts": draw_counts,
    "noise": draw_noise,
    "nulls": draw_nulls,
}
# Dimension of a scan, or kind of run -> names of panels; those drawn if none is named come first.
PANELS: Mapping[str, Mapping[str, Draw]] = {
    "x": {
        "surface": draw_surface,
        "map": draw_map,
        "confidence": draw_confidence,
        "calibration-surface": partial(draw_surface, loss="loss"),
        "calibration-map": partial(draw_map, loss="loss"),
        **_MINIMA,
    },
    # before rays, as its line is one
    "cliff": {
        "line": draw_line,
        "jumps": draw_jumps,
        "rates": draw_rates,
        "exact": draw_exact,
    },
    "ray": {
        "curves": draw_curves,
        "calibration-curves": partial(draw_curves, loss="loss"),
        **_MINIMA,
    },
    "walk": {
        "curves": draw_curves,
        "correlogram": draw_correlogram,
        "calibration-curves": partial(draw_curves, loss="loss"),
    },
    "bits": {"bits": draw_bits},
    "compare": {
        "losses": draw_losses,
        "paths": draw_paths,
        "calibration-losses": partial(draw_losses, loss="loss"),
        "calibration-paths": partial(draw_paths, loss="loss"),
        "distances": draw_distances,
        "barrier": draw_barrier,
    },
}
DEFAULTS = 2
SOLID = ("surface", "calibration-surface")
ONE_COLUMN = 4.0  # inches up to which panels stand one below the other
HEIGHT = 0.82  # of a panel, in its width


def panels_of(run: Run) -> Mapping[str, Draw]:
    """Return the panels that a run can be drawn as, by name.

    Raises:
        InputError: for a search or a comparison of criteria, which have none.
    """
    content: Any = run.content
    kind = run.kind
    if kind == "scan":
        kind = next(name for name in PANELS if name in content.dims)
    if kind not in PANELS:
        raise InputError(f"a {kind} has no panels; give the run of a scan or of a comparison")
    return PANELS[kind]


def draw_panels(run: Run, names: Sequence[str], width: float) -> Figure:
    """Draw panels of a run beside and below each other, in the style of print.

    Args:
        run: a scan or a comparison.
        names: of the panels in reading order; none for the first ones of the kind.
        width: of the whole, in inches; beyond 4 in there are two columns.

    Raises:
        InputError: for a panel that this kind of run has not.
    """
    known = panels_of(run)
    chosen = list(names) or list(known)[:DEFAULTS]
    for name in chosen:
        if name not in known:
            raise InputError(f"this run has no `panel` {name!r}; choose from {', '.join(known)}")
    content: Any = run.content
    given = [content, analysis_of(content)] if run.kind == "scan" else [content]
    columns = 1 if width <= ONE_COLUMN else min(2, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    with matplotlib.rc_context(PRINT_STYLE):
        size = (width, HEIGHT * width / columns * rows)
        figure = Figure(figsize=size, layout="constrained")
        # one figure for each panel, so that the words of one do not narrow another
        parts = figure.subfigures(rows, columns, squeeze=False).flat
        for name, part in zip(chosen, parts, strict=False):  # the last row may have room
            axes = part.add_subplot(projection="3d" if name in SOLID else None)
            known[name](*given, axes=axes)
    return figure
