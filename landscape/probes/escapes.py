"""Ways out of a minimum that a slice does not show: short descents in directions off the slice.

A minimum of a plane is one of two directions among thousands. From each that counts, the
calibration loss is followed downhill along random directions orthogonal to the slice; what the test
loss does there is measured afterwards, on images that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import xarray as xr

from evolq.errors import InputError
from evolq.points import Direction, Point, displace
from landscape.ledger import Arrays, Ledger, remember
from landscape.probes.directions import gaussian, normalize, orthogonal_to
from landscape.probes.evaluation import CalibrationLoss, HeldOutLoss
from landscape.probes.slices import Slice, directions_of, point_at
from landscape.statistics.minima import significant_minima

# Deepest minima that are left, and doublings of the step of one descent.
MOST_MINIMA = 5
DOUBLINGS = 4
# The first step of a descent, in steps of the grid.
FIRST = 0.25


def add_escapes(
    dataset: xr.Dataset,
    where: Slice,
    moving: Point,
    how: str,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    descents: int,
    generator: torch.Generator,
    ledger: Ledger | None = None,
) -> xr.Dataset:
    """Descend off the slice from each minimum above the noise, the deepest 5 at most.

    A descent looks a quarter of a step of the grid to both sides, and goes on to the lower one, if
    the calibration loss is lower there, with twice the step while it keeps falling, four times at
    most: four steps of the grid.

    Args:
        dataset: a complete scan of a plane or of rays.
        where: the slice that was scanned.
        moving: the entries that move.
        how: normalization of the directions, see `directions.normalize`.
        objective: on calibration images; chooses.
        test: on test images; judges.
        descents: how many from each minimum.
        generator: draws the directions.
        ledger: keeps each descent.

    Returns:
        The scan with, over `minimum` and `direction`, `escape_loss_change` (calibration),
        `escape_distance` (signed, in lengths of the direction; 0 where no side is lower),
        `escape_change_per_image` (..., image) of the test loss, and where each minimum is
        (`minimum_x`, ...). Unchanged if nothing is orthogonal to the slice, or no point is finite.
    """
    found = significant_minima(dataset).minima[:MOST_MINIMA]
    step = FIRST * _grid_step(dataset)
    names = tuple(sorted(moving))
    rows: list[list[Arrays]] = []
    basis = cache(partial(_basis, where, moving, how))
    for number, minimum in enumerate(found):
        origin = point_at(where, minimum.coordinates)
        try:
            directions = _off(basis(), moving, how, descents, generator)
        except InputError:  # all that moves is in the slice
            return dataset
        measured = cache(partial(_measure, objective, test, names, origin))
        rows.append([
            remember(
                ledger,
                f"escape {number} {index}",
                partial(_descend, measured, direction, step),
            )
            for index, direction in enumerate(directions)
        ])  # fmt: skip
    if not rows:
        return dataset
    columns = {
        name: np.array([[each[name] for each in row] for row in rows]) for name in rows[0][0]
    }
    over = ("minimum", "direction")
    places = {
        f"minimum_{name}": ("minimum", [minimum.coordinates[name] for minimum in found])
        for name in found[0].coordinates
    }
    return dataset.assign(places).assign(
        escape_loss_change=(over, columns["loss_change"]),
        escape_distance=(over, columns["distance"]),
        escape_change_per_image=((*over, "image"), columns["test_loss_change"]),
    )


def _basis(where: Slice, moving: Point, how: str) -> list[Direction]:
    """Return orthogonal directions that span a slice."""
    basis: list[Direction] = []
    for direction in directions_of(where):
        basis.append(_orthogonal(normalize(direction, moving, how), basis, moving, how))
    return basis


def _off(
    basis: Sequence[Direction], moving: Point, how: str, count: int, generator: torch.Generator
) -> list[Direction]:
    """Return random directions orthogonal to a basis."""
    drawn = (normalize(gaussian(moving, generator), moving, how) for _ in range(count))
    return [_orthogonal(direction, basis, moving, how) for direction in drawn]


def _orthogonal(
    direction: Direction, basis: Sequence[Direction], moving: Point, how: str
) -> Direction:
    """Return what a direction has beside an orthogonal basis."""
    for other in basis:
        direction = orthogonal_to(other, direction, moving, how)
    return direction


@dataclass(frozen=True)
class _Minimum:
    """Both losses as functions of what moves, and their values at a minimum."""

    point: Point
    objective: CalibrationLoss
    test: HeldOutLoss
    loss: float
    test_loss: np.ndarray


def _measure(
    objective: CalibrationLoss, test: HeldOutLoss, names: tuple[str, ...], origin: Point
) -> _Minimum:
    """Measure a minimum, once for all descents from it."""
    point = {name: origin[name] for name in names}
    objective, test = objective.vary(names, at=origin), test.vary(names, at=origin)
    return _Minimum(point, objective, test, _loss(objective, point), _test_loss(test, point))


def _loss(objective: CalibrationLoss, point: Point) -> float:
    return float(objective.per_image(point).double().mean())


def _test_loss(test: HeldOutLoss, point: Point) -> np.ndarray:
    per_image, _ = test.per_image(point)
    return per_image.detach().double().cpu().numpy()


def _descend(measured: Callable[[], _Minimum], direction: Direction, step: float) -> Arrays:
    """Follow the calibration loss along one direction, and measure the test loss at the end."""
    minimum = measured()

    def at(distance: float) -> Point:
        return displace(minimum.point, direction, distance)

    def loss(distance: float) -> float:
        return _loss(minimum.objective, at(distance))

    best, reached = min((loss(side * step), side * step) for side in (-1, 1))
    if not best < minimum.loss:
        return {
            "loss_change": np.array(0.0),
            "distance": np.array(0.0),
            "test_loss_change": np.zeros_like(minimum.test_loss),
        }
    for _ in range(DOUBLINGS):
        further = loss(2 * reached)
        if not further < best:
            break
        best, reached = further, 2 * reached
    return {
        "loss_change": np.array(best - minimum.loss),
        "distance": np.array(reached),
        "test_loss_change": _test_loss(minimum.test, at(reached)) - minimum.test_loss,
    }


def _grid_step(dataset: xr.Dataset) -> float:
    """Return the step of a grid: the smaller one of its two."""
    axes: Sequence[str] = ("distance",) if "ray" in dataset.dims else ("x", "y")
    return float(min(np.diff(dataset[axis].values).min() for axis in axes))
