"""Statistics of ruggedness on fields whose values are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evolq.errors import InputError
from landscape.statistics.ruggedness import STATISTICS, estimate
from landscape.statistics.ruggedness_correlation import (
    autocorrelation,
    correlation_length,
    hurst_exponent,
    image_noise,
    nugget,
    power_law,
    variation,
    variogram,
)
from landscape.statistics.ruggedness_distance import (
    dispersion,
    fitness_distance_correlation,
    length_scale,
    length_scale_entropy,
)
from landscape.statistics.ruggedness_information import (
    information,
    max_information,
    neutrality,
    partial_information,
    settling_slope,
    sign_changes,
)
from landscape.statistics.surface import Surface

STEP = 0.1


def lines(losses, step=STEP, floor=0.0):
    losses = np.asarray(losses, dtype=float)
    return Surface.from_lines(losses if losses.ndim > 1 else losses[None], step, floor)


def fractional_brownian_motion(hurst, count, points, seed=0):
    """Exact paths: normal increments with the covariance of fractional Gaussian noise."""
    lags = np.arange(points - 1)
    k = np.abs(lags[:, None] - lags[None])
    covariance = ((k + 1) ** (2 * hurst) + np.abs(k - 1.0) ** (2 * hurst)) / 2 - k ** (2.0 * hurst)
    factor = np.linalg.cholesky(covariance)
    noise = np.random.default_rng(seed).normal(size=(points - 1, count))
    increments = (factor @ noise).T
    return np.pad(increments.cumsum(axis=1), ((0, 0), (1, 0)))


NOISE = np.random.default_rng(0).normal(size=(40, 500))


def test_white_noise():
    surface = lines(NOISE)
    steps = NOISE.size
    error = 1 / math.sqrt(steps)
    assert autocorrelation(surface) == pytest.approx(0, abs=4 * error)
    np.testing.assert_allclose(variogram(surface, [1, 5, 50]), 1, atol=8 * error)
    assert nugget(surface) == pytest.approx(1, abs=0.05)
    assert hurst_exponent(surface) < 0.2 or power_law(surface).slope < 0.02
    # three normal numbers: each order is as likely, four of six have their extreme in the middle
    assert partial_information(surface) == pytest.approx(2 / 3, abs=4 * error)
    assert sign_changes(surface) == partial_information(surface) / STEP
    # up-down and down-up have probability 1/3 each
    at_zero = information(surface, np.array([0.0])).most
    assert at_zero == pytest.approx(2 / 3 * math.log(3) / math.log(6), abs=4 * error)
    assert max_information(surface) > at_zero
    assert neutrality(surface) == 0


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.8])
def test_fractional_brownian_motion(hurst):
    paths = fractional_brownian_motion(hurst, 60, 400)
    surface = lines(paths * STEP**hurst)
    lags = np.array([1, 2, 10])
    # half the variance of increments, |t - s|^(2 H); persistent paths vary more from sample to
    # sample
    np.testing.assert_allclose(variogram(surface, lags), (lags * STEP) ** (2 * hurst) / 2, rtol=0.1)
    law = power_law(surface)
    assert law.hurst == pytest.approx(hurst, abs=0.05)
    assert law.slope == pytest.approx(0.5, rel=0.1)
    # at small H a nugget and a smaller H fit nearly alike
    assert law.nugget < 0.25 * variogram(surface, [1])[0]
    # neighboring increments correlate by 2^(2 H - 1) - 1
    turns = math.acos(2 ** (2 * hurst - 1) - 1) / math.pi
    assert partial_information(surface) == pytest.approx(turns, abs=0.01)


def test_an_exponential_autocorrelation_has_its_length():
    random, ratio = np.random.default_rng(1), 0.9
    paths = np.zeros((100, 1000))
    paths[:, 0] = random.normal(size=100)
    for i in range(1, 1000):
        paths[:, i] = ratio * paths[:, i - 1] + math.sqrt(1 - ratio**2) * random.normal(size=100)
    surface = lines(paths)
    # 100,000 points of which every tenth is independent
    assert autocorrelation(surface, 3) == pytest.approx(ratio**3, abs=0.02)
    assert correlation_length(surface) == pytest.approx(-STEP / math.log(ratio), rel=0.05)
    np.testing.assert_allclose(variogram(surface, [1, 4]), 1 - ratio ** np.array([1, 4]), rtol=0.05)


def test_a_sinusoid():
    omega = 2.0
    x = np.arange(6284) * STEP  # 200 periods
    surface = lines(np.sin(omega * x))
    # sums over whole periods; edges are a share of 1 in 6,000
    assert autocorrelation(surface, 7) == pytest.approx(math.cos(omega * 7 * STEP), abs=1e-3)
    wanted = (1 - np.cos(omega * np.array([1, 7]) * STEP)) / 2
    np.testing.assert_allclose(variogram(surface, [1, 7]), wanted, rtol=2e-3)
    assert sign_changes(surface) == pytest.approx(omega / math.pi, rel=2e-3)
    assert variation(surface) == pytest.approx(2 * 200, rel=5e-3)  # cut peaks are a little lower
    finer = lines(np.sin(omega * np.arange(62840) * STEP / 10), STEP / 10)
    assert sign_changes(finer) == pytest.approx(omega / math.pi, rel=2e-3)
    assert settling_slope(surface) == pytest.approx(omega, rel=0.02)  # no slope exceeds it
    assert settling_slope(finer) == 0  # nearly all neighboring steps are alike


def test_a_quadratic():
    radius, points = 1.0, 201
    x = np.linspace(-radius, radius, points)
    surface = lines(x**2, x[1] - x[0])
    lags = np.array([1, 10, 60])
    h = lags * (x[1] - x[0])
    # a difference is 2 m h for a middle m, uniform within radius - h / 2
    np.testing.assert_allclose(
        variogram(surface, lags), 2 * h**2 * (radius - h / 2) ** 2 / 3, rtol=0.03
    )
    assert power_law(surface).nugget == 0
    assert power_law(surface).hurst > 0.9
    assert variation(surface) == pytest.approx(2)
    assert partial_information(surface) == 1 / (points - 2)
    # |x^2 - y^2| / |x - y| = |x + y|, triangular on 0 to 2: median 2 - sqrt 2, entropy 1/2
    assert length_scale(surface) == pytest.approx(2 - math.sqrt(2), rel=0.01)
    anywhere = np.random.default_rng(0).uniform(-1, 1, (1, 400, 1))
    scattered = Surface.from_walks(anywhere[..., 0] ** 2, anywhere, STEP)
    assert length_scale_entropy(scattered) == pytest.approx(0.5, abs=0.03)
    tripled = Surface.from_walks(3 * anywhere[..., 0] ** 2, anywhere, STEP)
    assert length_scale_entropy(tripled) - length_scale_entropy(scattered) == pytest.approx(
        math.log(3)
    )


def test_an_inclined_line():
    surface = lines(3 * STEP * np.arange(50))
    assert variation(surface) == 1
    assert partial_information(surface) == 0
    assert max_information(surface) == 0
    assert length_scale(surface) == pytest.approx(3)
    assert fitness_distance_correlation(surface) == pytest.approx(1)
    assert correlation_length(surface) > 10 * STEP


def test_a_bowl_in_the_plane_is_one_funnel():
    side = 41
    y, x = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    cone = Surface.from_plane(np.hypot(x, y), 2 / (side - 1))
    assert fitness_distance_correlation(cone) == pytest.approx(1)
    # the mean distance is 128 r / (45 pi) in a disc of 5 % of the square, 0.5214 sides in a square
    wanted = 128 * math.sqrt(0.05 / math.pi) / (45 * math.pi) / 0.5214
    assert dispersion(cone) == pytest.approx(wanted, rel=0.03)
    noise = Surface.from_plane(np.random.default_rng(2).normal(size=(side, side)), 2 / (side - 1))
    assert dispersion(noise) == pytest.approx(1, abs=0.1)
    assert fitness_distance_correlation(noise) == pytest.approx(0, abs=0.1)
    assert autocorrelation(noise) == pytest.approx(0, abs=0.1)
    big = np.linspace(-1, 1, 60)
    sampled = Surface.from_plane(np.hypot(big, big[:, None]), 2 / 59)  # 3,600 points: 2,000 of them
    assert dispersion(sampled) == pytest.approx(wanted, rel=0.1)


def test_rows_and_columns_of_a_plane_count():
    surface = Surface.from_plane(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), 1.0)
    # 4 differences of 0 along rows, 3 of 1 along columns
    assert variogram(surface, [1])[0] == pytest.approx(3 / 7 / 2)
    assert neutrality(surface) == pytest.approx(4 / 7)
    assert variation(surface) == 1


def test_stairs_are_neutral_and_a_floor_hides_small_steps():
    stairs = np.repeat(np.arange(10.0), 10)
    assert neutrality(lines(stairs)) == pytest.approx(90 / 99)
    wiggly = stairs + 0.01 * (-1.0) ** np.arange(100)
    assert neutrality(lines(wiggly)) == 0
    assert neutrality(lines(wiggly, floor=0.03)) == pytest.approx(90 / 99)
    assert partial_information(lines(wiggly)) > 0.7
    assert partial_information(lines(wiggly, floor=0.03)) == 0


def test_the_nugget_is_the_noise_and_images_say_how_much():
    random = np.random.default_rng(3)
    x = np.linspace(0, 3, 200)
    smooth = np.sin(x + np.arange(30)[:, None])[..., None]
    images, sigma = 25, 0.5
    common = 10 * random.normal(size=images)  # hard everywhere: cancels in differences
    noisy = smooth + common + sigma * random.normal(size=(30, 200, images))
    surface = Surface.from_lines(noisy, x[1])
    wanted = sigma**2 / images
    # 6,000 points: relative error 0.02 of a variance, more for an extrapolation
    assert image_noise(surface) == pytest.approx(wanted, rel=0.05)
    assert nugget(surface) == pytest.approx(wanted, rel=0.15)
    assert np.isnan(image_noise(Surface.from_lines(noisy[..., :1], x[1])))


def test_points_that_are_not_finite_are_left_out():
    line = np.sin(np.arange(60.0))
    cut = np.stack([line, line])
    cut[1] = np.nan
    for name, statistic in STATISTICS.items():
        if name in ("dispersion", "fitness_distance_correlation") or "length_scale" in name:
            continue
        assert statistic.function(lines(cut)) == pytest.approx(
            statistic.function(lines(line)), nan_ok=True
        ), name
    for statistic in STATISTICS.values():
        hole = np.stack([line, line])
        hole[0, 7] = np.inf
        assert np.isfinite(statistic.function(lines(hole)))


def test_nothing_to_look_at_is_undefined():
    for name, statistic in STATISTICS.items():
        assert np.isnan(statistic.function(lines(np.full((2, 9), np.nan)))), name
    constant = lines(np.zeros((2, 9)))
    for name in ("autocorrelation", "correlation_length", "nugget", "fitness_distance_correlation"):
        assert np.isnan(STATISTICS[name].function(constant)), name
    assert neutrality(constant) == 1
    assert np.isnan(nugget(lines(NOISE[:, :5])))  # too short for a power law


def test_every_statistic_has_its_words_and_its_source():
    for name, statistic in STATISTICS.items():
        for field in ("what", "unit", "reading"):
            assert len(getattr(statistic, field).split()) >= 1, f"{name} has no {field}"
        assert statistic.function.__doc__, f"{name} has no definition"
        assert np.isfinite(statistic.function(lines(NOISE[:3]))), name


def test_walks_have_the_positions_that_they_are_given():
    random = np.random.default_rng(4)
    positions = random.normal(size=(2, 30, 5)).cumsum(axis=1)
    distances = np.linalg.norm(positions - positions[:, :1], axis=2)
    surface = Surface.from_walks(distances[:1], positions[:1], 1.0)
    assert fitness_distance_correlation(surface) == pytest.approx(1)
    both = Surface.from_walks(distances, positions, 1.0)
    assert both.places.distances[3, 7] == pytest.approx(
        np.linalg.norm(positions[0, 3] - positions[0, 7])
    )
    apart = np.hypot(np.linalg.norm(positions[0, 3]), np.linalg.norm(positions[1, 7]))
    assert both.places.distances[3, 37] == pytest.approx(apart)


GOLDEN = json.loads((Path(__file__).parent / "golden" / "pflacco.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_pflacco_agrees(name):
    case = GOLDEN["cases"][name]
    features = case["features"]
    surface = lines(case["losses"], GOLDEN["step"])
    epsilons = np.insert(10 ** np.linspace(-5, 15, 1000), 0, 0)  # pflacco's
    found = information(surface, epsilons)
    # positions are multiples of 0.05, and some slopes round to either side of an epsilon
    assert found.most == pytest.approx(features["ic.h_max"], abs=1e-9)
    assert math.log10(found.settling) == pytest.approx(features["ic.eps_s"], abs=1e-9)
    assert found.partial == pytest.approx(features["ic.m0"])
    assert max_information(surface) == pytest.approx(features["ic.h_max"], abs=0.03)
    assert math.log10(settling_slope(surface)) == pytest.approx(features["ic.eps_s"], abs=0.05)
    assert dispersion(surface) == pytest.approx(features["disp.ratio_mean_05"])
    assert dispersion(surface, 0.25) == pytest.approx(features["disp.ratio_mean_25"])
    # pflacco divides a covariance over n by deviations over n - 1
    count = len(case["losses"])
    assert fitness_distance_correlation(surface) * (count - 1) / count == pytest.approx(
        features["fitness_distance.fd_correlation"]
    )


def variogram_of_neighbors(surface):
    return float(variogram(surface, [1])[0])


@pytest.mark.parametrize("statistic", [autocorrelation, variogram_of_neighbors, variation])
def test_intervals_over_images_cover_the_surface_without_noise(statistic):
    random = np.random.default_rng(5)
    signal = fractional_brownian_motion(0.5, 1, 60, seed=6)[..., None]
    truth = statistic(Surface.from_lines(signal, STEP))
    hits, above = [], []
    for _ in range(100):
        noisy = signal + 4 * random.normal(size=(1, 60, 100))  # noise of 0.4 beside steps of 1
        found = estimate(statistic, Surface.from_lines(noisy, STEP), random, resamples=200)
        hits.append(found.low <= truth <= found.high)
        above.append((found.value - truth, found.corrected - truth))
    assert np.mean(hits) >= 0.88  # 95 % in 100 cases: fewer than 88 in 1 of 200
    raw, corrected = np.abs(np.mean(above, axis=0))
    assert corrected < 0.6 * raw, "resampling removes the bias that noise makes"


def test_intervals_over_lines_cover_the_expectation_over_lines():
    random = np.random.default_rng(7)
    hits = []
    for seed in range(100):
        surface = lines(fractional_brownian_motion(0.5, 25, 30, seed))
        found = estimate(variogram_of_neighbors, surface, random, ["lines"], resamples=200)
        hits.append(found.low <= 0.5 <= found.high)
    assert np.mean(hits) >= 0.88


def test_an_estimate_is_its_generator():
    surface = Surface.from_lines(np.random.default_rng(8).normal(size=(4, 20, 10)), STEP)
    one, other = (
        estimate(autocorrelation, surface, np.random.default_rng(1), ["images", "lines"])
        for _ in range(2)
    )
    assert one == other
    assert one.low < one.corrected < one.high
    assert one.value == autocorrelation(surface)


def test_intervals_that_cannot_be_are_refused():
    random = np.random.default_rng(9)
    means = lines(NOISE[:1])
    with pytest.raises(InputError, match="images needs 2"):
        estimate(autocorrelation, means, random)
    with pytest.raises(InputError, match="lines needs 2"):
        estimate(autocorrelation, means, random, ["lines"])
    with pytest.raises(InputError, match="cross"):
        estimate(autocorrelation, Surface.from_plane(NOISE, STEP), random, ["lines"])
    with pytest.raises(InputError, match="seeds"):
        estimate(autocorrelation, means, random, ["seeds"])
    with pytest.raises(InputError, match="step"):
        lines(NOISE, step=0.0)
    with pytest.raises(InputError, match="floor"):
        lines(NOISE, floor=-1.0)
    with pytest.raises(InputError, match="single point"):
        lines(NOISE[:, :1])
    with pytest.raises(InputError, match="shape"):
        Surface.from_lines(NOISE[0], STEP)
    nothing = estimate(
        correlation_length, Surface.from_lines(np.zeros((1, 5, 3)), STEP), random, resamples=10
    )
    assert np.isnan([nothing.value, nothing.low]).all()
