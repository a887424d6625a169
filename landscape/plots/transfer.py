"""Static figure of how calibration gains carry over to test images, with matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from xarray import Dataset

from evolq.losses.criteria import CRITERIA, words_of
from landscape.findings import Row
from landscape.paths.transfer import transfer_rows
from landscape.plots.comparison_info import interval_words
from landscape.plots.page import Panel, Section, layout
from landscape.plots.palette import looks
from landscape.plots.style import STYLE
from landscape.words import configuration_of, title_of

TRANSFER_TITLE = "What a gain on calibration images is worth on test images"
CHANGE_WORDS = "Change of the test cross entropy (nats), 95 % intervals"


def draw_transfer(dataset: Dataset) -> Figure:
    """Draw the gain on calibration images above what it was worth on test images, by optimizer.

    Args:
        dataset: of `landscape.paths.transfer.transfer`, over several `size`s.
    """
    rows = transfer_rows(dataset)
    optimizers = [str(name) for name in dataset.optimizer.values]
    criteria = [str(name) for name in dataset.criterion.values]
    look_of = looks(criteria, CRITERIA)
    middle = (len(criteria) - 1) / 2
    with matplotlib.rc_context(STYLE):
        width = 1.5 + 4.2 * len(optimizers)
        figure = Figure(figsize=(max(width, 6.5), 7.6), layout="constrained")
        figure.suptitle(
            f"{title_of(configuration_of(dataset))}\nWhat a gain on calibration images is worth on "
            f"{dataset.sizes['image']:,} test images"
        )
        grid = figure.subplots(2, len(optimizers), sharex=True, sharey="row", squeeze=False)
        for column, optimizer in enumerate(optimizers):
            above, below = grid[:, column]
            above.set_title(optimizer)
            below.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
            for number, criterion in enumerate(criteria):
                chosen = [r for r in rows if (r.optimizer, r.criterion) == (optimizer, criterion)]
                look = look_of[criterion]
                # a little apart, so that no error bar hides another
                sizes = np.array([row.size for row in chosen]) * 1.05 ** (number - middle)
                style: Any = {
                    "color": look.color,
                    "linestyle": look.dashes,
                    "marker": look.marker,
                }
                above.plot(sizes, [row.closed for row in chosen], **style)
                changes = np.array([row.test_loss_change for row in chosen])
                below.errorbar(
                    sizes,
                    changes[:, 0],
                    np.abs(changes[:, 1:] - changes[:, :1]).T,
                    capsize=3,
                    label=words_of(criterion).partition(" (")[0],
                    **style,
                )
            below.set_xscale("log")
            below.set_xticks(dataset["size"].values, labels=map(str, dataset["size"].values))
            below.xaxis.set_minor_locator(NullLocator())
            below.set_xlabel("Calibration images")
            above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        grid[0, 0].set_ylabel("Calibration: part of the gap to\nfull precision that was closed")
        grid[1, 0].set_ylabel(
            "Test: change of the cross entropy (nats)\n95 % intervals; below 0 is better"
        )
        handles, labels = grid[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def transfer_section(dataset: Dataset) -> Section:
    """Say and draw what each criterion is worth on test images, by optimizer.

    Args:
        dataset: of `landscape.paths.transfer.transfer`, over several `size`s.
    """
    rows = transfer_rows(dataset)
    look_of = looks([str(name) for name in dataset.criterion.values], CRITERIA)
    figures = []
    for optimizer in map(str, dataset.optimizer.values):
        figure = go.Figure()
        for criterion, look in look_of.items():
            chosen = [r for r in rows if (r.optimizer, r.criterion) == (optimizer, criterion)]
            changes = np.array([row.test_loss_change for row in chosen]).reshape(-1, 3)
            figure.add_scatter(
                x=[row.size for row in chosen],
                y=changes[:, 0],
                error_y={
                    "array": changes[:, 2] - changes[:, 0],
                    "arrayminus": changes[:, 0] - changes[:, 1],
                    "symmetric": False,
                },
                line={"color": look.color, "dash": look.dash},
                marker={"symbol": look.symbol, "size": 9},
                name=words_of(criterion).partition(" (")[0],
            )
        figure.add_hline(0, line={"dash": "dot", "color": "gray", "width": 1})
        figure.update_layout(
            layout(optimizer),
            xaxis={"type": "log", "title": {"text": "Calibration images"}},
            yaxis_title_text=CHANGE_WORDS,
        )
        figures.append(figure)
    configuration = configuration_of(dataset)
    return Section(
        f"{title_of(configuration)}: {TRANSFER_TITLE.lower()}",
        f"{dataset.sizes['image']:,} test images",
        [
            Row(
                f"{row.criterion}, {row.size:,} images, {row.optimizer}",
                f"{row.closed:.0%} of the gap closed",
                f"change of the test loss {interval_words(*row.test_loss_change)} nats",
            )
            for row in rows
        ],
        (Panel(TRANSFER_TITLE, tuple(figures), "Below 0 is better."),),
        {},
        dataset.attrs.get("provenance", ""),
    )
