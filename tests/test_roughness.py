from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from evolq.errors import InputError
from landscape.statistics.roughness import (
    Reliability,
    paired_noise,
    split_half_reliability,
    total_variation,
)


def ray(*values):
    return xr.DataArray(np.array([values], dtype=float), dims=("ray", "distance"))


def plane(values):
    return xr.DataArray(np.asarray(values), dims=("y", "x", "image")[: np.ndim(values)])


def increments(per_image):
    parts = [np.diff(per_image, axis=a).reshape(-1, per_image.shape[-1]) for a in (0, 1)]
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 4, 9), 1),
        ((9, 4, 1), 1),
        ((1, 0, 1), 2),
        ((0, 1, 0, 1, 0), 4),
        ((3, 3, 3), 1),
        ((0, np.nan, 4, np.inf, 9), 1),
        ((0, 1, np.nan, 1, 0), 2),
    ],
)
def test_total_variation_of_a_line(values, expected):
    assert total_variation(ray(*values)) == expected


@given(arrays(float, st.integers(2, 20), elements=st.floats(-100, 100)))
def test_total_variation_is_never_below_that_of_a_monotone_line(values):
    assert total_variation(ray(*values)) >= 1 - 1e-9


def test_total_variation_counts_both_axes_of_a_plane_equally():
    # Rows go up and down (2), columns rise (1); there are more columns than rows.
    values = np.array([0.0, 1.0, 2.0, 1.0, 0.0]) + 10.0 * np.arange(2)[:, None]
    assert total_variation(plane(values)) == pytest.approx(1.5)


def test_rays_are_not_compared_with_each_other():
    rays = xr.DataArray([[0.0, 1.0], [100.0, 101.0]], dims=("ray", "distance"))
    assert total_variation(rays) == 1


def test_total_variation_of_nothing_is_undefined():
    assert np.isnan(total_variation(ray(np.nan, 1.0, np.inf)))


def test_the_noise_of_a_point_is_that_of_its_difference_to_the_start():
    start = np.array([5.0, -3.0, 100.0, 8.0])
    changes = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    dataset = xr.Dataset(
        {
            "test_loss_per_image": (("ray", "distance", "image"), [start + changes]),
            "start_test_loss_per_image": ("image", start),
        }
    )
    noise = paired_noise(dataset)
    assert noise.dims == ("ray", "distance")
    assert noise.values[0] == pytest.approx([0, np.sqrt(4 / 3) / 2, 0])
    dataset["test_loss_per_image"][0, 1, 2] = np.inf
    assert np.isnan(paired_noise(dataset).values[0, 1])


@pytest.mark.parametrize("images", [6, 7])
def test_reliability_is_the_average_over_all_splits(images):
    random = np.random.default_rng(images)
    signal = random.normal(size=(4, 3, 1))
    per_image = signal + random.normal(size=(4, 3, images))
    d = increments(per_image)
    d = d - d.mean(axis=0)
    covariances, variances = [], []
    for a in combinations(range(images), 3):
        rest = [i for i in range(images) if i not in a]
        for b in combinations(rest, 3):
            one, other = d[:, a].mean(axis=1), d[:, b].mean(axis=1)
            covariances.append(one @ other)
            variances.append(one @ one)
    found = split_half_reliability(plane(per_image))
    assert found.half == pytest.approx(np.mean(covariances) / np.mean(variances))
    assert found.images == images


def test_reliability_is_close_to_the_mean_correlation_of_random_splits():
    random = np.random.default_rng(0)
    signal, images = random.normal(size=(8, 8, 1)), 60
    per_image = (signal + random.normal(0, 5, (8, 8, images))).astype(np.float32)
    d = increments(per_image.astype(float))
    correlations = []
    for _ in range(300):
        order = random.permutation(images)
        halves = (d[:, order[:30]].mean(axis=1), d[:, order[30:]].mean(axis=1))
        correlations.append(np.corrcoef(*halves)[0, 1])
    found = split_half_reliability(plane(per_image))
    assert found.half == pytest.approx(np.mean(correlations), abs=0.02)
    assert found.full == pytest.approx(2 * found.half / (1 + found.half))  # Spearman-Brown


