import numpy as np
import pytest
from scipy import stats

from evolq.errors import InputError
from landscape.statistics.simultaneous import simultaneous_bands


def bands(differences, seed=0, **options):
    return simultaneous_bands(differences, np.random.default_rng(seed), **options)


@pytest.mark.parametrize(("side", "quantile"), [("lower", 0.95), ("both", 0.975)])
def test_one_point_has_the_quantile_of_student(side, quantile):
    differences = np.random.default_rng(0).normal(size=(1, 400))
    found = bands(differences, side=side, replicates=9999)
    # Normal images, but not exactly so in one sample of 400: their skewness moves it by 0.05.
    assert found.critical == pytest.approx(stats.t.ppf(quantile, 399), abs=0.1)
    assert found.critical_low < found.critical < found.critical_high
    assert found.error[0] == pytest.approx(differences.std(ddof=1) / 20)


def test_equal_points_are_one_and_independent_points_are_many():
    random = np.random.default_rng(1)
    one = random.normal(size=(1, 200))
    equal = bands(one.repeat(121, axis=0))
    assert equal.critical == pytest.approx(bands(one).critical)
    many = bands(random.normal(size=(11, 11, 200)))
    # The largest of 121 independent t: 1 - 0.95^(1/121) in one tail.
    assert many.critical == pytest.approx(stats.t.ppf(0.95 ** (1 / 121), 199), abs=0.3)
    assert many.change.shape == many.lower.shape == (11, 11)


def test_noise_is_called_lower_as_often_as_said():
    random = np.random.default_rng(2)
    new, old = 0, 0
    for _ in range(200):
        found = bands(random.normal(size=(121, 30)), random.integers(2**32), replicates=199)
        new += found.lower.any()
        old += (found.change < -2 * found.error).any()
    assert 1 <= new <= 10 + 3 * np.sqrt(200 * 0.05 * 0.95)
    assert old > 160  # two standard errors for the best of 121


def test_images_that_lose_much_make_nothing_lower():
    random = np.random.default_rng(5)
    false = 0
    for _ in range(40):
        skewed = random.gamma(0.5, size=(60, 40)) - 0.5
        false += bands(skewed, random.integers(2**32), replicates=199).lower.any()
    assert false <= 5  # 5 % of 40, and 2 standard errors


def test_the_critical_value_is_that_of_samples_drawn_one_by_one():
    differences = np.random.default_rng(6).normal(size=(7, 12))
    differences[3, 2:] = 0  # two images change: some samples have neither
    found = bands(differences, seed=8, side="both", replicates=39)
    drawn = np.random.default_rng(8).multinomial(12, np.full(12, 1 / 12), 39)
    largest = []
    for counts in drawn:
        sample = differences.repeat(counts, axis=1)
        error = sample.std(axis=1, ddof=1) / np.sqrt(12)
        known = error > 0
        t = (sample.mean(axis=1) - differences.mean(axis=1))[known] / error[known]
        largest.append(np.abs(t).max())
    assert found.critical == pytest.approx(np.sort(largest)[37])


def test_what_is_lower_is_found():
    random = np.random.default_rng(3)
    differences = random.normal(0, 0.1, (50, 40))
    differences[7] -= 0.1
    differences[9] += 0.1  # 6 standard errors
    found = bands(differences, side="both")
    assert np.flatnonzero(found.lower).tolist() == [7]
    assert np.flatnonzero(found.higher).tolist() == [9]


def test_the_start_and_points_without_a_loss_are_not_lower():
    differences = np.random.default_rng(4).normal(size=(4, 20))
    differences[0] = 0
    differences[1, 3] = np.inf
    differences[2] = -1  # every image agrees
    found = bands(differences)
    assert found.lower.tolist() == [False, False, True, False]
    assert np.isnan(found.change[1])
    assert found.critical == bands(differences[3:]).critical


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="by 5 images"):
        bands(np.zeros((3, 5)))
    with pytest.raises(InputError, match="'upper'"):
        bands(np.zeros((3, 20)), side="upper")
