import numpy as np
import pytest
import xarray as xr
from scipy import stats

from evolq.errors import InputError
from landscape.statistics.minima import find_minima, significant_minima
from landscape.statistics.noise_threshold import noise_threshold
from landscape.statistics.resampling import contrasts, studentized, upper_quantile


def threshold(per_image, seed=0, **options):
    return noise_threshold(per_image, np.random.default_rng(seed), **options)


def test_contrasts_are_unit_vectors_orthogonal_to_the_mean():
    drawn = contrasts(3, 200, np.random.default_rng(0))  # a quarter of all signs are equal
    assert np.abs(drawn.sum(axis=1)).max() < 1e-12
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1)
    # Signs 1, -1, -1 and so on: the odd one has 2 / sqrt 6 or its negative.
    assert np.unique(np.round(np.abs(drawn), 9)).tolist() == pytest.approx(
        [1 / np.sqrt(6), 2 / np.sqrt(6)]
    )


def test_a_contrast_of_normal_images_is_distributed_as_student_says():
    images = 12
    random = np.random.default_rng(1)
    values = random.normal(size=(4000, images))
    deviations = values - values.mean(axis=1, keepdims=True)
    heights = (contrasts(images, 4000, random) * values).sum(axis=1)
    t = studentized(heights**2 / (deviations**2).sum(axis=1), images)
    assert stats.kstest(t, lambda x: 1 - 2 * stats.t.sf(x, images - 1)).pvalue > 0.01


def test_the_quantile_of_few_draws_is_one_of_them():
    assert upper_quantile(np.arange(19.0), 0.05)[::2] == (18, np.inf)
    assert upper_quantile(np.arange(99.0)[::-1], 0.05).value == 94
    low, high = upper_quantile(np.arange(999.0), 0.05)[1:]
    assert 0.925 < low / 1000 < 0.94
    assert 0.96 < high / 1000 < 0.975
    with pytest.raises(InputError, match="18 draws"):
        upper_quantile(np.arange(18.0), 0.05)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_one_more_draw_exceeds_the_quantile_as_often_as_said(level):
    random = np.random.default_rng(2)
    draws = random.normal(size=(4000, 20))
    exceeded = [row[0] > upper_quantile(row[1:], level).value for row in draws]
    assert np.mean(exceeded) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 4000))


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("dims", [("y", "x"), ("ray", "distance")])
def test_the_largest_persistence_is_that_of_each_surface_of_noise(dims, connectivity):
    images, replicates = 12, 25
    per_image = np.random.default_rng(3).normal(size=(5, 7, images))
    stack = per_image[None] if "x" in dims else per_image
    found = threshold(stack, seed=4, connectivity=connectivity, replicates=replicates)
    expected = []
    coordinates = {dim: np.arange(n) for dim, n in zip(dims, (5, 7), strict=True)}
    for drawn in contrasts(images, replicates, np.random.default_rng(4)):
        surface = xr.DataArray(per_image @ drawn, dims=dims, coords=coordinates)
        # As if it were measured: these are the images whose mean is the surface, and whose spread
        # around it is what the contrast leaves.
        left = per_image - per_image.mean(axis=-1, keepdims=True)
        left = left - (left @ drawn)[..., None] * drawn
        largest = 0.0
        for minimum in find_minima(surface, 0.0, connectivity).minima:
            if np.isfinite(minimum.persistence):
                height = minimum.persistence
                bottom = surface.sel(minimum.coordinates)
                place = tuple(int(bottom[dim]) for dim in dims)
                saddles = np.isclose(surface.values, minimum.value + height, rtol=0, atol=1e-12)
                ((row, column),) = np.argwhere(saddles)
                error = np.sqrt(((left[row, column] - left[place]) ** 2).sum() / (images - 2))
                largest = max(largest, height / error)
        expected.append(stats.t.isf(stats.t.sf(largest, images - 2), images - 1))
    assert found.largest == pytest.approx(np.array(expected))
    assert found.value == pytest.approx(np.sort(expected)[24])  # the ceil(0.95 * 26)th
    assert (found.images, found.level) == (images, 0.05)


def test_the_surface_itself_and_what_images_share_do_not_matter():
    random = np.random.default_rng(5)
    noise = random.normal(size=(1, 9, 9, 15))
    found = threshold(noise, replicates=19)
    surface, offsets = random.normal(size=(1, 9, 9, 1)), 100 * random.normal(size=15)
    moved = threshold(3.0 * noise + surface + offsets, replicates=19)
    assert moved.largest == pytest.approx(found.largest)


