"""Local minima by persistence: how deep a minimum is before it joins a deeper one.

The persistence of a minimum is the height one must climb from it to reach a lower one: the loss at
the lowest saddle on the way, minus its own loss (`merge_tree`). Noise makes many shallow minima and
few deep ones, so only minima above a stated threshold count.

What the count depends on is explicit:

- Connectivity: with 8, points are neighbors across corners too; with 4, along the axes only. The
  default is 8: a valley that runs diagonally across the grid is one valley. Along a ray both mean
  the two neighbors.
- Plateaus: connected points of equal loss are one minimum, reported at the point nearest to
  their center.
- Boundary: a minimum is marked if it touches the edge of the grid or a point that is not finite,
  since the surface may fall further beyond.
- Points that are not finite are walls: excluded, counted, and never a way from minimum to minimum.
- The lowest minimum has infinite persistence (each ray and each region that walls enclose has one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from evolq.errors import InputError
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.merge_tree import MergeTree, merge_tree
from landscape.statistics.noise_threshold import NoiseThreshold, noise_threshold
from landscape.statistics.resampling import FEWEST_IMAGES


@dataclass(frozen=True)
class Minimum:
    """A local minimum: where it is, its loss, and how far one must climb to leave it for a lower.

    `noise` is the paired standard error of the persistence (NaN if not estimated or infinite),
    `points` the number of grid points of equal loss that form it, `boundary` whether it touches the
    edge of what was measured, `edge` whether that is the edge of the grid, and not a point that is
    not finite.
    """

    coordinates: Mapping[str, float]
    value: float
    persistence: float
    noise: float
    points: int
    boundary: bool
    edge: bool = True


@dataclass(frozen=True)
class Minima:
    """The minima above a threshold, most persistent first, and what was left out.

    `below` counts the minima at or below the threshold, `excluded` the points that are not finite
    or were not computed. The threshold is `threshold`, in units of the loss, or, where that is
    None, `sigmas` times the noise of each minimum. Where sigmas were found from the noise of the
    images, `bound` says with which error; it is None where they were given.
    """

    minima: tuple[Minimum, ...]
    below: int
    excluded: int
    connectivity: int
    threshold: float | None
    sigmas: float
    bound: NoiseThreshold | None = None


def find_minima(surface: xr.DataArray, threshold: float, connectivity: int = 8) -> Minima:
    """Find the minima of a plane or of rays whose persistence exceeds `threshold`.

    `surface` has dimensions `y, x` or `ray, distance` (each ray by itself), with coordinates.

    Raises:
        InputError: for other dimensions, another connectivity or a negative threshold.
    """
    if not threshold >= 0:
        raise InputError(f"the persistence threshold must be 0 or more, not {threshold}")
    return _find(surface, None, connectivity, threshold=threshold, sigmas=np.nan, bound=None)


def significant_minima(
    dataset: xr.Dataset,
    sigmas: float | None = None,
    connectivity: int = 8,
    level: float = 0.05,
    generator: np.random.Generator | None = None,
    replicates: int | None = None,
) -> Minima:
    """Find the minima of `test_loss` that sampling noise alone would not make.

    A persistence is the difference of two test losses, at the saddle and at the minimum, measured
    on the same images. Its noise is therefore the paired standard error of that difference, from
    the per-image losses at those two points. Both points were picked for being extreme, among many
    and on the same images; how many standard errors that is worth depends on the grid and on the
    images, and is found from them (`noise_threshold`): where the true surface is flat, one scan in
    1 / `level` has a minimum more than the lowest.

    Args:
        dataset: a scan.
        sigmas: this many standard errors, in place of the threshold found from the images.
        connectivity: 8 or 4.
        level: family-wise error of the threshold.
        generator: draws the noise; a new one with seed 0 by default, so that one file always has
            the same minima.
        replicates: of the noise; see `noise_threshold`.

    With fewer than 10 images no minimum can be told from noise: `sigmas` is infinite, `bound` None,
    and nothing counts but the lowest.

    Raises:
        InputError: if `dataset` is not a scan, for another connectivity, negative `sigmas` or a bad
            level.
    """
    if "test_loss" not in dataset or "test_loss_per_image" not in dataset:
        raise InputError("the dataset is no scan: it lacks test_loss or test_loss_per_image")
    if sigmas is not None and not sigmas >= 0:
        raise InputError(f"the number of sigmas must be 0 or more, not {sigmas}")
    surface = dataset["test_loss"]
    losses, bound = image_stack(surface, dataset["test_loss_per_image"]), None
    if sigmas is None:
        sigmas = np.inf
        if losses.images >= FEWEST_IMAGES:
            generator = np.random.default_rng(0) if generator is None else generator
            bound = noise_threshold(losses, generator, connectivity, level, replicates)
            sigmas = bound.value
    return _find(surface, losses, connectivity, threshold=None, sigmas=sigmas, bound=bound)


def ordered(surface: xr.DataArray) -> xr.DataArray:
    """Return a surface with its dimensions in the order y, x or ray, distance.

    Raises:
        InputError: for other dimensions.
    """
    for dimensions in (("y", "x"), ("ray", "distance")):
        if set(surface.dims) == set(dimensions):
            return surface.transpose(*dimensions)
    raise InputError(f"a surface has dimensions y, x or ray, distance, not {surface.dims}")


def surface_stack(surface: xr.DataArray) -> NDArray[np.float64]:
    """Return the values as `merge_tree` takes them: (1, y, x) or (ray, distance), walls at +inf."""
    grid = ordered(surface)
    values = np.where(np.isfinite(grid.values), grid.values, np.inf)
    return values[None] if "x" in grid.dims else values


def image_stack(surface: xr.DataArray, per_image: xr.DataArray) -> ImageLosses:
    """Return losses per image in the order of `surface_stack`, (surfaces, ..., images).

    NaN where the surface is not finite.
    """
    grid = ordered(surface)
    losses = ImageLosses.of(per_image.transpose(*grid.dims, "image"))
    if not np.isfinite(grid.values).all():
        losses = losses.where(np.isfinite(grid.values))
    return replace(losses, grid=(1, *losses.grid)) if "x" in grid.dims else losses


def barriers(
    values: NDArray[np.float64], losses: ImageLosses | None, tree: MergeTree
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the persistence of each minimum of a tree and its paired standard error.

    Args:
        values: see `surface_stack`.
        losses: see `image_stack`; all errors are NaN without it.
        tree: of `values`.

    Returns:
        Both (minima,): infinity and NaN where a minimum joins no other.
    """
    joining = tree.saddles >= 0
    minima, saddles = tree.minima[joining], tree.saddles[joining]
    persistences = np.full(len(joining), np.inf)
    persistences[joining] = values.ravel()[saddles] - values.ravel()[minima]
    noises = np.full(len(joining), np.nan)
    if losses is not None and losses.images > 1:
        squares = losses.paired_squares(saddles, minima)
        noises[joining] = np.sqrt(squares / (losses.images - 1) / losses.images)
    return persistences, noises


