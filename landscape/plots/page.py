"""Reports in one self-contained HTML file: words first, plotly's figures below them.

A `Section` is plain data: what one run found. Buttons, sliders and layout are those of HTML and not
plotly's, so that a keyboard reaches them, a screen reader names them, and figures stand one below
the other on a phone. Arrays are in the file once, in binary, however many traces show them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import yaml
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from evolq.atomic import write_whole
from landscape.words import Row

OUTLINE = {"color": "black", "width": 1.5}

# How figures look on a light and on a dark screen; the page's own background shows through.
TEMPLATES = {"light": "plotly_white", "dark": "plotly_dark"}

# What the colors of a heat map of a loss follow, see page.js.
SCALES = {
    "linear": "linear",
    "log": "logarithmic",
    "clipped": "clipped at the 95 % quantile",
}


@dataclass(frozen=True)
class Candidate:
    """A minimum that counts if it is deeper than the threshold.

    Attributes:
        x, y: where it is on a plane; 0 elsewhere.
        value: its loss.
        depth: in units of the threshold; None for the lowest, which always counts.
        on_edge: whether it touches the edge of what was measured.
    """

    x: float
    y: float
    value: float
    depth: float | None
    on_edge: bool


@dataclass(frozen=True, eq=False)
class Threshold:
    """A slider: minima deeper than its value are counted and marked.

    Attributes:
        value: where it stands first.
        largest: its right end.
        unit: of both.
        candidates: all minima.
    """

    value: float
    largest: float
    unit: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class Panel:
    """Figures that are read and controlled together.

    Attributes:
        name: its heading.
        figures: in the order in which they are read. `trace.meta` holds: `view`, the number of the
            view that a trace belongs to; `loss`, whether its colors are those of a loss;
            `contours`, whether it shows with contours only; `mark` (inner or edge), whether it
            marks minima.
            `layout.meta[view]` changes the layout with the view.
        words: how to read them.
        views: names of the views, of which one is shown.
        shown: the number of the view that is shown first, as the figures are given.
        colors: whether colors and contours can be chosen.
        steps: labels of the frames that all figures have, if they move.
        moving: what a step is.
        links: whether the last trace of the second figure marks where the first one is pointed at.
        threshold: of the minima in the first figure here, and of the marks in the whole section.
    """

    name: str
    figures: tuple[go.Figure, ...]
    words: str = ""
    views: tuple[str, ...] = ()
    shown: int = 0
    colors: bool = False
    steps: tuple[str, ...] = ()
    moving: str = ""
    links: bool = False
    threshold: Threshold | None = None


@dataclass(frozen=True, eq=False)
class Section:
    """What one run found, or two of them beside each other.

    Attributes:
        title: what was measured.
        subtitle: where, and on how many images.
        rows: what was found, in words.
        panels: the figures.
        table: columns of the points, all of one length, to download as CSV.
        about: a JSON text about how it was measured, with `options`.
        command: the module that measured it: landscape.scan.
        file: name of the file with all numbers.
    """

    title: str
    subtitle: str
    rows: Sequence[Row] = ()
    panels: tuple[Panel, ...] = ()
    table: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    about: str = ""
    command: str = ""
    file: str = ""

    def _repr_html_(self) -> str:
        """Return the section as a page in a frame, for notebooks."""
        title, page = escape(self.title), escape(html([self]))
        style = "width: 100%; height: 720px; border: 0"
        return f'<iframe title="{title}" style="{style}" srcdoc="{page}"></iframe>'


def html(sections: Sequence[Section]) -> str:
    """Return a report as one document that needs no network: plotly's program is inside."""
    folder = resources.files("landscape.plots")
    page = folder.joinpath("page.html").read_text("utf-8")
    alone = len(sections) == 1
    title = sections[0].title if alone else f"{len(sections)} parts: {sections[0].title}, ..."
    if alone:
        (only,) = sections
        body = f"<h1>{escape(only.title)}</h1>" + _section(only, 0, 2)
    else:
        links = "".join(
            f'<li><a href="#part-{number}">{escape(one.title)}</a></li>'
            for number, one in enumerate(sections)
        )
        body = f"<h1>Report</h1><nav><ol>{links}</ol></nav>" + "".join(
            f'<h2 id="part-{number}">{escape(one.title)}</h2>{_section(one, number, 3)}'
            for number, one in enumerate(sections)
        )
    parts = {
        "title": escape(title),
        "body": body,
        "plotly": _packed(get_plotlyjs()),
        "data": _packed(_data(sections)),
        "program": folder.joinpath("page.js").read_text("utf-8"),
    }
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", part)
    return page


