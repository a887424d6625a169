import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evolq.errors import InputError
from landscape.statistics.minima import find_minima, significant_minima


def plane(values):
    rows, columns = values.shape
    return xr.DataArray(
        np.asarray(values, dtype=float),
        dims=("y", "x"),
        coords={"y": 10.0 * np.arange(rows), "x": np.arange(columns) / 2},
    )


def bowl(points=51):
    t = np.linspace(-1, 1, points)
    return t[:, None] ** 2 + t**2


def neighbors(index, shape, connectivity):
    for step in np.ndindex(*(3,) * len(shape)):
        offset = np.array(step) - 1
        length = np.abs(offset).sum()
        if length == 0 or (connectivity == 4 and length > 1):
            continue
        other = np.array(index) + offset
        if ((other >= 0) & (other < shape)).all():
            yield tuple(int(i) for i in other)


def strict_count(values, connectivity=8):
    """What the tools of old count: points strictly below all their neighbors."""
    return sum(
        all(values[i] < values[j] for j in neighbors(i, values.shape, connectivity))
        for i in np.ndindex(values.shape)
    )


def reference(values, connectivity):
    """Persistences by union-find, adding the points in order of value (the elder survives)."""
    root, persistences = {}, []

    def find(i):
        while root[i] != i:
            i = root[i]
        return i

    finite = [i for i in np.ndindex(values.shape) if np.isfinite(values[i])]
    for i in sorted(finite, key=lambda i: values[i]):
        root[i] = i
        for j in neighbors(i, values.shape, connectivity):
            if j in root:
                older, younger = sorted((find(i), find(j)), key=lambda k: values[k])
                if older != younger:
                    persistences.append(values[i] - values[younger])
                    root[younger] = older
    persistences += [np.inf for i in root if find(i) == i]
    return sorted((p for p in persistences if p > 0), reverse=True)


# Few levels make many ties; a fifth of the points is not finite.
LEVELS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0, 9.0, np.nan, np.inf])


@settings(max_examples=150, deadline=None)
@given(
    arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=LEVELS),
    st.sampled_from([4, 8]),
)
def test_persistences_equal_a_union_find(values, connectivity):
    found = find_minima(plane(values), 0.0, connectivity)
    assert [m.persistence for m in found.minima] == reference(values, connectivity)
    assert found.excluded == (~np.isfinite(values)).sum()
    for minimum in found.minima:
        at = plane(values).sel(minimum.coordinates)
        assert float(at) == minimum.value


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_noise_on_a_bowl_leaves_one_minimum(seed, connectivity):
    noisy = bowl() + np.random.default_rng(seed).normal(0, 0.02, (51, 51))
    assert 20 < strict_count(noisy, 8) < 50
    assert 70 < strict_count(noisy, 4) < 120
    found = find_minima(plane(noisy), 4 * 0.02, connectivity)
    assert len(found.minima) == 1
    assert found.below == strict_count(noisy, connectivity) - 1
    (minimum,) = found.minima
    assert minimum.persistence == np.inf
    assert not minimum.boundary
    assert minimum.coordinates == pytest.approx({"y": 250, "x": 12.5}, abs=50)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_plateau_is_one_minimum_at_its_middle(connectivity):
    terraces = np.floor(10 * bowl()) / 10
    found = find_minima(plane(terraces), 0.0, connectivity)
    assert len(found.minima) == 1
    assert found.below == 0
    (minimum,) = found.minima
    assert minimum.coordinates == {"y": 250.0, "x": 12.5}
    assert minimum.points == (terraces == 0).sum() > 1
    assert not minimum.boundary


@pytest.mark.parametrize("connectivity", [4, 8])
def test_an_egg_carton_has_a_minimum_in_each_cup(connectivity):
    t = np.arange(25) / 8  # three periods and a bit: cups at 0.5, 1.5, 2.5
    carton = np.cos(2 * np.pi * t)[:, None] + np.cos(2 * np.pi * t) + 0.1 * t
    found = find_minima(plane(carton), 0.5, connectivity)
    assert len(found.minima) == 9
    places = {(m.coordinates["y"], m.coordinates["x"]) for m in found.minima}
    assert places == {(10.0 * row, column / 2) for row in (4, 12, 20) for column in (4, 12, 20)}
    # From cup to cup the way leads over cos = 1 in one of the two terms: 2 above the bottom.
    others = [m.persistence for m in found.minima[1:]]
    assert others == pytest.approx([2.0] * 8, abs=0.11)
    assert not any(m.boundary for m in found.minima)


def test_connectivity_decides_about_corners():
    diagonal = np.array([[0.0, 9.0, 9.0], [9.0, 1.0, 9.0], [9.0, 9.0, 2.0]])
    assert len(find_minima(plane(diagonal), 0.0, connectivity=8).minima) == 1
    found = find_minima(plane(diagonal), 0.0, connectivity=4)
    assert [m.persistence for m in found.minima] == [np.inf, 8.0, 7.0]


