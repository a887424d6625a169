"""A surface that is jagged, and really so: rays at 2 bits, with minima above the noise."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import analysis_of
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE

CIRCLE = {"markersize": 10, "markeredgewidth": 2, "markerfacecolor": "none", "zorder": 3}
SEEDS = range(5)
RUNS = {
    str(seed): (
        *("landscape.scan", "--probe", "rays", "--weight-bits", "2", "--radius", "0.1"),
        *("--rays", "4", "--points", "21", "--test-images", "1000", "--seed", str(seed)),
        *("--repeats", "4", "--descents", "0", "--no-frozen-codes"),
    )
    for seed in SEEDS
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw the rays of the first seed, below each other, with error bars."""
    dataset = next(iter(runs.values()))
    found = analysis_of(dataset)
    change, error = (found.changes[f"test_loss_change{end}"] for end in ("", "_error"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 7.5), layout="constrained")
        panels = figure.subplots(dataset.sizes["ray"], 1, sharex=True)
        for ray, axes in enumerate(panels):
            where = dataset.distance.values
            values, errors = change.isel(ray=ray).values, error.isel(ray=ray).values
            axes.errorbar(where, values, errors, color=LOOKS[1].color, marker=".", elinewidth=1)
            axes.axhline(0, color="0.3", linewidth=0.8, linestyle=":")
            axes.plot(0, 0, "*", color="black", markersize=11, zorder=3)
            for minimum in found.minima.minima:
                if int(minimum.coordinates["ray"]) == ray:
                    at = int(np.abs(where - minimum.coordinates["distance"]).argmin())
                    axes.plot(where[at], values[at], "o", color=LOOKS[0].color, **CIRCLE)
        panels[-1].set_xlabel("Signed distance along a ray (RMS log change of the scales)")
        words = "Change of the test loss (nats), ± 1 paired standard error"
        figure.supylabel(words, fontsize="medium")
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    found = {seed: analysis_of(dataset) for seed, dataset in runs.items()}
    dataset = next(iter(runs.values()))
    more = [len(one.minima.minima) - dataset.sizes["ray"] for one in found.values()]
    shares = [one.reliability.full for one in found.values()]
    return (
        f"The test loss of the bundled vision transformer with 2-bit weights "
        f"({dataset.sizes['image']:,} test images) along {dataset.sizes['ray']} random directions "
        "through its calibrated scales (star). Circles: local minima above the noise of these "
        "images, the lowest point of each ray among them. Beside these lowest points there are "
        f"{', '.join(map(str, more))} such minima with seeds {', '.join(found)} (other images and "
        f"directions), of which the first is drawn; {min(shares):.0%} to {max(shares):.0%} of the "
        "variance of the steps are the network's. Bits, radius, step and number of images were "
        "chosen since the claims' rays have no structure that 1,000 images show at 4 and 3 bits, "
        "and have at 2."
    )
