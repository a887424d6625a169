"""The surface of a vision transformer beside that of a convolutional network, at equal bits.

Both bundled networks on the same kind of plane: two random directions in scale space, the same
radius, the same images, from the start that every command has.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import ALONE, analysis_of
from landscape.plots import draw_surface
from landscape.plots.style import ACCENT, SHADE, START_STYLE, STYLE

NETWORKS = {"fashion_vit": "vision transformer", "fashion_resnet": "residual network"}
BITS = 3
RUNS = {
    model: (
        *("landscape.scan", "--model", model, "--weight-bits", str(BITS), "--radius", "0.15"),
        *("--points", "21", "--test-images", "300"),
    )
    for model in NETWORKS
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw the networks side by side: above the surface, below its middle row with its noise."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.6))
        for column, (model, dataset) in enumerate(runs.items()):
            found = analysis_of(dataset)
            left = 0.03 + 0.5 * column
            above = figure.add_axes((left, 0.42, 0.43, 0.5), projection="3d")
            draw_surface(dataset, found, axes=above)
            above.set_title("")
            figure.text(
                left + 0.21,
                0.955,
                f"{NETWORKS[model]}\n{BITS}-bit weights, "
                f"{found.start_test_accuracy.estimate:.1%} right at the start",
                ha="center",
                va="center",
            )
            below = figure.add_axes((left + 0.09, 0.11, 0.34, 0.25))
            _draw_row(below, dataset)
            if column:
                below.set_ylabel("")
        figure.text(
            0.5,
            0.015,
            "star: the calibrated start; circle: local minimum of the test loss above the noise, "
            "where it is in view (half-filled: on the edge of the map)",
            ha="center",
            fontsize="small",
        )
    return figure


def _draw_row(axes: Axes, dataset: Dataset) -> None:
    """Draw the row through the start: the change of the test loss, and the noise of that."""
    row = analysis_of(dataset).changes.sel(y=0, method="nearest").sortby("x")
    change, noise = row.test_loss_change, ALONE * row.test_loss_change_error
    axes.fill_between(row.x, change - noise, change + noise, **SHADE)
    axes.plot(row.x, change, color=ACCENT, marker=".")
    axes.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
    axes.plot(0, 0, **START_STYLE)
    axes.set_title("Row through the start, ± 2 paired standard errors", fontsize="small")
    axes.set_xlabel("x (RMS log change of the scales)")
    axes.set_ylabel("Change of the test loss (nats)")


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for model, dataset in runs.items():
        found = analysis_of(dataset)
        minima, reliability = found.minima, found.reliability
        low, high = reliability.true_share_interval
        words.append(
            f"of the {NETWORKS[model]}'s {len(minima.minima) + minima.below} local minima, "
            f"{len(minima.minima)} are deeper than the noise of {dataset.sizes['image']} images, "
            f"and {reliability.true_share:.0%} ({low:.0%} to {high:.0%}) of the variance of its "
            "steps are the network's"
        )
    return (
        f"The test loss of two networks over planes of two random directions in scale space: "
        f"{'; '.join(words)}. Below, the row through the start with the noise of a change."
    )
