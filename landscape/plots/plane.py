"""A plane: heat maps and surfaces of both losses, and which points are told apart from the start.

Static, with matplotlib: raw values, nothing smoothed, nothing left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
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

from landscape.analysis import Analysis, analyze, band_edges
from landscape.findings import BAND_WORDS
from landscape.plots.info import (
    NOT_COMPUTED_WORDS,
    NOT_FINITE_WORDS,
    Axis,
    Quantity,
    axis_of,
    loss_of,
    quantity_of,
    subtitle_of,
    title_of,
)
from landscape.plots.style import (
    LOSS_COLORS,
    MARK_STYLE,
    NOT_COMPUTED_STYLE,
    NOT_FINITE_STYLE,
    START_STYLE,
    STYLE,
    drawing,
    sized,
)
from landscape.words import with_unit

# The entries of a legend.
START_WORDS = "start"
CONFIDENCE_NAME = "Test loss against the start"
MINIMUM_WORDS = "local minimum of the test loss"
EDGE_MINIMUM_WORDS = "local minimum of the test loss, at an edge"
HOW_TO_READ = """\
Each cell is one measured network.
Nothing is smoothed.
Paired standard error: the noise that
is left in the difference of two losses
on the same test images. Clearly: told
apart even as one of all points."""
# A checkpoint nearer to the plane than this share of its distance from the start lies on it: the
# rest is rounding.
ON_THE_PLANE = 1e-3
BAND_COLORS = ListedColormap(
    [matplotlib.colormaps["cividis"](level) for level in np.linspace(0, 1, len(BAND_WORDS))]
)
MINIMUM_STYLE = MARK_STYLE | {"marker": "o", "markersize": 9}
EDGE_MINIMUM_STYLE = MINIMUM_STYLE | {"fillstyle": "left", "markerfacecoloralt": "0.2"}
CHECKPOINT_STYLE = MARK_STYLE | {"marker": "D", "markersize": 11}
NUMBER_STYLE: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 7}
LISTED_STYLE = CHECKPOINT_STYLE | {"markersize": 8}
# Of surfaces: proportions, and the view; the first azimuth from which the start is seen.
BOX = (4, 4, 3)
ELEVATION = 30
AZIMUTHS = (-60, -120, -30, -150, 30, 120)
RAY_POINTS = 400
LISTED = 8  # checkpoints that a legend has room for


@dataclass(frozen=True)
class Marker:
    """A place on a surface that the reader's eye should find."""

    x: float
    y: float
    value: float
    on_edge: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies on a plane: its nearest point there."""

    number: int  # in the order in which they were given, from 1
    x: float
    y: float
    words: str  # its name, and how far off the plane it is, as a share of its way from the start

    @property
    def label(self) -> str:
        """Its entry in a legend."""
        return f"{self.number}: {self.words}"


@dataclass(frozen=True, eq=False)
class Surface:
    """One loss of a plane, with what is marked on it."""

    quantity: Quantity
    start: Marker
    minima: tuple[Marker, ...] = ()


@dataclass(frozen=True, eq=False)
class PlaneInfo:
    """All that a figure of a plane shows; arrays are (y, x)."""

    title: str
    subtitle: str
    x: Axis
    y: Axis
    loss: Surface
    test_loss: Surface
    change: NDArray[np.float64]  # of the test loss from the start
    change_error: NDArray[np.float64]  # its paired standard error
    confidence: Quantity  # the band that change / change_error lies in: an index of BAND_WORDS
    band_words: tuple[str, ...]  # limits of the bands, in paired standard errors
    floor_words: str  # the numerical noise of each test loss; empty if it is not known
    accuracy: NDArray[np.float64]
    checkpoints: tuple[Checkpoint, ...]  # those in the range of the axes


def plane_info(dataset: Dataset, analysis: Analysis) -> PlaneInfo:
    """Return what a figure of a plane shows.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it.
    """
    dataset = dataset.transpose("y", "x", ...)
    changes = analysis.changes.transpose("y", "x")
    checkpoints = _checkpoints(dataset)
    shown = tuple(one for one in checkpoints if _in_range(dataset, one))
    subtitle = subtitle_of(dataset)
    if len(shown) < len(checkpoints):
        outside = len(checkpoints) - len(shown)
        subtitle += f" · {outside} of {len(checkpoints)} checkpoints outside the map"
    return PlaneInfo(
        title=title_of(dataset),
        subtitle=subtitle,
        x=axis_of(dataset.x),
        y=axis_of(dataset.y),
        loss=Surface(loss_of(dataset, "loss"), Marker(0.0, 0.0, analysis.start_loss)),
        test_loss=Surface(
            loss_of(dataset, "test_loss"),
            Marker(0.0, 0.0, analysis.start_test_loss.estimate),
            tuple(
                Marker(m.coordinates["x"], m.coordinates["y"], m.value, m.boundary)
                for m in (analysis.minima.minima if analysis.minima else ())
            ),
        ),
        change=changes.test_loss_change.values,
        change_error=changes.test_loss_change_error.values,
        confidence=quantity_of(
            changes.test_loss_band,
            dataset.status,
            CONFIDENCE_NAME,
            "in paired standard errors",
        ),
        band_words=band_words(analysis.critical.both),
        floor_words=_floor_words(analysis),
        accuracy=dataset.test_accuracy.values,
        checkpoints=shown,
    )


def band_words(critical: float) -> tuple[str, ...]:
    """Return the limits of the bands in words; infinite for images too few to tell."""
    edges = [f"{edge:.1f}".replace("-", "−").replace(".0", "") for edge in band_edges(critical)]
    between = [f"{low} to {high}" for low, high in pairwise(edges)]
    if np.isinf(critical):
        return ("too few images", f"beyond {edges[1]}", between[1], f"beyond {edges[2]}", "too few")
    return (f"beyond {edges[0]}", *between, f"beyond {edges[-1]}")


def _floor_words(analysis: Analysis) -> str:
    if analysis.test_loss_floor is None:
        return ""
    return f"numerical noise ± {analysis.test_loss_floor.mean_loss.estimate:.2g}"


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
        _map_on(left, info, info.loss)
        _map_on(middle, info, info.test_loss)
        _confidence_on(right, info)
        # Placed by hand: around 3-D axes, the automatic layout leaves wide margins to all rows.
        for start, surface in ((0.02, info.loss), (0.34, info.test_loss)):
            axes = lower.add_axes((start, 0.05, 0.32, 0.95), projection="3d")
            _surface_on(axes, info, surface)
        lower.legend(handles=_legend(info), loc="upper left", bbox_to_anchor=(0.7, 0.95))
        lower.text(0.71, 0.1, HOW_TO_READ, linespacing=1.5, color="0.3")
    return figure


def draw_map(
    dataset: Dataset,
    analysis: Analysis | None = None,
    *,
    loss: str = "test_loss",
    axes: Axes | None = None,
) -> Figure:
    """Draw one loss of a plane as a heat map of raw cells, with its color bar.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it, if it has been computed already; the minima that it found are marked.
        loss: `test_loss` or `loss`.
        axes: where to draw; a new figure's if not given.
    """
    info = plane_info(dataset, analysis or analyze(dataset))
    with drawing(axes) as (figure, axes):
        _map_on(axes, info, getattr(info, loss))
    return figure


def draw_confidence(
    dataset: Dataset, analysis: Analysis | None = None, *, axes: Axes | None = None
) -> Figure:
    """Draw which points of a plane the test images tell apart from the start.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it, if it has been computed already.
        axes: where to draw; a new figure's if not given.
    """
    info = plane_info(dataset, analysis or analyze(dataset))
    with drawing(axes) as (figure, axes):
        _confidence_on(axes, info)
    return figure


def draw_surface(
    dataset: Dataset,
    analysis: Analysis | None = None,
    *,
    loss: str = "test_loss",
    axes: Axes3D | None = None,
) -> Figure:
    """Draw one loss of a plane as the raw mesh of its points; a point without a value is a hole.

    A mark that the surface hides from the reader's eye is not drawn, and the surface is turned
    until it does not hide the start, if that can be.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it, if it has been computed already; the minima that it found are marked.
        loss: `test_loss` or `loss`.
        axes: where to draw, of projection 3d; a new figure's if not given.
    """
    info = plane_info(dataset, analysis or analyze(dataset))
    with drawing(axes, projection="3d") as (figure, axes):
        _surface_on(axes, info, getattr(info, loss))
        axes.set_title(getattr(info, loss).quantity.name)
    return figure


def _map_on(axes: Axes, info: PlaneInfo, surface: Surface) -> None:
    mesh = _draw_cells(
        axes, info, surface.quantity, cmap=LOSS_COLORS, norm=_scale(surface.quantity)
    )
    noise = info.floor_words if surface is info.test_loss else ""
    label = ",\n".join(filter(None, (surface.quantity.measure, noise)))
    axes.figure.colorbar(mesh, ax=axes, pad=0.03, label=label)
    axes.set_title(surface.quantity.name)
    _mark(axes, info, surface)


def _confidence_on(axes: Axes, info: PlaneInfo) -> None:
    limits = Normalize(-0.5, len(BAND_WORDS) - 0.5)
    mesh = _draw_cells(axes, info, info.confidence, cmap=BAND_COLORS, norm=limits)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.03, label=info.confidence.measure)
    words = [f"{word}\n{limits}" for word, limits in zip(BAND_WORDS, info.band_words, strict=True)]
    bar.set_ticks(range(len(words)), labels=words, fontsize="small", linespacing=1.3)
    bar.ax.tick_params(length=0)
    axes.set_title(info.confidence.name)
    _mark(axes, info, info.test_loss)


def _surface_on(axes: Axes3D, info: PlaneInfo, surface: Surface) -> None:
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
    axes.set_proj_type("ortho")  # one direction of view for all points
    axes.set_box_aspect(BOX, zoom=0.92)  # words stay within the axes
    for azimuth in AZIMUTHS:
        axes.view_init(elev=ELEVATION, azim=azimuth)
        if _seen(axes, info, surface, surface.start):
            break
    for marker, style in _marks(surface):
        if _seen(axes, info, surface, marker):
            axes.plot([marker.x], [marker.y], [marker.value], zorder=10, **style)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("x")  # in full below the map above
    axes.set_ylabel("y")
    axes.set_zlabel(surface.quantity.measure, labelpad=8)


def _seen(axes: Axes3D, info: PlaneInfo, surface: Surface, marker: Marker) -> bool:
    """Return whether no part of a surface lies between a mark on it and the reader's eye."""
    elevation, azimuth = np.deg2rad([axes.elev, axes.azim])
    towards = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    limits = np.array([axes.get_xlim3d(), axes.get_ylim3d(), axes.get_zlim3d()])
    step = towards * np.ptp(limits, axis=1) / np.array(BOX)
    cell = min(np.ptp(info.x.values), np.ptp(info.y.values)) / len(info.x.values)
    # From a cell away, as the surface at the mark itself hides nothing, to beyond any edge.
    start = cell / np.hypot(*step[:2])
    along = np.linspace(start, 2 * max(BOX), RAY_POINTS)
    foot = np.array([marker.x, marker.y])
    bottom = np.nanmax([marker.value, *_heights(info, surface, *foot[:, None])])
    x, y, z = (np.append(foot, bottom) + along[:, None] * step).T
    return not bool((_heights(info, surface, x, y) > z).any())


