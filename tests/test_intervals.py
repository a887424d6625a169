import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln

from evolq.errors import InputError
from landscape.statistics.intervals import (
    accuracy_difference,
    crossed_interval,
    mean_interval,
    proportion_interval,
)


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def test_the_mean_of_two_images_has_the_quantile_of_one_degree_of_freedom():
    found = mean_interval([1.0, 3.0])
    # Student's t with one degree of freedom is Cauchy's: tan(0.475 pi) = 12.706; the error is 1.
    assert (found.estimate, found.over, found.level) == (2.0, ("images",), 0.95)
    assert found.high - 2 == pytest.approx(np.tan(0.475 * np.pi))
    assert 2 - found.low == pytest.approx(np.tan(0.475 * np.pi))
    assert mean_interval([1.0, 3.0], level=0.5).high == pytest.approx(3.0)  # tan(pi / 4) = 1


def test_the_mean_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=30)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("images", [2, 5, 50])
def test_the_interval_of_a_mean_holds_the_truth(images):
    random = np.random.default_rng(images)
    hits = [covers(mean_interval(row), 7.0) for row in random.normal(7, 3, (4000, images))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.011)  # 3 standard errors of 4,000 draws


def test_an_accuracy_is_exact():
    expected = stats.binomtest(17, 20).proportion_ci(0.95, method="exact")
    found = proportion_interval(np.arange(20) < 17)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.estimate == 0.85
    # All right: the truth could be as low as the p at which p^n = 2.5 %.
    assert proportion_interval([1] * 10).low == pytest.approx(0.025 ** (1 / 10))
    assert proportion_interval([1] * 10).high == 1
    assert proportion_interval([0] * 10).low == 0


@pytest.mark.parametrize("images", [2, 5, 20, 100])
def test_an_accuracy_holds_the_truth_whatever_it_is(images):
    counts = np.arange(images + 1)
    found = [proportion_interval(np.arange(images) < k) for k in counts]
    for truth in np.linspace(0.001, 0.999, 333):
        held = [covers(interval, truth) for interval in found]
        assert stats.binom.pmf(counts, images, truth) @ held >= 0.95


@pytest.mark.parametrize("images", [2, 5, 20, 60])
def test_a_difference_of_accuracies_holds_the_truth_whatever_it_is(images):
    pairs = [(b, c) for b in range(images + 1) for c in range(images + 1 - b)]
    found = []
    for b, c in pairs:
        index = np.arange(images)
        found.append(accuracy_difference(index < b, (index >= b) & (index < b + c)))
    b, c = np.array(pairs).T
    rest = images - b - c
    ways = gammaln(images + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    shares = (0.001, 0.01, 0.03, 0.1, 0.3, 0.45)
    for lost in shares:
        for gained in shares:
            chance = np.exp(
                ways + b * np.log(lost) + c * np.log(gained) + rest * np.log(1 - lost - gained)
            )
            assert chance.sum() == pytest.approx(1)
            held = [covers(interval, gained - lost) for interval in found]
            assert chance @ held >= 0.93, (lost, gained)


def test_no_image_that_changed_is_not_certainty():
    right = np.arange(100) < 80
    found = accuracy_difference(right, right)
    assert found.estimate == 0
    # By hand: (1 + 1) / 102 disagree, t with 99 degrees of freedom is 1.984.
    assert found.high == pytest.approx(1.984 * np.sqrt(2 / 102 / 102), rel=1e-3)
    assert found.low == -found.high
    worse = accuracy_difference(right, np.zeros(100))
    assert worse.estimate == -0.8
    assert -0.88 < worse.low < -0.8 < worse.high < -0.69


def test_one_seed_speaks_of_its_images_only():
    values = np.random.default_rng(1).normal(size=20)
    assert crossed_interval(values[None]) == mean_interval(values)
    two = crossed_interval(np.stack([values, values + 1]))
    assert two.over == ("seeds", "images")
    assert mean_interval(values).over == ("images",)


def test_the_crossed_interval_has_its_limits_in_closed_form():
    random = np.random.default_rng(2)
    # Seeds alone differ: the interval of their means. Images alone: that of theirs.
    seeds, images = random.normal(size=5), random.normal(size=30)
    found = crossed_interval(seeds[:, None] + np.zeros(30))
    alone = mean_interval(seeds)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    found = crossed_interval(np.zeros((5, 1)) + images)
    alone = mean_interval(images)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    # Both, without a rest: the squares of the half-widths add.
    found = crossed_interval(seeds[:, None] + images)
    halves = [(i.high - i.low) / 2 for i in (mean_interval(seeds), mean_interval(images))]
    assert found.estimate == pytest.approx(seeds.mean() + images.mean())
    assert (found.high - found.low) / 2 == pytest.approx(np.hypot(*halves))


@pytest.mark.parametrize("deviations", [(1, 1, 1), (0.1, 1, 0.3), (1, 0.3, 1), (0.1, 0.3, 1)])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_crossed_interval_holds_the_truth(seeds, deviations):
    random = np.random.default_rng(3)
    hits, over_images = [], []
    for _ in range(1500):
        of_seed, of_image, rest = (
            deviation * random.normal(size=size)
            for deviation, size in zip(deviations, ((seeds, 1), (1, 40), (seeds, 40)), strict=True)
        )
        values = 5 + of_seed + of_image + rest
        hits.append(covers(crossed_interval(values), 5))
        over_images.append(covers(mean_interval(values.mean(axis=0)), 5))
    # Never too few; with 2 seeds too many, where what is not known about seeds is small.
    assert np.mean(hits) > 0.93
    if seeds == 5:
        assert np.mean(hits) < 0.985
    if deviations[0] == 1:  # what leaving the seeds out does
        assert np.mean(over_images) < 0.75


def test_points_without_a_loss_have_no_interval():
    assert np.isnan(mean_interval([1.0, np.inf]).high)
    assert np.isnan(crossed_interval([[1.0, np.inf], [1.0, 2.0]]).high)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="2 images or more, not 1"):
        mean_interval([1.0])
    with pytest.raises(InputError, match=r"\(images,\) were expected"):
        mean_interval([[1.0, 2.0]])
    with pytest.raises(InputError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(InputError, match="True and False"):
        proportion_interval([0.5, 1.0])
    with pytest.raises(InputError, match="not on 2 and 3"):
        accuracy_difference([0, 1], [0, 1, 1])
    with pytest.raises(InputError, match="not of 0"):
        crossed_interval(np.zeros((0, 5)))
