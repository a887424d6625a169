"""Cliffs: what changes of codes make of a line, how high single jumps are, how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from xarray import Dataset

from evolq.losses.paired import paired_standard_error
from landscape.analysis import Analysis, analyze
from landscape.cliff_analysis import CliffAnalysis, variation_of
from landscape.plots.info import Axis, axis_of, subtitle_of, title_of
from landscape.plots.noise import noise_panel
from landscape.plots.page import Panel, layout
from landscape.plots.palette import LOOKS, Look
from landscape.plots.rays import FLOOR_WORDS
from landscape.plots.style import STYLE, drawing
from landscape.words import TEST_LOSS_WORDS, with_unit

LINE_TITLE = "Where ups and downs of the line come from"
JUMPS_TITLE = "Jump of the test loss at single cliffs"
RATES_TITLE = "Cliffs in a distance of 1"
EXACT_TITLE = "{}: once between each two cliffs"
CHANGE_WORDS = f"Change of the test loss: {TEST_LOSS_WORDS}"
JUMP_WORDS = f"Size of the jump: {TEST_LOSS_WORDS}"
BITS_WORDS = "Bits of all weights"
NOISE_WORDS = FLOOR_WORDS.replace(", ", ",\n")  # for a legend in a narrow figure
ERROR_WORDS = "± 1 standard error (paired with the start)"
# Name -> color, of what adds up to the line.
PARTS = {
    "the line": LOOKS[4].color,
    "made when codes of weights change": LOOKS[0].color,
    "made with codes held, while scales move": LOOKS[1].color,
}


@dataclass(frozen=True, eq=False)
class CliffsInfo:
    """All that a figure of cliffs shows."""

    title: str
    subtitle: str
    distance: Axis
    parts: dict[str, NDArray[np.float64]]  # of the line, summed up from its first point
    found: CliffAnalysis
    looks: dict[str, Look]  # kind of layer -> how it looks
    places: NDArray[np.float64]  # ends of the intervals of the exact line, (2 n,)
    levels: NDArray[np.float64]  # change from the start there
    errors: NDArray[np.float64]


def cliffs_info(dataset: Dataset, analysis: Analysis) -> CliffsInfo:
    """Return what a figure of cliffs shows.

    Args:
        dataset: the result of a scan of cliffs.
        analysis: of it.
    """
    found = analysis.cliffs
    assert found is not None  # a scan of cliffs has it
    variation = variation_of(dataset)
    steps = (variation.drift + variation.jump, variation.jump, variation.drift)
    sums = [np.concatenate([[0.0], part.cumsum()]) for part in steps]
    low, high = dataset.interval_low.values, dataset.interval_high.values
    losses = dataset.interval_test_loss_per_image.transpose("interval", "image").values
    changes = losses - losses[np.flatnonzero(low <= 0).max()]
    return CliffsInfo(
        title=title_of(dataset),
        subtitle=subtitle_of(dataset),
        distance=axis_of(dataset.distance),
        parts=dict(zip(PARTS, sums, strict=True)),
        found=found,
        looks={kind: LOOKS[place % len(LOOKS)] for place, kind in enumerate(found.kinds)},
        places=np.stack([low, high], axis=1).ravel(),
        levels=np.repeat(changes.mean(axis=1), 2),
        errors=np.repeat(paired_standard_error(changes), 2),
    )


def draw_cliffs(dataset: Dataset, analysis: Analysis) -> Figure:
    """Draw a line with its cliffs.

    Args:
        dataset: the result of a scan of cliffs.
        analysis: of it.
    """
    info = cliffs_info(dataset, analysis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 9.5), layout="constrained")
        figure.suptitle(f"{info.title}\n{info.subtitle}")
        (line, jumps), (rates, exact) = figure.subplots(2, 2)
        _line_on(line, info)
        _jumps_on(jumps, info)
        _rates_on(rates, info)
        _exact_on(exact, info)
    return figure


def draw_line(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw which ups and downs of a line are jumps at cliffs, and which are drift between them.

    Args:
        dataset: the result of a scan of cliffs.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    return _drawn(_line_on, dataset, analysis, axes)


def draw_jumps(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw how far the test loss jumps at single cliffs, by kind of layer; see `draw_line`."""
    return _drawn(_jumps_on, dataset, analysis, axes)


