"""Paired comparisons: what a difference between two Points on the same images is worth."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

# Two-sided 95 % of a normal distribution; the mean of hundreds of images is close to one.
STANDARD_ERRORS = 1.959964


class Difference(NamedTuple):
    """A mean difference and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(before: Tensor, after: Tensor) -> Difference:
    """Return the mean of `after - before` over images.

    Both have one value per image, (n,) with n >= 2, of any number type or bool. What both share
    cancels image by image, so the interval is narrower than those of the two means.
    """
    difference = after.double() - before.double()
    mean = float(difference.mean())
    half = STANDARD_ERRORS * float(difference.std()) / math.sqrt(len(difference))
    return Difference(mean, mean - half, mean + half)
