"""Which of many points differ from the start, all said at once with one error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evolq.errors import InputError
from landscape.statistics.image_losses import BLOCK_VALUES, ImageLosses
from landscape.statistics.resampling import check_images, upper_quantile

# Replicates of all images at once: the counts are kept as integers of few bits.
_REPLICATES = 100

# Of the variance of a point, in samples in which it should be 0.
_ROUNDING = 1e-9

SIDES = ("lower", "both")


@dataclass(frozen=True)
class SimultaneousBands:
    """Differences from the start at all points, with one error for all of them.

    Attributes:
        change: mean difference, (...); NaN where an image's is not finite.
        error: its paired standard error, (...).
        critical: paired standard errors within which noise alone stays, at all points together, in
            a share 1 - `level` of scans; 2 is right for one point, not for the best of many.
        critical_low: lower bound of the exact value, given that few replicates were drawn (95 %).
        critical_high: its upper bound.
        level: the error.
        side: `lower` if noise may do upwards what it likes, `both` if not.
    """

    change: NDArray[np.float64]
    error: NDArray[np.float64]
    critical: float
    critical_low: float
    critical_high: float
    level: float
    side: str

    @property
    def lower(self) -> NDArray[np.bool_]:
        """Where the loss is lower than the start's: none of these by noise alone."""
        return self.change < -self.critical * self.error

    @property
    def higher(self) -> NDArray[np.bool_]:
        """Where it is higher; asked with the side `lower`, this has no known error."""
        return self.change > self.critical * self.error


def simultaneous_bands(
    differences: ImageLosses | NDArray[np.floating],
    generator: np.random.Generator,
    level: float = 0.05,
    side: str = "lower",
    replicates: int = 999,
) -> SimultaneousBands:
    """Return bands for the differences of a scan's points from its start.

    The critical value is the upper quantile of the largest studentized difference over all points
    in samples drawn from the images with replacement, each with its own standard errors
    (bootstrap-t: Efron and Tibshirani 1993, chapter 12; single-step maximum of Westfall and Young
    1993). It is below Bonferroni's, the more so the more points move together. Unlike the signs
    that thresholds of minima are found with, it knows of skewness: where few images lose much at
    every point, the mean of 20 images falls far below the truth, in their standard errors, in
    nearly every scan (simulated: signs call 121 points of such noise lower in 99 % of scans, this
    in under 1 %).

    Args:
        differences: losses minus the start's, on the same images, (..., images).
        generator: draws the replicates.
        level: share of scans in which noise alone makes a difference beyond the bands.
        side: `lower` for differences below 0 only, `both` for both.
        replicates: surfaces of noise to draw.

    Raises:
        InputError: for fewer than 10 images, another side, or too few replicates for the level.
    """
    if side not in SIDES:
        raise InputError(f"unknown side {side!r}; choose from {', '.join(SIDES)}")
    losses = ImageLosses.of(differences)
    largest = largest_deviations(losses, generator, replicates)[side]
    return SimultaneousBands(
        losses.means.reshape(losses.grid),
        losses.errors.reshape(losses.grid),
        *upper_quantile(largest, level),
        level=level,
        side=side,
    )


def largest_deviations(
    differences: ImageLosses, generator: np.random.Generator, replicates: int = 999
) -> dict[str, NDArray[np.float64]]:
    """Return the largest studentized deviation over all points, (replicates,), by side.

    Args:
        differences: losses minus the start's.
        generator: draws the images of each replicate.
        replicates: how many.

    Raises:
        InputError: for fewer than 10 images.
    """
    images = differences.images
    check_images(images)
    drawn = _drawn_counts(images, replicates, generator)
    largest = {side: np.zeros(replicates) for side in SIDES}
    points = max(1, BLOCK_VALUES // max(images, replicates))
    for _, block in differences.by_points(points):
        block = block[np.isfinite(block).all(axis=1)]
        variance = block.var(axis=1)
        moving = variance > 0
        deviations = block[moving] - block[moving].mean(axis=1, keepdims=True)
        squares = deviations**2
        for first in range(0, replicates, _REPLICATES):
            part = slice(first, first + _REPLICATES)
            shares = drawn[part] / images
            means = shares @ deviations.T
            variances = shares @ squares.T - means**2
            # A sample without any of the few images that change at a point says nothing about it.
            known = variances > _ROUNDING * variance[moving]
            t = np.where(known, -means / np.sqrt(np.where(known, variances, 1) / (images - 1)), 0)
            for side, values in (("lower", t), ("both", np.abs(t))):
                largest[side][part] = np.maximum(largest[side][part], values.max(1, initial=0.0))
    return largest


def _drawn_counts(
    images: int, replicates: int, generator: np.random.Generator
) -> NDArray[np.unsignedinteger]:
    """Return how often each image is drawn, (replicates, images), in as few bytes as do."""
    equal = np.full(images, 1 / images)
    batches = []
    for first in range(0, replicates, _REPLICATES):
        counts = generator.multinomial(images, equal, min(_REPLICATES, replicates - first))
        batches.append(counts.astype(np.min_scalar_type(counts.max())))
    return np.concatenate(batches)
