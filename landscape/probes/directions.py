"""Directions in the space of Points: drawn at random, or principal ones, and normalized.

A direction has one tensor for each name of the Point it was drawn for, of the same shape. It lives
in the coordinates of `evolq.points`: log scales, zero points in codes, weights in their own units.

Normalization works on groups of entries. Entries of a quantizer form one group per role and get a
root mean square of 1, whatever the normalization, since a step is relative already (log scales) or
has a unit of its own (codes, bits): a radius r changes a typical scale by a factor exp(r) and
shifts a typical zero point by r codes. Weights have no such unit, and there the names apply:

- `none`: one group of all weights, root mean square 1;
- `layer`: each tensor gets the norm of the Point's tensor;
- `filter`: each slice along axis 0 gets the norm of the Point's slice (Li et al. 2018,
  "Visualizing the Loss Landscape of Neural Nets", section 4: d_ij <- d_ij / |d_ij| |w_ij|);
  tensors with fewer than two dimensions, biases and the parameters of normalization layers, do not
  move, as in the authors' code (its option `ignore=biasbn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from evolq.errors import InputError
from evolq.points import Direction, Point, combine, inner, role

NORMALIZATIONS = ("none", "layer", "filter")

# A part of a group that is left after projection is rounding, not a direction, below this fraction
# of what was there before: float64 rounds at 1e-16 and the groups have up to about 1e7 entries.
_ROUNDING = 1e-10


def _draw(
    point: Point, generator: torch.Generator, sample: Callable[[torch.Size], Tensor]
) -> dict[str, Tensor]:
    """Fill a direction for `point`, one tensor after the other in the order of sorted names.

    The order of the dict therefore does not matter, and neither does the device of the Point:
    values come from the generator's device.
    """
    drawn = {name: sample(point[name].shape) for name in sorted(point)}
    return {
        name: drawn[name].to(
            value.device, value.dtype if value.is_floating_point() else torch.float32
        )
        for name, value in point.items()
    }


def gaussian(point: Point, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw every entry from a normal distribution: after normalization uniform on the sphere."""
    return _draw(
        point,
        generator,
        lambda shape: torch.randn(
            shape, generator=generator, device=generator.device, dtype=torch.float64
        ),
    )


def uniform(point: Point, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw every entry uniformly from -1 to 1."""
    return _draw(
        point,
        generator,
        lambda shape: (
            2 * torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
            - 1
        ),
    )


def rademacher(point: Point, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw every entry as -1 or 1 with equal probability: every scale moves by the same factor."""
    return _draw(
        point,
        generator,
        lambda shape: (
            2.0 * torch.randint(2, shape, generator=generator, device=generator.device) - 1.0
        ),
    )


def normalize(direction: Direction, point: Point, how: str = "none") -> dict[str, Tensor]:
    """Scale each group of `direction` to its norm at `point` (see the top of this module).

    A group that is zero, in the direction or (for weights) in the Point, stays or becomes zero.

    Raises:
        InputError: for an unknown normalization, or if nothing of the direction is left.
    """
    _check(direction, point, how)
    result: dict[str, Tensor] = {}
    for target, rows in _groups(direction, point, how):
        lengths = _norms(rows)
        factors = torch.where(lengths > 0, target / lengths, 0.0)
        result |= {name: row * factors[:, None] for name, row in rows.items()}
    return _finish(result, direction, how)


def principal_directions(
    rows: Sequence[Direction], weights: Sequence[float], count: int
) -> list[tuple[float, dict[str, Tensor]]]:
    """Return the principal directions of weighted displacements, not centered, longest first.

    The singular vectors of the matrix whose rows are the displacements times the roots of their
    weights (Li et al. 2018, section 7), from its Gram matrix: rows are few and coordinates many.

    Args:
        rows: displacements from one origin.
        weights: of each row's square.
        count: of directions, at most.

    Returns:
        The square of each singular value, and the direction in that length.
    """
    gram = np.array([[inner(a, b) for b in rows] for a in rows])
    root = np.sqrt(weights)
    squares, vectors = np.linalg.eigh(gram * np.outer(root, root))  # ascending
    return [
        (
            float(squares[k]),
            combine(*((row, float(f)) for row, f in zip(rows, root * vectors[:, k], strict=True))),
        )
        for k in range(len(rows) - 1, max(len(rows) - 1 - count, -1), -1)
    ]


def orthogonal_to(
    other: Direction, direction: Direction, point: Point, how: str = "none"
) -> dict[str, Tensor]:
    """Make `direction` orthogonal to `other` within each group of `how`, and normalize it.

    Gram-Schmidt inside the groups keeps both properties at once: scaling a whole group does not
    change its angle to the other direction's group, and angles of 90 degrees in all groups add up
    to one overall. A group with a single entry has no second direction; it becomes zero.

    Raises:
        InputError: for an unknown normalization, or if nothing of the direction is left.
    """
    _check(direction, point, how)
    result: dict[str, Tensor] = {}
    for target, rows in _groups(direction, point, how):
        others = {
            name: other[name].double().reshape(row.shape)
            if name in other
            else torch.zeros_like(row)
            for name, row in rows.items()
        }
        squared = _norms(others) ** 2
        before = _norms(rows)
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980): rounding of the first removed
            products = sum((rows[name] * others[name]).sum(1) for name in rows)
            shares = torch.where(squared > 0, products / squared, 0.0)
            rows = {name: rows[name] - shares[:, None] * others[name] for name in rows}
        lengths = _norms(rows)
        factors = torch.where(lengths > _ROUNDING * before, target / lengths, 0.0)
        result |= {name: row * factors[:, None] for name, row in rows.items()}
    return _finish(result, direction, how)