def _heights(
    info: PlaneInfo, surface: Surface, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the heights of a surface between its points (bilinear); NaN beyond, and in holes."""
    values = surface.quantity.values
    places = []
    for along, at in ((info.y.values, y), (info.x.values, x)):
        index = np.interp(at, along, np.arange(len(along)), left=np.nan, right=np.nan)
        low = np.clip(np.nan_to_num(index).astype(int), 0, len(along) - 2)
        places.append((low, index - low))
    (row, down), (column, right) = places
    upper = values[row, column] * (1 - right) + values[row, column + 1] * right
    lower = values[row + 1, column] * (1 - right) + values[row + 1, column + 1] * right
    return upper * (1 - down) + lower * down


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
    return [(one, sized(style)) for one, style in [*minima, (surface.start, START_STYLE)]]


def _mark(axes: Axes, info: PlaneInfo, surface: Surface) -> None:
    for checkpoint in info.checkpoints:
        place = checkpoint.x, checkpoint.y
        axes.plot(*place, clip_on=False, zorder=9, **sized(CHECKPOINT_STYLE))
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


def _checkpoints(dataset: Dataset) -> list[Checkpoint]:
    """Return the checkpoints in a Dataset, if there are any."""
    if "checkpoint" not in dataset.dims:
        return []
    return [
        Checkpoint(
            number + 1,
            float(one.checkpoint_x),
            float(one.checkpoint_y),
            _checkpoint_words(
                str(one.checkpoint.values),
                float(one.checkpoint_distance),
                float(one.checkpoint_distance_from_start),
            ),
        )
        for number in range(dataset.sizes["checkpoint"])
        for one in [dataset.isel(checkpoint=number)]
    ]


def _checkpoint_words(name: str, off: float, from_start: float) -> str:
    if off <= ON_THE_PLANE * from_start:
        return name
    return f"{name} ({off / from_start:.1%} off the plane)"


def _in_range(dataset: Dataset, checkpoint: Checkpoint) -> bool:
    x, y = dataset.x.values, dataset.y.values
    return bool(x[0] <= checkpoint.x <= x[-1] and y[0] <= checkpoint.y <= y[-1])
