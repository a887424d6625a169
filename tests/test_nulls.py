import numpy as np
import pytest
import xarray as xr

from evolq.errors import InputError
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.nulls import FITS, sampling_noise, smooth_fit

X, Y = np.linspace(-0.3, 0.5, 9), np.linspace(10.0, 20.0, 7)
BOWL = 3 * X**2 + 0.01 * (Y[:, None] - 14) ** 2 + 0.1 * X * Y[:, None] + 2


def generator(seed=0):
    return np.random.default_rng(seed)


def plane(values):
    return xr.DataArray(values, dims=("y", "x"), coords={"y": Y, "x": X})


def noise(values, replicates=1):
    """Return surfaces of noise of losses (y, x, image), (replicates, y, x)."""
    found = sampling_noise(ImageLosses.of(values), generator(), replicates)
    return np.stack(list(found)).reshape(replicates, *values.shape[:-1])


def test_noise_alone_is_flat_and_as_noisy_as_the_scan():
    random = generator(1)
    steps = random.normal(size=(7, 9, 200)).cumsum(axis=1)  # neighbors along x covary
    found = noise(5 * BOWL[..., None] + steps, 400)
    # Means of 200 images with variances 1, 2, ..., 9; measured from 200 images, 400 times.
    assert found.var(axis=0).mean(axis=0) == pytest.approx(np.arange(1, 10) / 200, rel=0.15)
    flat = found.mean(axis=0)
    assert flat == pytest.approx(np.zeros((7, 9)), abs=0.05)
    covariance = np.mean((found[:, :, 3] - flat[:, 3]) * (found[:, :, 8] - flat[:, 8]))
    assert covariance == pytest.approx(4 / 200, rel=0.2)


def test_noise_is_the_mean_of_residuals_drawn_one_by_one():
    values = generator(2).normal(size=(3, 4, 12))
    random, residuals = generator(), values - values.mean(axis=-1, keepdims=True)
    for found in noise(values, 5):
        signs = random.choice((-1.0, 1.0), 12)
        drawn = residuals[..., random.integers(12, size=12)] * signs * np.sqrt(12 / 11)
        assert found == pytest.approx(drawn.mean(axis=-1))


@pytest.mark.parametrize("fit", FITS)
def test_a_smooth_surface_is_its_own_fit(fit):
    found = smooth_fit(plane(BOWL), fit, smoothing=0.0)
    assert found.dims == ("y", "x")
    assert found.values == pytest.approx(BOWL, abs=1e-6)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_smooths_bumps_away(fit):
    bumps = 0.3 * (-1.0) ** np.add.outer(np.arange(7), np.arange(9))  # a checkerboard
    assert np.abs(smooth_fit(plane(BOWL + bumps), fit).values - BOWL).mean() < 0.1


def test_each_ray_has_a_fit_of_its_own():
    t = np.linspace(-1, 1, 5)
    rays = xr.DataArray(
        np.stack([t**2, 7 - t]), dims=("ray", "distance"), coords={"ray": [0, 1], "distance": t}
    )
    found = smooth_fit(rays.transpose("distance", "ray"))
    assert found.dims == ("distance", "ray")
    assert found.transpose(*rays.dims).values == pytest.approx(rays.values)


def test_points_that_are_not_finite_spoil_no_other():
    values = BOWL[..., None] + generator(3).normal(size=5)
    values[2, 3, 1] = np.inf
    (found,) = noise(values)
    for surface in (found, smooth_fit(plane(np.where(np.isfinite(found), BOWL, np.nan))).values):
        assert np.argwhere(~np.isfinite(surface)).tolist() == [[2, 3]]


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="'cubic'"):
        smooth_fit(plane(BOWL), "cubic")
    with pytest.raises(InputError, match="2 images or more, not 1"):
        noise(BOWL[..., None])
    with pytest.raises(InputError, match="6 finite points or more, not 0"):
        smooth_fit(plane(np.full((7, 9), np.nan)))
    with pytest.raises(InputError, match="y, x or ray, distance"):
        smooth_fit(plane(BOWL).rename(x="z"))
