"""The floor below which differences mean nothing: what a change that means nothing changes.

A deep quantized network is chaotic: a change of its scales or pixels in the sixth digit flips a few
codes, which flip more in every layer after them. `probes.jitter` measures its losses again and
again with such changes; here is how far they scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from evolq.errors import InputError
from evolq.losses.jitter import expected_maximum
from landscape.statistics.intervals import Interval

REPEATS = ("repeats",)


@dataclass(frozen=True)
class NoiseFloor:
    """How far losses scatter over repeats that should be equal.

    Attributes:
        mean_loss: standard deviation of the mean loss over repeats, nats, with its interval for
            normal scatter (chi-square with repeats - 1 degrees of freedom).
        per_image: root mean square over images of each image's standard deviation over repeats.
        repeats: their number.
        images: number of images.
    """

    mean_loss: Interval
    per_image: float
    repeats: int
    images: int


def noise_floor(losses: ArrayLike, level: float = 0.95) -> NoiseFloor:
    """Return the numerical noise of losses that were measured again and again.

    The floor of the mean loss is measured, not derived from the images': the same codes may flip
    for many images at once. The difference of two Points' losses scatters by sqrt(2) times as much.

    Args:
        losses: (repeats, images), all at one Point but for changes that mean nothing.
        level: of the interval.

    Raises:
        InputError: for another shape, fewer than 2 repeats, or a bad level.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise InputError(
            f"losses of 2 repeats or more, (repeats, images), were expected, not {values.shape}"
        )
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, not at {level}")
    repeats, images = values.shape
    deviation = float(values.mean(axis=1).std(ddof=1))
    tail = (1 - level) / 2
    low, high = (
        deviation * float(np.sqrt((repeats - 1) / stats.chi2.ppf(share, repeats - 1)))
        for share in (1 - tail, tail)
    )
    return NoiseFloor(
        mean_loss=Interval(deviation, low, high, level, REPEATS),
        per_image=float(np.sqrt(values.var(axis=0, ddof=1).mean())),
        repeats=repeats,
        images=images,
    )


def jitter_gain(floor: NoiseFloor, evaluations: int) -> Interval:
    """Return what the best of so many evaluations gains by drawing lots, in nats (0 or more).

    A search that only jitters keeps the lowest of n losses that scatter by the floor. For normal
    scatter that is lower than their mean by floor x E[max of n standard normals] (0.56 for 2, 1.54
    for 10, 2.51 for 100). It is a gain on the images that were searched on, and no other.

    Args:
        floor: of the loss that the search lowers, on its own images.
        evaluations: number n of Points that it compares.

    Raises:
        InputError: for fewer than 1 evaluation.
    """
    if evaluations < 1:
        raise InputError(f"1 evaluation or more was expected, not {evaluations}")
    factor = expected_maximum(evaluations)
    scatter = floor.mean_loss
    return Interval(
        estimate=factor * scatter.estimate,
        low=factor * scatter.low,
        high=factor * scatter.high,
        level=scatter.level,
        over=scatter.over,
    )