def write_html(sections: Sequence[Section], path: Path) -> None:
    """Write a report as one file.

    Raises:
        InputError: if the file cannot be written.
    """
    write_whole(path, html(sections).encode())


def layout(name: str) -> dict[str, Any]:
    """Return what the layouts of all figures have in common.

    Args:
        name: the figure's title.
    """
    return {
        "template": TEMPLATES["light"],
        "title": {"text": name, "x": 0.5, "font": {"size": 15}},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top"},
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
    }


# Words --------------------------------------------------------------------------------------------


def _section(section: Section, number: int, level: int) -> str:
    """Return a section of the document; its headings begin at a level."""
    parts = [f"<p>{escape(section.subtitle)}</p>"]
    if section.rows:
        parts += [f"<h{level}>What was found</h{level}>", _summary(section.rows)]
    for place, panel in enumerate(section.panels):
        small = "" if panel.colors else " small"
        parts.append(f'<div class="panel{small}"><h{level}>{escape(panel.name)}</h{level}>')
        if panel.words:
            parts.append(f"<p>{escape(panel.words)}</p>")
        parts += [*_controls(panel, f"{number}-{place}"), '<div class="figures"></div></div>']
    parts += [*_files(section), *_about(section)]
    return f"<section>{''.join(parts)}</section>"


def _summary(rows: Sequence[Row]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{escape(row.value)}</td>'
        f"<td>{escape(row.meaning)}</td></tr>"
        for row in rows
    )
    head = "<thead><tr><th>What</th><th>Value</th><th>In words</th></tr></thead>"
    return f"<table>{head}<tbody>{cells}</tbody></table>"


def _controls(panel: Panel, name: str) -> Iterator[str]:
    """Yield the controls of a panel; names in the document end with its own."""
    if panel.views:
        buttons = "".join(
            f'<label><input type="radio" name="view-{name}" value="{number}" autocomplete="off"'
            f"{' checked' if number == panel.shown else ''}> {escape(words)}</label>"
            for number, words in enumerate(panel.views)
        )
        yield f'<fieldset class="views"><legend>Show</legend>{buttons}</fieldset>'
    if panel.colors:
        choices = [f'<option value="{key}">{words}</option>' for key, words in SCALES.items()]
        yield (
            '<div class="controls"><label>Colors <select class="scale" autocomplete="off">'
            f"{''.join(choices)}</select></label>"
            '<label><input type="checkbox" class="contours" autocomplete="off"> Contours</label>'
            "</div>"
        )
    if panel.steps:
        labels = escape(json.dumps(panel.steps))
        last = len(panel.steps) - 1
        yield (
            '<div class="controls"><button type="button" class="play">Play</button> '
            f'<label for="step-{name}">{escape(panel.moving)}: <output class="label">'
            f'{panel.steps[-1]}</output></label> <input type="range" class="step" id="step-{name}" '
            f'min="0" max="{last}" value="{last}" data-labels="{labels}" autocomplete="off"></div>'
        )
    if panel.threshold:
        slider = panel.threshold
        yield (
            f'<div class="controls"><label for="threshold-{name}">Deeper than '
            f'<output class="value">{slider.value:.1f}</output> {escape(slider.unit)}: '
            f'<output class="count">{counted(slider)}</output></label>'
            f'<input type="range" class="threshold" id="threshold-{name}" min="0" '
            f'max="{slider.largest:.2f}" step="any" value="{slider.value}" autocomplete="off">'
            '<button type="button" class="reset">As found</button></div>'
        )


