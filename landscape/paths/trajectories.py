"""Paths of optimizers: what they cost, what they gained on test images, where they went.

A path is the sequence of Iterates that an optimizer yielded. Test images are looked at afterwards,
at Points that were stored. All planes start at the same Point, and one unit along an axis of a
plane, or away from it, changes a typical scale by a factor e: lengths are root mean squares over
all coordinates of the changes of `evolq.points.displacement`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import xarray as xr
from torch import Tensor

from evolq.errors import InputError
from evolq.optimizers.evolve import Iterate
from evolq.points import Direction, Point, combine, displacement, inner, norm
from landscape.probes.directions import principal_directions
from landscape.probes.evaluation import HeldOutLoss
from landscape.probes.slices import Place, Plane

# Below this share of the largest singular value, a second direction is rounding of the first.
_ROUNDING = 1e-6


def measure_path(path: Sequence[Iterate], test: HeldOutLoss, points: int = 12) -> xr.Dataset:
    """Return cost and losses along a path.

    The test images are measured at `points` Iterates, evenly spaced in cost, the first and the last
    among them, and at all that have the same Point as one of these; elsewhere the values are NaN.

    Returns:
        A Dataset over `iterate` (the Iterates): `cost`, `loss`, `test_loss`, `test_accuracy` (a
        fraction); and over `image`, for the last Iterate, `final_test_loss_per_image` and
        `final_test_correct_per_image`, for the first `start_test_loss_per_image` and
        `start_test_correct_per_image`.

    Raises:
        InputError: for an empty path, or fewer than 2 points.
    """
    if not path:
        raise InputError("the path is empty; it needs the start at least")
    if points < 2:
        raise InputError(f"a path is measured at its start and its end, not at {points} points")
    costs = np.array([iterate.cost for iterate in path])
    wanted = np.linspace(costs[0], costs[-1], points)
    chosen = {0, len(path) - 1, *(int(np.abs(costs - cost).argmin()) for cost in wanted)}
    measured: dict[int, tuple[Tensor, Tensor]] = {}
    for index in sorted(chosen):
        key = id(path[index].point)  # a search that finds nothing better repeats its Point
        if key not in measured:
            measured[key] = test.per_image(path[index].point)
    test_loss, accuracy = np.full((2, len(path)), np.nan)
    for index, iterate in enumerate(path):
        if id(iterate.point) in measured:
            cross_entropy, correct = measured[id(iterate.point)]
            test_loss[index] = float(cross_entropy.double().mean())
            accuracy[index] = float(correct.double().mean())
    images = {}
    for name, iterate in (("start", path[0]), ("final", path[-1])):
        cross_entropy, correct = measured[id(iterate.point)]
        images[f"{name}_test_loss_per_image"] = ("image", cross_entropy.cpu().numpy())
        images[f"{name}_test_correct_per_image"] = ("image", correct.cpu().numpy())
    return xr.Dataset(
        {
            "cost": ("iterate", costs),
            "loss": ("iterate", np.array([iterate.loss for iterate in path])),
            "test_loss": ("iterate", test_loss),
            "test_accuracy": ("iterate", accuracy),
            **images,
        }
    )


def project_path(path: Sequence[Iterate], plane: Plane) -> xr.Dataset:
    """Return where a path goes relative to a plane.

    Returns:
        A Dataset over `iterate`: `x` and `y`, coordinates on the plane, `distance`, off the plane,
        and `distance_from_start`, both as the change of a typical coordinate of the plane (root
        mean square).
    """
    found: dict[int, Place] = {}
    for iterate in path:
        if id(iterate.point) not in found:
            found[id(iterate.point)] = plane.place(iterate.point)
    rows = np.array([found[id(iterate.point)] for iterate in path])
    return xr.Dataset({name: ("iterate", rows[:, i]) for i, name in enumerate(Place._fields)})


def plane_through(start: Point, first: Point, second: Point, names: Collection[str]) -> Plane:
    """Return the plane through three Points; x leads from the start to the first.

    Raises:
        InputError: if the three lie on a line.
    """
    x = _unit(displacement(start, first, names), start, "the first end is the start itself")
    to_second = displacement(start, second, names)
    y = _without(to_second, x)
    if norm(y) <= _ROUNDING * norm(to_second):
        raise InputError("start and both ends lie on one line; choose a random plane")
    return Plane(start, x, _unit(y, start, ""))


def pca_plane(start: Point, paths: Sequence[Sequence[Point]], names: Collection[str]) -> Plane:
    """Return the plane through the start that lies nearest to the Points of one or several paths.

    The two largest principal directions of the displacements from the start, not centered, so that
    the plane holds the start (Li et al. 2018, section 7, do the same from the end). Each path has
    the same weight, however many Points it has, and Points that a path repeats count once. The
    first axis points to where the last Point of the first path lies.

    Raises:
        InputError: if all Points lie on one line through the start.
    """
    rows: list[dict[str, Tensor]] = []
    weights: list[float] = []
    for path in paths:
        distinct = list({id(point): point for point in path if point is not start}.values())
        rows += [displacement(start, point, names) for point in distinct]
        weights += [1 / max(len(distinct), 1)] * len(distinct)
    found = principal_directions(rows, weights, 2) if rows else []
    if len(found) < 2 or found[1][0] <= _ROUNDING**2 * found[0][0]:
        raise InputError("the paths lie on one line or nowhere; choose a random plane")
    axes = [axis for _, axis in found]
    last = displacement(start, paths[0][-1], names)
    axes = [combine((axis, -1.0)) if inner(axis, last) < 0 else axis for axis in axes]
    return Plane(start, *(_unit(axis, start, "") for axis in axes))


def _unit(direction: Direction, start: Point, otherwise: str) -> dict[str, Tensor]:
    """Return a direction with a root mean square of 1, in the types of the start."""
    length = norm(direction)
    if length == 0:
        raise InputError(f"{otherwise}; choose a random plane")
    entries = sum(value.numel() for value in direction.values())
    return {
        name: (math.sqrt(entries) / length * value).to(start[name].dtype)
        for name, value in direction.items()
    }


def _without(direction: Direction, other: Direction) -> dict[str, Tensor]:
    """Return what is left of a direction without its part along another, in float64."""
    rest = {name: value.double() for name, value in direction.items()}
    exact = {name: value.double() for name, value in other.items()}
    return combine((rest, 1.0), (exact, -inner(rest, exact) / inner(exact, exact)))
