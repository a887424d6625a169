"""Static figures of a comparison of optimizers, with matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from xarray import Dataset

from evolq.errors import InputError
from landscape.paths.barrier import Barrier
from landscape.plots.comparison_info import (
    COST_WORDS,
    Band,
    ComparisonInfo,
    OptimizerInfo,
    against_words,
    comparison_info,
    cost_words,
    interval_words,
)
from landscape.plots.info import Quantity
from landscape.plots.style import LOSS_COLORS, START_STYLE, STYLE, drawing, sized

BAND_WORDS = "from the least to the largest of the seeds; lines are means"
HALO = [patheffects.Stroke(linewidth=4, foreground="white"), patheffects.Normal()]


def draw_comparison(dataset: Dataset) -> Figure:
    """Draw losses against cost, the paths over the surface of one plane, and a table of outcomes.

    Args:
        dataset: a comparison with its surface (`landscape.paths.comparison.with_surface`).
    """
    info = comparison_info(dataset)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 10.5), layout="constrained")
        figure.suptitle(f"{info.title}\n{info.subtitle}")
        heights = (4, 4.6, _table_height(info))
        parts: Any = figure.subfigures(3, 1, height_ratios=heights)
        curves, maps, table = parts
        left, right, off = curves.subplots(1, 3)
        _losses_on(left, info, test=False)
        _losses_on(right, info, test=True)
        _distances_on(off, info)
        widths = (3, 3, 2) if info.barrier else (1, 1)
        left, right, *between = maps.subplots(1, len(widths), width_ratios=widths)
        _paths_on(left, info, info.loss)
        _paths_on(right, info, info.test_loss)
        if info.barrier:
            _barrier_on(between[0], info.barrier)
        handles, labels = right.get_legend_handles_labels()
        entries = [*handles, Patch(color="0.5", alpha=0.3, label=BAND_WORDS)]
        maps.legend(entries, [*labels, BAND_WORDS], loc="outside upper center", ncols=len(entries))
        _table_on(table.subplots(), info)
    return figure


def draw_losses(dataset: Dataset, *, loss: str = "test_loss", axes: Axes | None = None) -> Figure:
    """Draw one loss against cost: the mean over seeds and a band from the least to the largest.

    Args:
        dataset: a comparison with its surface.
        loss: `test_loss` or `loss`.
        axes: where to draw; a new figure's if not given.
    """
    with drawing(axes) as (figure, axes):
        _losses_on(axes, comparison_info(dataset), loss == "test_loss")
        axes.legend()
    return figure


def draw_distances(dataset: Dataset, *, axes: Axes | None = None) -> Figure:
    """Draw how far each path is from the plane of the maps.

    Args:
        dataset: a comparison with its surface.
        axes: where to draw; a new figure's if not given.
    """
    with drawing(axes) as (figure, axes):
        _distances_on(axes, comparison_info(dataset))
        axes.legend()
    return figure


def draw_paths(dataset: Dataset, *, loss: str = "test_loss", axes: Axes | None = None) -> Figure:
    """Draw the paths over one loss of the plane: a line for each run, a marker at its end.

    Args:
        dataset: a comparison with its surface.
        loss: `test_loss` or `loss`.
        axes: where to draw; a new figure's if not given.
    """
    info = comparison_info(dataset)
    with drawing(axes) as (figure, axes):
        _paths_on(axes, info, getattr(info, loss))
        axes.legend()
    return figure


def draw_barrier(dataset: Dataset, *, axes: Axes | None = None) -> Figure:
    """Draw the test loss along the straight line between two ends, above the higher of them.

    Args:
        dataset: a comparison with its surface.
        axes: where to draw; a new figure's if not given.

    Raises:
        InputError: for a comparison without such a line.
    """
    found = comparison_info(dataset).barrier
    if found is None:
        raise InputError("this comparison has no line between two ends; compare again")
    with drawing(axes) as (figure, axes):
        _barrier_on(axes, found)
    return figure


def _losses_on(axes: Axes, info: ComparisonInfo, test: bool) -> None:
    start = info.start_test_loss if test else info.start_loss
    axes.axhline(start, color="0.4", linewidth=0.8, linestyle=":")
    axes.annotate(
        "start", (1, start), (0, 3), textcoords="offset points", color="0.3", fontsize="small"
    )
    for optimizer in info.optimizers:
        _draw_band(axes, info, optimizer, optimizer.test_loss if test else optimizer.loss)
    axes.set_title("Test loss, looked at afterwards" if test else "Calibration loss, searched on")
    axes.set_xlabel(COST_WORDS)
    axes.set_ylabel(info.test_loss_measure if test else info.loss_measure)


def _distances_on(axes: Axes, info: ComparisonInfo) -> None:
    for optimizer in info.optimizers:
        _draw_band(axes, info, optimizer, optimizer.distance)
    axes.set_title("Distance off the plane of the maps")
    axes.set_xlabel(COST_WORDS)
    axes.set_ylabel(info.x.unit)
    axes.set_ylim(bottom=0)


def _paths_on(axes: Axes, info: ComparisonInfo, surface: Quantity) -> None:
    mesh = axes.pcolormesh(
        info.x.values,
        info.y.values,
        surface.values,
        shading="nearest",
        cmap=LOSS_COLORS,
        rasterized=True,
    )
    axes.figure.colorbar(mesh, ax=axes, pad=0.02, label=surface.measure)
    for optimizer in info.optimizers:
        style = optimizer.look
        for number, route in enumerate(optimizer.routes):
            axes.plot(
                route.x,
                route.y,
                color=style.color,
                linestyle=style.dashes,
                linewidth=2.2,
                path_effects=HALO,
            )
            axes.plot(
                route.x[-1],
                route.y[-1],
                color=style.color,
                marker=style.marker,
                markersize=1.5 * matplotlib.rcParams["lines.markersize"],
                markeredgecolor="white",
                linestyle=style.dashes,
                label=optimizer.name if number == 0 else None,
                zorder=5,
            )
    axes.plot(0, 0, **sized(START_STYLE), zorder=4, label="start")
    axes.set_title(surface.name)
    axes.set_xlabel(f"{info.x.name} ({info.x.unit})")
    axes.set_ylabel(f"{info.y.name}\n({info.y.unit})")


def _barrier_on(axes: Axes, found: Barrier) -> None:
    axes.fill_between(
        found.way, found.low, found.high, color="0.85", linewidth=0, label="95 %, all at once"
    )
    axes.axhspan(-found.floor, found.floor, color="0.7", linewidth=0, label="numerical noise")
    axes.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
    axes.plot(found.way, found.above, color="black", marker="o", markersize=4)
    axes.set_title("Straight from end to end")
    axes.set_xlabel("\nto ".join(found.ends))
    axes.set_ylabel("Test loss above the higher end (nats)")
    axes.legend(fontsize="small")


def _table_on(axes: Axes, info: ComparisonInfo) -> None:
    """Draw what each optimizer reached, with 95 % intervals paired over the test images."""
    axes.set_axis_off()
    first = info.optimizers[0].name
    columns = [
        "optimizer",
        "calibration loss",
        "test accuracy (%)",
        "change from the start",
        f"against {first}",
        "change of test loss (nats)",
        "cost (sweep)",
    ]
    rows = [["start", f"{info.start_loss:.4f}", f"{100 * info.start_accuracy:.1f}", "", "", "", ""]]
    for optimizer in info.optimizers:
        reached = optimizer.outcome
        rows.append(
            [
                optimizer.name,
                f"{reached.loss:.4f}",
                f"{100 * reached.test_accuracy:.1f}",
                interval_words(*reached.test_accuracy_change, percent=True),
                against_words(reached),
                interval_words(*reached.test_loss_change),
                cost_words(reached),
            ]
        )
    table = axes.table(
        rows,
        colLabels=columns,
        loc="upper center",
        cellLoc="center",
        edges="horizontal",
        colWidths=[0.13, 0.11, 0.12, 0.18, 0.18, 0.2, 0.08],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    table.scale(1, 1.45)
    axes.set_title("Mean over seeds; in brackets 95 % intervals, paired over the test images")


def _table_height(info: ComparisonInfo) -> float:
    return 0.75 + 0.3 * (2 + len(info.optimizers))


def _draw_band(axes: Axes, info: ComparisonInfo, optimizer: OptimizerInfo, band: Band) -> None:
    style: Any = optimizer.look
    axes.fill_between(info.costs, band.low, band.high, color=style.color, alpha=0.2, linewidth=0)
    known = np.flatnonzero(np.isfinite(band.mean))
    if not len(known):
        return
    axes.plot(
        info.costs,
        band.mean,
        color=style.color,
        linestyle=style.dashes,
        linewidth=2,
        marker=style.marker,
        markevery=[int(known[-1])],
        markersize=7,
        label=optimizer.name,
    )
