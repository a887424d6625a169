"""How many minima the nulls have: what stands beside a count of local minima.

A count says little by itself. Beside it stand the counts on the same grid of what has no ruggedness
of its own: sampling noise alone, a smooth surface with it, and one with numerical noise. A network
that is rugged has more minima than these, or fewer and deeper ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from landscape.statistics.merge_tree import merge_tree
from landscape.statistics.minima import barriers, surface_stack
from landscape.statistics.nulls import sampling_noise, smooth_with_noise
from landscape.statistics.resampling import FEWEST_IMAGES

# Replicates of each null: 99, fewer where points times images exceed 2 million, some seconds each.
_MOST, _LEAST, _VALUES = 99, 9, 200_000_000

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

    - `sampling`: `nulls.sampling_noise`, a flat surface with the noise of the images.
    - `smooth`: `nulls.smooth_with_noise`, a quadratic fit with that noise.
    - `numerical`: that fit with normal numbers as large as the floor, anew at each point.

    Args:
        dataset: a scan of a plane or of rays.
        generator: draws the noise.
        floor: standard deviation of the mean test loss by numerical noise; None leaves that out.
        connectivity: 8 or 4.

    Returns:
        Empty below 10 images, or where a surface has too few finite points for its fit.
    """
    surface, per_image = dataset["test_loss"], dataset["test_loss_per_image"].astype(np.float64)
    pieces = "ray" if "ray" in surface.dims else "y"
    known = np.isfinite(per_image).all("image")
    finite = known.sum([name for name in surface.dims if name != "ray"])
    if per_image.sizes["image"] < FEWEST_IMAGES or int(finite.min()) < _TERMS[pieces]:
        return {}
    replicates = int(np.clip(_VALUES // per_image.size, _LEAST, _MOST))
    nulls: dict[str, Callable[[], xr.DataArray]] = {
        "sampling": lambda: _mean(sampling_noise(per_image, generator)),
        "smooth": lambda: _mean(smooth_with_noise(per_image, generator)),
    }
    if floor is not None:
        # The mean in place of two images: there is no noise of images, and the fit remains.
        twice = surface.where(known).expand_dims(image=2)
        fit = _mean(smooth_with_noise(twice, generator))
        nulls["numerical"] = lambda: fit + floor * generator.standard_normal(fit.shape)
    return {kind: _count(null, replicates, connectivity) for kind, null in nulls.items()}


def _mean(per_image: xr.DataArray) -> xr.DataArray:
    with np.errstate(invalid="ignore"):  # infinities of both signs
        return per_image.mean("image", skipna=False)


def _count(null: Callable[[], xr.DataArray], replicates: int, connectivity: int) -> NullCount:
    counts = []
    for _ in range(replicates):
        values = surface_stack(null())
        persistences, _ = barriers(values, None, merge_tree(values, connectivity))
        counts.append(int((persistences > 0).sum()))  # others are steps within a plateau
    low, high = np.quantile(counts, [0.025, 0.975])
    return NullCount(float(np.mean(counts)), float(low), float(high))
