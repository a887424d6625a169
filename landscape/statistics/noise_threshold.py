"""How deep minima are that sampling noise alone makes: the threshold with a known error.

If the true surface is flat, its measured minima are all noise. The largest of their persistences,
each in paired standard errors of its own barrier, exceeds the threshold in a share `level` of such
scans, for this grid and these images: a test of all minima at once whose family-wise error is
`level`. Where the true surface is not flat, noise makes fewer minima, not more. In simulations
(`benchmarks/coverage.py`) white, smooth and heavy-tailed noise kept to 5 %, and so did log-normal
noise that is alike at neighbors; independent from point to point, that made a false minimum in 7 to
13 % of planes of 50 and 200 images.

Sup-norm confidence sets for persistence (Fasy et al. 2014, "Confidence sets for persistence
diagrams", Annals of Statistics 42(6); Chazal et al. 2013, "Bootstrap and stochastic convergence for
persistence diagrams and landscapes") hold for any true surface, and are too wide here: they bound
twice the largest deviation of any point, which takes 5 to 6 standard errors on planes where the
persistence of noise stays below 2 to 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evolq.errors import InputError
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.merge_tree import merge_tree
from landscape.statistics.resampling import (
    check_images,
    contrasted,
    studentized,
    upper_quantile,
)

# Points of surfaces whose merge tree is found at once: some 100 MB.
_BATCH_POINTS = 250_000

# Grid points over all replicates by default: a few seconds. At 5 % the replicates are 19, 39, ...
# (one less than a multiple of 20, so that the quantile is one of them), 39 to 999.
_POINTS = 4_000_000
_MOST, _LEAST = 50, 2

# Relative to the largest loss; sums over images in float64 round by some 1e-15 of it.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class NoiseThreshold:
    """The persistence, in paired standard errors, that noise alone seldom reaches.

    Attributes:
        value: above it, minima are told from noise.
        low: lower bound of the exact quantile, given that few replicates were drawn (95 %).
        high: its upper bound.
        level: share of flat surfaces on which noise alone makes a minimum above `value`.
        images: number of images.
        largest: the largest studentized persistence of each replicate, (replicates,).
    """

    value: float
    low: float
    high: float
    level: float
    images: int
    largest: NDArray[np.float64]


def noise_threshold(
    losses: ImageLosses | NDArray[np.floating],
    generator: np.random.Generator,
    connectivity: int = 8,
    level: float = 0.05,
    replicates: int | None = None,
) -> NoiseThreshold:
    """Return the threshold for minima of the mean over images.

    Args:
        losses: (surfaces, y, x, images) or (surfaces, distance, images); the minima of all
            surfaces are tested together (rays of one scan). A point where an image's loss is not
            finite is a wall.
        generator: draws the replicates.
        connectivity: 8 or 4, see `merge_tree`.
        level: family-wise error, over all minima of all surfaces.
        replicates: number of surfaces of noise; by default 39 to 999, fewer for larger grids.

    Raises:
        InputError: for fewer than 10 images, another connectivity, or a level that the replicates
            are too few for.
    """
    losses = ImageLosses.of(losses)
    shape, points, images = losses.grid, losses.points, losses.images
    check_images(images)
    if replicates is None:
        replicates = 20 * int(np.clip(_POINTS // (20 * max(points, 1)), _LEAST, _MOST)) - 1
    if replicates < 1:
        raise InputError(f"1 replicate or more is needed, not {replicates}")
    largest = np.zeros(replicates)
    each = max(1, _BATCH_POINTS // max(points, 1))
    for first, surfaces in contrasted(losses, replicates, generator):
        found = []
        for begin in range(0, len(surfaces), each):
            batch = surfaces[begin : begin + each]
            tree = merge_tree(batch.reshape(-1, *shape[1:]), connectivity)
            joining = tree.saddles >= 0
            minima, saddles = tree.minima[joining], tree.saddles[joining]
            heights = batch.ravel()[saddles] - batch.ravel()[minima]
            found.append((first + begin + minima // points, minima, saddles, heights))
        replicate, minima, saddles, heights = (
            np.concatenate(parts) for parts in zip(*found, strict=True)
        )
        ends, starts = saddles % points, minima % points
        squares = losses.paired_squares(ends, starts)
        # A barrier that is the same for all images is no noise: what is left is rounding.
        size = np.maximum(losses.largest[ends], losses.largest[starts])
        noisy = squares > images * (_ROUNDING * size) ** 2
        explained = np.divide(heights**2, squares, out=np.zeros_like(heights), where=noisy)
        np.maximum.at(largest, replicate, explained)
    largest = studentized(largest, images)
    return NoiseThreshold(*upper_quantile(largest, level), level, images, largest)