def draw_rates(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw how many cliffs there are in a distance of 1, by bit-width; see `draw_line`."""
    return _drawn(_rates_on, dataset, analysis, axes)


def draw_exact(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw the test loss once between each two cliffs of one weight; see `draw_line`."""
    return _drawn(_exact_on, dataset, analysis, axes)


def _drawn(
    draw: Callable[[Axes, CliffsInfo], None],
    dataset: Dataset,
    analysis: Analysis | None,
    axes: Axes | None,
) -> Figure:
    with drawing(axes) as (figure, axes):
        draw(axes, cliffs_info(dataset, analysis or analyze(dataset)))
    return figure


def cliffs_panels(dataset: Dataset, analysis: Analysis) -> list[Panel | None]:
    """Return a line with its cliffs; hovering names values.

    Args:
        dataset: the result of a scan of cliffs.
        analysis: of it.
    """
    info = cliffs_info(dataset, analysis)
    figures = (_line_figure(info), _jumps_figure(info), _rates_figure(info), _exact_figure(info))
    return [Panel("The line and its cliffs", figures), noise_panel(analysis)]


def _line_on(axes: Axes, info: CliffsInfo) -> None:
    if info.found.floor:
        axes.axhspan(
            -info.found.floor, info.found.floor, color="0.85", linewidth=0, label=NOISE_WORDS
        )
    for name, values in info.parts.items():
        style = {"linewidth": 2.5} if name == "the line" else {"linewidth": 1.5, "marker": "."}
        axes.plot(info.distance.values, values, color=PARTS[name], label=name, **style)
    axes.set_title(f"{LINE_TITLE}\n{_share_words(info)}")
    axes.set_xlabel(with_unit(info.distance.name, info.distance.unit, "\n"))
    axes.set_ylabel(f"{CHANGE_WORDS},\nfrom the first point")
    _legend_on_top(axes, 0.75)


def _jumps_on(axes: Axes, info: CliffsInfo) -> None:
    names = [kind for kind, each in info.found.kinds.items() if each.jumps]
    for row, kind in enumerate(names):
        sizes = np.maximum(info.found.kinds[kind].jumps, _smallest(info))
        look = info.looks[kind]
        axes.plot(sizes, np.full(len(sizes), row), look.marker, color=look.color, alpha=0.7)
        axes.plot(np.median(sizes), row, "|", color="black", markersize=20)
    if info.found.floor:
        axes.axvspan(
            _smallest(info), info.found.floor, color="0.85", linewidth=0, label=NOISE_WORDS
        )
        axes.legend(loc="lower left", fontsize="small")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), labels=[_short(name) for name in names])
    axes.set_ylim(-2.2, len(names) - 0.2)  # below is the legend
    axes.set_title(f"{JUMPS_TITLE}\nblack: the median")
    axes.set_xlabel(JUMP_WORDS)


def _rates_on(axes: Axes, info: CliffsInfo) -> None:
    rates = info.found.rates
    axes.semilogy(list(rates), list(rates.values()), "o-", color=LOOKS[4].color)
    axes.axhline(info.found.rate, color="0.4", linestyle=":", linewidth=1)
    words = f"the start: {info.found.rate:,.0f},\none per {1 / info.found.rate:.1g}"
    axes.annotate(
        words, (min(rates), info.found.rate), (0, 4), textcoords="offset points", ha="left"
    )
    axes.set_title(f"{RATES_TITLE}\neach bit more doubles them")
    axes.set_xlabel(BITS_WORDS)
    axes.set_ylabel("Codes of weights that change")


def _exact_on(axes: Axes, info: CliffsInfo) -> None:
    color = LOOKS[1].color
    if info.found.floor:
        axes.axhspan(-info.found.floor, info.found.floor, color="0.85", linewidth=0)
    low, high = info.levels - info.errors, info.levels + info.errors
    axes.fill_between(info.places, low, high, color=color, alpha=0.25, label=ERROR_WORDS)
    axes.plot(info.places, info.levels, color=color, linewidth=1.5)
    axes.axvline(0, color="0.4", linewidth=0.8, linestyle=":")
    axes.plot(info.found.exact.lowest, info.found.exact.change, "v", color="black", label="lowest")
    axes.set_title(EXACT_TITLE.format(info.found.exact.weight))
    axes.set_xlabel(with_unit(info.distance.name, info.distance.unit, "\n"))
    axes.set_ylabel(f"{CHANGE_WORDS},\nfrom the start")
    _legend_on_top(axes, 0.35)


