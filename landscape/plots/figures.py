"""Static figures of a scan, with matplotlib: raw values, nothing smoothed, nothing left out.

No global state: a `Figure` is made directly and `pyplot` never imported.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import NDArray
from xarray import Dataset

from evolq.atomic import write_whole
from landscape.analysis import Analysis, analyze
from landscape.plots.info import (
    BAND_LIMITS,
    EDGE_MINIMUM_WORDS,
    HOW_TO_READ,
    MEAN_WORDS,
    MINIMUM_WORDS,
    NOT_COMPUTED_WORDS,
    NOT_FINITE_WORDS,
    RAY_WORDS,
    START_WORDS,
    Curves,
    Marker,
    PlaneInfo,
    Quantity,
    RaysInfo,
    Surface,
    bits_info,
    plane_info,
    rays_info,
)
from landscape.report import BAND_WORDS
from landscape.words import with_unit

DOTS_PER_INCH = 200
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "figure.titlesize": 13,
    "axes.formatter.limits": (-3, 5),  # small steps as multiples of a power of ten
    "axes.formatter.use_mathtext": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # text stays text in a paper
    "svg.hashsalt": "landscape",
}
# Dark is low on every map, in color and in gray alike, and to a color-blind eye.
LOSS_COLORS = matplotlib.colormaps["viridis"]
BAND_COLORS = ListedColormap(
    [matplotlib.colormaps["cividis"](level) for level in np.linspace(0, 1, len(BAND_WORDS))]
)

RISE_COLORS = matplotlib.colormaps["Reds"]
BOX_STYLE: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 2, "zorder": 3}

MARK_STYLE: dict[str, Any] = {"linestyle": "", "color": "white", "markeredgecolor": "black"}
START_STYLE = MARK_STYLE | {"marker": "*", "markersize": 13}
MINIMUM_STYLE = MARK_STYLE | {"marker": "o", "markersize": 9}
EDGE_MINIMUM_STYLE = MINIMUM_STYLE | {"fillstyle": "left", "markerfacecoloralt": "0.2"}
CHECKPOINT_STYLE = MARK_STYLE | {"marker": "D", "markersize": 11}
NUMBER_STYLE: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 7}
LISTED_STYLE = CHECKPOINT_STYLE | {"markersize": 8}
LISTED = 8  # checkpoints that a legend has room for
RAY_COLOR, MEAN_COLOR = "#0072b2", "#d55e00"  # Okabe and Ito's blue and vermilion
NOT_FINITE_STYLE: dict[str, Any] = {"facecolor": "0.75", "edgecolor": "black", "hatch": "xxxx"}
NOT_COMPUTED_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "...."}


def draw(dataset: Dataset, analysis: Analysis | None = None) -> Figure:
    """Draw a scan of any kind.

    Args:
        dataset: the result of a scan.
        analysis: of it, if it has been computed already.
    """
    analysis = analyze(dataset) if analysis is None else analysis
    if "bits" in dataset.dims:
        return draw_bits(dataset, analysis)
    return (draw_rays if "ray" in dataset.dims else draw_plane)(dataset, analysis)


def draw_plane(dataset: Dataset, analysis: Analysis) -> Figure:
    """Draw both losses of a plane as heat maps and surfaces, and how far they can be believed.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it; the minima that it found are marked.
    """
    info = plane_info(dataset, analysis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 7.8), layout="constrained")
        figure.suptitle(f"{info.title}\n{info.subtitle}")
        upper, lower = figure.subfigures(2, 1)  # type: ignore[misc]  # it returns an array
        left, middle, right = upper.subplots(1, 3)
        draw_map(left, info, info.loss)
        draw_map(middle, info, info.test_loss)
        draw_confidence(right, info)
        # Placed by hand: around 3-D axes, the automatic layout leaves wide margins to all rows.
        for start, surface in ((0.02, info.loss), (0.34, info.test_loss)):
            axes = lower.add_axes((start, 0.05, 0.32, 0.95), projection="3d")
            draw_surface(axes, info, surface)
        lower.legend(handles=_legend(info), loc="upper left", bbox_to_anchor=(0.7, 0.95))
        lower.text(0.71, 0.1, HOW_TO_READ, linespacing=1.5, color="0.3")
    return figure


def draw_map(axes: Axes, info: PlaneInfo, surface: Surface) -> None:
    """Draw one loss of a plane as a heat map of raw cells, with its color bar."""
    mesh = _draw_cells(
        axes, info, surface.quantity, cmap=LOSS_COLORS, norm=_scale(surface.quantity)
    )
    axes.figure.colorbar(mesh, ax=axes, pad=0.03, label=surface.quantity.measure)
    axes.set_title(surface.quantity.name)
    _mark(axes, info, surface)


def draw_confidence(axes: Axes, info: PlaneInfo) -> None:
    """Draw which points of a plane the test images tell apart from the start."""
    limits = Normalize(-0.5, len(BAND_WORDS) - 0.5)
    mesh = _draw_cells(axes, info, info.confidence, cmap=BAND_COLORS, norm=limits)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.03, label=info.confidence.measure)
    words = [f"{word}\n{limits}" for word, limits in zip(BAND_WORDS, BAND_LIMITS, strict=True)]
    bar.set_ticks(range(len(words)), labels=words, fontsize="small", linespacing=1.3)
    bar.ax.tick_params(length=0)
    axes.set_title(info.confidence.name)
    _mark(axes, info, info.test_loss)


def draw_surface(axes: Axes3D, info: PlaneInfo, surface: Surface) -> None:
    """Draw one loss of a plane as the raw mesh of its points; a point without a value is a hole."""
    x, y = np.meshgrid(info.x.values, info.y.values)
    axes.computed_zorder = False  # marks stay in front of the mesh
    axes.plot_surface(
        x,
        y,
        surface.quantity.values,
        cmap=LOSS_COLORS,
        norm=_scale(surface.quantity),
        rstride=1,
        cstride=1,
        shade=False,
        edgecolor=(0, 0, 0, 0.35),
        linewidth=0.3,
    )
    for marker, style in _marks(surface):
        axes.plot([marker.x], [marker.y], [marker.value], zorder=10, **style)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set_box_aspect((4, 4, 3))
    axes.set_xlabel("x")  # in full below the map above
    axes.set_ylabel("y")
    axes.set_zlabel(surface.quantity.measure, labelpad=8)


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
        _draw_curves(left, info, info.loss)
        _draw_curves(right, info, info.test_loss)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_bits(dataset: Dataset, analysis: Analysis) -> Figure:
    """Draw a scan over bit-widths as a heat map of what they cost.

    Args:
        dataset: the result of a scan of bits or of layers.
        analysis: of it.
    """
    info = bits_info(dataset, analysis)
    rows, columns = info.shades.shape
    with matplotlib.rc_context(STYLE):
        width = 2.6 + 0.085 * max(map(len, info.rows)) + 0.6 * columns
        figure = Figure(figsize=(max(8.0, width), 2.8 + 0.3 * rows), layout="constrained")
        figure.suptitle(info.title)
        axes = figure.subplots()
        mesh = axes.pcolormesh(info.shades, cmap=RISE_COLORS, vmin=0, vmax=info.darkest)
        bar = figure.colorbar(mesh, ax=axes, label=info.quantity.label, aspect=30)
        places, labels = zip(*info.ticks, strict=True)
        bar.set_ticks(places, labels=labels)
        axes.hlines(np.arange(rows), 0, columns, color="0.85", linewidth=0.8)
        axes.vlines(np.arange(columns), 0, rows, color="0.85", linewidth=0.8)
        for cell, words in np.ndenumerate(info.words):
            color = "white" if info.shades[cell] > 0.6 * info.darkest else "black"
            axes.text(
                cell[1] + 0.5, cell[0] + 0.5, words, ha="center", va="center", fontsize=8, c=color
            )
        for row, column in info.boxed:
            axes.add_patch(Rectangle((column, row), 1, 1, **BOX_STYLE))
        for missing, style in (
            (info.quantity.not_finite, NOT_FINITE_STYLE),
            (info.quantity.not_computed, NOT_COMPUTED_STYLE),
        ):
            for row, column in np.argwhere(missing):
                axes.add_patch(Rectangle((column, row), 1, 1, linewidth=0, **style))
        axes.set_title(f"{info.how_to_read}\n{info.subtitle}", fontsize=9, color="0.3")
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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix, the same bytes for the same figure.

    Raises:
        InputError: if the file cannot be written.
    """
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context(STYLE):
        content = BytesIO()
        metadata = undated.get(path.suffix)
        figure.savefig(content, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
    write_whole(path, content.getbuffer())


def _scale(quantity: Quantity) -> Normalize:
    """Return the scale of colors: the same on the map, of cells, and on the surface, of faces."""
    return Normalize(*quantity.limits)


def _draw_cells(axes: Axes, info: PlaneInfo, quantity: Quantity, **colors: Any) -> QuadMesh:
    x, y = info.x.values, info.y.values
    mesh = axes.pcolormesh(x, y, quantity.values, shading="nearest", rasterized=True, **colors)
    corners: NDArray[np.float64] = mesh.get_coordinates()  # type: ignore[assignment]
    for missing, style in (
        (quantity.not_finite, NOT_FINITE_STYLE),
        (quantity.not_computed, NOT_COMPUTED_STYLE),
    ):
        for row, column in np.argwhere(missing):
            width, height = corners[row + 1, column + 1] - corners[row, column]
            axes.add_patch(Rectangle(corners[row, column], width, height, linewidth=0, **style))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(with_unit(info.x.name, info.x.unit, "\n"))
    axes.set_ylabel(with_unit(info.y.name, info.y.unit, "\n"))
    return mesh


def _marks(surface: Surface) -> list[tuple[Marker, dict[str, Any]]]:
    """Return each marker with its style, the start last so that it lies on top."""
    minima = [(m, EDGE_MINIMUM_STYLE if m.on_edge else MINIMUM_STYLE) for m in surface.minima]
    return [*minima, (surface.start, START_STYLE)]


def _mark(axes: Axes, info: PlaneInfo, surface: Surface) -> None:
    for checkpoint in info.checkpoints:
        place = checkpoint.x, checkpoint.y
        axes.plot(*place, clip_on=False, zorder=9, **CHECKPOINT_STYLE)
        axes.annotate(str(checkpoint.number), place, zorder=9, **NUMBER_STYLE)
    for marker, style in _marks(surface):
        axes.plot(marker.x, marker.y, clip_on=False, zorder=10, **style)


def _legend(info: PlaneInfo) -> list[Artist]:
    """Return an entry for each kind of mark and of missing cell that occurs in the figure."""
    on_edge = {marker.on_edge for marker in info.test_loss.minima}
    quantities = (info.loss.quantity, info.test_loss.quantity)
    entries: list[Artist] = [Line2D([], [], **START_STYLE, label=START_WORDS)]
    if False in on_edge:
        entries.append(Line2D([], [], **MINIMUM_STYLE, label=MINIMUM_WORDS))
    if True in on_edge:
        entries.append(Line2D([], [], **EDGE_MINIMUM_STYLE, label=EDGE_MINIMUM_WORDS))
    entries += [
        Line2D([], [], **LISTED_STYLE, label=checkpoint.label)
        for checkpoint in info.checkpoints[:LISTED]
    ]
    if len(info.checkpoints) > LISTED:
        more = f"… and {len(info.checkpoints) - LISTED} more checkpoints"
        entries.append(Line2D([], [], **LISTED_STYLE, label=more))
    if any(quantity.not_finite.any() for quantity in quantities):
        entries.append(Patch(**NOT_FINITE_STYLE, label=NOT_FINITE_WORDS))
    if any(quantity.not_computed.any() for quantity in quantities):
        entries.append(Patch(**NOT_COMPUTED_STYLE, label=NOT_COMPUTED_WORDS))
    return entries


def _draw_curves(axes: Axes, info: RaysInfo, curves: Curves) -> None:
    distance = info.distance.values
    axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    style: dict[str, Any] = {
        "color": RAY_COLOR,
        "alpha": 0.45,
        "linewidth": 0.9,
        "elinewidth": 0.7,
    }
    for ray, values in enumerate(curves.quantity.values):
        errors = None if curves.errors is None else curves.errors[ray]
        axes.errorbar(distance, values, errors, **style, label=RAY_WORDS if ray == 0 else None)
    if curves.mean_errors is not None:
        low, high = curves.mean - curves.mean_errors, curves.mean + curves.mean_errors
        axes.fill_between(distance, low, high, color=MEAN_COLOR, alpha=0.3, linewidth=0, zorder=3)
    axes.plot(distance, curves.mean, color=MEAN_COLOR, linewidth=2, zorder=4, label=MEAN_WORDS)
    _, columns = np.nonzero(curves.quantity.not_finite)
    if len(columns):
        top = np.ones(len(columns))
        style = {"marker": "x", "color": "black", "linestyle": "", "clip_on": False}
        axes.plot(
            distance[columns],
            top,
            transform=axes.get_xaxis_transform(),
            **style,
            label=NOT_FINITE_WORDS,
        )
    axes.set_title(curves.quantity.name)
    axes.set_xlabel(info.distance.label)
    axes.set_ylabel(curves.label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
