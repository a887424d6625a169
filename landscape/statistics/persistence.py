"""Everything that persistence says about a scan, as arrays to store and to draw.

The persistence diagram plots birth against death of each minimum; the barcode is the same as bars;
the merge tree adds which minimum joins which. The number of minima is a function of the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evolq.errors import InputError
from landscape.statistics.intervals import Interval, mean_interval
from landscape.statistics.merge_tree import kept_basins, merge_tree
from landscape.statistics.minima import (
    barriers,
    described,
    image_stack,
    ordered,
    surface_stack,
)
from landscape.statistics.resampling import check_images, contrasted, upper_quantile


def persistence_diagram(
    dataset: xr.Dataset, connectivity: int = 8, sigmas: float = 0.0
) -> xr.Dataset:
    """Return every minimum of `test_loss`: diagram, barcode and merge tree.

    Args:
        dataset: a scan.
        connectivity: 8 or 4.
        sigmas: paired standard errors above which a minimum is `significant`.

    Returns:
        A Dataset over `minimum`, the lowest first, steps within plateaus left out: `birth` (loss
        of the minimum), `death` (of its saddle; infinite where it joins no other), `persistence`,
        `noise` (its paired standard error), `parent` (number of the minimum in whose basin it flows
        over its saddle; its own where there is none), `significant`, `plateau` (points of equal
        loss), `boundary` (on the edge of what was measured), `basin` (points from which steepest
        descent leads to it), `significant_basin` (with the basins that flow into it once only
        significant minima are left; 0 for others), and its place and its saddle's along each
        dimension (`at_y`, `saddle_y`, ...; saddles NaN where there is none). Over the dimensions
        of the scan: `basin_of`, the number of the minimum that steepest descent leads to (-1 where
        no loss is finite), and `significant_basin_of`.
    """
    surface = ordered(dataset["test_loss"])
    values = surface_stack(surface)
    tree = merge_tree(values, connectivity)
    persistences, noises = barriers(
        values, image_stack(surface, dataset["test_loss_per_image"]), tree
    )
    real = persistences > 0
    number = np.cumsum(real) - 1
    into = _heads(tree.parents, real)
    basin_of = kept_basins(tree, real)
    significant = np.isinf(persistences) | (real & (persistences > sigmas * noises))
    significant_basin_of = kept_basins(tree, significant)
    own = list(described(surface, values, tree.minima[real], connectivity))
    joining = tree.saddles >= 0
    deaths = np.where(joining, values.ravel()[tree.saddles], np.inf)
    places = {}
    for role, points in (("at", tree.minima), ("saddle", tree.saddles)):
        index = np.unravel_index(np.maximum(points, 0), values.shape)[-surface.ndim :]
        for name, along in zip(surface.dims, index, strict=True):
            place = surface[name].values[along].astype(np.float64)
            places[f"{role}_{name}"] = ("minimum", np.where(points >= 0, place, np.nan)[real])

    def sizes(basins: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(basins[basins >= 0], minlength=len(real))[real]

    def numbered(basins: NDArray[np.int64]) -> xr.DataArray:
        kept = np.where(basins < 0, -1, number[basins] if len(number) else -1)
        return surface.copy(data=kept.reshape(surface.shape))

    return xr.Dataset(
        {
            "birth": ("minimum", values.ravel()[tree.minima][real]),
            "death": ("minimum", deaths[real]),
            "persistence": ("minimum", persistences[real]),
            "noise": ("minimum", noises[real]),
            "parent": ("minimum", number[into[real]]),
            "significant": ("minimum", significant[real]),
            "plateau": ("minimum", np.array([one["points"] for one in own], dtype=np.int64)),
            "boundary": ("minimum", np.array([one["boundary"] for one in own], dtype=bool)),
            "basin": ("minimum", sizes(basin_of)),
            "significant_basin": ("minimum", sizes(significant_basin_of)),
            **places,
            "basin_of": numbered(basin_of),
            "significant_basin_of": numbered(significant_basin_of),
        },
        {"minimum": np.arange(int(real.sum()))},
        {"connectivity": connectivity, "sigmas": sigmas},
    )


def count_curve(
    dataset: xr.Dataset,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    connectivity: int = 8,
    level: float = 0.05,
    replicates: int = 199,
) -> xr.Dataset:
    """Return the number of minima of `test_loss` as a function of the threshold, with its band.

    The band holds for all thresholds at once: if the measured surface deviates from the true one by
    values within a range R, no persistence differs by more than R (stability of persistence,
    Cohen-Steiner, Edelsbrunner and Harer 2007, for f up to a constant), so that the true surface
    has at least as many minima above t as the measured one above t + R, and at most as many as
    this has above t - R. R is the upper quantile of the range of noise, from the images (Fasy et
    al. 2014; the sup-norm set). It is wide: `significant_minima` is the sharper test of each
    minimum, this band speaks of their number.

    Args:
        dataset: a scan.
        thresholds: persistences, in units of the loss, (threshold,).
        generator: draws the noise.
        connectivity: 8 or 4.
        level: share of scans in which the band does not hold.
        replicates: surfaces of noise to draw.

    Returns:
        A Dataset over `threshold`: `count`, `low` and `high` (infinite where t <= R: minima below
        the noise could be without number), the same of minima that do not touch the boundary as
        `inner_count`, and of noise alone on a flat surface `noise_count`, its mean, and
        `noise_high`, which it exceeds in a share `level` of cases at each threshold. The lowest
        minimum of each surface counts always. Attribute `range`: R.

    Raises:
        InputError: for fewer than 10 images or too few replicates for the level.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    surface = ordered(dataset["test_loss"])
    values = surface_stack(surface)
    losses = image_stack(surface, dataset["test_loss_per_image"])
    check_images(losses.images)
    tree = merge_tree(values, connectivity)
    persistences, _ = barriers(values, None, tree)
    real = persistences > 0
    own = described(surface, values, tree.minima[real], connectivity)
    inner = np.array([not one["boundary"] for one in own], dtype=bool)
    ranges, noise = np.zeros(replicates), np.zeros((replicates, len(levels)))
    for first, surfaces in contrasted(losses, replicates, generator):
        for number, flat in enumerate(surfaces, first):
            heights = flat.reshape(values.shape) / np.sqrt(losses.images)
            finite = heights[np.isfinite(heights)]
            ranges[number] = np.ptp(finite) if finite.size else 0.0
            own_tree = merge_tree(heights, connectivity)
            noise[number] = _counts(barriers(heights, None, own_tree)[0], levels)
    span = upper_quantile(ranges, level).value
    high = np.where(levels > span, _counts(persistences, levels - span), np.inf)
    return xr.Dataset(
        {
            "count": ("threshold", _counts(persistences, levels)),
            "inner_count": ("threshold", _counts(persistences[real][inner], levels)),
            "low": ("threshold", _counts(persistences, levels + span)),
            "high": ("threshold", high),
            "noise_count": ("threshold", noise.mean(axis=0)),
            "noise_high": (
                "threshold",
                np.array([upper_quantile(column, level).value for column in noise.T]),
            ),
        },
        {"threshold": levels},
        {"range": span, "level": level, "connectivity": connectivity},
    )


