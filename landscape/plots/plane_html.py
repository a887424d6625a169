"""A plane to be turned, zoomed and asked, with plotly: hovering names a point and its values."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from xarray import Dataset

from landscape.analysis import Analysis
from landscape.findings import BAND_WORDS
from landscape.plots.info import NOT_COMPUTED_WORDS, NOT_FINITE_WORDS, Axis, Quantity
from landscape.plots.minima import minima_panel
from landscape.plots.noise import noise_panel
from landscape.plots.page import OUTLINE, Panel, layout
from landscape.plots.plane import (
    CONFIDENCE_NAME,
    EDGE_MINIMUM_WORDS,
    MINIMUM_WORDS,
    START_WORDS,
    Marker,
    PlaneInfo,
    Surface,
    plane_info,
)

# A color is a value: no light and shade.
UNLIT = {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0}


def plane_panels(dataset: Dataset, analysis: Analysis) -> list[Panel | None]:
    """Return the panels of a plane: its surface, its minima, and its noise.

    Args:
        dataset: the result of a scan of a plane.
        analysis: of it; the minima that it found are marked.
    """
    return [
        surface_panel(plane_info(dataset, analysis)),
        minima_panel(dataset, analysis),
        noise_panel(analysis),
    ]


def surface_panel(info: PlaneInfo) -> Panel:
    """Draw three views of a plane, each a heat map and a surface that points where the map does."""
    views = (
        (info.loss, info.loss.quantity, _loss_colors(info.loss.quantity)),
        (
            info.test_loss,
            info.test_loss.quantity,
            _loss_colors(info.test_loss.quantity, info.floor_words),
        ),
        (info.test_loss, info.confidence, band_colors(info.confidence, info.band_words)),
    )
    names = tuple(colored.name for _, colored, _ in views)
    shown = 1  # the test loss first: it is what a user would see
    flat, solid = go.Figure(), go.Figure()
    for view, (surface, colored, colors) in enumerate(views):
        flat.add_traces(_in_view(_flat_traces(info, surface, colored, colors), view, shown))
        solid.add_traces(_in_view(_solid_traces(info, surface, colored, colors), view, shown))
    solid.add_trace(_pointer())
    flat.update_layout(
        layout("Each cell is one measured network"),
        xaxis={"title": {"text": info.x.label}, "showgrid": False},
        yaxis={"title": {"text": info.y.label}, "showgrid": False},
    )
    heights = [surface.quantity.measure for surface, _, _ in views]
    solid.update_layout(
        layout("The same as a surface"),
        meta=[{"scene.zaxis.title.text": height} for height in heights],
        scene={
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": -0.95, "y": -1.45, "z": 1.2}, "center": {"z": -0.15}},
            "xaxis": {"title": {"text": "x"}},
            "yaxis": {"title": {"text": "y"}},
            "zaxis": {"title": {"text": heights[shown]}},
        },
    )
    return Panel("The surface", (flat, solid), "", names, shown, colors=True, links=True)


def _in_view(traces: list[Any], view: int, shown: int) -> list[Any]:
    """Return traces of a view, seen if it is the one that is shown."""
    for trace in traces:
        trace.meta = {"view": view, **(trace.meta or {})}
        trace.visible = view == shown and "contours" not in trace.meta
    return traces


def _pointer() -> go.Scatter3d:
    """Return the mark on the surface that follows the pointer on the map."""
    return go.Scatter3d(
        x=[None],
        y=[None],
        z=[None],
        mode="markers",
        marker={"size": 7, "color": "crimson", "line": OUTLINE},
        hoverinfo="skip",
        showlegend=False,
        visible=True,
        name="pointed at",
    )


def asked(info: PlaneInfo) -> dict[str, Any]:
    """Return what hovering over a point says: a template, and numbers (y, x, 5) to fill it."""
    numbers = (
        info.loss.quantity.values,
        info.test_loss.quantity.values,
        info.change,
        info.change_error,
        100 * info.accuracy,
    )
    known = bool(np.isfinite(info.change_error).any())  # of one image it is not
    error = " ± %{customdata[3]:.4f} (paired standard error)" if known else ""
    lines = [
        "x = %{x:.4g}, y = %{y:.4g}",
        *(
            f"{escape(quantity.label)}: %{{customdata[{number}]:.4f}}"
            for number, quantity in enumerate((info.loss.quantity, info.test_loss.quantity))
        ),
        "from the start %{customdata[2]:+.4f}" + error,
        "Test accuracy: %{customdata[4]:.1f} %",
    ]
    return {
        "customdata": np.stack(numbers, axis=-1).astype(np.float32),
        "hovertemplate": "<br>".join(lines) + "<extra></extra>",
    }


def _flat_traces(
    info: PlaneInfo,
    surface: Surface,
    colored: Quantity,
    colors: dict[str, Any],
) -> list[Any]:
    """Return a heat map of raw cells, crosses and squares where there is no value, and marks."""
    traces: list[Any] = [
        go.Heatmap(
            x=info.x.values,
            y=info.y.values,
            z=colored.values,
            **asked(info),
            hoverongaps=False,
            colorscale=colors["colorscale"],
            zmin=colors["cmin"],
            zmax=colors["cmax"],
            colorbar=colors["colorbar"],
            meta=_loss_meta(colored),
        ),
        *(contours(info.x, info.y, colored, colored.limits) if _loss_meta(colored) else []),
    ]
    for name, symbol, missing in (
        (NOT_FINITE_WORDS, "x", colored.not_finite),
        (NOT_COMPUTED_WORDS, "hash-open", colored.not_computed),
    ):
        rows, columns = np.nonzero(missing)
        if len(rows):
            traces.append(
                go.Scatter(
                    x=info.x.values[columns],
                    y=info.y.values[rows],
                    hovertemplate="x = %{x:.4g}, y = %{y:.4g}<extra>" + name + "</extra>",
                    mode="markers",
                    marker={"symbol": symbol, "size": 9, "color": "dimgray"},
                    name=name,
                )
            )
    for name, symbol, _, size, markers, meta in _marks(surface):
        traces.append(
            go.Scatter(
                meta=meta,
                showlegend=bool(markers),
                x=[marker.x for marker in markers],
                y=[marker.y for marker in markers],
                mode="markers",
                marker={"symbol": symbol, "size": size, "color": "white", "line": OUTLINE},
                hoverinfo="skip",  # the cell below has more to say
                name=name,
            )
        )
    traces[-1:-1] = [
        go.Scatter(
            x=[checkpoint.x],
            y=[checkpoint.y],
            mode="markers+text",
            marker={"symbol": "diamond", "size": 19, "color": "white", "line": OUTLINE},
            text=[str(checkpoint.number)],
            textfont={"color": "black", "size": 10},
            hovertemplate="%{fullData.name}<br>x = %{x:.4g}, y = %{y:.4g}<extra></extra>",
            name=escape(checkpoint.label),
        )
        for checkpoint in info.checkpoints
    ]
    return traces


def _solid_traces(
    info: PlaneInfo,
    surface: Surface,
    colored: Quantity,
    colors: dict[str, Any],
) -> list[Any]:
    """Return the surface through the raw points, its mesh, and a pin for each mark."""
    low, high = surface.quantity.limits
    traces: list[Any] = [
        go.Surface(
            x=info.x.values,
            y=info.y.values,
            z=surface.quantity.values,
            surfacecolor=colored.values,
            **asked(info),
            **colors,
            showscale=False,  # the heat map's colors
            meta=_loss_meta(colored),
            lighting=UNLIT,
            contours={"x": _mesh_lines(info.x.values), "y": _mesh_lines(info.y.values)},
        )
    ]
    stem = 0.1 * (high - low)  # a head in the surface would be hidden by it
    for name, _, solid_symbol, size, markers, meta in _marks(surface):
        feet_and_heads = [(m.value, m.value + stem, None) for m in markers]
        traces.append(
            go.Scatter3d(
                meta=meta | {"stem": stem, "size": size} if meta else None,
                x=np.repeat([m.x for m in markers], 3),
                y=np.repeat([m.y for m in markers], 3),
                z=[z for pin in feet_and_heads for z in pin],
                mode="lines+markers",
                line={"color": "black", "width": 3},
                marker={
                    "size": [0, size, 0] * len(markers),
                    "opacity": 1,
                    "symbol": solid_symbol,
                    "color": "white",
                    "line": OUTLINE,
                },
                hoverinfo="skip",
                name=name,
                showlegend=False,
            )
        )
    return traces


def _mesh_lines(coordinates: NDArray[np.float64]) -> dict[str, Any]:
    """Return lines over the surface through the measured points, which are evenly spaced."""
    first, second, last = coordinates[[0, 1, -1]]
    style = {"show": True, "color": "rgba(0, 0, 0, 0.5)", "width": 1}
    return style | {"start": first, "end": last, "size": second - first}


def _marks(surface: Surface) -> list[tuple[str, str, str, int, list[Marker], dict[str, Any]]]:
    """Return name, symbol flat and solid, size, places and meta of each kind, the start last."""
    inner = [marker for marker in surface.minima if not marker.on_edge]
    edge = [marker for marker in surface.minima if marker.on_edge]
    minima = [
        (MINIMUM_WORDS, "circle", "circle", 12, inner, {"mark": "inner"}),
        (EDGE_MINIMUM_WORDS, "square", "square", 11, edge, {"mark": "edge"}),
    ]
    return [
        *(minima if surface.minima else []),
        (START_WORDS, "star", "diamond", 14, [surface.start], {}),
    ]


def _loss_meta(colored: Quantity) -> dict[str, Any]:
    """Return whether colors are those of a loss, whose scale can be chosen."""
    return {} if colored.name == CONFIDENCE_NAME else {"loss": True}


def contours(x: Axis, y: Axis, quantity: Quantity, limits: tuple[float, float]) -> list[Any]:
    """Return lines of equal loss, in equal steps of color; none where all losses are equal."""
    low, high = limits
    if low == high:
        return []
    return [
        go.Contour(
            x=x.values,
            y=y.values,
            z=quantity.values,
            autocontour=False,
            contours={"coloring": "none", "start": low, "end": high, "size": (high - low) / 10},
            line={"color": "white", "width": 1},
            hoverinfo="skip",
            showlegend=False,
            visible=False,
            meta={"loss": True, "contours": True},
        )
    ]


def _loss_colors(quantity: Quantity, noise: str = "") -> dict[str, Any]:
    low, high = quantity.limits
    title = {"text": ", ".join(filter(None, (quantity.measure, noise))), "side": "right"}
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": {"title": title}}


def band_colors(confidence: Quantity, limits: tuple[str, ...]) -> dict[str, Any]:
    """Return one flat color for each band, and its meaning beside it."""
    count = len(BAND_WORDS)
    flat = sample_colorscale("Cividis", count)
    words = [f"{word}<br>{limit}" for word, limit in zip(BAND_WORDS, limits, strict=True)]
    return {
        "colorscale": [
            [edge / count, color] for band, color in enumerate(flat) for edge in (band, band + 1)
        ],
        "cmin": -0.5,
        "cmax": count - 0.5,
        "colorbar": {
            "title": {"text": confidence.measure, "side": "right"},
            "tickvals": list(range(count)),
            "ticktext": words,
        },
    }