def orthogonal_pair(
    point: Point, generator: torch.Generator, kind: str = "gaussian", how: str = "none"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw two directions of a `kind` in DIRECTIONS, orthogonal in every group and normalized.

    The first is exactly of its kind; the second is its kind less its part along the first (of two
    Rademacher directions, only the first has entries of equal size).

    Raises:
        InputError: for an unknown kind or normalization, or a Point with too few entries.
    """
    if kind not in DIRECTIONS:
        raise InputError(f"unknown kind of direction {kind!r}; choose from {', '.join(DIRECTIONS)}")
    x = normalize(DIRECTIONS[kind](point, generator), point, how)
    try:
        y = orthogonal_to(x, DIRECTIONS[kind](point, generator), point, how)
    except InputError as error:  # the choices are known by now, so nothing is left of the second
        count = sum(value.numel() for value in point.values())
        raise InputError(
            f"a plane needs two directions, and what moves ({count} in all, {next(iter(point))} "
            "for one) has room for one; let more move (within), or scan rays"
        ) from error
    return x, y


def _check(direction: Direction, point: Point, how: str) -> None:
    if how not in NORMALIZATIONS:
        raise InputError(f"unknown normalization {how!r}; choose from {', '.join(NORMALIZATIONS)}")
    for name, value in direction.items():
        if name not in point:
            raise InputError(f"the direction names {name!r}, which the Point does not have")
        if value.shape != point[name].shape:
            raise InputError(
                f"the direction's {name!r} has shape {tuple(value.shape)}, "
                f"the Point's {tuple(point[name].shape)}; draw it for this Point"
            )


def _groups(
    direction: Direction, point: Point, how: str
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield sets of groups as (target norms (groups,), {name: entries (groups, size)}), float64.

    A set of groups shares names: one group across several tensors, or the many filters of one.
    Tensors that do not move at all are not yielded.
    """
    whole: dict[str, dict[str, Tensor]] = {}
    for name, value in direction.items():
        kind = role(name)
        if kind != "weight" or how == "none":
            whole.setdefault(kind, {})[name] = value.double().reshape(1, -1)
        elif how == "layer" or value.dim() > 1:
            groups = 1 if how == "layer" else len(value)
            target = point[name].double().reshape(groups, -1).norm(dim=1)
            yield target, {name: value.double().reshape(groups, -1)}
    for rows in whole.values():
        entries = sum(row.numel() for row in rows.values())
        device = next(iter(rows.values())).device
        yield torch.tensor([entries**0.5], dtype=torch.float64, device=device), rows


def _norms(rows: dict[str, Tensor]) -> Tensor:
    """Return the norm of each group over all names, shape (groups,)."""
    return torch.stack([(row**2).sum(-1) for row in rows.values()]).sum(0).sqrt()


def _finish(rows: dict[str, Tensor], direction: Direction, how: str) -> dict[str, Tensor]:
    """Return `rows` in the shapes and types of `direction`; names without rows do not move."""
    if not any(bool(row.any()) for row in rows.values()):
        raise InputError(
            f"with the normalization {how!r} nothing of the direction is left: it is zero, has too "
            "few entries, or only biases and normalization parameters; widen the choice of names"
        )
    return {
        name: rows[name].reshape(value.shape).to(value.dtype)
        if name in rows
        else torch.zeros_like(value)
        for name, value in direction.items()
    }


DIRECTIONS: dict[str, Callable[[Point, torch.Generator], dict[str, Tensor]]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "rademacher": rademacher,
}
