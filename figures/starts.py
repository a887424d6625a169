"""The same bits before and after a better start: the test loss along one line from three starts."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from xarray import Dataset

from figures.egg_carton import NETWORKS
from landscape.analysis import analysis_of
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import accuracy_difference

STARTS = {
    "plain": ("least squares", ("--no-moment-matching",)),
    "matched": ("matched moments", ()),
    "gptq": ("matched moments and GPTQ", ("--rounding", "gptq")),
}
RUNS = {
    f"{model}-{start}": (
        *("landscape.scan", "--model", model, "--weight-bits", "2", *options),
        *("--probe", "rays", "--rays", "1", "--radius", "0.2", "--points", "21"),
        *("--test-images", "500", "--selection-images", "0", "--repeats", "4"),
        *("--descents", "0", "--no-frozen-codes"),
    )
    for model in NETWORKS
    for start, (_, options) in STARTS.items()
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw the networks side by side, a line for each start."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        panels = figure.subplots(1, len(NETWORKS))
        for axes, (model, name) in zip(panels, NETWORKS.items(), strict=True):
            for look, (start, (words, _)) in zip(LOOKS, STARTS.items(), strict=False):
                dataset = runs[f"{model}-{start}"]
                losses = dataset.test_loss.isel(ray=0)
                error = analysis_of(dataset).changes.test_loss_change_error.isel(ray=0)
                where, style = dataset.distance, {"color": look.color}
                axes.fill_between(
                    where, losses - 2 * error, losses + 2 * error, alpha=0.2, linewidth=0, **style
                )
                axes.plot(where, losses, look.dashes, label=words, **style)
                at = int(np.abs(where.values).argmin())
                axes.plot(where[at], losses[at], look.marker, **style)
            axes.set_ylim(0, None)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(f"{name}, 2-bit weights")
            axes.set_xlabel("Signed distance from the start\n(RMS log change of the scales)")
        panels[0].set_ylabel("Test loss (nats)\n± 2 paired standard errors of the change")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for model, name in NETWORKS.items():
        own = [runs[f"{model}-{start}"] for start in STARTS]
        right = [each.start_test_correct_per_image.values for each in own]
        gains = []
        for (said, _), after in zip(list(STARTS.values())[1:], right[1:], strict=True):
            found = accuracy_difference(right[0], after)
            gains.append(
                f"{100 * found.estimate:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}) "
                f"points with {said}"
            )
        words.append(
            f"{name} {right[0].mean():.1%} with scales of least squares, {', '.join(gains)}"
        )
    return (
        "The test loss of networks with 2-bit weights from three starts, along one random line, "
        "the same for all three; marks are the starts. Test accuracy there "
        f"({own[0].sizes['image']:,} images, paired 95 % intervals, one calibration): "
        f"{'; '.join(words)}."
    )