def _legend_on_top(axes: Axes, share: float) -> None:
    """Make room above the curves, that share of their height, and put the legend there."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))
    axes.legend(loc="upper left", fontsize="small")


def _line_figure(info: CliffsInfo) -> go.Figure:
    figure = go.Figure([
        go.Scatter(
            x=info.distance.values, y=values, mode="lines+markers", name=name,
            line={"color": PARTS[name], "width": 3 if name == "the line" else 2},
        )
        for name, values in info.parts.items()
    ])  # fmt: skip
    _finish(figure, f"{LINE_TITLE}: {_share_words(info)}", info.distance.label, CHANGE_WORDS)
    _band(figure, info)
    return figure


def _jumps_figure(info: CliffsInfo) -> go.Figure:
    figure = go.Figure([
        go.Scatter(
            x=np.maximum(each.jumps, _smallest(info)), y=[_short(kind)] * len(each.jumps),
            mode="markers", name=_short(kind), showlegend=False,
            marker={"color": info.looks[kind].color, "symbol": info.looks[kind].symbol, "size": 9},
        )
        for kind, each in info.found.kinds.items() if each.jumps
    ])  # fmt: skip
    _finish(figure, JUMPS_TITLE, JUMP_WORDS, "")
    figure.update_xaxes(type="log", exponentformat="power")
    if info.found.floor:
        figure.add_vrect(
            x0=_smallest(info), x1=info.found.floor, fillcolor="gray", opacity=0.3, line_width=0
        )
    return figure


def _rates_figure(info: CliffsInfo) -> go.Figure:
    rates = info.found.rates
    figure = go.Figure(
        go.Scatter(
            x=list(rates), y=list(rates.values()), mode="lines+markers", name="all at these bits"
        )
    )
    figure.add_hline(info.found.rate, line={"dash": "dot", "color": "gray", "width": 1})
    _finish(figure, RATES_TITLE, BITS_WORDS, "Codes of weights that change")
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def _exact_figure(info: CliffsInfo) -> go.Figure:
    color = LOOKS[1].color
    figure = go.Figure([
        go.Scatter(
            x=info.places, y=info.levels + sign * info.errors, mode="lines", line={"width": 0},
            fill="tonexty" if sign > 0 else None, fillcolor="rgba(0, 114, 178, 0.25)",
            name=ERROR_WORDS, showlegend=sign > 0, hoverinfo="skip",
        )
        for sign in (-1, 1)
    ])  # fmt: skip
    figure.add_trace(
        go.Scatter(x=info.places, y=info.levels, mode="lines", line={"color": color}, name="line")
    )
    _finish(figure, EXACT_TITLE.format(info.found.exact.weight), info.distance.label, CHANGE_WORDS)
    _band(figure, info)
    return figure


def _finish(figure: go.Figure, title: str, x: str, y: str) -> None:
    figure.update_layout(layout(title))
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)


def _band(figure: go.Figure, info: CliffsInfo) -> None:
    if info.found.floor:
        figure.add_hrect(
            y0=-info.found.floor, y1=info.found.floor, fillcolor="gray", opacity=0.3, line_width=0
        )


def _share_words(info: CliffsInfo) -> str:
    share = info.found.share.estimate
    return "all within numerical noise" if np.isnan(share) else f"{share:.0%} of them by flips"


def _smallest(info: CliffsInfo) -> float:
    """Return the left end of a logarithmic axis; jumps of 0 are drawn there."""
    sizes = np.concatenate([each.jumps for each in info.found.kinds.values()])
    positive = sizes[sizes > 0]
    return float(positive.min()) / 2 if len(positive) else 1e-12


def _short(kind: str) -> str:
    return kind.removesuffix(".weight")