def counted(slider: Threshold) -> str:
    """Return in words how many minima count where the slider stands first."""
    count = sum(one.depth is None or one.depth > slider.value for one in slider.candidates)
    return f"{count} of {len(slider.candidates)} local minima"


def _files(section: Section) -> Iterator[str]:
    if section.table:
        yield (
            '<p class="controls"><button type="button" class="csv">Download the points as CSV'
            "</button></p>"
        )
    if section.file:
        yield (
            f"<p>All numbers, image by image, are in {escape(section.file)} (NetCDF), beside this "
            "page in the folder of the run.</p>"
            if section.file.endswith(".nc")
            else f"<p>All numbers are in {escape(section.file)}, in the folder of the run.</p>"
        )


def _about(section: Section) -> Iterator[str]:
    """Yield how it was measured, and how that is repeated, folded away."""
    if not section.about:
        return
    about = json.loads(section.about)
    options = {k: v for k, v in about.pop("options", {}).items() if v is not None}
    parts = []
    if section.command and options:
        command = f"python -m {section.command}"
        parts.append(
            f"<p><code>{command} --like {escape(section.file)}</code> repeats it in the folder of "
            f"the run; <code>{command} --config config.yaml</code> does anywhere, with these "
            "options in that file:</p>"
            f'<pre tabindex="0">{escape(yaml.safe_dump(options, sort_keys=False))}</pre>'
        )
    provenance = escape(json.dumps(about, indent=1))
    parts.append(f'<p>Where it comes from:</p><pre tabindex="0">{provenance}</pre>')
    yield f"<details><summary>How it was measured</summary>{''.join(parts)}</details>"


# Data ---------------------------------------------------------------------------------------------


def _data(sections: Sequence[Section]) -> str:
    """Return what page.js draws: figures with each array by its place in `arrays`."""
    arrays: dict[str, int] = {}
    found = [
        {
            "panels": [
                {
                    "figures": [_shared(_plain(figure), arrays) for figure in panel.figures],
                    "links": panel.links,
                    "candidates": [vars(one) for one in panel.threshold.candidates]
                    if panel.threshold
                    else [],
                }
                for panel in section.panels
            ],
            "table": {name: _shared(_column(v), arrays) for name, v in section.table.items()},
            "name": Path(section.file).stem or "points",
        }
        for section in sections
    ]
    templates = {
        theme: _shared(plotly.io.templates[name].to_plotly_json(), arrays)
        for theme, name in TEMPLATES.items()
    }
    content = {"sections": found, "templates": templates, "arrays": list(arrays)}
    return json.dumps(content, separators=(",", ":"))


def _plain(figure: go.Figure) -> Any:
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return content


def _column(values: NDArray[Any]) -> Any:
    """Return a column as plotly writes arrays; words as they are."""
    if values.dtype.kind not in "fiu":
        return values.tolist()
    code = values.dtype.str[1:]
    if code not in ("f8", "f4", "i4", "i2", "i1", "u1", "u2", "u4"):
        return _column(values.astype(np.float64))
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": code, "bdata": data, "shape": str(len(values))}


def _shared(content: Any, arrays: dict[str, int]) -> Any:
    """Return JSON with the bytes of each array in `arrays`, once, and its number in their place."""
    if isinstance(content, list):
        return [_shared(item, arrays) for item in content]
    if not isinstance(content, dict):
        return content
    if "bdata" in content:
        number = arrays.setdefault(content["bdata"], len(arrays))
        shape = [int(size) for size in str(content.get("shape", "")).split(",") if size.strip()]
        return {"array": number, "dtype": content["dtype"], "shape": shape}
    return {name: _shared(item, arrays) for name, item in content.items()}


def _packed(text: str) -> str:
    """Return a text compressed, as a browser's DecompressionStream reads it, a third in size."""
    # at level 9 plotly's program is 1 % smaller, and takes 0.17 seconds instead of 0.09
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=5, mtime=0)).decode()
