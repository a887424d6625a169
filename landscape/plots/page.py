"""Interactive figures in one self-contained HTML file, with plotly."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from evolq.atomic import write_whole

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
OUTLINE = {"color": "black", "width": 1.5}


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


def layout(title: str, subtitle: str) -> dict[str, Any]:
    """Return what the layouts of planes and rays have in common."""
    return {
        "template": "plotly_white",
        "title": {"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.5},
        "legend": {"orientation": "h", "y": -0.15},
    }
