"""How many minima the nulls have: what stands beside a count of local minima.

A count says little by itself. Beside it stand the counts on the same grid of what has no ruggedness
of its own: sampling noise alone, a smooth surface with it, and one with numerical noise. A network
that is rugged has more minima than these, or fewer and deeper ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.merge_tree import merge_tree
from landscape.statistics.minima import barriers, image_stack, ordered, surface_stack
from landscape.statistics.nulls import sampling_noise, smooth_fit
from landscape.statistics.resampling import FEWEST_IMAGES

# Replicates of each null: 99, fewer on grids of more than 40,000 points, some seconds each.
_MOST, _LEAST, _POINTS = 99, 9, 4_000_000

# A quadratic of one or two coordinates has 3 or 6 terms.
_TERMS = {"ray": 3, "y": 6}


@dataclass(frozen=True)
class NullCount:
    """Local minima of a null, whatever their depth: the mean over replicates, and 95 % of them."""

    mean: float
    low: float
    high: float


def null_counts(
    dataset: xr.Dataset,
    generator: np.random.Generator,
    floor: float | None = None,
    connectivity: int = 8,
) -> Mapping[str, NullCount]:
    """Return the number of minima of each null, by its kind.

    - `sampling`: a flat surface with the noise of the images, `nulls.sampling_noise`.
    - `smooth`: a quadratic fit (`nulls.smooth_fit`) with that noise.
    - `numerical`: that fit with normal numbers as large as the floor, anew at each point.

    Args:
        dataset: a scan of a plane or of rays.
        generator: draws the noise.
        floor: standard deviation of the mean test loss by numerical noise; None leaves that out.
        connectivity: 8 or 4.

    Returns:
        Empty below 10 images, or where a surface has too few finite points for its fit.
    """
    surface = ordered(dataset["test_loss"])
    losses = image_stack(surface, dataset["test_loss_per_image"])
    pieces = "ray" if "ray" in surface.dims else "y"
    mean = surface.copy(data=losses.means.reshape(surface.shape))
    finite = np.isfinite(mean).sum([name for name in surface.dims if name != "ray"])
    if losses.images < FEWEST_IMAGES or int(finite.min()) < _TERMS[pieces]:
        return {}
    replicates = int(np.clip(_POINTS // losses.points, _LEAST, _MOST))
    flat, smooth = float(mean.mean()), smooth_fit(mean).values
    nulls = {
        "sampling": (flat + noise for noise in _noise(losses, generator, replicates)),
        "smooth": (smooth + noise for noise in _noise(losses, generator, replicates)),
    }
    if floor is not None:
        normal = (generator.standard_normal(smooth.shape) for _ in range(replicates))
        nulls["numerical"] = (smooth + floor * own for own in normal)
    return {
        kind: _count((surface.copy(data=values) for values in own), connectivity)
        for kind, own in nulls.items()
    }


def _noise(
    losses: ImageLosses, generator: np.random.Generator, replicates: int
) -> Iterator[NDArray[np.float64]]:
    shape = losses.source.shape[:-1]
    return (noise.reshape(shape) for noise in sampling_noise(losses, generator, replicates))


def _count(surfaces: Iterable[xr.DataArray], connectivity: int) -> NullCount:
    counts = []
    for surface in surfaces:
        values = surface_stack(surface)
        persistences, _ = barriers(values, None, merge_tree(values, connectivity))
        counts.append(int((persistences > 0).sum()))  # others are steps within a plateau
    low, high = np.quantile(counts, [0.025, 0.975])
    return NullCount(float(np.mean(counts)), float(low), float(high))
