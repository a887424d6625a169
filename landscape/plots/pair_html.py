"""Two planes beside each other: one scale of colors, their difference, and what is told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from xarray import Dataset

from landscape.analysis import CLEARLY_HIGHER
from landscape.findings import Row
from landscape.pairs import Pair, pair_planes
from landscape.plots.info import LOSSES, Axis, Quantity, axis_of, loss_of, quantity_of, table_of
from landscape.plots.page import Panel, Section, layout
from landscape.plots.plane import band_words
from landscape.plots.plane_html import band_colors, contours

DIFFERENCE_TITLE = "Difference of the test losses"
APART_TITLE = "What the test images tell apart"
SETTINGS = 30  # that differ, listed one by one


def pair_section(names: tuple[str, str], first: Dataset, second: Dataset) -> Section:
    """Say and draw what differs between two planes.

    Args:
        names: of the runs.
        first: the result of a scan of a plane.
        second: of another, whose losses are compared with the first.
    """
    pair = pair_planes(first, second)
    panels = [_beside(names, first, second)]
    table = {}
    if pair.differences is not None:
        panels.append(_difference(names, pair, first))
        table = table_of(pair.differences, ("y", "x"))
    return Section(
        f"{names[1]} beside {names[0]}",
        _plane_words(pair),
        _rows(names, pair),
        tuple(panels),
        table,
    )


def _plane_words(pair: Pair) -> str:
    """Return whether the two planes are one, in words."""
    if pair.same_directions is None:
        return (
            "These may be different planes: a run does not say by which directions it is spanned."
        )
    if not pair.same_directions:
        return "These are different planes, spanned by different directions: no point is both's."
    if not pair.same_points:
        return (
            "The planes are spanned by the same directions, and measured at different points: give "
            "both the same radius and points for a map of their difference."
        )
    if not pair.same_images:
        return "The same plane, tested on different images: no difference is paired."
    return "The same directions, points and test images: every difference is paired."


def _rows(names: tuple[str, str], pair: Pair) -> list[Row]:
    rows = []
    if pair.start is not None:
        start = pair.start
        words = f"{start.low:+.4f} to {start.high:+.4f} (95 %, paired over the test images)"
        rows.append(Row("Difference of test losses at the starts", f"{start.estimate:+.4f}", words))
    if pair.differences is not None:
        band = pair.differences.band
        count = f"of {int(band.notnull().sum()):,} points"
        for words, chosen in (
            ("higher", band == CLEARLY_HIGHER),
            ("lower", band == 0),
        ):
            rows.append(
                Row(
                    f"Clearly {words} in {names[1]}",
                    f"{int(chosen.sum()):,}",
                    f"{count}, beyond {pair.critical:.1f} paired standard errors, which noise "
                    "exceeds at any point in 5 % of such pairs",
                )
            )
    listed = pair.settings[:SETTINGS]
    rows += [Row(name, f"{one} → {other}", "") for name, one, other in listed]
    if len(pair.settings) > len(listed):
        rows.append(Row("More that differs", str(len(pair.settings) - len(listed)), "settings"))
    return rows


def _beside(names: tuple[str, str], first: Dataset, second: Dataset) -> Panel:
    """Return the maps of both losses of two planes, each loss in one scale of colors."""
    figures = []
    views = ("loss", "test_loss")
    shown = 1
    known = [{view: loss_of(one, view) for view in views} for one in (first, second)]
    for name, dataset, quantities in zip(names, (first, second), known, strict=True):
        figure = go.Figure()
        lines: list[Any] = []
        for view, loss in enumerate(views):
            every = [limit for one in known for limit in one[loss].limits]
            limits = min(every), max(every)
            x, y = axis_of(dataset.x), axis_of(dataset.y)
            lines += [
                trace.update(meta={"view": view, "loss": True, "contours": True})
                for trace in contours(x, y, quantities[loss], limits)
            ]
            figure.add_trace(
                _map(x, y, quantities[loss]).update(
                    colorscale="Viridis",
                    zmin=limits[0],
                    zmax=limits[1],
                    colorbar={"title": {"text": quantities[loss].measure, "side": "right"}},
                    meta={"view": view, "loss": True},
                    visible=view == shown,
                )
            )
        figure.add_traces(lines)
        _lay_out(figure, name, dataset)
        figures.append(figure)
    words = "Both maps have the same colors for the same loss."
    return Panel(
        "Beside each other",
        tuple(figures),
        words,
        tuple(LOSSES[view] for view in views),
        shown,
        colors=True,
    )


def _difference(names: tuple[str, str], pair: Pair, first: Dataset) -> Panel:
    """Return the map of the differences, and that of the bands in which they lie."""
    assert pair.differences is not None
    found = pair.differences
    change = quantity_of(found.difference, first.status, DIFFERENCE_TITLE, "nats")
    apart = quantity_of(found.band, first.status, APART_TITLE, "in paired standard errors")
    largest = max(map(abs, change.limits))
    colors: dict[str, Any] = {
        "colorscale": "RdBu",
        "reversescale": True,  # red is higher
        "zmin": -largest,
        "zmax": largest,
        "colorbar": {"title": {"text": f"{names[1]} minus {names[0]}", "side": "right"}},
    }
    bands = band_colors(apart, band_words(pair.critical))
    bands |= {"zmin": bands.pop("cmin"), "zmax": bands.pop("cmax")}
    numbers = np.stack([found.difference, found.error], axis=-1).astype(np.float32)
    said = (
        "x = %{x:.4g}, y = %{y:.4g}<br>%{customdata[0]:+.4f} ± %{customdata[1]:.4f} "
        "(paired standard error)<extra></extra>"
    )
    figures = []
    for quantity, looks in ((change, colors), (apart, bands)):
        figure = go.Figure(
            _map(axis_of(first.x), axis_of(first.y), quantity).update(
                customdata=numbers, hovertemplate=said, **looks
            )
        )
        _lay_out(figure, quantity.name, first)
        figures.append(figure)
    words = f"{names[1]} minus {names[0]}, image by image: red is higher, blue is lower."
    return Panel("The difference", tuple(figures), words)


def _map(x: Axis, y: Axis, quantity: Quantity) -> go.Heatmap:
    return go.Heatmap(
        x=x.values,
        y=y.values,
        z=quantity.values,
        hoverongaps=False,
        hovertemplate="x = %{x:.4g}, y = %{y:.4g}<br>%{z:.4f}<extra></extra>",
    )


def _lay_out(figure: go.Figure, name: str, dataset: Dataset) -> None:
    figure.update_layout(
        layout(name),
        xaxis={"title": {"text": axis_of(dataset.x).label}, "showgrid": False},
        yaxis={"title": {"text": axis_of(dataset.y).label}, "showgrid": False},
    )
