"""Measure losses on slices of the space of Points, kept per image, with labeled axes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from evolq.declared import LARGEST_FLOAT, MAX_IMAGES, SMALLEST_FLOAT, check_value
from evolq.errors import InputError
from evolq.losses.paired import paired_standard_error
from evolq.on_disk import DiskArray, full
from evolq.points import Point
from landscape.large import variable
from landscape.ledger import Arrays, Ledger, folder_of, remember
from landscape.probes.evaluation import (
    CalibrationLoss,
    Evaluation,
    HeldOutLoss,
    NoLoss,
    evaluate,
)
from landscape.probes.slices import Line, Place, Plane
from landscape.work.pieces import Failed, Piece, finish
from landscape.work.shared import Shared

NOT_COMPUTED, FINITE, NOT_FINITE = 0, 1, 2

# What a step of 1 is, unless someone who drew the directions says more.
STEP_UNIT = "lengths of the direction"
TEST_LOSS = {"long_name": "cross entropy", "units": "nats"}

# An automatic radius is a power of the fourth root of 2: the next one is 19 % larger.
_POWERS_PER_DOUBLING = 4
# The power that is tried first: a typical scale changes by 6 %. Radii that were chosen at 3 to 8
# bits are within a factor of 8.
_FIRST_POWER = -16
# The most powers to go at once: a factor of 4.
_LEAP = 8
# Bounds of a radius: changes of float32's own precision, and a factor exp(8) = 3000, at which
# nothing is left of a network.
_SMALLEST_RADIUS = 2.0**-23
_LARGEST_RADIUS = 2.0**3


PerImage = dict[str, np.ndarray | DiskArray]
OnPoint = Callable[[xr.Dataset, int, int], None]

Cells = Iterable[tuple[dict[str, int], tuple[Any, ...]]]
"""Of each cell, its index along each dimension and the coordinates that lead to its Point."""


class Shift(NamedTuple):
    """What was seen at one radius: the largest change of test loss at an end of an axis."""

    radius: float
    change: float
    standard_errors: float


@dataclass(frozen=True)
class Radius:
    """An automatically chosen radius, and every radius that was tried, in ascending order.

    `reached` is false if not even the largest radius moved the test loss far enough.
    """

    chosen: Shift
    reached: bool
    tried: tuple[Shift, ...]

    @property
    def radius(self) -> float:
        """The radius that was chosen."""
        return self.chosen.radius


def axis(radius: float, points: int) -> np.ndarray:
    """Return `points` coordinates from -radius to radius, symmetric; an odd number includes 0.

    Raises:
        InputError: if the radius is not positive and finite, or there are fewer than 2 points.
    """
    check_value("radius", radius, float, (SMALLEST_FLOAT, LARGEST_FLOAT))
    check_value("points", points, int, (2, MAX_IMAGES))
    return (np.arange(points) - (points - 1) / 2) * (2 * radius / (points - 1))


def sample_plane(
    plane: Plane,
    x: np.ndarray,
    y: np.ndarray,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    checkpoints: Mapping[str, Point] | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses at all `plane.at(a, b)` with a in `x` and b in `y`, row by row.

    Returns:
        A Dataset with dimensions `y, x`, laid out as docs/design.md says. Losses that are not
        finite are kept as they are, with `status` 2; `status` 0 marks points not computed, whose
        values mean nothing. If points failed, the attribute `failed` (JSON) has the error of each.

    `on_point(dataset, done, total)` is called before the first point, when the start has been
    measured, and after each one, with the Dataset that is being filled: whoever keeps it keeps
    what was measured when the work is interrupted. Where `checkpoints` (by name) lie relative to
    the plane is kept as `checkpoint_x`, `checkpoint_y`, `checkpoint_distance` (off the plane) and
    `checkpoint_distance_from_start`, see `slices.Place`; nothing is measured there.

    Each point is kept in `ledger` when it is finished; those that are there are not measured again.

    Points are independent: `executor` (any of `concurrent.futures`; by default none) measures them
    in any order, in threads, other processes or on other machines. The result is the same bit for
    bit.

    Raises:
        InputError: before any work, if a coordinate array is not ascending, finite and of 2 or
            more points.
    """
    coordinates = {
        "y": _ascending("y", y, "Step along y"),
        "x": _ascending("x", x, "Step along x"),
    }
    cells = (
        ({"y": row, "x": column}, (float(a), float(b)))
        for row, b in enumerate(coordinates["y"].values)
        for column, a in enumerate(coordinates["x"].values)
    )
    names = tuple(sorted(plane.x.keys() | plane.y.keys()))
    places = _places(plane, checkpoints) if checkpoints else None
    evaluation = Evaluation(objective, test, plane.origin, plane.at)
    groups = [(names, cells)]
    return sample_cells(evaluation, coordinates, groups, on_point, places, ledger, executor)


