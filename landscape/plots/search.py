"""A search: its loss against cost, and what it gained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.findings import Row
from landscape.plots.comparison_info import COST_WORDS, interval_words
from landscape.plots.page import Panel, Section, layout
from landscape.plots.style import ACCENT
from landscape.words import criterion_words, title_of

STAGES = {"fp32": "full precision", "start": "the start", "final": "the result"}


def search_section(report: Mapping[str, Any]) -> Section:
    """Say and draw what a search found.

    Args:
        report: that `python -m evolq` wrote.
    """
    configuration = report["configuration"]
    curve = report.get("curve")
    panels = () if curve is None else (_curve_panel(curve, criterion_words(configuration)),)
    about = {key: report[key] for key in ("configuration", "hashes", "versions", "options")}
    return Section(
        f"{title_of(configuration)}: a search by evolution",
        f"{configuration['calibration_images']:,} calibration images · "
        f"{configuration['test_images']:,} test images",
        search_rows(report),
        panels,
        {} if curve is None else {name: np.asarray(values) for name, values in curve.items()},
        json.dumps(about),
    )


def search_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return what a search reached, in words."""
    rows = [
        Row(
            f"Test accuracy of {words}",
            f"{report[f'{stage}_accuracy']:.2%}",
            f"cross entropy {report[f'{stage}_loss']:.4f}",
        )
        for stage, words in STAGES.items()
    ]
    low, high = report["difference_interval"]
    change = interval_words(report["difference"], low, high, percent=True)
    low, high = report["loss_difference_interval"]
    loss = interval_words(report["loss_difference"], low, high)
    return [
        *rows,
        Row(
            "Result minus start",
            f"{report['difference']:+.2%}",
            f"{change} points; loss {loss} (95 %, paired over the test images)",
        ),
        Row(
            "Gain of the fitness",
            f"{report['gain']:.4f}",
            f"on the calibration images; as many jitters of 1e-6, which mean nothing, would give "
            f"{report['jitter_gain']:.4f}",
        ),
        Row(
            "Cost",
            f"{report['forward_passes']:.1f}",
            f"forward passes of the calibration images, {report['fitness_evaluations']:,} "
            "evaluations",
        ),
    ]


def _curve_panel(curve: Mapping[str, Any], measure: str) -> Panel:
    figure = go.Figure(
        go.Scatter(
            x=curve["cost"],
            y=curve["loss"],
            mode="lines",
            line={"color": ACCENT, "width": 3, "shape": "hv"},
            hovertemplate="cost %{x:.1f}<br>%{y:.4f}<extra></extra>",
        )
    )
    figure.update_layout(
        layout("Fitness against cost"), xaxis_title_text=COST_WORDS, yaxis_title_text=measure
    )
    return Panel("The search", (figure,))
