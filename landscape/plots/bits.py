"""Bit-widths: a heat map of what they cost, of one layer at a time or against factors on scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from xarray import Dataset

from landscape.analysis import CLEARLY_HIGHER, NOT_TOLD_APART, Analysis, analyze
from landscape.plots.info import (
    NOT_COMPUTED_WORDS,
    NOT_FINITE_WORDS,
    Quantity,
    error_words,
    name_of,
    quantity_of,
    subtitle_of,
    title_of,
)
from landscape.plots.page import Panel, layout
from landscape.plots.style import NOT_COMPUTED_STYLE, NOT_FINITE_STYLE, drawing

# Heat maps over bit-widths.
LAYERS_TITLE = "how many bits does each layer need?"
LAYERS_BOX = "fewest bits before the test loss is clearly higher"
LAYERS_WORDS = (
    "One layer at a time at these bits, all others as in the start.\n"
    "White: not told apart from the start (2 paired standard errors). Numbers: clear rises (4)."
)
MULTIPLIER_TITLE = "how many bits, and which scales?"
MULTIPLIER_BOX = "best factor by the calibration loss, at these bits"
MULTIPLIER_WORDS = (
    "All weights at these bits, their calibrated scales times a factor.\n"
    "Numbers: test accuracy (%). White: not told apart from the start."
)
RISE_COLORS = matplotlib.colormaps["Reds"]
BOX_STYLE: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 2, "zorder": 3}


@dataclass(frozen=True, eq=False)
class BitsInfo:
    """All that a heat map over bit-widths shows; arrays are (row, column)."""

    title: str
    subtitle: str
    row_name: str
    rows: tuple[str, ...]
    column_name: str
    columns: tuple[str, ...]
    quantity: Quantity  # the change of the test loss from the start
    change_error: NDArray[np.float64]  # its paired standard error
    shades: NDArray[np.float64]  # roots of rises, so that small ones show; NaN: not told apart
    darkest: float  # the highest shade
    ticks: tuple[tuple[float, str], ...]  # shades and the rises that they stand for
    words: NDArray[np.object_]  # in each cell
    boxed: tuple[tuple[int, int], ...]  # cells that the eye should find
    box_words: str
    how_to_read: str
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def bits_info(dataset: Dataset, analysis: Analysis) -> BitsInfo:
    """Return what a heat map over bit-widths shows; the most bits come first.

    Args:
        dataset: the result of a scan of bits or of layers.
        analysis: of it.
    """
    layers = "layer" in dataset.dims
    over = ("layer", "bits") if layers else ("bits", "multiplier")
    dataset = dataset.sortby("bits", ascending=False).transpose(*over, ...)
    changes = analysis.changes.sortby("bits", ascending=False).transpose(*over)
    unit = dataset.test_loss.attrs.get("units", "")
    name = "Test loss above the start's"
    quantity = quantity_of(changes.test_loss_change, dataset.status, name, unit)
    highest = max(quantity.limits[1], 1e-6)
    rises = sorted({float(f"{highest * (step / 4) ** 2:.1g}") for step in range(5)})
    band = changes.test_loss_band.values
    bits = [int(width) for width in dataset.bits]
    if layers:
        rows, columns = tuple(map(str, dataset.layer.values)), tuple(map(str, bits))
        boxed = tuple(
            (rows.index(layer), bits.index(fewest))
            for layer, fewest in analysis.fewest_bits.items()
        )
        words = np.where(band < CLEARLY_HIGHER, "", _each(quantity.values, "+.2g"))
    else:
        factors = dataset.multiplier.values.tolist()
        rows, columns = tuple(map(str, bits)), tuple(f"×{factor:.2g}" for factor in factors)
        boxed = tuple(
            (bits.index(width), factors.index(best))
            for width, best in analysis.best_factors.items()
        )
        words = _each(100 * dataset.test_accuracy.values, ".0f")
    return BitsInfo(
        title=f"{title_of(dataset)}: " + (LAYERS_TITLE if layers else MULTIPLIER_TITLE),
        subtitle=subtitle_of(dataset),
        row_name=name_of(dataset[over[0]]),
        rows=rows,
        column_name=name_of(dataset[over[1]]),
        columns=columns,
        quantity=quantity,
        change_error=changes.test_loss_change_error.values,
        shades=np.where(band == NOT_TOLD_APART, np.nan, np.sqrt(np.clip(quantity.values, 0, None))),
        darkest=highest**0.5,
        ticks=tuple((rise**0.5, f"{rise:g}") for rise in rises if rise <= highest),
        words=np.where(quantity.not_finite | quantity.not_computed, "", words).astype(object),
        boxed=boxed,
        box_words=LAYERS_BOX if layers else MULTIPLIER_BOX,
        how_to_read=LAYERS_WORDS if layers else MULTIPLIER_WORDS,
        loss=dataset.loss.values,
        accuracy=dataset.test_accuracy.values,
    )


def draw_bits(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw a scan over bit-widths as a heat map of what they cost.

    Args:
        dataset: the result of a scan of bits or of layers.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given, as large as its words need.
    """
    info = bits_info(dataset, analysis or analyze(dataset))
    rows, columns = info.shades.shape
    with drawing(axes) as (figure, axes):
        if len(figure.axes) == 1:
            width = 2.6 + 0.085 * max(map(len, info.rows)) + 0.6 * columns
            figure.set_size_inches(max(8.0, width), 2.8 + 0.3 * rows)
            figure.suptitle(info.title)
        mesh = axes.pcolormesh(info.shades, cmap=RISE_COLORS, vmin=0, vmax=info.darkest)
        bar = axes.figure.colorbar(mesh, ax=axes, label=info.quantity.label, aspect=30)
        places, labels = zip(*info.ticks, strict=True)
        bar.set_ticks(places, labels=labels)
        axes.hlines(np.arange(rows), 0, columns, color="0.85", linewidth=0.8)
        axes.vlines(np.arange(columns), 0, rows, color="0.85", linewidth=0.8)
        for cell, words in np.ndenumerate(info.words):
            color = "white" if info.shades[cell] > 0.6 * info.darkest else "black"
            where = (cell[1] + 0.5, cell[0] + 0.5)
            axes.text(*where, words, ha="center", va="center", fontsize="small", c=color)
        for row, column in info.boxed:
            axes.add_patch(Rectangle((column, row), 1, 1, **BOX_STYLE))
        for missing, style in (
            (info.quantity.not_finite, NOT_FINITE_STYLE),
            (info.quantity.not_computed, NOT_COMPUTED_STYLE),
        ):
            for row, column in np.argwhere(missing):
                axes.add_patch(Rectangle((column, row), 1, 1, linewidth=0, **style))
        words = f"{info.how_to_read}\n{info.subtitle}"
        axes.set_title(words, fontsize="small", color="0.3", wrap=True)
        axes.set_xticks(np.arange(columns) + 0.5, labels=info.columns)
        axes.set_yticks(np.arange(rows) + 0.5, labels=info.rows)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_xlabel(info.column_name)
        axes.set_ylabel(info.row_name)
        figure.legend(
            handles=[Patch(**BOX_STYLE, label=info.box_words)], loc="outside lower center"
        )
    return figure


