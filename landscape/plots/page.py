"""Interactive figures in one self-contained HTML file: words first, plotly's figures below them.

A `Page` is plain data. Buttons, slider and layout are those of HTML and not plotly's, so that a
keyboard reaches them, a screen reader names them, and figures stand one below the other on a phone.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from evolq.atomic import write_whole
from landscape.words import Row

OUTLINE = {"color": "black", "width": 1.5}


@dataclass(frozen=True, eq=False)
class Page:
    """Figures that belong together.

    Attributes:
        title: what was measured.
        subtitle: where, and on how many images.
        figures: in the order in which they are read. `trace.meta` is the number of the view that a
            trace belongs to, None for all; `layout.meta[view]` changes the layout with the view.
        views: names of the views, of which one is shown.
        shown: the number of the view that is shown first, as the figures are given.
        steps: labels of the frames that all figures have, if they move.
        moving: what a step is.
        links: whether the last trace of the second figure marks where the first one is pointed at,
            at the height that is the first of the numbers (`customdata`) there.
    """

    title: str
    subtitle: str
    figures: tuple[go.Figure, ...]
    views: tuple[str, ...] = ()
    shown: int = 0
    steps: tuple[str, ...] = ()
    moving: str = ""
    links: bool = False

    def html(self, rows: Sequence[Row] = (), about: str = "") -> str:
        """Return the page as one document that needs no network.

        Args:
            rows: what was found, in words, above the figures.
            about: a JSON text about how it was measured, folded away below them.
        """
        template = resources.files("landscape.plots").joinpath("page.html").read_text("utf-8")
        parts = {
            "title": escape(self.title),
            "subtitle": escape(self.subtitle),
            "summary": _summary(rows),
            "controls": self._controls(),
            "about": _about(about),
            "program": _packed(get_plotlyjs()),
            "data": _packed(self._data()),
        }
        for name, part in parts.items():
            template = template.replace(f"<!-- {name} -->", part)
        return template

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        title, page = escape(self.title), escape(self.html())
        style = "width: 100%; height: 720px; border: 0"
        return f'<iframe title="{title}" style="{style}" srcdoc="{page}"></iframe>'

    def _data(self) -> str:
        figures = [json.loads(figure.to_json()) for figure in self.figures]
        return json.dumps({"figures": figures, "links": self.links}, separators=(",", ":"))

    def _controls(self) -> str:
        parts = []
        if self.views:
            buttons = "".join(
                f'<label><input type="radio" name="view" value="{number}"'
                f"{' checked' if number == self.shown else ''}> {escape(name)}</label>"
                for number, name in enumerate(self.views)
            )
            parts.append(f"<fieldset><legend>Show</legend>{buttons}</fieldset>")
        if self.steps:
            last = len(self.steps) - 1
            labels = escape(json.dumps(self.steps))
            parts.append(
                '<div class="player"><button type="button" id="play">Play</button> '
                f'<label for="step">{escape(self.moving)}: <output id="label">{self.steps[-1]}'
                f'</output></label> <input type="range" id="step" min="0" max="{last}" '
                f'value="{last}" data-labels="{labels}"></div>'
            )
        return "".join(parts)


def write_html(page: Page, path: Path, rows: Sequence[Row] = (), about: str = "") -> None:
    """Write a page as one file that needs no network: plotly's program is inside.

    Raises:
        InputError: if the file cannot be written.
    """
    write_whole(path, page.html(rows, about).encode())


def layout(name: str) -> dict[str, Any]:
    """Return what the layouts of all figures have in common.

    Args:
        name: the figure's title.
    """
    return {
        "template": "plotly_white",
        "title": {"text": name, "x": 0.5, "font": {"size": 15}},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"},
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
    }


def _packed(text: str) -> str:
    """Return a text compressed, as a browser's DecompressionStream reads it, a third in size."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _summary(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{escape(row.value)}</td>'
        f"<td>{escape(row.meaning)}</td></tr>"
        for row in rows
    )
    head = "<thead><tr><th>What</th><th>Value</th><th>In words</th></tr></thead>"
    return f"<h2>What was found</h2><table>{head}<tbody>{cells}</tbody></table>"


def _about(about: str) -> str:
    if not about:
        return ""
    text = escape(json.dumps(json.loads(about), indent=1))
    return f"<details><summary>How it was measured</summary><pre>{text}</pre></details>"