@dataclass(frozen=True)
class Survival:
    """How many minima that one half of the images shows are there for the other half.

    Attributes:
        found: minima beside the lowest above the threshold on one half, mean over splits.
        survived: share of these whose barrier, between the same two points, is above 0 on the other
            half by a one-sided t test at 5 %; NaN if none was found.
        height: mean barrier on the other half over the mean barrier on the one that found them;
            below 1 by what picking the most extreme points adds. NaN if none was found.
        per_split: interval of `found` over splits. Halves of one sample overlap from split to
            split, so this is the scatter of splitting, not of sampling images.
        splits: number of ways to halve the images that were drawn.
    """

    found: float
    survived: float
    height: float
    per_split: Interval
    splits: int


def survival(
    dataset: xr.Dataset,
    sigmas: float,
    generator: np.random.Generator,
    splits: int = 20,
    connectivity: int = 8,
) -> Survival:
    """Look for minima on one half of the images and test them on the other.

    Minimum and saddle are picked on one half; the difference of their losses on the other half has
    no part in that choice, so that it is an unbiased measurement with an ordinary t test.

    Args:
        dataset: a scan.
        sigmas: paired standard errors that a minimum must have on the first half.
        generator: draws the halves.
        splits: how many times, 2 or more.
        connectivity: 8 or 4.

    Raises:
        InputError: for fewer than 4 images or 2 splits.
    """
    surface = ordered(dataset["test_loss"])
    losses = image_stack(surface, dataset["test_loss_per_image"])
    images = losses.images
    if images < 4 or splits < 2:
        raise InputError(
            f"halves need 4 images or more and 2 splits or more, not {images} and {splits}"
        )
    found, passed, before, after = [], 0, 0.0, 0.0
    for _ in range(splits):
        order = generator.permutation(images)
        one, other = (
            losses.of_images(half) for half in (order[: images // 2], order[images // 2 :])
        )
        heights = one.means.reshape(losses.grid)
        tree = merge_tree(heights, connectivity)
        persistences, noises = barriers(heights, one, tree)
        chosen = np.isfinite(persistences) & (persistences > 0) & (persistences > sigmas * noises)
        ends, starts = tree.saddles[chosen], tree.minima[chosen]
        number = other.images
        barrier = other.means[ends] - other.means[starts]
        error = np.sqrt(other.paired_squares(ends, starts) / (number - 1) / number)
        found.append(len(ends))
        passed += int((barrier > stats.t.ppf(0.95, number - 1) * error).sum())
        before += float(persistences[chosen].sum())
        after += float(barrier.sum())
    total = sum(found)
    return Survival(
        found=total / splits,
        survived=passed / total if total else np.nan,
        height=after / before if total else np.nan,
        per_split=mean_interval(found),
        splits=splits,
    )


def _heads(parents: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return each minimum's parent, past minima that are steps within a plateau."""
    heads = parents
    while len(heads) and not real[heads].all():
        heads = np.where(real[heads], heads, parents[heads])
    return heads


def _counts(
    persistences: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many persistences exceed each threshold; those of 0 never do."""
    ascending = np.sort(persistences[persistences > 0])
    return len(ascending) - np.searchsorted(ascending, thresholds, side="right")
