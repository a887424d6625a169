"""Interactive figure of a comparison of optimizers, with plotly: paths that move at a click."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from xarray import Dataset

from landscape.plots.comparison_info import (
    COST_WORDS,
    ComparisonInfo,
    OptimizerInfo,
    comparison_info,
    interval_words,
)
from landscape.plots.info import Quantity
from landscape.plots.page import OUTLINE

FRAMES = 41
MILLISECONDS = 120


def interactive_comparison(dataset: Dataset) -> go.Figure:
    """Draw the paths over the surface beside the losses against cost, with a button to play them.

    Args:
        dataset: a comparison with its surface (`landscape.paths.comparison.with_surface`).
    """
    info = comparison_info(dataset)
    figure = make_subplots(
        2,
        2,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        column_widths=[0.55, 0.45],
        horizontal_spacing=0.14,
        vertical_spacing=0.17,
        subplot_titles=("", "Calibration loss, searched on", "Test loss, looked at afterwards"),
    )
    figure.add_traces([_heat_map(info, info.loss), _heat_map(info, info.test_loss)], 1, 1)
    figure.data[0].visible = False
    moving = list(range(len(figure.data), len(figure.data) + 3 * len(info.optimizers)))
    last = float(info.costs[-1])
    places = [(1, 1), (1, 2), (2, 2)] * len(info.optimizers)
    for trace, (row, column) in zip(_traces(info, last), places, strict=True):
        figure.add_trace(trace, row, column)
    figure.add_trace(_start(), 1, 1)
    costs = np.linspace(1.0, last, FRAMES)
    figure.frames = [
        go.Frame(data=_traces(info, float(cost)), traces=moving, name=str(number))
        for number, cost in enumerate(costs)  # of frames with one name, all but one would be lost
    ]
    _lay_out(figure, info, costs)
    return figure


def _heat_map(info: ComparisonInfo, surface: Quantity) -> go.Heatmap:
    return go.Heatmap(
        x=info.x.values,
        y=info.y.values,
        z=surface.values,
        colorscale="Viridis",
        colorbar={"x": 0.475, "title": {"text": surface.measure, "side": "right"}},
        hovertemplate="x = %{x:.4f}, y = %{y:.4f}<br>%{z:.4f}<extra></extra>",
        hoverongaps=False,
    )


def _start() -> go.Scatter:
    return go.Scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": "white", "line": OUTLINE},
        hoverinfo="skip",
        name="start",
    )


def _traces(info: ComparisonInfo, cost: float) -> list[Any]:
    """Return for each optimizer its paths and both its curves, as far as `cost` paid for."""
    traces: list[Any] = []
    for optimizer in info.optimizers:
        style = optimizer.look
        line = {"color": style.color, "dash": style.dash, "width": 3}
        shared = {"legendgroup": optimizer.name, "name": optimizer.name, "line": line}
        x, y, sizes, text = _route_up_to(optimizer, cost)
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                marker={"symbol": style.symbol, "size": sizes, "opacity": 1, "line": OUTLINE},
                text=text,
                hoverinfo="text",
                **shared,
            )
        )
        until = info.costs <= cost + 1e-9
        for band in (optimizer.loss, optimizer.test_loss):
            traces.append(
                go.Scatter(
                    x=info.costs[until],
                    y=band.mean[until],
                    customdata=np.stack([band.low, band.high], 1)[until],
                    hovertemplate=(
                        f"{optimizer.name}, cost %{{x:.1f}}<br>%{{y:.4f}} "
                        "(seeds: %{customdata[0]:.4f} to %{customdata[1]:.4f})<extra></extra>"
                    ),
                    mode="lines",
                    showlegend=False,
                    **shared,
                )
            )
    return traces


def _route_up_to(
    optimizer: OptimizerInfo, cost: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int], list[str]]:
    """Return x, y, marker sizes and words of all routes, up to a cost, apart from each other."""
    x, y, sizes, text = [], [], [], []
    for route in optimizer.routes:
        until = int(np.searchsorted(route.cost, cost + 1e-9, side="right"))
        x += [*route.x[:until], np.nan]
        y += [*route.y[:until], np.nan]
        sizes += [0] * max(until - 1, 0) + [12] * (until > 0) + [0]
        text += [
            f"{optimizer.name}, cost {spent:.1f}<br>{distance:.4f} off the plane"
            for spent, distance in zip(route.cost[:until], route.distance[:until], strict=True)
        ]
        text.append("")
    return np.array(x), np.array(y), sizes, text


def _lay_out(figure: go.Figure, info: ComparisonInfo, costs: NDArray[np.float64]) -> None:
    play = {
        "frame": {"duration": MILLISECONDS, "redraw": False},
        "transition": {"duration": 0},
        "fromcurrent": True,
    }
    stop = {"frame": {"duration": 0, "redraw": False}, "mode": "immediate"}
    visible = [[True, False], [False, True]]
    figure.update_layout(
        template="plotly_white",
        title={"text": f"{info.title}<br><sup>{info.subtitle}</sup>", "x": 0.5},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        margin={"t": 110, "b": 190},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": -0.12,
                "yanchor": "top",
                "buttons": [
                    {"label": "▶ Play", "method": "animate", "args": [None, play]},
                    {"label": "❚❚ Pause", "method": "animate", "args": [[None], stop]},
                ],
            },
            {
                "type": "buttons",
                "direction": "right",
                "active": 1,
                "x": 0.46,
                "xanchor": "right",
                "y": -0.12,
                "yanchor": "top",
                "buttons": [
                    {
                        "label": surface.name,
                        "method": "restyle",
                        "args": [{"visible": shown}, [0, 1]],
                    }
                    for surface, shown in zip((info.loss, info.test_loss), visible, strict=True)
                ],
            },
        ],
        sliders=[
            {
                "active": len(costs) - 1,
                "y": -0.2,
                "len": 0.46,
                "currentvalue": {"prefix": f"{COST_WORDS}: "},
                "steps": [
                    {
                        "label": f"{cost:.1f}",
                        "method": "animate",
                        "args": [[frame.name], stop],
                    }
                    for cost, frame in zip(costs, figure.frames, strict=True)
                ],
            }
        ],
    )
    figure.add_annotation(
        text="<br>".join(_outcome_words(info)),
        xref="paper",
        yref="paper",
        x=1,
        y=-0.14,
        xanchor="right",
        yanchor="top",
        showarrow=False,
        align="left",
        font={"size": 12},
    )
    for axis, update in ((info.x, figure.update_xaxes), (info.y, figure.update_yaxes)):
        ends = [axis.values[0], axis.values[-1]]
        update(title_text=f"{axis.name} ({axis.unit})", showgrid=False, range=ends, row=1, col=1)
    for row, measure, start, name in (
        (1, info.loss_measure, info.start_loss, "loss"),
        (2, info.test_loss_measure, info.start_test_loss, "test_loss"),
    ):
        means = [getattr(optimizer, name).mean for optimizer in info.optimizers]
        values = np.concatenate([np.concatenate(means), [start]])
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        margin = 0.08 * (high - low) or 0.1
        figure.update_xaxes(
            title_text=COST_WORDS, range=[0, 1.02 * float(info.costs[-1])], row=row, col=2
        )
        figure.update_yaxes(title_text=measure, range=[low - margin, high + margin], row=row, col=2)
        figure.add_hline(start, line={"dash": "dot", "color": "gray", "width": 1}, row=row, col=2)


def _outcome_words(info: ComparisonInfo) -> list[str]:
    """Return the table of outcomes as lines of text."""
    lines = [f"<b>Test accuracy</b> (start {info.start_accuracy:.1%}; 95 % intervals, paired)"]
    for optimizer in info.optimizers:
        reached = optimizer.outcome
        change = interval_words(*reached.test_accuracy_change, percent=True)
        lines.append(f"{optimizer.name}: {reached.test_accuracy:.1%}, change {change} points")
    return lines
