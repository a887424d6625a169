"""The surface of a vision transformer beside that of a convolutional network, at equal bits.

    python figures/egg_carton.py

measures both bundled networks on the same kind of plane (two random directions in scale space, the
same radius, the same images) and writes egg_carton.pdf and egg_carton.png beside this file.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
import matplotlib
import xarray as xr
from matplotlib.figure import Figure
from rich.progress import Progress

from evolq import Quantization, Settings, prepare
from landscape import PlaneScan, analyze
from landscape.plots import draw_confidence, draw_surface, save_figure
from landscape.plots.style import STYLE

NETWORKS = {"fashion_vit": "vision transformer", "fashion_resnet": "residual network"}
FOLDER = Path(__file__).parent


def measure(model: str, bits: int, radius: float, points: int, seed: int) -> xr.Dataset:
    """Scan a plane in scale space around one network."""
    problem = prepare(
        Settings(model, quantization=Quantization(weight_bits=bits), test_images=300, seed=seed)
    )
    with Progress() as progress:
        task = progress.add_task(model, total=points**2)
        return PlaneScan(points=points, radius=radius).sample(
            problem, lambda _, done, total: progress.update(task, completed=done)
        )


def draw(datasets: dict[str, xr.Dataset], bits: int) -> Figure:
    """Draw the networks side by side: above the surface, below what the test images tell apart."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.6))
        for column, (model, dataset) in enumerate(datasets.items()):
            found = analyze(dataset)
            left = 0.03 + 0.5 * column
            above = figure.add_axes((left, 0.47, 0.43, 0.46), projection="3d")
            draw_surface(dataset, found, axes=above)
            above.set_title("")
            figure.text(
                left + 0.21,
                0.955,
                f"{NETWORKS[model]} ({model})\n{bits}-bit weights, 8-bit activations, "
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


def main(bits: int = 3, radius: float = 0.15, points: int = 21, seed: int = 0) -> None:
    """Measure both networks and draw them.

    Args:
        bits: of the weights.
        radius: typical relative change of a scale.
        points: of the grid along each axis.
        seed: of images and directions.
    """
    datasets = {model: measure(model, bits, radius, points, seed) for model in NETWORKS}
    figure = draw(datasets, bits)
    for suffix in (".pdf", ".png"):
        save_figure(figure, FOLDER / f"egg_carton{suffix}")


if __name__ == "__main__":
    cyclopts.run(main)
