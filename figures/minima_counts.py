"""Minima against the threshold, and those of nulls: where noise explains them, and where not."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from xarray import Dataset

from figures import default_scan, jagged
from landscape.analysis import analysis_of
from landscape.plots import draw_counts, draw_nulls
from landscape.plots.info import title_of
from landscape.plots.style import STYLE

RUNS = {
    "plane": default_scan.RUNS["fashion_vit"],
    "rays": jagged.RUNS[str(jagged.SEEDS[0])],
}
WORDS = {"plane": "plane of {} points", "rays": "rays of {} points"}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw a column for each run: above its counts at each threshold, below those of nulls."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        panels = figure.subplots(2, len(runs), height_ratios=(3, 2))
        for column, (kind, dataset) in enumerate(runs.items()):
            found = analysis_of(dataset)
            above, below = panels[:, column]
            draw_counts(dataset, found, axes=above)
            draw_nulls(dataset, found, axes=below)
            points = WORDS[kind].format(dataset.test_loss.size)
            above.set_title(
                f"{title_of(dataset)}\n{points}, {dataset.sizes['image']:,} test images",
                fontsize="small",
            )
            if column:
                above.set_ylabel("")
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for kind, dataset in runs.items():
        found = analysis_of(dataset)
        count = len(found.minima.minima)
        null = found.nulls["sampling"]
        words.append(
            f"{kind} ({title_of(dataset)}): {count + found.minima.below} local minima, noise "
            f"ignored, where sampling noise alone has {null.mean:.1f} ({null.low:.0f} to "
            f"{null.high:.0f}); {count} are deeper than {found.minima.sigmas:.1f} paired standard "
            "errors"
        )
    return (
        "Above: local minima of the test loss that are deeper than a threshold, a band that holds "
        "the true number at all thresholds at once in 95 % of scans, and the mean of noise alone. "
        "Below: minima of any depth beside those of surfaces without ruggedness of their own. The "
        f"lowest point of the plane and of each ray counts always. {'; '.join(words)}."
    )
