"""Sums in blocks, against the same sums of arrays in float64."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from evolq.on_disk import boxes
from landscape.statistics import image_losses
from landscape.statistics.image_losses import ImageLosses
from landscape.statistics.noise_threshold import noise_threshold
from landscape.statistics.roughness import split_half_reliability
from landscape.statistics.ruggedness import estimate
from landscape.statistics.ruggedness_correlation import autocorrelation
from landscape.statistics.simultaneous import simultaneous_bands
from landscape.statistics.surface import Surface


@pytest.fixture(params=[1, 60, 10_000])
def blocks(request, monkeypatch):
    """Blocks of one point or image, of a few, and of all."""
    monkeypatch.setattr(image_losses, "BLOCK_VALUES", request.param)


def losses(*shape, seed=0):
    return np.random.default_rng(seed).gamma(0.5, size=shape).astype(np.float32)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 40))
def test_boxes_are_a_grid_in_its_order(shape, cells):
    index = np.arange(np.prod(shape)).reshape(shape)
    parts = [index[box].ravel() for box in boxes(tuple(shape), cells)]
    assert np.concatenate(parts).tolist() == index.ravel().tolist()
    assert max(map(len, parts)) <= cells


@pytest.mark.usefixtures("blocks")
def test_what_is_known_of_each_point():
    values = losses(5, 7, 11)
    values[1, 2, 3], values[4, 0] = np.inf, np.nan
    start = losses(11, seed=1)
    found = ImageLosses.of(values).minus(xr.DataArray(start))
    wanted = values.astype(np.float64) - start
    wanted[1, 2] = np.nan
    assert np.array_equal(found.means, wanted.mean(axis=-1).ravel(), equal_nan=True)
    error = wanted.std(axis=-1, ddof=1) / np.sqrt(11)
    assert np.array_equal(found.errors, error.ravel(), equal_nan=True)
    assert found.finite.tolist() == np.isfinite(wanted).all(axis=-1).ravel().tolist()
    known = np.arange(35).reshape(5, 7) % 3 > 0
    assert (found.where(known).finite == found.finite & known.ravel()).all()


@pytest.mark.usefixtures("blocks")
def test_sums_with_weights_and_squares_of_differences():
    values, random = losses(4, 9, 13), np.random.default_rng(2)
    flat = values.reshape(36, 13).astype(np.float64)
    weights = random.normal(size=(3, 13))
    ends, starts = random.integers(36, size=(2, 50))
    own = ImageLosses.of(values)
    assert own.weighted(weights) == pytest.approx(weights @ flat.T, rel=1e-13, abs=1e-13)
    wanted = (flat[ends] - flat[starts]).var(axis=1) * 13
    assert own.paired_squares(ends, starts) == pytest.approx(wanted, rel=1e-13)
    half = own.of_images(np.array([12, 0, 5, 6]))
    wanted = (flat[ends] - flat[starts])[:, [0, 5, 6, 12]].var(axis=1) * 4
    assert half.paired_squares(ends, starts) == pytest.approx(wanted, rel=1e-13)
    assert half.means == pytest.approx(flat[:, [0, 5, 6, 12]].mean(axis=1))


@pytest.mark.usefixtures("blocks")
def test_an_offset_common_to_all_images_cancels():
    values = 1e6 + np.arange(12.0) + losses(2, 12).astype(np.float64) * 1e-3
    wanted = (values[1] - values[0]).var() * 12
    found = ImageLosses.of(values).paired_squares(np.array([1, 0]), np.array([0, 0]))
    assert found[0] == pytest.approx(wanted, rel=1e-6)  # what 1e6 leaves of float64
    assert found[1] == 0


@pytest.mark.usefixtures("blocks")
def test_statistics_do_not_depend_on_blocks(monkeypatch):
    values = losses(5, 6, 24) + np.arange(6)[:, None].astype(np.float32)
    values[2, 2, 2] = np.nan
    array = xr.DataArray(values, dims=("y", "x", "image"))

    def found():
        random = np.random.default_rng(3)
        reliability = split_half_reliability(array)
        bands = simultaneous_bands(values, random, replicates=39)
        threshold = noise_threshold(values[None], random, replicates=39)
        surface = Surface.from_lines(values, 1.0)
        interval = estimate(autocorrelation, surface, random, ("images", "lines"), resamples=20)
        numbers = (reliability.half, reliability.low, reliability.effective_images)
        return [*numbers, bands.critical, *threshold.largest, interval.low, interval.high]

    in_blocks = found()
    monkeypatch.setattr(image_losses, "BLOCK_VALUES", 10**9)
    assert in_blocks == pytest.approx(found(), rel=1e-12)