def test_the_interval_is_the_jackknife_of_leaving_images_out():
    random = np.random.default_rng(1)
    per_image = random.normal(size=(5, 4, 1)) + random.normal(0, 3, (5, 4, 8))
    found = split_half_reliability(plane(per_image))

    def half_of_4(d):
        d = d - d.mean(axis=0)
        gram = d.T @ d
        n = len(gram)
        own, cross = np.trace(gram) / n, (gram.sum() - np.trace(gram)) / (n * (n - 1))
        return cross / (own / 4 + 0.75 * cross)

    d = increments(per_image)
    assert found.half == pytest.approx(half_of_4(d))
    left_out = np.arctanh([half_of_4(np.delete(d, i, axis=1)) for i in range(8)])
    error = np.sqrt(7 / 8 * ((left_out - left_out.mean()) ** 2).sum())
    reach = stats.t.ppf(0.975, 7) * error
    assert np.arctanh(found.high) - np.arctanh(found.half) == pytest.approx(reach)
    assert np.arctanh(found.half) - np.arctanh(found.low) == pytest.approx(reach)


def test_the_interval_covers_the_truth():
    random = np.random.default_rng(2)
    signal = 0.15 * random.normal(size=(9, 9))
    d = increments(signal[..., None])
    power = ((d - d.mean()) ** 2).sum()
    images, noise = 50, 2 * (len(d) - 1)  # an increment of unit noise has variance 2
    truth = power / (power + noise / (images / 2))
    hits = []
    for _ in range(60):
        per_image = signal[..., None] + random.normal(size=(9, 9, images))
        found = split_half_reliability(plane(per_image))
        hits.append(found.low <= truth <= found.high)
    assert 0.3 < truth < 0.7
    assert np.mean(hits) > 0.85


def test_noise_alone_repeats_nowhere_and_a_common_surface_everywhere():
    random = np.random.default_rng(3)
    noise = split_half_reliability(plane(random.normal(size=(11, 11, 300))))
    assert noise.low < 0 < noise.high
    assert abs(noise.half) < 0.2
    common = split_half_reliability(
        plane(random.normal(size=(5, 5, 1)) + random.normal(size=40) * np.ones((5, 5, 1)))
    )
    assert (common.half, common.full) == pytest.approx((1, 1))


def test_reliability_of_rays_looks_along_each_ray_only():
    random = np.random.default_rng(4)
    steps = random.normal(size=(3, 6, 20))
    per_image = xr.DataArray(steps, dims=("ray", "distance", "image"))
    shifted = per_image + 1000 * xr.DataArray(np.arange(3.0), dims="ray")
    first, second = split_half_reliability(per_image), split_half_reliability(shifted)
    assert first.half == pytest.approx(second.half)


def test_points_that_are_not_finite_are_left_out():
    random = np.random.default_rng(5)
    per_image = random.normal(size=(1, 9, 1)) + random.normal(size=(1, 9, 30))
    rays = xr.DataArray(per_image, dims=("ray", "distance", "image"))
    cut = xr.concat([rays, rays], "ray")
    cut[1] = np.nan
    cut[1, 4, 3] = np.inf
    assert split_half_reliability(cut) == split_half_reliability(rays)
    end = xr.concat([rays, rays.isel(distance=-1)], "distance")
    end[0, -1, 3] = np.inf  # one image of an otherwise finite point
    assert split_half_reliability(end) == split_half_reliability(rays)


def test_nothing_to_correlate_is_undefined():
    constant = split_half_reliability(plane(np.ones((3, 3, 1)) * np.arange(5.0)))
    nothing = split_half_reliability(plane(np.full((3, 3, 5), np.nan)))
    for found in (constant, nothing):
        assert np.isnan([found.half, found.low, found.high, found.full]).all()


def test_losses_that_are_coupled_in_batches_are_refused():
    coupled = xr.DataArray(np.zeros((2, 2, 9)), dims=("y", "x", "calibration_image"))
    with pytest.raises(InputError, match="test_loss_per_image"):
        split_half_reliability(coupled)
    with pytest.raises(InputError, match="dimensions"):
        total_variation(xr.DataArray(np.zeros(3), dims="image"))
    with pytest.raises(InputError, match="unknown quantity 'steps'"):
        split_half_reliability(plane(np.zeros((2, 2, 9))), of="steps")
    with pytest.raises(InputError, match="not at 1"):
        Reliability(0.5, 0.4, 0.6, 2 / 3, 10).images_for(1)


