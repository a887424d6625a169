"""Gradient against evolution on the loss surface of a 3-bit vision transformer.

    python figures/trajectories.py

runs what `python -m landscape.compare` does and writes trajectories.pdf and trajectories.png beside
this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
import xarray as xr
from rich.console import Console

from evolq import Settings, prepare, select
from landscape.paths.comparison import (
    common_plane,
    measure_runs,
    run_optimizers,
    sample_surface,
    with_surface,
)
from landscape.plots import draw_comparison, save_figure

FOLDER = Path(__file__).parent


def measure(bits: int, budget: float, seeds: int, points: int, test_images: int) -> xr.Dataset:
    """Compare three optimizers and measure the surface around their paths."""
    problem = prepare(Settings(weight_bits=bits, selection_images=0, test_images=test_images))
    names = list(select(problem.start, {"scale"}))
    console = Console(stderr=True)
    runs = run_optimizers(
        problem.objective,
        problem.start,
        names=names,
        optimizers=["evol-q", "adam", "cma"],
        budget=budget,
        seeds=list(range(seeds)),
        on_run=lambda name, seed: console.print(f"{name}, seed {seed}"),
    )
    common = common_plane("ends", problem.start, runs, names, torch.Generator().manual_seed(0))
    dataset = measure_runs(runs, common.plane, problem.test, measured_points=20)
    console.print("the map")
    surface = sample_surface(dataset, common.plane, problem.objective, problem.test, points)
    dataset = with_surface(dataset, surface, common)
    return dataset.assign_attrs(provenance=json.dumps(problem.provenance))


def main(
    bits: Annotated[int, typer.Option(help="Bits of the weights.")] = 3,
    budget: Annotated[float, typer.Option(help="Forward passes of each run.")] = 60,
    seeds: Annotated[int, typer.Option(help="Seeds.")] = 3,
    points: Annotated[int, typer.Option(help="Points of the map along each axis.")] = 15,
    test_images: Annotated[int, typer.Option(help="Test images.")] = 500,
) -> None:
    """Measure and draw."""
    figure = draw_comparison(measure(bits, budget, seeds, points, test_images))
    for suffix in (".pdf", ".png"):
        save_figure(figure, FOLDER / f"trajectories{suffix}")


if __name__ == "__main__":
    typer.run(main)
