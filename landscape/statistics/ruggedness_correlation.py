"""Ruggedness as correlation: how alike the losses of points are that lie some steps apart.

Averages run over all lines of a surface together, rows and columns of a plane alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.optimize import nnls

from landscape.statistics.roughness import total_variation
from landscape.statistics.surface import Surface

# Lags of the fit: a quarter of a line's steps, since beyond half of it a variogram rests on the
# same few pairs (Journel & Huijbregts 1978, "Mining Geostatistics", section III.B.7), and at most
# 12: of a random walk of 400 steps with noise, 100 lags give a nugget of twice the standard error.
_SHARE_OF_LAGS = 4
_LEAST_LAGS = 3  # as many as the model has parameters
_MOST_LAGS = 12

# Exponents 2 H of the power law, from almost a jump (0) to a smooth surface (2).
_EXPONENTS = np.linspace(0.05, 2, 40)


@dataclass(frozen=True)
class PowerLaw:
    """The variogram nugget + slope * distance^(2 hurst), fitted near zero; NaN if undefined."""

    nugget: float
    slope: float
    hurst: float


def autocorrelation(surface: Surface, lag: int = 1) -> float:
    """Return the autocorrelation at `lag` steps (Weinberger 1990, Biological Cybernetics 63).

    The mean of products of losses `lag` apart, less the mean loss, over the mean square of the same
    losses: from -1 to 1, NaN for a constant surface or no pair.

    It depends on the step: 1 as the step goes to 0 on any continuous surface. Lines that are short
    against the correlation length put it too low by about their ratio, since the mean loss of the
    lines is not that of the space. Noise divides it by 1 + noise variance / variance.
    """
    first, second = surface.pairs(lag)
    if len(first) == 0:
        return np.nan
    mean = np.nanmean(surface.losses)
    first, second = first - mean, second - mean
    square = ((first**2).mean() + (second**2).mean()) / 2
    return float((first * second).mean() / square) if square > 0 else np.nan


def correlation_length(surface: Surface) -> float:
    """Return -step / ln r for the autocorrelation r at one step (Weinberger 1990), in distance.

    The distance at which an exponential autocorrelation has fallen to 1 / e. 0 where r is not
    positive. It depends on the step unless the autocorrelation is exponential: it grows as 1 / step
    on smooth surfaces and shrinks as the step where there is noise. Biased low on short lines: of
    lines that are twice as long as it is a third of it is found, 5 times 0.6, 20 times 0.9.
    """
    correlation = autocorrelation(surface)
    if not np.isfinite(correlation) or correlation <= 0:
        return correlation if np.isnan(correlation) else 0.0
    return float(-surface.step / np.log(correlation)) if correlation < 1 else np.inf


def variogram(surface: Surface, lags: np.ndarray) -> np.ndarray:
    """Return half the mean squared difference of losses that are `lags` steps apart, (lags,).

    Matheron 1963, "Principles of geostatistics", Economic Geology 58. Unlike the autocorrelation it
    needs no mean and no variance, so that it is unbiased for lines of any length. Noise of variance
    v that is independent from point to point adds v at all lags. NaN where there are no pairs.
    """
    values = []
    for lag in lags:
        first, second = surface.pairs(int(lag))
        values.append(((first - second) ** 2).mean() / 2 if len(first) else np.nan)
    return np.array(values)


def power_law(surface: Surface) -> PowerLaw:
    """Fit nugget + slope * distance^(2 hurst) to the variogram at small distances.

    Least squares with weights pairs / variogram^2 (Cressie 1985, "Fitting variogram models by
    weighted least squares", Mathematical Geology 17), nugget and slope not negative, over a grid of
    exponents. A fractional Brownian surface has exactly this variogram with nugget 0 (Mandelbrot &
    Van Ness 1968); a smooth one is close to hurst 1.

    The nugget is what does not vanish with the distance: noise, and all structure finer than a
    step, which more images do not remove and a smaller step does. A small exponent and a nugget fit
    nearly alike: of one random walk with noise of half its variogram at one step, 100 points give
    the nugget with a standard error of 0.3 of that variogram, 400 of 0.2. NaN for lines of fewer
    than 6 points and for a constant surface.
    """
    points = min(axis.shape[1] for axis in surface.axes)
    lags = np.arange(1, min(_MOST_LAGS, max(_LEAST_LAGS, points // _SHARE_OF_LAGS)) + 1)
    if points < 2 * _LEAST_LAGS:
        return PowerLaw(np.nan, np.nan, np.nan)
    gamma = variogram(surface, lags)
    if not (np.isfinite(gamma) & (gamma > 0)).all():
        return PowerLaw(np.nan, np.nan, np.nan)
    pairs = np.array([len(surface.pairs(int(lag))[0]) for lag in lags])
    weights = np.sqrt(pairs) / gamma
    best = (np.inf, np.nan, np.nan, np.nan)
    for exponent in _EXPONENTS:
        design = np.stack([np.ones(len(lags)), lags**exponent], axis=1)
        (nugget, slope), error = nnls(design * weights[:, None], gamma * weights)
        if error < best[0]:
            best = (error, nugget, slope, exponent)
    _, nugget, slope, exponent = best
    return PowerLaw(float(nugget), float(slope / surface.step**exponent), float(exponent / 2))


def nugget(surface: Surface) -> float:
    """Return the nugget of `power_law`: the variogram at a distance of zero."""
    return power_law(surface).nugget


def hurst_exponent(surface: Surface) -> float:
    """Return the exponent H of `power_law`: differences grow as distance^H."""
    return power_law(surface).hurst


def image_noise(surface: Surface) -> float:
    """Return the nugget that finitely many images make by themselves: sampling noise, squared loss.

    Half the mean squared standard error of the difference between neighbors, image by image. Noise
    that all points share, as an image that is hard everywhere, cancels. Less than the nugget means
    that there is more: numerical noise, or structure finer than the step. NaN for one image.
    """
    losses = surface.per_image
    if losses is None or losses.images < 2:
        return np.nan
    starts = np.concatenate([axis[:, :-1].ravel() for axis in surface.axes])
    ends = np.concatenate([axis[:, 1:].ravel() for axis in surface.axes])
    both = losses.finite[ends] & losses.finite[starts]
    squares = losses.paired_squares(ends[both], starts[both])  # of (images - 1) images x error^2
    return float(squares.mean() / 2 / (losses.images - 1) / losses.images) if both.any() else np.nan


def variation(surface: Surface) -> float:
    """Return the total variation of `roughness.total_variation`, axes counted equally.

    Of white noise it grows as the number of points, of a smooth surface it does not depend on it.
    """
    values = [
        total_variation(xr.DataArray(surface.losses[axis], dims=("ray", "distance")))
        for axis in surface.axes
    ]
    return float(np.mean(values))
