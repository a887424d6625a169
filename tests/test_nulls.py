import numpy as np
import pytest
import xarray as xr

from evolq.errors import InputError
from landscape.statistics.nulls import FITS, sampling_noise, smooth_with_noise

X, Y = np.linspace(-0.3, 0.5, 9), np.linspace(10.0, 20.0, 7)
BOWL = 3 * X**2 + 0.01 * (Y[:, None] - 14) ** 2 + 0.1 * X * Y[:, None] + 2


def generator(seed=0):
    return np.random.default_rng(seed)


def plane(values):
    return xr.DataArray(values, dims=("y", "x", "image"), coords={"y": Y, "x": X})


def test_noise_alone_is_flat_and_as_noisy_as_the_scan():
    random = generator(1)
    steps = random.normal(size=(7, 9, 200)).cumsum(axis=1)  # neighbors along x covary
    found = np.stack(
        [
            sampling_noise(plane(5 * BOWL[..., None] + steps), generator(i)).values.mean(axis=-1)
            for i in range(400)
        ]
    )
    # Means of 200 images with variances 1, 2, ..., 9; measured from 200 images, 400 times.
    assert found.var(axis=0).mean(axis=0) == pytest.approx(np.arange(1, 10) / 200, rel=0.15)
    flat = found.mean(axis=0)
    assert flat == pytest.approx(5 * BOWL.mean() + steps.mean() + np.zeros((7, 9)), abs=0.05)
    covariance = np.mean((found[:, :, 3] - flat[:, 3]) * (found[:, :, 8] - flat[:, 8]))
    assert covariance == pytest.approx(4 / 200, rel=0.2)


@pytest.mark.parametrize("fit", FITS)
def test_a_smooth_surface_without_noise_is_its_own_fit(fit):
    values = plane(BOWL[..., None] + np.zeros(5))
    found = smooth_with_noise(values, generator(), fit, smoothing=0.0)
    assert found.dims == values.dims
    assert found.values == pytest.approx(values.values, abs=1e-6)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_smooths_bumps_away(fit):
    bumps = 0.3 * (-1.0) ** np.add.outer(np.arange(7), np.arange(9))  # a checkerboard
    found = smooth_with_noise(plane((BOWL + bumps)[..., None] + np.zeros(5)), generator(), fit)
    left = found.mean("image").values - BOWL
    assert np.abs(left).mean() < 0.1


def test_each_ray_has_a_fit_of_its_own():
    t = np.linspace(-1, 1, 5)
    heights = np.stack([t**2, 7 - t])[..., None] + np.zeros(4)
    rays = xr.DataArray(
        heights, dims=("ray", "distance", "image"), coords={"ray": [0, 1], "distance": t}
    )
    turned = rays.transpose("image", "distance", "ray")
    found = smooth_with_noise(turned, generator())
    assert found.dims == turned.dims
    assert found.transpose(*rays.dims).values == pytest.approx(heights)


def test_points_that_are_not_finite_stay_and_spoil_no_other():
    values = BOWL[..., None] + np.zeros(5)
    values[2, 3, 1] = np.inf
    for null in (sampling_noise, smooth_with_noise):
        found = null(plane(values), generator()).values
        assert np.isinf(found[2, 3, 1])
        found[2, 3] = 0
        assert np.isfinite(found).all()


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="'cubic'"):
        smooth_with_noise(plane(BOWL[..., None] + np.zeros(5)), generator(), "cubic")
    with pytest.raises(InputError, match="2 images or more, not 1"):
        sampling_noise(plane(BOWL[..., None]), generator())
    with pytest.raises(InputError, match="dimension 'image'"):
        sampling_noise(plane(BOWL[..., None]).isel(image=0), generator())
    with pytest.raises(InputError, match="6 finite points or more, not 0"):
        smooth_with_noise(plane(np.full((7, 9, 4), np.nan)), generator())
    with pytest.raises(InputError, match="y, x or ray, distance"):
        smooth_with_noise(plane(np.zeros((7, 9, 4))).rename(x="z"), generator())
