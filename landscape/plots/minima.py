"""Local minima: how deep each one is, and how many there are above each threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from xarray import Dataset

from landscape.analysis import Analysis, Counts, analyze
from landscape.plots.info import LOSSES
from landscape.plots.page import Candidate, Panel, Threshold, layout
from landscape.plots.style import ACCENT, QUIET, SHADE, drawing
from landscape.probes.sampling import FINITE
from landscape.statistics.persistence import persistence_diagram
from landscape.words import measure_of

PERSISTENCE_TITLE = "Minima of the test loss"
COUNTS_TITLE = "Minima at each threshold"
DEPTH_WORDS = "Depth (paired standard errors)"
COUNT_WORDS = "Minima deeper than that"
LOWEST_WORDS = "joins no lower one: always counts"
UNIT = "paired standard errors"
WORDS = (
    "Each point is a local minimum: its depth is how far one must climb to reach a lower one, in "
    "paired standard errors of that climb. Only what lies above the line is told from noise; move "
    "it, and the maps mark what then counts."
)


@dataclass(frozen=True, eq=False)
class MinimaInfo:
    """All minima of a plane or of rays, the lowest first: arrays over minima.

    Attributes:
        value: the test loss there.
        climb: how far one must climb to reach a lower one; infinite where there is none.
        depth: the same in its paired standard errors.
        on_edge: whether it touches the edge of what was measured.
        places: where it is, coordinates by dimension.
        sigmas: depth above which it is told from noise.
        measure: what the loss is, with its unit.
        counts: of minima at each threshold; None if not known.
    """

    value: NDArray[np.float64]
    climb: NDArray[np.float64]
    depth: NDArray[np.float64]
    on_edge: NDArray[np.bool_]
    places: dict[str, NDArray[np.float64]]
    sigmas: float
    measure: str
    counts: Counts | None

    @property
    def top(self) -> float:
        """A depth above all that are finite, where those without a lower one are drawn."""
        finite = self.depth[np.isfinite(self.depth)]
        return 1.15 * max(float(finite.max(initial=0.0)), self.sigmas, 1.0)


def minima_info(dataset: Dataset, analysis: Analysis) -> MinimaInfo | None:
    """Return the minima of a scan; None where it has none that a threshold could tell from noise.

    Args:
        dataset: the result of a scan of a plane or of rays.
        analysis: of it.
    """
    minima = analysis.minima
    if minima is None or not minima.minima or not np.isfinite(minima.sigmas):
        return None
    known = dataset.assign(test_loss=dataset.test_loss.where(dataset.status == FINITE))
    found = persistence_diagram(known, minima.connectivity, minima.sigmas)
    climb, noise = found.persistence.values, found.noise.values
    with np.errstate(divide="ignore", invalid="ignore"):  # the lowest: its noise is not known
        depth = np.where(np.isinf(climb), np.inf, climb / noise)
    return MinimaInfo(
        value=found.birth.values,
        climb=climb,
        depth=depth,
        on_edge=found.boundary.values,
        places={
            str(name).removeprefix("at_"): values.values
            for name, values in found.data_vars.items()
            if str(name).startswith("at_")
        },
        sigmas=minima.sigmas,
        measure=measure_of(dataset.test_loss, LOSSES["test_loss"].lower()),
        counts=analysis.counts,
    )


def draw_persistence(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw the depth of each minimum against its loss, and the threshold of noise.

    Args:
        dataset: the result of a scan of a plane or of rays.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    info = minima_info(dataset, analysis or analyze(dataset))
    with drawing(axes) as (figure, axes):
        axes.set_title(PERSISTENCE_TITLE)
        axes.set_ylabel(DEPTH_WORDS)
        if info is None:
            axes.text(0.5, 0.5, "too few images to tell", ha="center", transform=axes.transAxes)
            return figure
        axes.set_xlabel(f"Test loss there: {info.measure}")
        axes.axhspan(0, info.sigmas, **SHADE, label="within noise")
        finite = np.isfinite(info.depth)
        above = info.depth > info.sigmas
        for chosen, face, words in (
            (finite & ~above, "none", "not told from noise"),
            (finite & above, ACCENT, "deeper than noise"),
        ):
            if chosen.any():
                axes.plot(
                    info.value[chosen],
                    info.depth[chosen],
                    "o",
                    color=ACCENT,
                    markerfacecolor=face,
                    label=words,
                )
        tops = np.full(int((~finite).sum()), info.top)
        axes.plot(info.value[~finite], tops, "^", color=ACCENT, label="the lowest")
        axes.set_ylim(0, 1.1 * info.top)
        axes.legend()
    return figure


def draw_counts(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw the number of minima above each threshold, its band, and what noise alone makes.

    Args:
        dataset: the result of a scan of a plane or of rays.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    counts = (analysis or analyze(dataset)).counts
    measure = measure_of(dataset.test_loss, LOSSES["test_loss"].lower())
    with drawing(axes) as (figure, axes):
        axes.set_title(COUNTS_TITLE)
        axes.set_xlabel(f"Threshold: {measure}")
        axes.set_ylabel(COUNT_WORDS)
        if counts is None:
            axes.text(0.5, 0.5, "too few images to tell", ha="center", transform=axes.transAxes)
            return figure
        most = _most(counts)
        high = np.minimum(counts.high, most)
        axes.fill_between(
            counts.threshold, counts.low, high, step="post", label="true number, 95 %", **SHADE
        )
        axes.step(
            counts.threshold,
            counts.noise,
            where="post",
            label="noise alone",
            linestyle=":",
            **QUIET,
        )
        axes.step(counts.threshold, counts.count, where="post", color=ACCENT, label="measured")
        axes.set_ylim(0, most)
        axes.legend(frameon=True, facecolor="white", framealpha=1)  # apart from the band
    return figure


def minima_panel(dataset: Dataset, analysis: Analysis) -> Panel | None:
    """Return the minima with a slider for the threshold; None where there is nothing to tell."""
    info = minima_info(dataset, analysis)
    if info is None:
        return None
    top = info.top
    depths = np.where(np.isfinite(info.depth), info.depth, top)
    zeros = np.zeros(len(info.value))
    candidates = tuple(
        Candidate(float(x), float(y), float(v), float(d) if np.isfinite(d) else None, bool(edge))
        for x, y, v, d, edge in zip(
            info.places.get("x", zeros),
            info.places.get("y", zeros),
            info.value,
            info.depth,
            info.on_edge,
            strict=True,
        )
    )
    diagram = go.Figure(
        go.Scatter(
            x=info.value,
            y=depths,
            mode="markers",
            marker={
                "size": 11,
                "color": ACCENT,
                "symbol": ["circle" if d > info.sigmas else "circle-open" for d in info.depth],
            },
            text=_texts(info),
            hoverinfo="text",
            showlegend=False,
        )
    )
    diagram.add_hline(info.sigmas, line={"color": "gray", "width": 2})
    diagram.update_layout(
        layout(PERSISTENCE_TITLE),
        xaxis_title_text=f"Test loss there: {info.measure}",
        yaxis={"title": {"text": DEPTH_WORDS}, "range": [0, 1.1 * top]},
    )
    figures = [diagram]
    if info.counts is not None:
        figures.append(_counts_figure(info.counts, info.measure))
    return Panel(
        "Local minima, and which are real",
        tuple(figures),
        WORDS,
        threshold=Threshold(info.sigmas, top, UNIT, candidates),
    )


def _most(counts: Counts) -> float:
    """Return the upper end of an axis of counts: bands without an upper limit leave it."""
    return 1.15 * float(max(counts.count.max(), counts.noise.max(), 1))


def _counts_figure(counts: Counts, measure: str) -> go.Figure:
    most = _most(counts)
    line = {"shape": "hv"}
    shade = "rgba(128, 128, 128, 0.3)"
    figure = go.Figure(
        [
            go.Scatter(
                x=counts.threshold,
                y=counts.low,
                line=line | {"width": 0},
                hoverinfo="skip",
                showlegend=False,
            ),
            go.Scatter(
                x=counts.threshold,
                y=np.minimum(counts.high, 2 * most),
                line=line | {"width": 0},
                fill="tonexty",
                fillcolor=shade,
                hoverinfo="skip",
                name="true number, 95 % at all thresholds",
            ),
            go.Scatter(
                x=counts.threshold,
                y=counts.noise,
                line=line | {"color": "gray", "dash": "dot"},
                name="noise alone, mean",
            ),
            go.Scatter(
                x=counts.threshold,
                y=counts.count,
                line=line | {"color": ACCENT, "width": 3},
                name="measured",
            ),
        ]
    )
    figure.update_layout(
        layout(COUNTS_TITLE),
        xaxis_title_text=f"Threshold: {measure}",
        yaxis={"title": {"text": COUNT_WORDS}, "range": [0, most]},
    )
    return figure


def _texts(info: MinimaInfo) -> list[str]:
    """Return what hovering over each minimum says."""
    found = []
    for number, (value, climb, depth) in enumerate(
        zip(info.value, info.climb, info.depth, strict=True)
    ):
        place = ", ".join(f"{name} = {at[number]:.4g}" for name, at in info.places.items())
        deep = f"{climb:.4f} deep, {depth:.1f} {UNIT}" if np.isfinite(climb) else LOWEST_WORDS
        edge = "<br>on the edge" if info.on_edge[number] else ""
        found.append(f"{place}<br>test loss {value:.4f}<br>{deep}{edge}")
    return found
