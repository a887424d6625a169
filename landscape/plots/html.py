"""Interactive figures of a scan, with plotly, in one self-contained HTML file."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from xarray import Dataset

from evolq.atomic import write_whole
from landscape.analysis import Analysis, analyze
from landscape.plots.info import (
    BAND_LIMITS,
    EDGE_MINIMUM_WORDS,
    MEAN_WORDS,
    MINIMUM_WORDS,
    NOT_COMPUTED_WORDS,
    NOT_FINITE_WORDS,
    RAY_WORDS,
    START_WORDS,
    BitsInfo,
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

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>html, body, body > div {{ height: 100%; margin: 0; }}</style>
</head>
<body>
{figure}
</body>
</html>
"""
RAY_COLOR, MEAN_COLOR = "rgba(0, 114, 178, 0.45)", "rgb(213, 94, 0)"  # Okabe and Ito
# A color is a value: no light and shade.
UNLIT = {"ambient": 1, "diffuse": 0, "specular": 0, "fresnel": 0}
OUTLINE = {"color": "black", "width": 1.5}


def interactive(dataset: Dataset, analysis: Analysis | None = None) -> go.Figure:
    """Draw a scan to be turned, zoomed and asked: hovering names a point and its values.

    Args:
        dataset: the result of a scan of any kind.
        analysis: of it, if it has been computed already.
    """
    analysis = analyze(dataset) if analysis is None else analysis
    if "bits" in dataset.dims:
        return _draw_bits(bits_info(dataset, analysis))
    if "ray" in dataset.dims:
        return _draw_rays(rays_info(dataset, analysis))
    return _draw_plane(plane_info(dataset, analysis))


def write_html(figure: go.Figure, path: Path) -> None:
    """Write a figure as one file that needs no network: plotly's program is inside.

    Raises:
        InputError: if the file cannot be written.
    """
    title = figure.layout.title.text.partition("<br>")[0]
    div = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="scan",
        default_height="100%",
        auto_play=False,
    )
    write_whole(path, PAGE.format(title=escape(title), figure=div).encode())


def _draw_plane(info: PlaneInfo) -> go.Figure:
    """Draw three views of the plane, each a heat map and a surface; buttons choose the view."""
    views = (
        (info.loss, info.loss.quantity, _loss_colors(info.loss.quantity)),
        (info.test_loss, info.test_loss.quantity, _loss_colors(info.test_loss.quantity)),
        (info.test_loss, info.confidence, _band_colors(info.confidence)),
    )
    text = _plane_text(info)
    figure = make_subplots(1, 2, specs=[[{"type": "xy"}, {"type": "scene"}]])
    buttons = []
    for view, (surface, colored, colors) in enumerate(views):
        flat = _flat_traces(info, surface, colored, colors, text)
        solid = _solid_traces(info, surface, colored, colors, text)
        shown = {"visible": view == 1}  # the test loss first: it is what a user would see
        figure.add_traces([trace.update(shown, meta=view) for trace in flat], rows=1, cols=1)
        figure.add_traces([trace.update(shown, meta=view) for trace in solid], rows=1, cols=2)
    for view, (surface, colored, _) in enumerate(views):
        visible = [trace.meta == view for trace in figure.data]
        height = {"scene.zaxis.title.text": surface.quantity.measure}
        buttons.append(
            {"label": colored.name, "method": "update", "args": [{"visible": visible}, height]}
        )
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "active": 1}
    figure.update_layout(
        **_layout(info),
        updatemenus=[menu | {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}],
        xaxis={"title": {"text": info.x.label}, "domain": [0, 0.4], "showgrid": False},
        yaxis={"title": {"text": info.y.label}, "showgrid": False},
        scene={
            "domain": {"x": [0.53, 1]},
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": -0.9, "y": -1.4, "z": 1.3}, "center": {"z": -0.15}},
            "xaxis": {"title": {"text": "x"}},
            "yaxis": {"title": {"text": "y"}},
            "zaxis": {"title": {"text": info.test_loss.quantity.measure}},
        },
    )
    return figure


def _layout(info: PlaneInfo | RaysInfo) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "title": {"text": f"{info.title}<br><sup>{info.subtitle}</sup>", "x": 0.5},
        "legend": {"orientation": "h", "y": -0.15},
    }


