"""Paired differences: what a difference of two Points on the same images is worth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evolq.errors import InputError

# The two-sided 95 % quantile of the normal distribution; a mean of hundreds of images is close to
# one.
NORMAL_95 = 1.959963984540054


class Difference(NamedTuple):
    """A mean difference and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(before: Tensor | NDArray, after: Tensor | NDArray) -> Difference:
    """Return the mean of `after - before` over images.

    Both have one value per image, (n,) with n >= 2, of any number type or bool. What both share
    cancels image by image, so the interval is narrower than those of the two means.

    Raises:
        InputError: for other shapes.
    """
    first, second = _float64(before), _float64(after)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise InputError(
            f"values of 2 images or more, the same ones, are compared, not {first.shape} and "
            f"{second.shape}"
        )
    difference = second - first
    mean = float(difference.mean())
    half = NORMAL_95 * float(paired_standard_error(difference))
    return Difference(mean, mean - half, mean + half)


def paired_standard_error(differences: NDArray) -> NDArray[np.float64]:
    """Return the standard error of the mean over the last axis, (..., images) -> (...).

    Given differences of two losses image by image, this is the noise of the difference of their
    means: what the images have in common cancels. NaN for fewer than two images.
    """
    images = differences.shape[-1]
    if images < 2:
        return np.full(differences.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):  # points that are not finite give NaN
        return differences.std(axis=-1, ddof=1, dtype=np.float64) / np.sqrt(images)


def _float64(values: Tensor | NDArray) -> NDArray[np.float64]:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
