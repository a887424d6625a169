"""The surface of a vision transformer beside that of a convolutional network, at equal bits.

Both bundled networks on the same kind of plane: two random directions in scale space, the same
radius, the same images.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from xarray import Dataset

from landscape.analysis import analysis_of
from landscape.plots import draw_confidence, draw_surface
from landscape.plots.info import title_of
from landscape.plots.style import STYLE

NETWORKS = {"fashion_vit": "vision transformer", "fashion_resnet": "residual network"}
RUNS = {
    model: (
        *("landscape.scan", "--model", model, "--weight-bits", "3", "--radius", "0.15"),
        *("--points", "21", "--test-images", "300"),
    )
    for model in NETWORKS
}


def draw(runs: Mapping[str, Dataset]) -> Figure:
    """Draw the networks side by side: above the surface, below what the test images tell apart."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.6))
        for column, (model, dataset) in enumerate(runs.items()):
            found = analysis_of(dataset)
            left = 0.03 + 0.5 * column
            above = figure.add_axes((left, 0.47, 0.43, 0.46), projection="3d")
            draw_surface(dataset, found, axes=above)
            above.set_title("")
            figure.text(
                left + 0.21,
                0.955,
                f"{NETWORKS[model]}\n{title_of(dataset)}, "
                f"{found.start_test_accuracy.estimate:.1%} at the start",
                ha="center",
                va="center",
            )
            below = figure.add_axes((left + 0.07, 0.11, 0.26, 0.31))
            draw_confidence(dataset, found, axes=below)
            minima = found.minima
            words = (
                f"variation / range {found.variation:.1f}; "
                f"{len(minima.minima)} of {len(minima.minima) + minima.below} "
                "local minima above the noise"
            )
            below.set_title(words, fontsize="small")
        figure.text(
            0.5,
            0.015,
            "star: the calibrated start; circle: local minimum of the test loss above the noise "
            "(half-filled: on the edge of the map)",
            ha="center",
            fontsize="small",
        )
    return figure


def caption(runs: Mapping[str, Dataset]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for model, dataset in runs.items():
        minima = analysis_of(dataset).minima
        words.append(
            f"of the {NETWORKS[model]}'s {len(minima.minima) + minima.below} local minima, "
            f"{len(minima.minima)} are deeper than the noise of {dataset.sizes['image']} images"
        )
    return (
        f"The test loss of two networks over planes of two random directions in scale space: "
        f"{'; '.join(words)}. Gray cells are not told apart from the start."
    )
