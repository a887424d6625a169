"""Interactive page of a comparison of optimizers, with plotly: paths that move at a click."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from xarray import Dataset

from landscape.plots.comparison_info import (
    COST_WORDS,
    ComparisonInfo,
    OptimizerInfo,
    barrier_words,
    comparison_info,
    interval_words,
)
from landscape.plots.info import Quantity, table_of
from landscape.plots.page import OUTLINE, Panel, Section, layout
from landscape.plots.plane_html import contours
from landscape.words import Row

FRAMES = 41


def interactive_comparison(dataset: Dataset) -> Section:
    """Draw the paths over the surface, and the losses against cost; a slider moves the cost.

    Args:
        dataset: a comparison with its surface (`landscape.paths.comparison.with_surface`).
    """
    info = comparison_info(dataset)
    costs = np.linspace(1.0, float(info.costs[-1]), FRAMES)
    surfaces = (info.loss, info.test_loss)
    shown = 1  # the test loss first: it is what a user would see
    maps = [
        _heat_map(info, surface).update(meta={"view": view, "loss": True}, visible=view == shown)
        for view, surface in enumerate(surfaces)
    ]
    maps += [
        trace.update(meta={"view": view, "loss": True, "contours": True})
        for view, surface in enumerate(surfaces)
        for trace in contours(info.x, info.y, surface, surface.limits)
    ]
    figures = (
        _moving([*maps, _start()], [_routes(info, cost) for cost in costs]),
        _moving([], [_curves(info, cost, "loss") for cost in costs]),
        _moving([], [_curves(info, cost, "test_loss") for cost in costs]),
    )
    titles = (
        "Paths on the plane",
        "Calibration loss, searched on",
        "Test loss, looked at afterwards",
    )
    for figure, title in zip(figures, titles, strict=True):
        figure.update_layout(layout(title))
    for axis, update in ((info.x, figures[0].update_xaxes), (info.y, figures[0].update_yaxes)):
        ends = [axis.values[0], axis.values[-1]]
        update(title_text=axis.label, showgrid=False, range=ends)
    _lay_out_curves(figures[1], info, "loss", info.loss_measure, info.start_loss)
    _lay_out_curves(figures[2], info, "test_loss", info.test_loss_measure, info.start_test_loss)
    panel = Panel(
        "The paths",
        figures,
        "",
        tuple(surface.name for surface in surfaces),
        shown,
        colors=True,
        steps=tuple(f"{cost:.1f}" for cost in costs),
        moving=COST_WORDS,
    )
    return Section(
        info.title,
        info.subtitle,
        outcome_rows(info),
        (panel,),
        table_of(dataset, ("optimizer", "seed", "iterate")),
        dataset.attrs["provenance"],
    )


def _moving(still: list[Any], frames: list[list[Any]]) -> go.Figure:
    """Return a figure of traces that stand still, and the last of what moves above them."""
    moving = list(range(len(still), len(still) + len(frames[-1])))
    return go.Figure(
        [*still, *frames[-1]],
        frames=[
            # of frames with one name, plotly would keep one
            go.Frame(data=frame, traces=moving, name=str(number))
            for number, frame in enumerate(frames)
        ],
    )


def outcome_rows(info: ComparisonInfo) -> list[Row]:
    """Return what each optimizer reached, in words."""
    rows = [Row("Test accuracy at the start", f"{info.start_accuracy:.1%}", "")]
    for optimizer in info.optimizers:
        reached = optimizer.outcome
        change = interval_words(*reached.test_accuracy_change, percent=True)
        words = f"change {change} points (95 %, paired)"
        rows.append(Row(f"Test accuracy, {optimizer.name}", f"{reached.test_accuracy:.1%}", words))
    if info.barrier:
        height, words = f"{info.barrier.height.estimate:+.4f}", barrier_words(info.barrier)
        rows.append(Row(f"Barrier, {' to '.join(info.barrier.ends)}", height, words))
    return rows


def _heat_map(info: ComparisonInfo, surface: Quantity) -> go.Heatmap:
    return go.Heatmap(
        x=info.x.values,
        y=info.y.values,
        z=surface.values,
        colorscale="Viridis",
        colorbar={"title": {"text": surface.measure, "side": "right"}},
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


def _look(optimizer: OptimizerInfo) -> dict[str, Any]:
    """Return the name and the line of all traces of an optimizer."""
    line = {"color": optimizer.look.color, "dash": optimizer.look.dash, "width": 3}
    return {"name": optimizer.name, "line": line}


def _routes(info: ComparisonInfo, cost: float) -> list[Any]:
    """Return the paths of each optimizer on the plane, as far as `cost` paid for."""
    traces: list[Any] = []
    for optimizer in info.optimizers:
        x, y, sizes, text = _route_up_to(optimizer, cost)
        marker = {"symbol": optimizer.look.symbol, "size": sizes, "opacity": 1, "line": OUTLINE}
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                marker=marker,
                text=text,
                hoverinfo="text",
                **_look(optimizer),
            )
        )
    return traces


def _curves(info: ComparisonInfo, cost: float, which: str) -> list[Any]:
    """Return a loss of each optimizer against cost, as far as `cost` paid for."""
    until = info.costs <= cost + 1e-9
    traces: list[Any] = []
    for optimizer in info.optimizers:
        band = getattr(optimizer, which)
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
                **_look(optimizer),
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


def _lay_out_curves(
    figure: go.Figure, info: ComparisonInfo, which: str, measure: str, start: float
) -> None:
    """Fix the axes, so that none moves with the curves, and mark the start."""
    means = [getattr(optimizer, which).mean for optimizer in info.optimizers]
    values = np.concatenate([*means, [start]])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.08 * (high - low) or 0.1
    figure.update_xaxes(title_text=COST_WORDS, range=[0, 1.02 * float(info.costs[-1])])
    figure.update_yaxes(title_text=measure, range=[low - margin, high + margin])
    figure.add_hline(start, line={"dash": "dot", "color": "gray", "width": 1})
