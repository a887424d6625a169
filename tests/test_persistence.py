import numpy as np
import pytest
import xarray as xr

from evolq.errors import InputError
from landscape.statistics.minima import find_minima
from landscape.statistics.persistence import count_curve, persistence_diagram, survival


def scan(per_image, dims=("y", "x")):
    axes = {name: np.arange(n) / 2 for name, n in zip(dims, per_image.shape, strict=False)}
    with np.errstate(invalid="ignore"):
        mean = per_image.mean(axis=-1)
    return xr.Dataset(
        {"test_loss": (dims, mean), "test_loss_per_image": ((*dims, "image"), per_image)}, axes
    )


def line(*heights, images=20):
    wiggle = np.where(np.arange(images) % 2, 0.1, -0.1)
    per_image = np.array([heights], dtype=float)[..., None] + 0 * wiggle
    return scan(per_image + wiggle * np.arange(len(heights))[:, None], ("ray", "distance"))


def test_the_diagram_of_a_line_by_hand():
    found = persistence_diagram(line(0.0, 5.0, 3.0, 4.0, 1.0, 9.0, 2.0, 2.0), sigmas=1e9)
    assert found.birth.values.tolist() == [0, 1, 2, 3]
    assert found.death.values.tolist() == [np.inf, 5, 9, 4]
    assert found.persistence.values.tolist() == [np.inf, 4, 7, 1]
    assert found.parent.values.tolist() == [0, 0, 1, 1]
    assert found.at_distance.values.tolist() == [0, 2, 3, 1]
    assert found.saddle_distance.values[1:].tolist() == [0.5, 2.5, 1.5]
    assert np.isnan(found.saddle_distance.values[0])
    assert found.at_ray.values.tolist() == [0] * 4
    assert found.plateau.values.tolist() == [1, 1, 2, 1]
    assert found.boundary.values.tolist() == [True, False, True, False]
    assert found.basin.values.tolist() == [2, 3, 2, 1]
    assert found.basin_of.values.tolist() == [[0, 0, 3, 1, 1, 1, 2, 2]]
    # The images of minimum and saddle differ by 0.1 per step, up and down: 3 steps for the last.
    steps = np.array([3, 1, 1])
    assert found.noise.values[1:] == pytest.approx(0.1 * steps / np.sqrt(19))
    assert found.significant.values.tolist() == [True, False, False, False]
    assert found.significant_basin.values.tolist() == [8, 0, 0, 0]
    some = persistence_diagram(line(0.0, 5.0, 3.0, 4.0, 1.0, 9.0, 2.0, 2.0), sigmas=100)
    assert some.significant.values.tolist() == [True, False, True, False]
    assert some.significant_basin_of.values.tolist() == [[0, 0, 0, 0, 0, 0, 2, 2]]


def test_basins_cover_the_plane_and_walls_belong_to_none():
    per_image = np.random.default_rng(0).normal(size=(9, 8, 12))
    per_image[4, 2, 5] = np.nan
    found = persistence_diagram(scan(per_image))
    assert found.basin.sum() == found.significant_basin.sum() == 71
    assert found.basin_of.values[4, 2] == found.significant_basin_of.values[4, 2] == -1
    for number in found.minimum.values:
        one = found.sel(minimum=number)
        assert int(found.basin_of.sel(y=one.at_y, x=one.at_x)) == number
        saddle_is_there = np.isfinite(one.death)
        assert saddle_is_there == (int(one.parent) != number)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_the_diagram_has_the_minima_of_the_table(connectivity):
    per_image = np.random.default_rng(1).integers(0, 4, size=(8, 9, 1)) + np.zeros(12)
    data = scan(per_image)
    found = persistence_diagram(data, connectivity)
    expected = find_minima(data.test_loss, 0.0, connectivity).minima
    assert sorted(found.persistence.values) == sorted(m.persistence for m in expected)
    assert sorted(found.plateau.values) == sorted(m.points for m in expected)
    assert found.boundary.sum() == sum(m.boundary for m in expected)
    assert found.basin.sum() == 72