def test_the_true_share_and_the_predicted_share_are_what_they_say():
    random = np.random.default_rng(6)
    truth, images = random.normal(size=(60, 60)), 20
    deviation = np.sqrt(images * 3 / 7)  # of one image: 30 % of the variance of the mean is noise
    first, second = (truth + random.normal(0, deviation / np.sqrt(images), (60, 60)) for _ in "ab")
    per_image = truth[..., None] + random.normal(0, deviation, (60, 60, images))
    found = split_half_reliability(plane(per_image), of="levels")
    # Shares of 3,600 points are known to about 2 %.
    assert found.true_share == pytest.approx(
        np.corrcoef(truth.ravel(), first.ravel())[0, 1] ** 2, abs=0.03
    )
    assert found.true_share == pytest.approx(0.7, abs=0.03)
    predicted = np.corrcoef(first.ravel(), second.ravel())[0, 1] ** 2
    assert found.predicted_share == pytest.approx(predicted, abs=0.05)
    assert found.predicted_share == found.true_share**2


def test_the_number_of_images_for_a_reliability():
    known = Reliability(half=0.5, low=0.4, high=0.6, full=2 / 3, images=10)
    # Noise has half the variance of the truth at 10 images; at 0.9 it may have a ninth.
    assert known.images_for(0.9) == pytest.approx(10 * 0.5 * 9)
    assert known.images_for(2 / 3) == pytest.approx(10)
    assert Reliability(-0.1, -0.3, 0.1, -0.2, 10).images_for(0.9) == np.inf
    assert Reliability(-0.1, -0.3, 0.1, -0.2, 10).predicted_share == 0
    assert np.isnan(Reliability(np.nan, np.nan, np.nan, np.nan, 10).images_for(0.9))


def test_levels_repeat_where_single_steps_do_not():
    random = np.random.default_rng(7)
    slope = np.arange(40.0)[None, :, None] / 10 + np.zeros((1, 1, 60))
    rays = xr.DataArray(slope + random.normal(0, 3, (1, 40, 60)), dims=("ray", "distance", "image"))
    assert split_half_reliability(rays, of="levels").full > 0.7
    assert split_half_reliability(rays).full < 0.5
    shifted = rays + 100 * xr.DataArray(random.normal(size=60), dims="image")
    assert split_half_reliability(shifted, of="levels").half == pytest.approx(
        split_half_reliability(rays, of="levels").half
    )


def test_few_images_that_carry_the_surface_are_said():
    random = np.random.default_rng(8)
    values = random.normal(size=(9, 9, 50))
    even = split_half_reliability(plane(values))
    assert even.interval_holds
    assert 45 < even.effective_images <= 50
    few = split_half_reliability(plane(values * np.where(np.arange(50) < 5, 10, 0.1)))
    assert few.effective_images == pytest.approx(5, abs=0.5)
    assert not few.interval_holds
    equal = split_half_reliability(plane(values[..., :1] + np.zeros(50)))
    assert equal.effective_images == pytest.approx(50)


def test_the_jackknife_holds_where_it_says_so():
    random = np.random.default_rng(9)
    mean = random.normal(size=(1, 40, 1))
    held = []
    for _ in range(300):
        found = split_half_reliability(
            xr.DataArray(
                0.3 * mean + random.normal(size=(1, 40, 20)), dims=("ray", "distance", "image")
            ),
            of="levels",
        )
        assert found.interval_holds
        power = 0.09 * (mean - mean.mean()).ravel() @ (mean - mean.mean()).ravel()
        truth = power / (power + 39 / 10)  # halves of 10 images
        held.append(found.low <= truth <= found.high)
    assert 0.92 < np.mean(held) < 0.99  # 95 to 98 % in larger simulations; 1.2 % of error


@pytest.mark.parametrize(("half", "share"), [(-1.0, 0.0), (-0.2, 0.0), (0.0, 0.0), (0.5, 2 / 3)])
def test_bounds_of_the_true_share_are_those_of_spearman_and_brown(half, share):
    found = Reliability(half=half, low=half, high=1.0, full=0.0, images=40)
    assert found.true_share_interval == pytest.approx((share, 1.0))
    assert np.isnan(Reliability(*[np.nan] * 4, images=1).true_share_interval).all()
