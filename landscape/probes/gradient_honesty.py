"""How far the straight-through gradient is true: against finite differences, by their step.

The straight-through gradient (Bengio et al. 2013, arXiv:1308.3432) is not the gradient of the loss,
which is zero almost everywhere or does not exist: it is that of a surface without steps. Whether it
points where the loss falls depends on how far one goes. Along directions e_i, each with a step h on
either side,

    measured_i(h) = (f(+h e_i) - f(-h e_i)) / (2 h),    predicted_i = <gradient, e_i>

in the coordinates of `evolq.points` (log scales). A difference f(+) - f(-) that is within the
numerical floor says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from evolq.errors import InputError
from evolq.points import Direction, Point, displace, inner, norm, role

# Resamples of the directions: the 2.5 % quantile is then the 50th smallest.
_RESAMPLES = 2000


class DifferentiableLoss(Protocol):
    """What this needs of an objective: `evolq.losses.objective.Objective` has it."""

    def __call__(self, point: Point) -> Tensor:
        """Return the loss, a 0-dim tensor."""

    def gradient(self, point: Point) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its gradient with respect to the entries that vary."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """One number for each step, and its 95 % interval over directions.

    Attributes:
        value: (steps,), NaN where no direction is above the floor.
        low: (steps,) its lower end; NaN for fewer than two directions.
        high: (steps,) and its upper end.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Honesty:
    """Slopes that the gradient predicts along directions, and those that were measured.

    Attributes:
        steps: (steps,) in units of the directions.
        predicted: (directions,) loss per unit.
        measured: (steps, directions) likewise, central differences.
        floor: differences of the loss up to here are numerical noise.
    """

    steps: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    floor: float

    @property
    def resolved(self) -> np.ndarray:
        """Which differences are above the floor, (steps, directions) bool."""
        return np.abs(self.measured) * 2 * self.steps[:, None] > self.floor

    def cosine(self, generator: np.random.Generator, resamples: int = _RESAMPLES) -> Agreement:
        """Return the cosine between predicted and measured slopes at each step.

        Over orthonormal directions it is the cosine between the gradient and the finite-difference
        gradient within their span; random directions in a large space are nearly that. With k
        directions and nothing in common it is 0 with a standard deviation of 1 / sqrt(k).

        Args:
            generator: draws directions with replacement, for the percentile interval.
            resamples: how often.
        """
        return self._agreement(_cosine, generator, resamples)

    def sign_agreement(
        self, generator: np.random.Generator, resamples: int = _RESAMPLES
    ) -> Agreement:
        """Return the share of directions along which the loss falls where the gradient says so.

        1/2 for a gradient that knows nothing. Arguments as `cosine`.
        """
        return self._agreement(_same_sign, generator, resamples)

    def _agreement(
        self, statistic: _Statistic, generator: np.random.Generator, resamples: int
    ) -> Agreement:
        rows = []
        for measured, resolved in zip(self.measured, self.resolved, strict=True):
            pairs = np.stack([self.predicted, measured])[:, resolved]
            count = pairs.shape[1]
            if count < 2:
                rows.append((float(statistic(pairs)) if count else np.nan, np.nan, np.nan))
                continue
            drawn = generator.integers(count, size=(resamples, count))
            resampled = statistic(pairs[:, drawn])
            rows.append((float(statistic(pairs)), *np.quantile(resampled, [0.025, 0.975])))
        return Agreement(*np.array(rows).T)


def gradient_honesty(
    objective: DifferentiableLoss,
    point: Point,
    directions: Sequence[Direction],
    steps: Sequence[float],
    floor: float = 0.0,
) -> Honesty:
    """Compare the gradient at `point` with central differences along directions.

    Cost: one gradient, and two evaluations for each direction and step.

    Args:
        objective: of all entries, or of those that the directions name (`Objective.vary`).
        point: where.
        directions: as from `landscape.probes.directions`; steps are in their units, so that with a
            root mean square of 1 a step h changes a typical scale by a factor exp(h).
        steps: positive.
        floor: a change of the loss that rounding alone makes.

    Raises:
        InputError: without directions or steps, for steps that are not positive and finite, a
            negative floor, a direction of length zero, or one that moves what has no gradient.
    """
    sizes = np.asarray(steps, dtype=np.float64)
    if not directions or sizes.size == 0:
        raise InputError("give at least one direction and one step to measure slopes with")
    if not ((sizes > 0) & np.isfinite(sizes)).all():
        raise InputError(f"steps must be positive and finite, not {sizes.min()}")
    if not floor >= 0:
        raise InputError(f"the floor is {floor}; give a change of the loss, 0 or more")
    gradient = _in_coordinates(objective.gradient(point)[1], point)
    for direction in directions:
        missing = sorted(direction.keys() - gradient.keys())
        if missing:
            raise InputError(f"the direction moves {missing[0]!r}, for which there is no gradient")
        if not norm(direction) > 0:
            raise InputError("a direction has length zero; draw another")
    measured = [
        [
            (float(objective(displace(point, d, h))) - float(objective(displace(point, d, -h))))
            / (2 * h)
            for d in directions
        ]
        for h in sizes.tolist()
    ]
    predicted = np.array([inner(gradient, direction) for direction in directions])
    return Honesty(sizes, predicted, np.array(measured), floor)


def _in_coordinates(gradient: dict[str, Tensor], point: Point) -> dict[str, Tensor]:
    """Return the gradient in log scales: d f / d log s = s d f / d s; other entries stay."""
    return {
        name: point[name] * value if role(name) == "scale" else value
        for name, value in gradient.items()
    }


class _Statistic(Protocol):
    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        """Return a number for each set of pairs, (2, ..., directions) -> (...)."""


def _cosine(pairs: np.ndarray) -> np.ndarray:
    products = (pairs[0] * pairs[1]).sum(-1)
    lengths = np.sqrt((pairs**2).sum(-1))
    with np.errstate(invalid="ignore"):  # a gradient of zero has no direction
        return np.divide(products, lengths[0] * lengths[1])


def _same_sign(pairs: np.ndarray) -> np.ndarray:
    return (pairs[0] * pairs[1] > 0).mean(-1)