def test_places_are_right_on_a_grid_that_is_not_square():
    values = np.full((3, 5), 9.0)
    values[0, 3], values[2, 1] = 1.0, 2.0
    deepest, second = find_minima(plane(values), 0.0).minima
    assert deepest.coordinates == {"y": 0.0, "x": 1.5}
    assert second.coordinates == {"y": 20.0, "x": 0.5}
    assert (second.value, second.persistence) == (2.0, 7.0)
    at_threshold = find_minima(plane(values), 7.0)
    assert (len(at_threshold.minima), at_threshold.below) == (1, 1)


def test_the_edge_and_points_that_are_not_finite_are_a_boundary():
    values = np.full((5, 9), 9.0)
    values[2, 2] = values[0, 5] = values[3, 7] = 1.0
    values[1, 6] = np.nan  # touches neither
    assert sorted(
        (m.coordinates["x"], m.boundary) for m in find_minima(plane(values), 0.0).minima
    ) == [(1.0, False), (2.5, True), (3.5, False)]
    values[2, 6] = np.nan  # touches the third
    assert [
        m.boundary for m in find_minima(plane(values), 0.0).minima if m.coordinates["x"] == 3.5
    ] == [True]


def test_walls_of_points_that_are_not_finite_part_the_surface():
    values = np.array([[1.0, np.nan, 5.0], [2.0, -np.inf, 4.0], [3.0, np.inf, 3.0]])
    found = find_minima(plane(values), 0.0)
    assert [(m.value, m.persistence) for m in found.minima] == [(1.0, np.inf), (3.0, np.inf)]
    assert found.excluded == 3
    nothing = find_minima(plane(np.full((2, 3), np.nan)), 0.0)
    assert (nothing.minima, nothing.below, nothing.excluded) == ((), 0, 6)


def test_rays_are_lines_of_their_own():
    values = np.array([[3.0, 1.0, 2.0, 0.0, 4.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    rays = xr.DataArray(
        values,
        dims=("ray", "distance"),
        coords={"ray": [0, 1], "distance": [-2.0, -1.0, 0.0, 1.0, 2.0]},
    )
    found = find_minima(rays, 0.0)
    assert [(m.coordinates, m.value, m.persistence, m.boundary) for m in found.minima] == [
        ({"ray": 0.0, "distance": 1.0}, 0.0, np.inf, False),
        ({"ray": 1.0, "distance": 2.0}, 1.0, np.inf, True),
        ({"ray": 0.0, "distance": -1.0}, 1.0, 1.0, False),
    ]


def scan(per_image):
    surface = plane(per_image.mean(axis=-1))
    return xr.Dataset(
        {
            "test_loss": surface,
            "test_loss_per_image": (("y", "x", "image"), per_image.astype(np.float32)),
        }
    )


def test_the_noise_of_a_persistence_is_paired():
    # Two cups, 1 deep and 0.5 deep; the images differ by far more, but all in the same way.
    surface = np.array([[9.0, 9.0, 9.0, 9.0, 9.0], [9.0, 0.0, 1.0, 0.5, 9.0], [9.0] * 5])
    images = 16
    offsets = 100.0 * np.arange(images)
    wiggle = np.where(np.arange(images) % 2, 1.0, -1.0)
    per_image = surface[..., None] + offsets
    per_image[1, 3] += 0.4 * wiggle
    deepest, second = significant_minima(scan(per_image), sigmas=4.0).minima
    assert np.isnan(deepest.noise)
    assert second.persistence == pytest.approx(0.5)
    assert second.noise == pytest.approx(0.4 * np.sqrt(16 / 15) / 4, rel=1e-4)
    per_image[1, 3] += 0.2 * wiggle  # 0.5 is now 3.2 sigma
    found = significant_minima(scan(per_image), sigmas=4.0)
    assert (len(found.minima), found.below) == (1, 1)
    assert len(significant_minima(scan(per_image), sigmas=3.0).minima) == 2


@pytest.mark.parametrize("connectivity", [4, 8])
def test_noise_of_the_images_leaves_one_significant_minimum(connectivity):
    random = np.random.default_rng(0)
    per_image = bowl()[..., None] + random.normal(0, 0.2, (51, 51, 100))  # 0.02 in the mean
    per_image += random.normal(0, 1, 100)  # what the points share
    found = significant_minima(scan(per_image), connectivity=connectivity, replicates=39)
    assert len(found.minima) == 1
    assert found.below > 5


def test_a_difference_without_spread_is_certain():
    per_image = np.repeat(np.array([[0.0, 1.0, 0.5]])[..., None], 10, axis=-1)
    assert len(significant_minima(scan(per_image)).minima) == 2


def test_bad_arguments_are_named():
    surface = plane(bowl(5))
    with pytest.raises(InputError, match="4 or 8, not 6"):
        find_minima(surface, 0.0, connectivity=6)
    with pytest.raises(InputError, match="threshold"):
        find_minima(surface, -1.0)
    with pytest.raises(InputError, match="sigmas"):
        significant_minima(scan(np.zeros((2, 2, 3))), sigmas=np.nan)
    with pytest.raises(InputError, match="dimensions"):
        find_minima(surface.rename(x="z"), 0.0)