def _find(
    surface: xr.DataArray,
    losses: ImageLosses | None,
    connectivity: int,
    threshold: float | None,
    sigmas: float,
    bound: NoiseThreshold | None,
) -> Minima:
    """Collect the minima above `threshold`, or else above `sigmas` times their noise."""
    values = surface_stack(surface)
    tree = merge_tree(values, connectivity)
    persistences, noises = barriers(values, losses, tree)
    bars = sigmas * noises if threshold is None else threshold
    if np.isposinf(sigmas):  # also times 0
        bars = np.full(len(persistences), np.inf)
    real = persistences > 0  # others are steps within a plateau
    above = real & (np.isinf(persistences) | (persistences > bars))
    found = [
        Minimum(persistence=float(persistence), noise=float(noise), **fields)
        for persistence, noise, fields in zip(
            persistences[above],
            noises[above],
            described(surface, values, tree.minima[above], connectivity),
            strict=True,
        )
    ]
    found.sort(key=lambda minimum: (-minimum.persistence, minimum.value))
    below = int((real & ~above).sum())
    excluded = int(np.isinf(values).sum())
    return Minima(tuple(found), below, excluded, connectivity, threshold, sigmas, bound)


def described(
    surface: xr.DataArray, values: NDArray[np.float64], minima: NDArray[np.int64], connectivity: int
) -> Iterator[dict[str, Any]]:
    """Describe the plateau around each minimum: the fields of a `Minimum` that are its own.

    `values` are the `surface_stack` of `surface`, `minima` flat indices in them.
    """
    grid = ordered(surface)
    dimensions = values.ndim - 1
    neighbors = ndimage.generate_binary_structure(dimensions, 1 if connectivity == 4 else 2)
    offsets = np.argwhere(neighbors)  # indices in `walls`, whose indices are higher by one
    edges = ((0, 0), *((1, 1) for _ in range(dimensions)))  # the edge of the grid is a wall too
    walls = np.pad(np.isinf(values), edges, constant_values=True)
    outside = np.pad(np.zeros(values.shape[1:], bool), 1, constant_values=True)
    axes = [(str(name), grid[name].values) for name in grid.dims]
    for piece, *bottom in zip(*np.unravel_index(minima, values.shape), strict=True):
        heights, place = values[piece], tuple(bottom)
        near = tuple(slice(max(0, i - 1), i + 2) for i in place)
        if np.count_nonzero(heights[near] == heights[place]) == 1:
            members = np.array([place])  # no plateau, as nearly always: no search of the grid
        else:
            labels, _ = ndimage.label(heights == heights[place], neighbors)
            members = np.argwhere(labels == labels[place])
        center = members[((members - members.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        around = (members[:, None] + offsets).reshape(-1, dimensions)
        index = center if len(axes) == dimensions else (piece, *center)
        yield {
            "coordinates": {
                name: float(along[i]) for (name, along), i in zip(axes, index, strict=True)
            },
            "value": float(heights[place]),
            "points": len(members),
            "boundary": bool(walls[piece][tuple(around.T)].any()),
            "edge": bool(outside[tuple(around.T)].any()),
        }