def _places(plane: Plane, checkpoints: Mapping[str, Point]) -> xr.Dataset:
    rows = np.array([plane.place(point) for point in checkpoints.values()])
    return xr.Dataset(
        {f"checkpoint_{name}": ("checkpoint", rows[:, i]) for i, name in enumerate(Place._fields)},
        {"checkpoint": list(checkpoints)},
    )


def sample_rays(
    rays: Sequence[Line],
    distances: np.ndarray,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses at all `ray.at(t)` with t in `distances` (signed), ray by ray.

    Returns a Dataset as `sample_plane` does, with dimensions `ray, distance`.

    Raises:
        InputError: before any work, if there is no ray, the rays do not share one origin, or the
            distances are not ascending, finite and of 2 or more points.
    """
    if not rays:
        raise InputError("no rays were given; 1 or more are needed")
    if any(ray.origin is not rays[0].origin for ray in rays):
        raise InputError("all rays must start at one Point: pass the same origin to each Line")
    coordinates = {
        "ray": xr.Variable("ray", np.arange(len(rays))),
        "distance": _ascending("distance", distances, "Signed distance along a ray"),
    }
    cells = (
        ({"ray": number, "distance": column}, (number, float(t)))
        for number in range(len(rays))
        for column, t in enumerate(coordinates["distance"].values)
    )
    names = tuple(sorted(set().union(*(ray.direction.keys() for ray in rays))))
    evaluation = Evaluation(objective, test, rays[0].origin, partial(_on_ray, tuple(rays)))
    groups = [(names, cells)]
    return sample_cells(evaluation, coordinates, groups, on_point, None, ledger, executor)


def _on_ray(rays: Sequence[Line], number: int, distance: float) -> Point:
    return rays[number].at(distance)


def auto_radius(
    lines: Sequence[Line],
    test: HeldOutLoss,
    standard_errors: float = 4.0,
    smallest: float = _SMALLEST_RADIUS,
    largest: float = _LARGEST_RADIUS,
    executor: Executor | None = None,
    folder: Path | None = None,
) -> Radius:
    """Find the radius at which the test loss has just visibly moved from the start.

    Of two radii within 19 %, at which it has not moved and has, the larger is the result. What was
    seen at others says where to look: standard errors grow with the radius, in proportion while
    nothing else is known, and as between the two closest radii on either side then. If not even
    `largest` moves the test loss, that is the result, with `reached` false; if even `smallest`
    does, that is.

    The test loss has moved if at one of the ends (+radius and -radius on each line) the mean
    difference to the start is `standard_errors` paired standard errors or more: the standard
    deviation of the differences image by image over the root of their number. A difference without
    spread counts as moved if it is not zero, a loss that is not finite always.

    The ends of one radius are independent: `executor` measures them, see `sample_plane`; `folder`
    is one that its workers see.

    Raises:
        InputError: if there is no line, fewer than 2 test images, or no radius in the bounds; if an
            end could not be measured.
    """
    check_value("standard_errors", standard_errors, float, (SMALLEST_FLOAT, LARGEST_FLOAT))
    if not 0 < smallest <= largest < np.inf:
        raise InputError(f"the bounds of the radius must be 0 < {smallest} <= {largest} < infinity")
    if not lines:
        raise InputError("no directions were given to choose a radius for")
    origin = lines[0].origin
    names = tuple(sorted(set().union(*(line.direction.keys() for line in lines))))
    evaluation = Evaluation(NoLoss(), test, origin, partial(_on_ray, tuple(lines)))
    start = evaluation.measure(names, origin)["test_loss"].astype(np.float64)
    if len(start) < 2:
        raise InputError(f"an automatic radius needs 2 test images or more, not {len(start)}")
    shared = Shared(evaluation, folder)
    ends = list(product(range(len(lines)), (-1, 1)))

    def look(radius: float) -> Shift:
        pieces = [
            Piece(f"{line} {side}", evaluate, (shared, names, line, side * radius))
            for line, side in ends
        ]
        found = dict(finish(pieces, None, executor))
        shifts = []
        for piece in pieces:  # in their order, as the first of equal shifts counts
            measured = found[piece.key]
            if isinstance(measured, Failed):
                raise InputError(f"the radius could not be chosen: {measured.error}")
            shifts.append(_shift(radius, measured["test_loss"].astype(np.float64), start))
        return max(shifts, key=lambda shift: shift.standard_errors)

    lowest = math.floor(_POWERS_PER_DOUBLING * math.log2(smallest))
    highest = math.ceil(_POWERS_PER_DOUBLING * math.log2(largest))
    tried: dict[int, Shift] = {}
    near, far, slow = lowest - 1, highest + 1, 0
    power = min(max(_FIRST_POWER, lowest), highest)
    while far - near > 1:
        width = far - near
        radius = 2.0 ** (power / _POWERS_PER_DOUBLING)
        tried[power] = look(float(np.clip(radius, smallest, largest)))
        if tried[power].standard_errors >= standard_errors:
            far = power
        else:
            near = power
        slow = slow + 1 if 2 * (far - near) > width else 0
        power = _next_power(near, far, tried, standard_errors, slow > 1)
    in_order = tuple(tried[power] for power in sorted(tried))
    return Radius(tried[min(far, highest)], far <= highest, in_order)


def _next_power(
    near: int, far: int, tried: Mapping[int, Shift], standard_errors: float, halve: bool
) -> int:
    """Return the power to look at next, above `near`, not far enough, and below `far`.

    With both tried it is where a line between them has the standard errors that are wanted, or the
    middle, to `halve` what is left. With one it is that in proportion, but not by ever so many
    small steps: the fourth look is at least 2 powers on, the fifth 4.
    """

    def beyond(power: int) -> float:
        """Return by how many powers a radius is too large, if errors grow in proportion to it."""
        ratio = tried[power].standard_errors / standard_errors
        if not 0 < ratio < math.inf:
            return _LEAP if ratio else -_LEAP
        return min(max(_POWERS_PER_DOUBLING * math.log2(ratio), -_LEAP), _LEAP)

    if near in tried and far in tried:
        share = 0.5 if halve else beyond(near) / (beyond(near) - beyond(far))
        power = math.ceil(near + (far - near) * share)
    else:
        step = min(2 ** len(tried) // 4, _LEAP)
        if near in tried:
            power = near + max(math.ceil(-beyond(near)), step)
        else:
            power = far - max(math.floor(beyond(far)), step)
    return min(max(power, near + 1), far - 1)


def _shift(radius: float, losses: np.ndarray, start: np.ndarray) -> Shift:
    """Measure the mean difference to the start in units of its paired standard error."""
    with np.errstate(invalid="ignore"):  # infinities may meet
        differences = losses - start
        change = float(differences.mean())
    error = float(paired_standard_error(differences))
    if not np.isfinite(change) or (error == 0 and change != 0):
        return Shift(radius, change, np.inf)
    return Shift(radius, change, abs(change) / error if error > 0 else 0.0)


def _ascending(name: str, coordinates: np.ndarray, words: str) -> xr.Variable:
    """Check the coordinates along a dimension and give them a name and a unit."""
    try:
        values = np.asarray(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the coordinates along {name} are no numbers ({error})") from error
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"{name} needs 2 points or more along one axis, not shape {values.shape}")
    if not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
        raise InputError(f"the coordinates along {name} must be finite and ascending")
    return xr.Variable(name, values, {"long_name": words, "units": STEP_UNIT})


def sample_cells(
    evaluation: Evaluation,
    coordinates: dict[str, xr.Variable],
    groups: Iterable[tuple[tuple[str, ...], Cells]],
    on_point: OnPoint | None,
    also: xr.Dataset | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Fill a Dataset over `coordinates` with what is measured in labeled cells.

    Args:
        evaluation: measures a Point, given the coordinates that lead there.
        coordinates: along each dimension, with a name (`long_name`) and `units` for figures.
        groups: names that vary, and cells in which nothing else varies. Names that vary in a group
            alone make it cheaper.
        on_point: see `sample_plane`.
        also: what the Dataset holds besides, from the first `on_point` on.
        ledger: see `sample_plane`.
        executor: likewise.
    """
    groups = iter(groups)
    first = next(groups)
    start = remember(ledger, "start", partial(evaluation.measure, first[0], evaluation.origin))
    folder = folder_of(ledger)
    dataset, arrays = _empty(coordinates, start, folder)
    dataset = dataset.assign(also or {})
    total = dataset["status"].size
    if ledger and ledger.part:
        number, count = ledger.part
        total = len(range(number - 1, total, count))
    if on_point:
        on_point(dataset, 0, total)
    shared = Shared(evaluation, folder)
    cell_of: dict[str, dict[str, int]] = {}

    def pieces() -> Iterator[Piece]:
        for names, cells in (first, *groups):
            for cell, leads in cells:
                key = " ".join(f"{name}={index}" for name, index in cell.items())
                cell_of[key] = cell
                yield Piece(key, evaluate, (shared, names, *leads))

    failed = {}
    for done, (key, found) in enumerate(finish(pieces(), ledger, executor), start=1):
        if isinstance(found, Failed):
            failed[key] = found.error
        else:
            _record(dataset, arrays, cell_of.pop(key), found)
        if on_point:
            on_point(dataset, done, total)
    if failed:
        dataset.attrs["failed"] = json.dumps(failed)
    return dataset


def _empty(
    coordinates: dict[str, xr.Variable], start: Arrays, folder: Path | None
) -> tuple[xr.Dataset, PerImage]:
    """Lay out a Dataset in which nothing but the start is measured.

    Also return what is written to for each image, by name; in a file if it is large.
    """
    axes = tuple(coordinates)
    shape = tuple(len(values) for values in coordinates.values())
    calibration, images = (*shape, len(start["loss"])), (*shape, len(start["test_loss"]))
    arrays: PerImage = {
        "loss": full(calibration, np.nan, np.float32, folder),
        "test_loss": full(images, np.nan, np.float32, folder),
        "test_correct": full(images, False, bool, folder),
    }
    dataset = xr.Dataset(
        {
            "loss": (axes, np.full(shape, np.nan)),
            "test_loss": (axes, np.full(shape, np.nan), TEST_LOSS),
            "test_accuracy": (axes, np.full(shape, np.nan), {"units": "1"}),
            "status": (axes, np.full(shape, NOT_COMPUTED, dtype=np.int8)),
            "loss_per_image": variable((*axes, "calibration_image"), arrays["loss"]),
            "test_loss_per_image": variable((*axes, "image"), arrays["test_loss"]),
            "test_correct_per_image": variable((*axes, "image"), arrays["test_correct"]),
            "start_loss_per_image": ("calibration_image", start["loss"].astype(np.float32)),
            "start_test_loss_per_image": ("image", start["test_loss"].astype(np.float32)),
            "start_test_correct_per_image": ("image", start["test_correct"].astype(bool)),
        },
        coords={
            **coordinates,
            "image": np.arange(len(start["test_loss"])),
            "calibration_image": np.arange(len(start["loss"])),
        },
    )
    return dataset, arrays


def _record(dataset: xr.Dataset, arrays: PerImage, cell: dict[str, int], found: Arrays) -> None:
    """Write one point; its status comes last, so that an interrupted point counts as missing."""
    for name, array in arrays.items():
        array[tuple(cell.values())] = found[name]
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        means = {
            "loss": found["loss"].astype(np.float64).mean(),
            "test_loss": found["test_loss"].astype(np.float64).mean(),
            "test_accuracy": found["test_correct"].mean(),
        }
    for name, value in means.items():
        dataset[name][cell] = value
    finite = np.isfinite(list(means.values())).all()
    dataset["status"][cell] = FINITE if finite else NOT_FINITE