def test_points_on_which_all_images_agree_make_no_noise():
    values = np.random.default_rng(6).normal(size=(1, 6, 6, 1)) + np.arange(20.0)
    assert threshold(values, replicates=19).value == pytest.approx(
        0, abs=1e-12
    )  # sums of equal losses round
    rough = np.random.default_rng(7).normal(size=(1, 8, 8, 20))
    terraced = rough.repeat(3, axis=1).repeat(3, axis=2)  # plateaus: nothing else changes
    assert threshold(terraced, replicates=19).largest == pytest.approx(
        threshold(rough, replicates=19).largest
    )


def test_walls_part_the_noise():
    per_image = np.random.default_rng(8).normal(size=(1, 5, 11, 12))
    parted = per_image.copy()
    parted[0, :, 5] = np.nan
    parted[0, 2, 5, 3] = np.inf
    halves = np.concatenate([per_image[:, :, :5], per_image[:, :, 6:]])
    assert threshold(parted, replicates=19).largest == pytest.approx(
        threshold(halves, replicates=19).largest
    )


def scan(per_image):
    axes = {"y": np.arange(per_image.shape[0]), "x": np.arange(per_image.shape[1])}
    return xr.Dataset(
        {
            "test_loss": (("y", "x"), per_image.mean(axis=-1)),
            "test_loss_per_image": (("y", "x", "image"), per_image),
        },
        axes,
    )


@pytest.mark.parametrize("images", [10, 30])
def test_noise_alone_has_a_minimum_as_often_as_said(images):
    random = np.random.default_rng(images)
    false, scans = 0, 120
    for _ in range(scans):
        per_image = random.normal(size=(9, 9, images))
        bound = threshold(per_image[None], seed=random.integers(2**32), replicates=59)
        false += len(significant_minima(scan(per_image), sigmas=bound.value).minima) > 1
    # 3 standard errors of a share of 5 % above; below, that the test is not idle.
    assert 1 <= false <= scans * 0.05 + 3 * np.sqrt(scans * 0.05 * 0.95)


def test_real_minima_are_found_that_4_standard_errors_miss():
    random = np.random.default_rng(9)
    t = np.linspace(-1.5, 1.5, 11)
    wells = (t**2 - 1) ** 2 + 0 * t[:, None] + t[:, None] ** 2  # two, with a barrier of 1
    found = old = 0
    for _ in range(30):
        per_image = wells[..., None] + random.normal(0, np.sqrt(50) / 3 / np.sqrt(2), (11, 11, 50))
        minima = significant_minima(
            scan(per_image), replicates=59
        )  # the barrier is 3 standard errors
        assert minima.bound.images == 50
        assert minima.sigmas == minima.bound.value
        found += len(minima.minima) == 2
        old += len(significant_minima(scan(per_image), sigmas=4.0).minima) == 2
    assert found > 2 * old


def test_too_few_images_tell_nothing():
    per_image = np.random.default_rng(10).normal(size=(5, 5, 9))
    found = significant_minima(scan(per_image))
    assert (len(found.minima), found.sigmas, found.bound) == (1, np.inf, None)
    assert found.below == len(find_minima(scan(per_image).test_loss, 0.0).minima) - 1
    with pytest.raises(InputError, match="by 9 images; measure 10"):
        threshold(per_image[None])


def test_the_same_scan_has_the_same_minima():
    data = scan(np.random.default_rng(11).normal(size=(7, 7, 20)))
    assert significant_minima(data).sigmas == significant_minima(data).sigmas
    other = significant_minima(data, generator=np.random.default_rng(5))
    assert other.sigmas != significant_minima(data).sigmas
    transposed = data.transpose("image", "x", "y")
    # Ties of neighbors aside, the order of dimensions in a file means nothing.
    assert significant_minima(transposed).sigmas == significant_minima(data).sigmas


def test_bad_arguments_are_named():
    values = np.random.default_rng(12).normal(size=(1, 4, 4, 12))
    with pytest.raises(InputError, match="level 0 "):
        threshold(values, level=0)
    with pytest.raises(InputError, match="1 replicate or more"):
        threshold(values, replicates=0)
    with pytest.raises(InputError, match="10 draws"):
        threshold(values, replicates=10)
