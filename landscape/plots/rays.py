"""Rays and walks: the change of both losses along each, with error bars, and their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from xarray import Dataset

from landscape.analysis import LINES, Analysis, analyze
from landscape.plots.info import (
    NOT_FINITE_WORDS,
    Axis,
    Quantity,
    axis_of,
    error_words,
    loss_of,
    subtitle_of,
    title_of,
)
from landscape.plots.minima import minima_panel
from landscape.plots.noise import noise_panel
from landscape.plots.page import Panel, layout
from landscape.plots.style import STYLE, drawing
from landscape.statistics.numerical_noise import NoiseFloor
from landscape.words import with_unit

LINE_WORDS = "one {} ± 1 standard error (paired with the start)"
MEAN_WORDS = "mean of the {}s ± 1 standard error"
FLOOR_WORDS = "numerical noise of a change, ± 1 standard deviation"
RAY_COLOR, MEAN_COLOR = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion
FAINT_RAY_COLOR = "rgba(0, 114, 178, 0.45)"


@dataclass(frozen=True, eq=False)
class Curves:
    """One loss over lines, as its change from the start; arrays are (line, place)."""

    quantity: Quantity
    errors: NDArray[np.float64] | None  # paired standard errors; None: no error bars
    mean: NDArray[np.float64]  # over the lines, (place,)
    mean_errors: NDArray[np.float64] | None
    start: float  # the loss itself at the start
    floor: float  # standard deviation of a change by numerical noise; 0 if it is not known

    @property
    def label(self) -> str:
        """What the vertical axis shows, with its unit."""
        return f"Change from the start:\n{self.quantity.measure}"


@dataclass(frozen=True, eq=False)
class RaysInfo:
    """All that a figure of rays or walks shows."""

    title: str
    subtitle: str
    line: str  # what each line is: a ray or a walk
    along: Axis
    loss: Curves
    test_loss: Curves
    accuracy: NDArray[np.float64]


def rays_info(dataset: Dataset, analysis: Analysis) -> RaysInfo:
    """Return what a figure of rays or walks shows.

    Args:
        dataset: the result of a scan of rays or walks.
        analysis: of it.
    """
    line, along = next((line, LINES[line]) for line in LINES if line in dataset.dims)
    dataset = dataset.transpose(line, along, ...)
    changes = analysis.changes.transpose(line, along)
    return RaysInfo(
        title=title_of(dataset),
        subtitle=subtitle_of(dataset),
        line=line,
        along=axis_of(dataset[along]),
        loss=Curves(
            loss_of(dataset, "loss", changes.loss_change),
            None,
            changes.mean_loss_change.values,
            None,
            analysis.start_loss,
            _floor(analysis.loss_floor),
        ),
        test_loss=Curves(
            loss_of(dataset, "test_loss", changes.test_loss_change),
            changes.test_loss_change_error.values,
            changes.mean_test_loss_change.values,
            changes.mean_test_loss_change_error.values,
            analysis.start_test_loss.estimate,
            _floor(analysis.test_loss_floor),
        ),
        accuracy=dataset.test_accuracy.values,
    )


def _floor(floor: NoiseFloor | None) -> float:
    """Return the noise of a difference of two points, each with its own."""
    return 0.0 if floor is None else float(np.sqrt(2) * floor.mean_loss.estimate)


def draw_rays(dataset: Dataset, analysis: Analysis) -> Figure:
    """Draw the change of both losses along each ray, with error bars, and the mean of the rays.

    Args:
        dataset: the result of a scan of rays.
        analysis: of it.
    """
    info = rays_info(dataset, analysis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        figure.suptitle(f"{info.title}\n{info.subtitle}")
        left, right = figure.subplots(1, 2)
        curves_on(left, info, info.loss)
        curves_on(right, info, info.test_loss)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def rays_panels(dataset: Dataset, analysis: Analysis) -> list[Panel | None]:
    """Return the panels of rays: the curves, whose points say their values, minima, and noise.

    Args:
        dataset: the result of a scan of rays.
        analysis: of it.
    """
    info = rays_info(dataset, analysis)
    figures = [curve_figure(info, curves) for curves in (info.loss, info.test_loss)]
    return [
        Panel("The losses along the rays", tuple(figures)),
        minima_panel(dataset, analysis),
        noise_panel(analysis),
    ]


def curve_figure(info: RaysInfo, curves: Curves) -> go.Figure:
    """Return one loss along rays or walks, with plotly."""
    figure = go.Figure(_curve_traces(info, curves))
    if curves.floor:
        figure.add_hrect(
            y0=-curves.floor, y1=curves.floor, fillcolor="gray", opacity=0.3, line_width=0
        )
    figure.update_layout(layout(curves.quantity.name))
    figure.update_xaxes(title_text=info.along.label)
    figure.update_yaxes(title_text=curves.label.replace("\n", " "))
    return figure


def draw_curves(
    dataset: Dataset,
    analysis: Analysis | None = None,
    *,
    loss: str = "test_loss",
    axes: Axes | None = None,
) -> Figure:
    """Draw the change of one loss along each ray or walk, and the mean of all.

    Args:
        dataset: the result of a scan of rays or walks.
        analysis: of it, if it has been computed already.
        loss: `test_loss` or `loss`.
        axes: where to draw; a new figure's if not given.
    """
    info = rays_info(dataset, analysis or analyze(dataset))
    with drawing(axes) as (figure, axes):
        curves_on(axes, info, getattr(info, loss))
    return figure


def curves_on(axes: Axes, info: RaysInfo, curves: Curves) -> None:
    """Draw one loss along rays or walks."""
    along = info.along.values
    axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    if curves.floor:
        axes.axhspan(-curves.floor, curves.floor, color="0.8", linewidth=0, label=FLOOR_WORDS)
    style: dict[str, Any] = {
        "color": RAY_COLOR,
        "alpha": 0.45,
        "linewidth": 0.9,
        "elinewidth": 0.7,
    }
    words = LINE_WORDS.format(info.line)
    for number, values in enumerate(curves.quantity.values):
        errors = None if curves.errors is None else curves.errors[number]
        axes.errorbar(along, values, errors, **style, label=words if number == 0 else None)
    if curves.mean_errors is not None:
        low, high = curves.mean - curves.mean_errors, curves.mean + curves.mean_errors
        axes.fill_between(along, low, high, color=MEAN_COLOR, alpha=0.3, linewidth=0, zorder=3)
    words = MEAN_WORDS.format(info.line)
    axes.plot(along, curves.mean, color=MEAN_COLOR, linewidth=2, zorder=4, label=words)
    _, columns = np.nonzero(curves.quantity.not_finite)
    if len(columns):
        top = np.ones(len(columns))
        style = {"marker": "x", "color": "black", "linestyle": "", "clip_on": False}
        axes.plot(
            along[columns],
            top,
            transform=axes.get_xaxis_transform(),
            **style,
            label=NOT_FINITE_WORDS,
        )
    axes.set_title(curves.quantity.name)
    axes.set_xlabel(with_unit(info.along.name, info.along.unit, "\n"))
    axes.set_ylabel(curves.label)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _curve_traces(info: RaysInfo, curves: Curves) -> list[Any]:
    """Return a line for each ray or walk and one for their mean, each with its error bars."""
    along = info.along.values
    of_lines, of_mean = LINE_WORDS.format(info.line), MEAN_WORDS.format(info.line)
    traces = [
        go.Scatter(
            x=along,
            y=values,
            error_y=_error_bars(None if curves.errors is None else curves.errors[number], 1),
            line={"color": FAINT_RAY_COLOR, "width": 1},
            mode="lines",
            name=of_lines,
            legendgroup=of_lines,
            showlegend=number == 0,
            text=[_place_text(info, number, index) for index in range(len(along))],
            hoverinfo="text",
        )
        for number, values in enumerate(curves.quantity.values)
    ]
    traces.append(
        go.Scatter(
            x=along,
            y=curves.mean,
            error_y=_error_bars(curves.mean_errors, 2),
            line={"color": MEAN_COLOR, "width": 3},
            mode="lines",
            name=of_mean,
            legendgroup=of_mean,
            hoverinfo="skip",
        )
    )
    not_finite = np.argwhere(curves.quantity.not_finite)
    if len(not_finite):
        low, high = curves.quantity.limits
        traces.append(
            go.Scatter(
                x=along[not_finite[:, 1]],
                y=[high + 0.15 * (high - low)] * len(not_finite),  # above all curves
                text=[_place_text(info, number, index) for number, index in not_finite],
                hoverinfo="text",
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": "dimgray"},
                name=NOT_FINITE_WORDS,
                legendgroup=NOT_FINITE_WORDS,
            )
        )
    return traces


def _error_bars(errors: NDArray[np.float64] | None, width: int) -> dict[str, Any]:
    return {"visible": False} if errors is None else {"array": errors, "thickness": width}


def _place_text(info: RaysInfo, number: int, index: int) -> str:
    """Return what hovering over a point of a ray or a walk says."""
    place = f"{info.along.name.lower()} {info.along.values[index]:.4g}"
    lines = [f"{info.line} {number}, {place}"]
    for curves in (info.loss, info.test_loss):
        change = curves.quantity.values[number, index]
        error = "" if curves.errors is None else error_words(curves.errors[number, index])
        lines.append(
            f"{curves.quantity.name}, {curves.quantity.measure}: "
            + (
                f"{curves.start + change:.4f}, from the start {change:+.4f}{error}"
                if np.isfinite(change)
                else "not finite"
            )
        )
    lines.append(f"Test accuracy: {info.accuracy[number, index]:.1%}")
    return "<br>".join(lines)
