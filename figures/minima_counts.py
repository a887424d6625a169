"""Minima against the threshold, and those of nulls: where noise explains them, and where not."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from xarray import Dataset

from figures import default_scan, jagged
from landscape.analysis import analysis_of
from landscape.plots import draw_counts, draw_nulls
from landscape.plots.style import STYLE

RUNS = {
    "plane": default_scan.RUNS["fashion_vit"],
    "rays": jagged.RUNS[str(jagged.SEEDS[0])],
}
WORDS = {"plane": "4-bit weights: plane of {} points", "rays": "2-bit weights: rays of {} points"}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw a column for each run: above its counts at each threshold, below those of nulls."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        # apart, so that the words of the lower panels do not narrow the upper ones
        upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
        counts, nulls = upper.subplots(1, len(runs)), lower.subplots(1, len(runs))
        for above, below, (kind, dataset) in zip(counts, nulls, runs.items(), strict=True):
            found = analysis_of(dataset)
            draw_counts(dataset, found, axes=above)
            draw_nulls(dataset, found, axes=below)
            points = WORDS[kind].format(dataset.test_loss.size)
            above.set_title(f"{points},\n{dataset.sizes['image']:,} test images")
        counts[-1].set_ylabel("")
        nulls[-1].set_yticklabels([])
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for kind, dataset in runs.items():
        found = analysis_of(dataset)
        count = len(found.minima.minima)
        null = found.nulls["sampling"]
        where = WORDS[kind].format(dataset.test_loss.size)
        words.append(
            f"{where} ({dataset.sizes['image']:,} test images): {count + found.minima.below} local "
            "minima, noise ignored, where sampling noise alone has "
            f"{null.mean:.1f} ({null.low:.0f} to {null.high:.0f}); deeper than "
            f"{found.minima.sigmas:.1f} paired standard errors: {count}"
        )
    return (
        "Above: local minima of the test loss that are deeper than a threshold, a band that holds "
        "the true number at all thresholds at once in 95 % of scans, and the mean of noise alone. "
        "Below: minima of any depth beside those of surfaces without ruggedness of their own. The "
        f"lowest point of the plane and of each ray counts always. {'; '.join(words)}."
    )
