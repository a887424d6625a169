"""Gradient against evolution on the loss surface of a 3-bit vision transformer.

    python figures/trajectories.py

does what `python -m landscape.compare` does and writes trajectories.pdf and trajectories.png beside
this file.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
from rich.console import Console

from evolq import Quantization, Settings, prepare
from landscape import Comparison
from landscape.plots import draw_comparison, save_figure

FOLDER = Path(__file__).parent


def main(
    bits: int = 3, budget: float = 60, seeds: int = 3, points: int = 15, test_images: int = 500
) -> None:
    """Compare three optimizers, measure the surface around their paths, and draw both.

    Args:
        bits: of the weights.
        budget: forward passes of each run.
        seeds: of each optimizer.
        points: of the map along each axis.
        test_images: number of test images.
    """
    settings = Settings(
        quantization=Quantization(weight_bits=bits), selection_images=0, test_images=test_images
    )
    comparison = Comparison(budget=budget, seeds=seeds, points=points)
    dataset = comparison.sample(prepare(settings), Console(stderr=True).print)
    figure = draw_comparison(dataset)
    for suffix in (".pdf", ".png"):
        save_figure(figure, FOLDER / f"trajectories{suffix}")


if __name__ == "__main__":
    cyclopts.run(main)
