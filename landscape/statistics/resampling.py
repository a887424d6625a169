"""What sampling noise alone makes of the largest of many statistics.

Under the null hypothesis the images' mean surface is flat, or equal to the start's, and only noise
is left. Noise is drawn anew from the images' own deviations from their mean: a random contrast g,
signs of the images made orthogonal to (1, ..., 1) and of length 1, gives the surface sum_i g_i y_i,
whose covariance over points is that of the data (a multiplier bootstrap: Chernozhukov, Chetverikov
and Kato 2013, "Gaussian approximations and multiplier bootstrap for maxima of sums of
high-dimensional random vectors"). What is left of the images without that contrast gives each
statistic its standard error anew, as a new sample would: without this, few images would look surer
than they are. Signs keep the weight of images that differ more than others; in simulations normal
multipliers gave the same thresholds for normal images, and higher ones for heavy tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evolq.errors import InputError
from landscape.statistics.image_losses import BLOCK_VALUES, ImageLosses

# With 5 images, 15 contrasts are all there is: in simulations of 8 rays of 101 points noise alone
# exceeded its threshold in 15 % of scans instead of 5 %; with 10 images in 1 %.
FEWEST_IMAGES = 10

# Keeps Student's t finite where one contrast is all that the images differ in.
_ALMOST_1 = 1 - 1e-12


class Quantile(NamedTuple):
    """An upper quantile of a simulated distribution, and bounds for what more draws would give.

    The bounds hold the true quantile with 95 % confidence (order statistics); infinite where there
    are too few draws to tell.
    """

    value: float
    low: float
    high: float


def check_images(images: int) -> None:
    """Refuse fewer images than noise can be told from.

    Raises:
        InputError: for fewer than `FEWEST_IMAGES`.
    """
    if images < FEWEST_IMAGES:
        raise InputError(
            f"noise cannot be told from a surface by {images} images; measure {FEWEST_IMAGES} or "
            "more (50 find real minima much more often)"
        )


def contrasts(images: int, replicates: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return signs of images, made orthogonal to their mean and of length 1, (replicates, images).

    At least one sign differs from the others.
    """
    drawn = generator.choice((-1.0, 1.0), (replicates, images))
    equal = np.abs(drawn.sum(axis=1)) == images
    drawn[equal, generator.integers(images, size=equal.sum())] *= -1
    drawn -= drawn.mean(axis=1, keepdims=True)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def contrasted(
    losses: ImageLosses, replicates: int, generator: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield surfaces of noise, (some, points), and the number of those before; see the module.

    Points whose losses are equal image by image stay equal, but for the last digit.

    Args:
        losses: of the images; what is not finite is a wall.
        replicates: how many surfaces.
        generator: draws their contrasts.
    """
    at_once = max(1, 4 * BLOCK_VALUES // losses.images)  # of few images all, whatever the points
    for first in range(0, replicates, at_once):
        drawn = contrasts(losses.images, min(at_once, replicates - first), generator)
        for begin in range(0, len(drawn), losses.sums_at_once):
            yield first + begin, losses.weighted(drawn[begin : begin + losses.sums_at_once])


def studentized(explained: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """Return contrasts in standard errors, as t of a sample of `images` is distributed.

    Args:
        explained: the share of the squares (of the images' deviations from their mean) that the
            contrast explains, 0 to 1.
        images: their number n. The contrast leaves n - 2 degrees of freedom to the standard error,
            a sample mean n - 1; quantiles of one distribution are replaced by the other's.
    """
    left = np.minimum(explained, _ALMOST_1)
    t = np.sqrt((images - 2) * left / (1 - left))
    return stats.t.isf(stats.t.sf(t, images - 2), images - 1)


def upper_quantile(draws: NDArray[np.float64], level: float) -> Quantile:
    """Return the value that one more draw exceeds with probability `level` at most.

    The ceil((1 - level) (B + 1))-th smallest of B draws (Barnard 1963; Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", section 4.2): right at any B, if often unsharp at
    a small one.

    Raises:
        InputError: if there are too few draws for that level.
    """
    number = len(draws)
    place = math.ceil(round((1 - level) * (number + 1), 9))
    if not 0 < level < 1 or place > number:
        raise InputError(f"a quantile at level {level} cannot be had from {number} draws")
    ascending = np.concatenate([[-np.inf], np.sort(draws), [np.inf]])
    below, above = stats.binom.ppf((0.025, 0.975), number, 1 - level).astype(int)
    return Quantile(
        float(ascending[place]),
        float(ascending[below]),
        float(ascending[min(above + 1, number + 1)]),
    )