def _flat_traces(
    info: PlaneInfo,
    surface: Surface,
    colored: Quantity,
    colors: dict[str, Any],
    text: NDArray[np.object_],
) -> list[Any]:
    """Return a heat map of raw cells, crosses and squares where there is no value, and marks."""
    traces: list[Any] = [
        go.Heatmap(
            x=info.x.values,
            y=info.y.values,
            z=colored.values,
            text=text,
            hoverinfo="text",
            hoverongaps=False,
            colorscale=colors["colorscale"],
            zmin=colors["cmin"],
            zmax=colors["cmax"],
            colorbar={"x": 0.41} | colors["colorbar"],
        )
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
                    text=text[missing],
                    hoverinfo="text",
                    mode="markers",
                    marker={"symbol": symbol, "size": 9, "color": "dimgray"},
                    name=name,
                )
            )
    for name, symbol, _, size, markers in _marks(surface):
        traces.append(
            go.Scatter(
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
    text: NDArray[np.object_],
) -> list[Any]:
    """Return the surface through the raw points, its mesh, and a pin for each mark."""
    low, high = surface.quantity.limits
    traces: list[Any] = [
        go.Surface(
            x=info.x.values,
            y=info.y.values,
            z=surface.quantity.values,
            surfacecolor=colored.values,
            text=text,
            hoverinfo="text",
            **colors,
            showscale=False,  # the heat map's colors
            lighting=UNLIT,
            contours={"x": _mesh_lines(info.x.values), "y": _mesh_lines(info.y.values)},
        )
    ]
    for name, _, solid_symbol, size, markers in _marks(surface):
        stem = 0.1 * (high - low)  # a head in the surface would be hidden by it
        feet_and_heads = [(m.value, m.value + stem, None) for m in markers]
        traces.append(
            go.Scatter3d(
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


def _marks(surface: Surface) -> list[tuple[str, str, str, int, list[Marker]]]:
    """Return name, symbol flat and solid, size and places of each kind of mark, the start last."""
    inner = [marker for marker in surface.minima if not marker.on_edge]
    edge = [marker for marker in surface.minima if marker.on_edge]
    marks = [
        (MINIMUM_WORDS, "circle", "circle", 12, inner),
        (EDGE_MINIMUM_WORDS, "square", "square", 11, edge),
        (START_WORDS, "star", "diamond", 14, [surface.start]),
    ]
    return [mark for mark in marks if mark[-1]]


def _loss_colors(quantity: Quantity) -> dict[str, Any]:
    low, high = quantity.limits
    title = {"text": quantity.measure, "side": "right"}
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": {"title": title}}


def _band_colors(quantity: Quantity) -> dict[str, Any]:
    """Return one flat color for each band, and its meaning beside it."""
    count = len(BAND_WORDS)
    flat = sample_colorscale("Cividis", count)
    words = [f"{word}<br>{limits}" for word, limits in zip(BAND_WORDS, BAND_LIMITS, strict=True)]
    return {
        "colorscale": [
            [edge / count, color] for band, color in enumerate(flat) for edge in (band, band + 1)
        ],
        "cmin": -0.5,
        "cmax": count - 0.5,
        "colorbar": {
            "title": {"text": quantity.measure, "side": "right"},
            "tickvals": list(range(count)),
            "ticktext": words,
        },
    }


def _plane_text(info: PlaneInfo) -> NDArray[np.object_]:
    """Return what hovering over each point says, (y, x)."""
    loss, test_loss = info.loss.quantity, info.test_loss.quantity
    text = np.empty(info.accuracy.shape, dtype=object)
    for cell in np.ndindex(text.shape):
        lines = [f"x = {info.x.values[cell[1]]:.4g}, y = {info.y.values[cell[0]]:.4g}"]
        if test_loss.not_computed[cell]:
            lines.append(NOT_COMPUTED_WORDS)
        else:
            lines += [
                f"{quantity.name}, {quantity.measure}: "
                + (
                    f"{quantity.values[cell]:.4f}"
                    if np.isfinite(quantity.values[cell])
                    else "not finite"
                )
                for quantity in (loss, test_loss)
            ]
            if np.isfinite(info.confidence.values[cell]):
                lines.append(
                    f"from the start {info.change[cell]:+.4f} ± {info.change_error[cell]:.4f}: "
                    + BAND_WORDS[int(info.confidence.values[cell])]
                )
            lines.append(f"Test accuracy: {info.accuracy[cell]:.1%}")
        text[cell] = "<br>".join(lines)
    return text


def _draw_rays(info: RaysInfo) -> go.Figure:
    figure = make_subplots(
        1, 2, subplot_titles=(info.loss.quantity.name, info.test_loss.quantity.name)
    )
    for column, curves in enumerate((info.loss, info.test_loss), start=1):
        traces = _curve_traces(info, curves, legend=curves is info.test_loss)
        figure.add_traces(traces, rows=1, cols=column)
        figure.update_xaxes(title_text=info.distance.label, col=column)
        figure.update_yaxes(title_text=curves.label, col=column)
    figure.update_layout(**_layout(info))
    return figure


def _curve_traces(info: RaysInfo, curves: Curves, legend: bool) -> list[Any]:
    """Return a line for each ray and one for their mean, each with its error bars."""
    distance = info.distance.values
    traces = [
        go.Scatter(
            x=distance,
            y=values,
            error_y=_error_bars(None if curves.errors is None else curves.errors[ray], 1),
            line={"color": RAY_COLOR, "width": 1},
            mode="lines",
            name=RAY_WORDS,
            legendgroup=RAY_WORDS,
            showlegend=legend and ray == 0,
            text=[_ray_text(info, ray, index) for index in range(len(distance))],
            hoverinfo="text",
        )
        for ray, values in enumerate(curves.quantity.values)
    ]
    traces.append(
        go.Scatter(
            x=distance,
            y=curves.mean,
            error_y=_error_bars(curves.mean_errors, 2),
            line={"color": MEAN_COLOR, "width": 3},
            mode="lines",
            name=MEAN_WORDS,
            legendgroup=MEAN_WORDS,
            showlegend=legend,
            hoverinfo="skip",
        )
    )
    not_finite = np.argwhere(curves.quantity.not_finite)
    if len(not_finite):
        low, high = curves.quantity.limits
        traces.append(
            go.Scatter(
                x=distance[not_finite[:, 1]],
                y=[high + 0.15 * (high - low)] * len(not_finite),  # above all curves
                text=[_ray_text(info, ray, index) for ray, index in not_finite],
                hoverinfo="text",
                mode="markers",
                marker={"symbol": "x", "size": 9, "color": "dimgray"},
                name=NOT_FINITE_WORDS,
                legendgroup=NOT_FINITE_WORDS,
                showlegend=legend,
            )
        )
    return traces


def _draw_bits(info: BitsInfo) -> go.Figure:
    """Draw a heat map over bit-widths; hovering names a cell and its values."""
    places, labels = zip(*info.ticks, strict=True)
    how_to_read = info.how_to_read.replace("\n", "<br>")
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
        template="plotly_white",
        title={
            "text": f"{info.title}<br><sup>{how_to_read}<br>Boxed: {info.box_words}.<br>"
            f"{info.subtitle}</sup>",
            "x": 0.5,
        },
        margin={"t": 140},
        xaxis=_categories(info.column_name, info.columns),
        yaxis=_categories(info.row_name, info.rows) | {"autorange": "reversed"},
    )
    return figure


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
                f"Test loss, from the start: {change:+.4f} ± {error:.4f}",
                f"Test accuracy: {info.accuracy[cell]:.1%}",
                f"Calibration loss: {info.loss[cell]:.4f}",
            ]
        text[cell] = "<br>".join(lines)
    return text


def _error_bars(errors: NDArray[np.float64] | None, width: int) -> dict[str, Any]:
    return {"visible": False} if errors is None else {"array": errors, "thickness": width}


def _ray_text(info: RaysInfo, ray: int, index: int) -> str:
    """Return what hovering over a point of a ray says."""
    lines = [f"ray {ray}, distance {info.distance.values[index]:.4g}"]
    for curves in (info.loss, info.test_loss):
        change = curves.quantity.values[ray, index]
        error = "" if curves.errors is None else f" ± {curves.errors[ray, index]:.4f}"
        lines.append(
            f"{curves.quantity.name}, {curves.quantity.measure}: "
            + (
                f"{curves.start + change:.4f}, from the start {change:+.4f}{error}"
                if np.isfinite(change)
                else "not finite"
            )
        )
    lines.append(f"Test accuracy: {info.accuracy[ray, index]:.1%}")
    return "<br>".join(lines)