def bits_panels(dataset: Dataset, analysis: Analysis) -> list[Panel | None]:
    """Return a heat map over bit-widths; hovering names a cell and its values.

    Args:
        dataset: the result of a scan of bits or of layers.
        analysis: of it.
    """
    info = bits_info(dataset, analysis)
    places, labels = zip(*info.ticks, strict=True)
    figure = go.Figure(
        go.Heatmap(
            z=info.shades,
            text=_bits_text(info),
            hoverinfo="text",
            colorscale="Reds",
            zmin=0,
            zmax=info.darkest,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {
                    "text": info.quantity.label,
                    "side": "right",
                },
                "tickvals": places,
                "ticktext": labels,
            },
        )
    )
    for cell, words in np.ndenumerate(info.words):
        color = "white" if info.shades[cell] > 0.6 * info.darkest else "black"
        figure.add_annotation(
            x=cell[1], y=cell[0], text=words, showarrow=False, font={"color": color, "size": 11}
        )
    for row, column in info.boxed:
        x, y = (column - 0.5, column + 0.5), (row - 0.5, row + 0.5)
        figure.add_shape(type="rect", x0=x[0], x1=x[1], y0=y[0], y1=y[1], line={"width": 3})
    figure.update_layout(
        layout("Each cell is one measured network"),
        plot_bgcolor="white",  # a cell that is not told apart is white on dark paper, too
        xaxis=_categories(info.column_name, info.columns),
        yaxis=_categories(info.row_name, info.rows) | {"autorange": "reversed"},
    )
    how_to_read = info.how_to_read.replace("\n", " ")
    return [Panel("The bit-widths", (figure,), f"{how_to_read} Boxed: {info.box_words}.")]


def _each(values: NDArray[np.float64], form: str) -> NDArray[np.object_]:
    return np.vectorize(lambda value: format(value, form), otypes=[object])(values)


def _categories(name: str, labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "title": {"text": name},
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "showgrid": False,
        "zeroline": False,
    }


def _bits_text(info: BitsInfo) -> NDArray[np.object_]:
    """Return what hovering over each cell says, (row, column)."""
    text = np.empty(info.shades.shape, dtype=object)
    for cell in np.ndindex(text.shape):
        lines = [
            f"{info.row_name}: {info.rows[cell[0]]}",
            f"{info.column_name}: {info.columns[cell[1]]}",
        ]
        if info.quantity.not_computed[cell]:
            lines.append(NOT_COMPUTED_WORDS)
        elif info.quantity.not_finite[cell]:
            lines.append(NOT_FINITE_WORDS)
        else:
            change, error = info.quantity.values[cell], info.change_error[cell]
            lines += [
                f"Test loss, from the start: {change:+.4f}{error_words(error)}",
                f"Test accuracy: {info.accuracy[cell]:.1%}",
                f"Calibration loss: {info.loss[cell]:.4f}",
            ]
        text[cell] = "<br>".join(lines)
    return text
