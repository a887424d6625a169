"""Lines and planes through the space of Points: from coordinates to Points and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from evolq.declared import check_value
from evolq.errors import InputError
from evolq.points import (
    Direction,
    Point,
    check_entry,
    combine,
    displace,
    displacement,
    inner,
    norm,
    role,
)

# Two directions count as parallel when the sine of their angle is below this: float32 entries
# cannot tell such directions apart from equal ones.
_PARALLEL = 1e-6


@dataclass(frozen=True, eq=False)
class Line:
    """The Points `origin + t direction`, t in units of the direction.

    Raises:
        InputError: if the direction is zero, not finite, of another shape or type than the origin's
            entries, or names what the origin does not have.
    """

    origin: Point
    direction: Direction

    def __post_init__(self) -> None:
        """Refuse directions that do not span this slice."""
        _check(self.origin, self.direction)

    def at(self, t: float) -> dict[str, Tensor]:
        """Return the complete Point at coordinate `t`; `at(0)` equals the origin."""
        return displace(self.origin, self.direction, t)

    def project(self, point: Point) -> tuple[float, float]:
        """Return `(t, distance)`: the nearest coordinate on the line and the distance from it."""
        (t,), distance = _project(self.origin, (self.direction,), point)
        return t, distance


class Place(NamedTuple):
    """Where a Point lies relative to a plane.

    Attributes:
        x: coordinate along the plane's x.
        y: coordinate along its y.
        distance: off the plane.
        distance_from_start: from the plane's origin; both distances are the change of a typical
            coordinate (root mean square) of those that the plane varies.
    """

    x: float
    y: float
    distance: float
    distance_from_start: float


@dataclass(frozen=True, eq=False)
class Plane:
    """The Points `origin + a x + b y`; `x` and `y` need not be orthogonal or of equal length.

    Raises:
        InputError: if a direction is zero, not finite, of another shape or type than the origin's
            entries, or names what the origin does not have; or if the two are parallel.
    """

    origin: Point
    x: Direction
    y: Direction

    def __post_init__(self) -> None:
        """Refuse directions that do not span this slice."""
        _check(self.origin, self.x)
        _check(self.origin, self.y)
        cosine = inner(self.x, self.y) / (norm(self.x) * norm(self.y))
        if 1 - cosine**2 < _PARALLEL**2:
            raise InputError(
                "the two directions of a plane are parallel; choose another second direction"
            )

    def at(self, a: float, b: float) -> dict[str, Tensor]:
        """Return the complete Point at `a` along x and `b` along y; `at(0, 0)` is the origin."""
        return displace(self.origin, combine((self.x, a), (self.y, b)))

    def project(self, point: Point) -> tuple[float, float, float]:
        """Return `(a, b, distance)`: the nearest coordinates and the distance from the plane."""
        (a, b), distance = _project(self.origin, (self.x, self.y), point)
        return a, b, distance

    def place(self, point: Point) -> Place:
        """Return where a Point lies, by the names that the plane varies alone."""
        names = list(dict.fromkeys((*self.x, *self.y)))  # not a set: sums round by their order
        varied = {name: point[name] for name in names}
        unit = math.sqrt(sum(value.numel() for value in varied.values()))
        x, y, distance = self.project(varied)
        return Place(x, y, distance / unit, norm(displacement(self.origin, varied, names)) / unit)


Slice = Plane | tuple[Line, ...]
"""A plane, or rays from one origin."""


def point_at(where: Slice, coordinates: Mapping[str, float]) -> Point:
    """Return the Point of a plane at `x` and `y`, or of rays at `ray` and `distance`."""
    if isinstance(where, Plane):
        return where.at(coordinates["x"], coordinates["y"])
    return where[int(coordinates["ray"])].at(coordinates["distance"])


def origin_of(where: Slice) -> Point:
    """Return the Point that a slice goes through."""
    return where.origin if isinstance(where, Plane) else where[0].origin


def directions_of(where: Slice) -> list[Mapping[str, Tensor]]:
    """Return what spans a slice."""
    return [where.x, where.y] if isinstance(where, Plane) else [ray.direction for ray in where]


def _check(origin: Point, direction: Direction) -> None:
    check_value("origin", origin, Mapping)
    check_value("direction", direction, Mapping)
    unknown = direction.keys() - origin.keys()
    if unknown:
        raise InputError(f"the direction names {min(unknown)!r}, which the Point does not have")
    for name, value in direction.items():
        if role(name) in ("bits", "factor"):
            raise InputError(f"{name} is no coordinate; move scales, zero points or weights")
        check_entry(f"the direction of {name}", value)
        if value.shape != origin[name].shape:
            raise InputError(
                f"the direction of {name} has shape {tuple(value.shape)}, and the Point's entry "
                f"{tuple(origin[name].shape)}; give the same"
            )
    length = norm(direction)
    if not 0 < length < float("inf"):
        raise InputError(f"a direction must be finite and not zero; this one has norm {length}")


def _project(
    origin: Point, directions: tuple[Direction, ...], point: Point
) -> tuple[list[float], float]:
    """Return least-squares coordinates (normal equations with the Gram matrix) and the distance.

    Names that `point` lacks count as unmoved, so that a Point of the varied names alone is enough.
    """
    offset = {
        name: value.double() for name, value in displacement(origin, point, point.keys()).items()
    }
    exact = [{name: value.double() for name, value in d.items()} for d in directions]
    gram = np.array([[inner(a, b) for b in exact] for a in exact])
    coordinates = np.linalg.solve(gram, [inner(d, offset) for d in exact]).tolist()
    steps = [(d, -t) for d, t in zip(exact, coordinates, strict=True)]
    return coordinates, norm(combine((offset, 1.0), *steps))
