"""What decides each claim: one number for one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from evolq import Quantization, Settings, prepare, select
from evolq.losses.criteria import CRITERIA
from evolq.optimizers.registry import OPTIMIZERS
from evolq.points import Direction, Point
from evolq.problem import Problem
from landscape.probes.cliff_losses import frozen
from landscape.probes.directions import DIRECTIONS, normalize
from landscape.probes.sampling import axis, sample_plane
from landscape.probes.slices import Line, Plane
from landscape.statistics.persistence import persistence_diagram

# Relative change of a typical scale at the ends of a ray, and its points: steps of 1 %.
RADIUS, POINTS, RAYS = 0.1, 21, 4
# Points along each axis of a plane.
SIDE = 11
# A minimum counts if it is deeper than this share of its surface's range.
DEPTH = 0.02


def problem_of(model: str, bits: int, seed: int, **changes: object) -> Problem:
    """Return the start that a user has, with images of its own for each seed."""
    settings = Settings(
        model,
        quantization=Quantization(weight_bits=bits),
        selection_images=0,
        threads=1,
        seed=seed,
    )
    return prepare(replace(settings, **changes))  # type: ignore[arg-type]


def directions(problem: Problem, count: int, seed: int) -> list[Direction]:
    """Draw directions over all scales, of length 1: a distance of 0.1 is 10 % of a scale."""
    moving = {name: problem.start[name] for name in select(problem.start, {"scale"})}
    generator = torch.Generator().manual_seed(seed)
    return [normalize(DIRECTIONS["gaussian"](moving, generator), moving) for _ in range(count)]


def jaggedness(losses: ArrayLike) -> float:
    """Return the root mean square of second differences along rays, free of sampling noise.

    The mean square over images of a second difference is that of the surface plus noise; products
    of two different images have no noise in the mean, so that all of these are averaged. Where
    noise is all there is, the mean square may come out negative, and so does its root.

    Args:
        losses: (rays, points, images), of equal steps.
    """
    bends = np.diff(np.asarray(losses, dtype=np.float64), 2, axis=1)
    images = bends.shape[-1]
    square = (bends.sum(-1) ** 2 - (bends**2).sum(-1)) / (images * (images - 1))
    mean = float(square.mean())
    return float(np.sign(mean) * np.sqrt(abs(mean)))


def along_rays(problem: Problem, at: Callable[[Line, float], Point], seed: int) -> NDArray:
    """Return test losses (rays, points, images) of the Points that `at` leads to."""
    lines = [Line(problem.start, way) for way in directions(problem, RAYS, seed)]
    return np.stack(
        [
            torch.stack(
                [problem.test.per_image(at(line, float(t)))[0] for t in axis(RADIUS, POINTS)]
            ).numpy()
            for line in lines
        ]
    )


@cache
def of_network(model: str, bits: int, seed: int) -> float:
    """Return the jaggedness around a network's start, in nats."""
    problem = problem_of(model, bits, seed)
    return jaggedness(along_rays(problem, lambda line, t: line.at(t), seed))


def with_held_codes(model: str, bits: int, seed: int) -> float:
    """Return the jaggedness along the same rays with the codes that weights have at the start."""
    problem = problem_of(model, bits, seed)
    hold = partial(frozen, problem.network, problem.start)
    return jaggedness(along_rays(problem, lambda line, t: hold(line.at(t)), seed))


def after_search(optimizer: str, model: str, bits: int, budget: float, seed: int) -> float:
    """Return the test loss after a search at this cost, in forward passes of 100 images."""
    problem = problem_of(model, bits, seed)
    names = list(select(problem.start, {"scale"}))
    generator = torch.Generator().manual_seed(seed)
    *_, last = OPTIMIZERS[optimizer](
        problem.objective, problem.start, names=names, budget=budget, generator=generator
    )
    return float(problem.test.per_image(last.point)[0].double().mean())


def minima(surface: xr.Dataset) -> int:
    """Count the minima of the calibration loss that are deeper than `DEPTH` of its range."""
    values = surface["loss"].values
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        raise ValueError("a surface without a range has no count")
    losses = surface["loss_per_image"].rename(calibration_image="image")
    named = xr.Dataset({"test_loss": surface["loss"], "test_loss_per_image": losses})
    depths = persistence_diagram(named)["persistence"].values
    return int((depths > DEPTH * np.ptp(values)).sum())


def of_criteria(model: str, bits: int, seed: int) -> dict[str, int]:
    """Return the number of minima of each criterion on one plane."""
    counts = {}
    for criterion in CRITERIA:
        if criterion == "cross_entropy":  # knows the labels; no calibration has
            continue
        problem = problem_of(model, bits, seed, criterion=criterion, test_images=2)
        plane = Plane(problem.start, *directions(problem, 2, seed))
        along = axis(RADIUS, SIDE)
        counts[criterion] = minima(
            sample_plane(plane, along, along, problem.objective, problem.test)
        )
    return counts
