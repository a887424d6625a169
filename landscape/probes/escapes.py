"""Ways out of a minimum that a slice does not show: short descents in directions off the slice.

A minimum of a plane is one of two directions among thousands. From each that counts, the
calibration loss is followed downhill along random directions orthogonal to the slice; what the test
loss does there is measured afterwards, on images that had no part in the choice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from evolq.errors import InputError
from evolq.points import Direction, Point, displace
from landscape.ledger import Arrays, Ledger, folder_of
from landscape.probes.directions import gaussian, normalize, orthogonal_to
from landscape.probes.evaluation import CalibrationLoss, HeldOutLoss
from landscape.probes.slices import Slice, directions_of, origin_of, point_at
from landscape.statistics.minima import significant_minima
from landscape.work.pieces import Failed, Piece, finish
from landscape.work.shared import Received, Shared

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
    executor: Executor | None = None,
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
        executor: does them, see `sample_plane`.

    Returns:
        The scan with, over `minimum` and `direction`, `escape_loss_change` (calibration),
        `escape_distance` (signed, in lengths of the direction; 0 where no side is lower),
        `escape_change_per_image` (..., image) of the test loss, and where each minimum is
        (`minimum_x`, ...). Unchanged if nothing is orthogonal to the slice, or no point is finite;
        if a descent failed, the attribute `failed` (JSON) has the error, and nothing else is new.
    """
    found = significant_minima(dataset).minima[:MOST_MINIMA]
    step = FIRST * _grid_step(dataset)
    names = tuple(sorted(moving))
    basis = cache(partial(_basis, where, moving, how))
    folder = folder_of(ledger)
    starts = []
    for minimum in found:
        point = point_at(where, minimum.coordinates)
        try:
            directions = _off(basis(), moving, how, descents, generator)
        except InputError:  # all that moves is in the slice
            return dataset
        starts.append(({name: point[name] for name in names}, directions))
    shared = Shared(_Descents(objective, test, names, origin_of(where), starts), folder)
    pieces = [
        Piece(f"escape {number} {index}", _descend, (shared, number, index, step))
        for number in range(len(starts))
        for index in range(descents)
    ]
    if not pieces:
        return dataset
    done: dict[str, Arrays] = {}
    failed: dict[str, str] = {}
    for key, made in finish(pieces, ledger, executor):
        if isinstance(made, Failed):
            failed[key] = made.error
        else:
            done[key] = made
    if failed:
        return dataset.assign_attrs(failed=json.dumps(failed))
    each = [done[piece.key] for piece in pieces]
    shape = (len(found), descents)
    columns = {
        name: np.array([arrays[name] for arrays in each]).reshape(*shape, *each[0][name].shape)
        for name in each[0]
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


class _Descents:
    """Both losses, and where descents start and lead; workers get it once."""

    def __init__(
        self,
        objective: CalibrationLoss,
        test: HeldOutLoss,
        names: tuple[str, ...],
        origin: Point,
        starts: Sequence[tuple[Point, Sequence[Direction]]],
    ) -> None:
        """Keep what is needed.

        Args:
            objective: on calibration images.
            test: on test images.
            names: entries that move.
            origin: of all others.
            starts: the entries `names` of each minimum, and directions from there.
        """
        self._constant = (objective, test, names, origin, starts)
        self._at_minima: dict[int, tuple[float, np.ndarray]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all but what is made where it is needed."""
        return _Descents, self._constant

    @cached_property
    def _varied(self) -> tuple[CalibrationLoss, HeldOutLoss]:
        objective, test, names, origin, _ = self._constant
        return objective.vary(names, at=origin), test.vary(names, at=origin)

    def _loss(self, point: Point) -> float:
        return float(self._varied[0].per_image(point).double().mean())

    def _test_loss(self, point: Point) -> np.ndarray:
        per_image, _ = self._varied[1].per_image(point)
        return per_image.detach().double().cpu().numpy()

    def descend(self, number: int, index: int, step: float) -> Arrays:
        """Follow the calibration loss along a direction, and measure the test loss at the end."""
        start, directions = self._constant[-1][number]
        if number not in self._at_minima:
            self._at_minima[number] = self._loss(start), self._test_loss(start)
        at_start, test_at_start = self._at_minima[number]

        def at(distance: float) -> Point:
            return displace(start, directions[index], distance)

        best, reached = min((self._loss(at(side * step)), side * step) for side in (-1, 1))
        if not best < at_start:
            return {
                "loss_change": np.array(0.0),
                "distance": np.array(0.0),
                "test_loss_change": np.zeros_like(test_at_start),
            }
        for _ in range(DOUBLINGS):
            further = self._loss(at(2 * reached))
            if not further < best:
                break
            best, reached = further, 2 * reached
        return {
            "loss_change": np.array(best - at_start),
            "distance": np.array(reached),
            "test_loss_change": self._test_loss(at(reached)) - test_at_start,
        }


def _descend(
    descents: Shared[_Descents] | Received, number: int, index: int, step: float
) -> Arrays:
    """Do one descent, wherever this runs."""
    return descents.get().descend(number, index, step)


def _grid_step(dataset: xr.Dataset) -> float:
    """Return the step of a grid: the smaller one of its two."""
    axes: Sequence[str] = ("distance",) if "ray" in dataset.dims else ("x", "y")
    return float(min(np.diff(dataset[axis].values).min() for axis in axes))
