"""Surfaces that have nothing of the network's own ruggedness, to compare a scan with.

A smooth fit or none, and noise as the images of the scan have it: what statistics say of them is
what they would say if there were nothing to find.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from evolq.errors import InputError
from landscape.statistics.image_losses import ImageLosses

FITS = ("quadratic", "thin_plate")

# Neighbors that a thin-plate spline looks at; all points of a plane of 11 x 11.
_NEIGHBORS = 120


def sampling_noise(
    losses: ImageLosses, generator: np.random.Generator, replicates: int
) -> Iterator[NDArray[np.float64]]:
    """Yield flat surfaces, of mean 0 in expectation, with the noise of the mean of the images.

    Each image's deviations from the mean surface, drawn with replacement and with a random sign
    (a wild bootstrap: Wu 1986, section 7), so that the points covary as they do in the scan; made
    larger by sqrt(n / (n - 1)), since deviations from their own mean are too small.

    Args:
        losses: of n images.
        generator: draws images and signs.
        replicates: how many surfaces.

    Returns:
        The surfaces one after the other, (points,); NaN where a loss is not finite.

    Raises:
        InputError: for fewer than 2 images.
    """
    images = losses.images
    if images < 2:
        raise InputError(f"residuals need 2 images or more, not {images}")
    for first in range(0, replicates, losses.sums_at_once):
        weights = np.empty((min(losses.sums_at_once, replicates - first), images))
        for own in weights:
            signs = generator.choice((-1.0, 1.0), images) * np.sqrt(images / (images - 1))
            drawn = generator.integers(images, size=images)
            own[:] = np.bincount(drawn, signs, minlength=images) / images
        sums, totals = losses.weighted(weights), weights.sum(axis=1)
        yield from (own - total * losses.means for own, total in zip(sums, totals, strict=True))


def smooth_fit(
    surface: xr.DataArray, fit: str = "quadratic", smoothing: float = 1.0
) -> xr.DataArray:
    """Return a smooth fit of a surface; points that are not finite are not fitted, and stay NaN.

    Args:
        surface: over `y, x` or `ray, distance`; each ray is fitted alone.
        fit: `quadratic` by least squares, or `thin_plate`, a smoothing spline (of the nearest 120
            points; Duchon 1977). Coordinates are scaled to -1 to 1 along each axis.
        smoothing: of the spline; 0 goes through all points.

    Raises:
        InputError: for an unknown fit, other dimensions, or too few finite points for the fit.
    """
    if fit not in FITS:
        raise InputError(f"unknown fit {fit!r}; choose from {', '.join(FITS)}")
    for axes in (("y", "x"), ("distance",)):
        if set(axes) <= set(surface.dims):
            break
    else:
        raise InputError(f"a surface has dimensions y, x or ray, distance, not {surface.dims}")
    pieces = ("ray",) if "ray" in surface.dims else ()
    ordered = surface.transpose(*pieces, *axes)
    grid = np.stack(
        np.meshgrid(*(_scaled(ordered[axis].values) for axis in axes), indexing="ij"), axis=-1
    ).reshape(-1, len(axes))
    stack = ordered.values.reshape(-1, len(grid))
    smooth = np.stack([_fitted(grid, piece, fit, smoothing) for piece in stack])
    found = np.where(np.isfinite(stack), smooth, np.nan).reshape(ordered.shape)
    return ordered.copy(data=found).transpose(*surface.dims)


def _fitted(
    grid: NDArray[np.float64], values: NDArray[np.float64], fit: str, smoothing: float
) -> NDArray[np.float64]:
    """Fit one surface at all points, (points,)."""
    finite = np.isfinite(values)
    axes = grid.shape[1]
    powers = [grid[:, i] * grid[:, j] for i in range(axes) for j in range(i, axes)]
    columns = np.stack([np.ones(len(grid)), *grid.T, *powers], axis=1)
    if finite.sum() < columns.shape[1]:
        raise InputError(
            f"a {fit} fit needs {columns.shape[1]} finite points or more, not {finite.sum()}"
        )
    if fit == "quadratic":
        coefficients, *_ = np.linalg.lstsq(columns[finite], values[finite], rcond=None)
        return columns @ coefficients
    spline = RBFInterpolator(
        grid[finite],
        values[finite],
        neighbors=min(_NEIGHBORS, int(finite.sum())),
        smoothing=smoothing,
        kernel="thin_plate_spline",
    )
    return spline(grid)


def _scaled(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(coordinates.min()), float(coordinates.max())
    return (coordinates - (low + high) / 2) * (2 / (high - low) if high > low else 1.0)
