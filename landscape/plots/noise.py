"""What jaggedness is made of: the network, the test images, rounding; and minima of nulls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from xarray import Dataset

from landscape.analysis import Analysis, analyze
from landscape.findings import NULL_WORDS
from landscape.plots.page import Panel, layout
from landscape.plots.style import ACCENT, QUIET, drawing

SHARES_TITLE = "What steps are made of"
SHARES_WORDS = "Share of the variance between neighbors"
NULLS_TITLE = "Local minima, noise ignored"
NULLS_WORDS = "Minima"
WORDS = (
    "Points are estimates, bars 95 % of them. The network's share is what other test images would "
    "show, too; numerical noise overlaps with both. Minima of surfaces that have no ruggedness of "
    "their own say what a count of minima is worth."
)


@dataclass(frozen=True)
class Level:
    """A number with its interval: as an entry of an axis of words."""

    name: str
    value: float
    low: float
    high: float


def share_levels(analysis: Analysis) -> list[Level]:
    """Return the shares of the variance of steps: of the network, of images, of rounding."""
    levels = []
    found, numerical = analysis.reliability, analysis.numerical_share
    if found is not None and np.isfinite(found.true_share):
        low, high = found.true_share_interval
        levels.append(Level("the network", found.true_share, low, high))
        levels.append(Level("sampling noise", 1 - found.true_share, 1 - high, 1 - low))
    if numerical is not None:
        levels.append(Level("numerical noise", numerical.estimate, numerical.low, numerical.high))
    return levels


def null_levels(analysis: Analysis) -> list[Level]:
    """Return the number of minima of a scan, whatever their depth, and of its nulls."""
    if analysis.minima is None or not analysis.nulls:
        return []
    count = float(len(analysis.minima.minima) + analysis.minima.below)
    return [
        Level("measured", count, np.nan, np.nan),
        *(
            Level(NULL_WORDS[kind], null.mean, null.low, null.high)
            for kind, null in analysis.nulls.items()
        ),
    ]


def draw_noise(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw which shares of the steps between neighbors are the network's, and which noise.

    Args:
        dataset: the result of a scan of a plane or of rays.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    with drawing(axes) as (figure, axes):
        _draw_levels(axes, share_levels(analysis or analyze(dataset)))
        axes.set_title(SHARES_TITLE)
        axes.set_xlabel(SHARES_WORDS)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlim(0, None)
    return figure


def draw_nulls(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw how many local minima there are, whatever their depth, and how many nulls have.

    Args:
        dataset: the result of a scan of a plane or of rays.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    with drawing(axes) as (figure, axes):
        _draw_levels(axes, null_levels(analysis or analyze(dataset)))
        axes.set_title(NULLS_TITLE)
        axes.set_xlabel(NULLS_WORDS)
        axes.set_xlim(0, None)
    return figure


def noise_panel(analysis: Analysis) -> Panel | None:
    """Return shares and nulls side by side; None where neither is known."""
    figures = [
        _levels_figure(title, words, levels, form)
        for title, words, levels, form in (
            (SHARES_TITLE, SHARES_WORDS, share_levels(analysis), ".0%"),
            (NULLS_TITLE, NULLS_WORDS, null_levels(analysis), ""),
        )
        if levels
    ]
    return Panel("Ruggedness and noise", tuple(figures), WORDS) if figures else None


def _draw_levels(axes: Axes, levels: list[Level]) -> None:
    for place, level in enumerate(levels):
        if np.isfinite(level.low):
            axes.plot([level.low, level.high], [place, place], **QUIET)
        axes.plot([level.value], [place], "o", color=ACCENT)
    axes.set_yticks(range(len(levels)), labels=[level.name for level in levels])
    axes.set_ylim(len(levels) - 0.5, -0.5)


def _levels_figure(title: str, words: str, levels: list[Level], form: str) -> go.Figure:
    values = np.array([level.value for level in levels])
    low, high = (np.array([getattr(level, end) for level in levels]) for end in ("low", "high"))
    figure = go.Figure(
        go.Scatter(
            x=values,
            y=[level.name for level in levels],
            mode="markers",
            marker={"size": 12, "color": ACCENT},
            error_x={
                "array": np.nan_to_num(high - values),
                "arrayminus": np.nan_to_num(values - low),
                "symmetric": False,
                "thickness": 3,
                "width": 6,
            },
            text=[_level_text(level, form) for level in levels],
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.update_layout(
        layout(title),
        xaxis={"title": {"text": words}, "rangemode": "tozero", "tickformat": form},
        yaxis={"autorange": "reversed", "type": "category"},
    )
    return figure


def _level_text(level: Level, form: str) -> str:
    def number(value: float) -> str:
        return f"{value:.1%}" if form else f"{value:.3g}"

    words = f"{level.name}: {number(level.value)}"
    if np.isfinite(level.low):
        words += f"<br>{number(level.low)} to {number(level.high)} (95 %)"
    return words