def test_nothing_finite_has_no_diagram():
    found = persistence_diagram(scan(np.full((3, 4, 12), np.nan)))
    assert found.sizes["minimum"] == 0
    assert (found.basin_of == -1).all()


def curve(data, thresholds, seed=0, **options):
    return count_curve(data, thresholds, np.random.default_rng(seed), **options)


def test_counts_are_those_of_each_threshold():
    data = scan(np.random.default_rng(2).normal(size=(9, 9, 15)))
    thresholds = [0.0, 0.1, 0.3, 5.0]
    found = curve(data, thresholds, replicates=19)
    for threshold, count in zip(thresholds, found["count"].values, strict=True):
        assert count == len(find_minima(data.test_loss, threshold).minima)
    assert found["count"].values[-1] == found.low.values[-1] == found.high.values[-1] == 1
    assert (found.inner_count < found["count"]).all() or found.inner_count.values[-1] <= 1
    assert np.isinf(found.high.values[0])


def test_the_band_holds_the_true_number():
    random = np.random.default_rng(3)
    t = np.arange(25) / 8
    truth = np.cos(2 * np.pi * t)[:, None] + np.cos(2 * np.pi * t) + 0.1 * t
    thresholds = np.linspace(0, 3, 31)
    grid = xr.DataArray(truth, dims=("y", "x"), coords={"y": t, "x": t})
    true = np.array([len(find_minima(grid, threshold).minima) for threshold in thresholds])
    held, scans = 0, 30
    for _ in range(scans):
        data = scan(truth[..., None] + random.normal(0, 0.5, (25, 25, 30)))
        found = curve(data, thresholds, random.integers(2**32), replicates=39)
        held += bool(((found.low <= true) & (true <= found.high)).all())
    assert found.attrs["range"] < 1
    middle = int(np.argmin(np.abs(thresholds - 1.0)))
    assert found.low.values[middle] == found.high.values[middle] == 9
    assert held >= 27  # at least 95 % of 30, less one standard error; the band is conservative


def test_noise_alone_counts_like_noise():
    random = np.random.default_rng(4)
    thresholds = [0.0, 0.1, 0.2]
    data = scan(random.normal(size=(15, 15, 50)))
    found = curve(data, thresholds)
    others = [
        curve(scan(random.normal(size=(15, 15, 50))), thresholds, replicates=19)["count"]
        for _ in range(20)
    ]
    means = np.mean([other.values for other in others], axis=0)
    assert found.noise_count.values == pytest.approx(means, rel=0.15)
    assert (found.noise_high >= found.noise_count).all()


def test_real_minima_survive_and_those_of_noise_do_not():
    random = np.random.default_rng(5)
    t = np.linspace(-1.5, 1.5, 11)
    wells = (t**2 - 1) ** 2 + t[:, None] ** 2
    real = scan(wells[..., None] + random.normal(0, 0.5, (11, 11, 60)))
    found = survival(real, 4.0, np.random.default_rng(0))
    assert found.found == 1
    assert found.per_split.low == found.per_split.high == 1
    assert found.survived == 1
    assert found.height == pytest.approx(1, abs=0.25)
    noise = scan(random.normal(size=(11, 11, 60)))
    made_up = survival(noise, 0.5, np.random.default_rng(0))
    assert made_up.found > 3
    assert made_up.survived < 0.15
    assert abs(made_up.height) < 0.3
    nothing = survival(noise, 50.0, np.random.default_rng(0))
    assert nothing.found == 0
    assert np.isnan([nothing.survived, nothing.height]).all()


def test_bad_arguments_are_named():
    data = scan(np.random.default_rng(6).normal(size=(4, 4, 9)))
    with pytest.raises(InputError, match="by 9 images"):
        curve(data, [0.1])
    with pytest.raises(InputError, match="not 9 and 1"):
        survival(data, 2.0, np.random.default_rng(0), splits=1)
