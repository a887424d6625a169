"""Surfaces that have nothing of the network's own ruggedness, to compare a scan with.

Each takes the losses per image of a scan and returns as many, on the same grid: what the same
statistics say of them is what they would say if there were nothing to find.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from evolq.errors import InputError

FITS = ("quadratic", "thin_plate")

# Neighbors that a thin-plate spline looks at; all points of a plane of 11 x 11.
_NEIGHBORS = 120


def sampling_noise(per_image: xr.DataArray, generator: np.random.Generator) -> xr.DataArray:
    """Return a flat surface with the noise of the images alone.

    Each image's deviations from the mean surface, drawn with replacement and with a random sign
    (a wild bootstrap: Wu 1986, section 7), so that the points covary as they do in the scan; made
    larger by sqrt(n / (n - 1)), since deviations from their own mean are too small. On average over
    points the surface has the loss of the scan.

    Args:
        per_image: losses, with the dimension `image`.
        generator: draws images and signs.

    Raises:
        InputError: without a dimension `image` or with fewer than 2 images.
    """
    values = _images_last(per_image)
    drawn = _drawn_residuals(values, generator)
    finite = np.asarray(np.isfinite(values).all(axis=-1))
    level = values[finite].mean() if finite.any() else np.nan
    return _like(per_image, np.where(finite[..., None], level + drawn, values))


def smooth_with_noise(
    per_image: xr.DataArray,
    generator: np.random.Generator,
    fit: str = "quadratic",
    smoothing: float = 1.0,
) -> xr.DataArray:
    """Return a smooth fit of the mean surface with the noise of the images.

    Args:
        per_image: losses over `y, x, image` or `ray, distance, image`; each ray is fitted alone.
        generator: draws images and signs, as in `sampling_noise`.
        fit: `quadratic` by least squares, or `thin_plate`, a smoothing spline (of the nearest 120
            points; Duchon 1977). Coordinates are scaled to -1 to 1 along each axis.
        smoothing: of the spline; 0 goes through all points.

    Raises:
        InputError: for an unknown fit, other dimensions, or too few finite points for the fit.
    """
    if fit not in FITS:
        raise InputError(f"unknown fit {fit!r}; choose from {', '.join(FITS)}")
    for axes in (("y", "x"), ("distance",)):
        if set(axes) <= set(per_image.dims):
            break
    else:
        raise InputError(f"a surface has dimensions y, x or ray, distance, not {per_image.dims}")
    pieces = ("ray",) if "ray" in per_image.dims else ()
    ordered = per_image.transpose(*pieces, *axes, "image")
    values = _images_last(ordered)
    grid = np.stack(
        np.meshgrid(*(_scaled(ordered[axis].values) for axis in axes), indexing="ij"), axis=-1
    ).reshape(-1, len(axes))
    stack = values.reshape(-1, len(grid), values.shape[-1])
    smooth = np.stack([_fitted(grid, piece, fit, smoothing) for piece in stack])
    drawn = _drawn_residuals(values, generator)
    finite = np.asarray(np.isfinite(values).all(axis=-1))[..., None]
    found = np.where(finite, smooth.reshape(values.shape[:-1])[..., None] + drawn, values)
    return _like(ordered, found).transpose(*per_image.dims)


def _fitted(
    grid: NDArray[np.float64], per_image: NDArray[np.float64], fit: str, smoothing: float
) -> NDArray[np.float64]:
    """Fit the mean over images at all points of one surface, (points,)."""
    finite = np.isfinite(per_image).all(axis=-1)
    mean = per_image[finite].mean(axis=-1)
    axes = grid.shape[1]
    powers = [grid[:, i] * grid[:, j] for i in range(axes) for j in range(i, axes)]
    columns = np.stack([np.ones(len(grid)), *grid.T, *powers], axis=1)
    if finite.sum() < columns.shape[1]:
        raise InputError(
            f"a {fit} fit needs {columns.shape[1]} finite points or more, not {finite.sum()}"
        )
    if fit == "quadratic":
        coefficients, *_ = np.linalg.lstsq(columns[finite], mean, rcond=None)
        return columns @ coefficients
    spline = RBFInterpolator(
        grid[finite],
        mean,
        neighbors=min(_NEIGHBORS, int(finite.sum())),
        smoothing=smoothing,
        kernel="thin_plate_spline",
    )
    return spline(grid)


def _drawn_residuals(
    values: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    images = values.shape[-1]
    if images < 2:
        raise InputError(f"residuals need 2 images or more, not {images}")
    with np.errstate(invalid="ignore"):  # points that are not finite stay so
        residuals = values - values.mean(axis=-1, keepdims=True)
    signs = generator.choice((-1.0, 1.0), images) * np.sqrt(images / (images - 1))
    return residuals[..., generator.integers(images, size=images)] * signs


def _images_last(per_image: xr.DataArray) -> NDArray[np.float64]:
    if "image" not in per_image.dims:
        raise InputError(
            f"losses per test image (dimension 'image') were expected, not {per_image.dims}"
        )
    return per_image.transpose(..., "image").values.astype(np.float64)


def _like(per_image: xr.DataArray, values: NDArray[np.float64]) -> xr.DataArray:
    """Return the values, images last, as an array like `per_image`."""
    template = per_image.transpose(..., "image")
    return template.copy(data=values).transpose(*per_image.dims)


def _scaled(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(coordinates.min()), float(coordinates.max())
    return (coordinates - (low + high) / 2) * (2 / (high - low) if high > low else 1.0)
