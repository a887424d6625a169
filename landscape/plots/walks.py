"""Random walks: both losses along each, and how their autocorrelation falls with the lag."""

from __future__ import annotations

import matplotlib
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from xarray import Dataset

from landscape.analysis import Analysis, Correlogram, analyze
from landscape.plots.noise import noise_panel
from landscape.plots.page import Panel, layout
from landscape.plots.rays import MEAN_COLOR, RAY_COLOR, curve_figure, curves_on, rays_info
from landscape.plots.style import STYLE, drawing

CORRELATION_TITLE = "Autocorrelation of the test loss"
CORRELATION_WORDS = "1: alike, 0: tells nothing"
LAG_WORDS = "Lag (steps)"
INTERVAL_WORDS = "95 %, over walks and images"
ONE_OVER_E = 0.36787944117144233


def draw_walks(dataset: Dataset, analysis: Analysis) -> Figure:
    """Draw the change of both losses along each walk, and their autocorrelation.

    Args:
        dataset: the result of a scan of walks.
        analysis: of it.
    """
    info = rays_info(dataset, analysis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 5.4), layout="constrained")
        figure.suptitle(f"{info.title}\n{info.subtitle}")
        left, middle, right = figure.subplots(1, 3)
        curves_on(left, info, info.loss)
        curves_on(middle, info, info.test_loss)
        if analysis.correlogram is not None:
            _correlogram_on(right, analysis.correlogram)
        handles, labels = middle.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw_correlogram(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw how alike the test loss is some steps further on.

    Args:
        dataset: the result of a scan of walks.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    with drawing(axes) as (figure, axes):
        found = (analysis or analyze(dataset)).correlogram
        if found is not None:
            _correlogram_on(axes, found)
    return figure


def walks_panels(dataset: Dataset, analysis: Analysis) -> list[Panel | None]:
    """Return walks as `draw_walks` draws them; hovering names a point and its values.

    Args:
        dataset: the result of a scan of walks.
        analysis: of it.
    """
    info = rays_info(dataset, analysis)
    figures = [curve_figure(info, curves) for curves in (info.loss, info.test_loss)]
    if analysis.correlogram is not None:
        figures.append(_correlogram_figure(analysis.correlogram))
    return [Panel("The losses along the walks", tuple(figures)), noise_panel(analysis)]


def _correlogram_on(axes: Axes, found: Correlogram) -> None:
    axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    axes.axhline(ONE_OVER_E, color="0.4", linewidth=0.8, linestyle="--")
    axes.annotate(
        "1 / e: the correlation length",
        (found.lag[0], ONE_OVER_E),
        (0, -3),
        textcoords="offset points",
        va="top",
        color="0.3",
        fontsize="small",
    )
    axes.fill_between(
        found.lag, found.low, found.high, color=RAY_COLOR, alpha=0.25, label=INTERVAL_WORDS
    )
    axes.plot(found.lag, found.value, color=MEAN_COLOR, marker="o")
    axes.set_title(CORRELATION_TITLE)
    axes.set_xlabel(LAG_WORDS)
    axes.set_ylabel(CORRELATION_WORDS)
    axes.set_ylim(-1.05, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="lower left")


def _correlogram_figure(found: Correlogram) -> go.Figure:
    figure = go.Figure(
        go.Scatter(
            x=found.lag,
            y=found.value,
            error_y={
                "symmetric": False,
                "array": found.high - found.value,
                "arrayminus": found.value - found.low,
            },
            mode="lines+markers",
            line={"color": MEAN_COLOR},
            name=INTERVAL_WORDS,
        )
    )
    figure.add_hline(ONE_OVER_E, line={"dash": "dash", "color": "gray", "width": 1})
    figure.update_layout(layout(CORRELATION_TITLE))
    figure.update_xaxes(title_text=LAG_WORDS)
    figure.update_yaxes(title_text=CORRELATION_WORDS, range=[-1.05, 1.05])
    return figure
