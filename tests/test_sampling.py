import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from evolq.errors import InputError
from landscape.probes.sampling import auto_radius, axis, sample_plane, sample_rays
from landscape.probes.slices import Line, Plane

ORIGIN = {"w": torch.tensor([1.0, 1.0]), "fixed": torch.ones(3)}
X, Y = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
PLANE = Plane(ORIGIN, X, Y)
XS, YS = np.array([-1.0, 0.0, 2.0, 5.0]), np.array([-3.0, 0.0, 1.0])  # no symmetry to hide behind


class Toy:
    """Per-image losses w0 + 100 w1 + image / 10; refuses points of other names than varied."""

    images = 4

    def __init__(self, names=None):
        self.names = names

    def vary(self, names, at):
        assert torch.equal(at["fixed"], ORIGIN["fixed"])
        return type(self)(names)

    def losses(self, point):
        assert set(point) == set(self.names) == {"w"}
        return point["w"][0] + 100 * point["w"][1] + torch.arange(self.images) / 10

    def per_image(self, point):
        return self.losses(point)


class ToyTest(Toy):
    """Test losses twice the toy's; image i is correct if i <= w0."""

    images = 5

    def per_image(self, point):
        return 2 * self.losses(point), torch.arange(self.images) <= point["w"][0]


class Never:
    """Fails as soon as anything is asked of it."""

    def vary(self, names, at):
        raise AssertionError("work began before the input was checked")


def test_a_plane_keeps_where_checkpoints_lie():
    skew = Plane(ORIGIN, X, {"w": torch.tensor([1.0, 2.0])})
    checkpoints = {
        "on": ORIGIN | {"w": torch.tensor([1 + 0.5 + 0.25, 1 + 2 * 0.25])},
        "start": ORIGIN,
    }
    seen = []

    def on_point(dataset, done, total):
        seen.append(dataset.checkpoint_x.values.tolist())

    dataset = sample_plane(skew, XS, YS, Toy(), ToyTest(), on_point, checkpoints)
    assert dataset.checkpoint.values.tolist() == ["on", "start"]
    np.testing.assert_allclose(dataset.checkpoint_x, [0.5, 0], atol=1e-6)
    np.testing.assert_allclose(dataset.checkpoint_y, [0.25, 0], atol=1e-6)
    np.testing.assert_allclose(dataset.checkpoint_distance, 0, atol=1e-6)
    lengths = [math.sqrt((0.75**2 + 0.5**2) / 2), 0]
    np.testing.assert_allclose(dataset.checkpoint_distance_from_start, lengths, atol=1e-6)
    assert len(seen) == 1 + XS.size * YS.size, "what an interrupted scan leaves has them, too"
    without = sample_plane(skew, XS, YS, Toy(), ToyTest())
    assert dataset.drop_dims("checkpoint").identical(without)


def test_every_value_of_a_plane_is_in_its_cell():
    dataset = sample_plane(PLANE, XS, YS, Toy(), ToyTest())
    assert dict(dataset.sizes) == {"y": 3, "x": 4, "calibration_image": 4, "image": 5}
    for a in XS:
        for b in YS:
            cell = dataset.sel(x=a, y=b)
            base = (1 + a) + 100 * (1 + b)
            assert float(cell["loss"]) == pytest.approx(base + 0.15)
            assert float(cell["test_loss"]) == pytest.approx(2 * (base + 0.2))
            assert cell["loss_per_image"].values == pytest.approx(base + np.arange(4) / 10)
            assert cell["test_loss_per_image"].values == pytest.approx(
                2 * (base + np.arange(5) / 10)
            )
            assert (cell["test_correct_per_image"].values == (np.arange(5) <= 1 + a)).all()
            assert float(cell["test_accuracy"]) == np.mean(np.arange(5) <= 1 + a)
            assert int(cell["status"]) == 1


def test_the_start_is_measured_once_whether_or_not_it_is_on_the_grid():
    dataset = sample_plane(PLANE, np.array([3.0, 4.0]), np.array([1.0, 2.0]), Toy(), ToyTest())
    assert dataset["start_loss_per_image"].values == pytest.approx(101 + np.arange(4) / 10)
    assert dataset["start_test_loss_per_image"].values == pytest.approx(202 + np.arange(5) / 5)
    assert dataset["start_test_correct_per_image"].values.tolist() == [True, True] + [False] * 3


def test_rays_are_labeled_by_number_and_signed_distance():
    rays = [Line(ORIGIN, X), Line(ORIGIN, Y), Line(ORIGIN, {"w": torch.tensor([1.0, -1.0])})]
    dataset = sample_rays(rays, XS, Toy(), ToyTest())
    assert dataset["loss"].dims == ("ray", "distance")
    assert dataset["test_loss_per_image"].dims == ("ray", "distance", "image")
    for number, slope in enumerate((1.0, 100.0, -99.0)):
        for distance in XS:
            cell = dataset.sel(ray=number, distance=distance)
            assert float(cell["loss"]) == pytest.approx(101.15 + slope * distance)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "test_loss"])
def test_losses_that_are_not_finite_are_kept_and_marked(bad, where):
    class Sometimes(Toy if where == "loss" else ToyTest):
        def losses(self, point):
            values = super().losses(point)
            if point["w"][0] == 3:
                values[1] = bad
            return values

    objective, test = (Sometimes(), ToyTest()) if where == "loss" else (Toy(), Sometimes())
    dataset = sample_plane(PLANE, XS, YS, objective, test)
    assert (dataset["status"].sel(x=2) == 2).all()
    assert (dataset["status"].drop_sel(x=2) == 1).all()
    values = dataset[where].sel(x=2).values
    assert (np.isnan(values) if math.isnan(bad) else values == math.inf).all()
    assert np.isfinite(dataset[where].sel(x=0)).all()
    spoilt = dataset[f"{where}_per_image"].sel(x=2)
    assert (~np.isfinite(spoilt)).sum() == len(YS)  # one image each, the others keep their values


def test_what_was_measured_survives_an_interruption():
    kept = []

    def on_point(dataset, done, total):
        kept[:] = [dataset, total]
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_plane(PLANE, XS, YS, Toy(), ToyTest(), on_point)
    dataset, total = kept
    assert total == 12
    computed = dataset["status"].values
    assert computed.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (np.isfinite(dataset["loss"].values) == (computed == 1)).all()
    assert np.isfinite(dataset["start_loss_per_image"]).all()


def test_progress_counts_every_point():
    seen = []
    sample_rays(
        [Line(ORIGIN, X)], XS, Toy(), ToyTest(), lambda dataset, done, total: seen.append(done)
    )
    assert seen == [0, 1, 2, 3, 4]


def test_an_axis_is_symmetric_and_includes_zero_exactly():
    assert axis(0.3, 2).tolist() == [-0.3, 0.3]
    for points in (3, 11, 101):
        values = axis(0.3, points)
        assert len(values) == points
        assert values[points // 2] == 0
        assert (values == -values[::-1]).all()
        assert values[-1] == pytest.approx(0.3, rel=1e-15)


@pytest.mark.parametrize(("radius", "points"), [(0, 5), (-1, 5), (math.nan, 5), (1, 1), (1, 0)])
def test_axes_without_extent_are_refused(radius, points):
    with pytest.raises(InputError):
        axis(radius, points)


@pytest.mark.parametrize("x", [[0.0], [1.0, 0.0], [0.0, 0.0], [0.0, math.nan], [[0.0, 1.0]]])
def test_bad_coordinates_are_refused_before_any_work(x):
    with pytest.raises(InputError):
        sample_plane(PLANE, np.array(x), YS, Never(), Never())
    with pytest.raises(InputError):
        sample_rays([Line(ORIGIN, X)], np.array(x), Never(), Never())


def test_rays_need_one_common_origin():
    with pytest.raises(InputError, match="no ray"):
        sample_rays([], XS, Never(), Never())
    with pytest.raises(InputError, match="one Point"):
        sample_rays([Line(ORIGIN, X), Line(dict(ORIGIN), Y)], XS, Never(), Never())


class Bowl:
    """Test losses r**2 plus a part of the sample, r or -r, that half of 100 images have each."""

    images = 100

    def vary(self, names, at):
        return self

    def per_image(self, point):
        r = (point["w"] - ORIGIN["w"]).norm()
        sample = torch.tensor([1.0, -1.0]).repeat(self.images // 2)
        return r**2 + r * sample, sample > 0


def test_auto_radius_is_where_the_loss_leaves_the_noise():
    # r**2 is 4 standard errors of r * sqrt(100 / 99) / 10 at r = 0.402.
    found = auto_radius([Line(ORIGIN, X), Line(ORIGIN, Y)], Bowl())
    assert found.reached
    assert found.radius == pytest.approx(2**-1.25)  # 0.42, the next below is 0.35
    # from 2**-4 in proportion to 4 times as far, which is nearly there; no radius is tried twice
    exponents = [-4, -2, -1.5, -1.25]
    assert [shift.radius for shift in found.tried] == pytest.approx([2.0**k for k in exponents])
    expected = 2**-1.25 * 10 * math.sqrt(0.99)
    assert found.chosen.standard_errors == pytest.approx(expected, rel=1e-4)
    assert found.chosen.change == pytest.approx(2**-2.5, rel=1e-4)


class Powers(Bowl):
    """Test losses that move by 4 standard errors at `where`, and from there like a power of r."""

    def __init__(self, where, power, factor=1.0):
        self.where, self.power, self.factor = where, power, factor

    def per_image(self, point):
        r = (point["w"] - ORIGIN["w"]).norm().double()
        sample = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(self.images // 2)
        error = math.sqrt(100 / 99) / 10
        change = 4 * self.factor * error * (r / self.where) ** self.power
        return (change + sample) * (r > 0), sample > 0


@settings(max_examples=300)
@given(
    where=strategies.floats(-10, 2).map(lambda exponent: 2.0**exponent),
    power=strategies.floats(0.1, 20),
)
def test_auto_radius_is_the_least_of_its_powers_at_which_the_loss_has_moved(where, power):
    found = auto_radius([Line(ORIGIN, X)], Powers(where, power))
    assert found.reached
    assert found.radius / 2**0.25 * 0.999 < where < found.radius * 1.001  # rounded in float32
    assert len(found.tried) <= 12  # doubling and bisecting would take up to 14


@pytest.mark.parametrize("errors", [3.5, 3.9, 4.1, 5, 6])
def test_auto_radius_does_not_creep_along_a_plateau(errors):
    """Where any change flips a code, standard errors hardly depend on the radius."""
    found = auto_radius([Line(ORIGIN, X)], Powers(1.0, 0.0, errors / 4))
    assert found.reached == (errors > 4)
    assert found.radius == (2.0**-23 if errors > 4 else 8.0)
    assert len(found.tried) <= (15 if errors > 4 else 8)  # 77 powers are below, 28 above


def test_auto_radius_goes_below_the_first_that_it_tries():
    class Steep(Bowl):
        def per_image(self, point):
            step = float((point["w"] - ORIGIN["w"]).norm())
            # float32 rounds steps from 1 by 6e-8; between 2**-10.25 and 2**-10 lies 9e-4
            return torch.full((4,), float(step >= 9e-4)), torch.ones(4, dtype=torch.bool)

    found = auto_radius([Line(ORIGIN, X)], Steep())
    assert (found.reached, found.radius) == (True, pytest.approx(2.0**-10))
    all_moved = auto_radius([Line(ORIGIN, X)], Steep(), smallest=2.0**-9)
    assert (all_moved.reached, all_moved.radius) == (True, 2.0**-9)


def test_auto_radius_looks_at_both_ends_of_every_line():
    class OneSided(Bowl):
        def per_image(self, point):
            step = float(point["w"][1] - ORIGIN["w"][1])
            return torch.full((4,), 1.0 if step <= -0.25 else 0.0), torch.ones(4, dtype=torch.bool)

    found = auto_radius([Line(ORIGIN, X), Line(ORIGIN, Y)], OneSided())
    assert (found.radius, found.chosen.standard_errors) == (0.25, math.inf)
    assert found.tried[-2].standard_errors == 0  # no change and no spread: not moved


def test_auto_radius_says_when_nothing_moves_and_takes_non_finite_as_moved():
    class Flat(Bowl):
        def per_image(self, point):
            return torch.zeros(4), torch.ones(4, dtype=torch.bool)

    class Cliff(Bowl):
        def per_image(self, point):
            far = (point["w"] - ORIGIN["w"]).norm() > 0.1
            return torch.full((4,), math.nan if far else 0.0), torch.ones(4, dtype=torch.bool)

    found = auto_radius([Line(ORIGIN, X)], Flat(), largest=5.0)
    assert (found.reached, found.radius) == (False, 5.0)
    assert auto_radius([Line(ORIGIN, X)], Cliff()).radius == pytest.approx(2**-3.25)  # 0.105


def test_auto_radius_is_the_same_with_others_that_work():
    lines = [Line(ORIGIN, X), Line(ORIGIN, Y)]
    with ThreadPoolExecutor(3) as executor:
        assert auto_radius(lines, Bowl(), executor=executor) == auto_radius(lines, Bowl())


def test_auto_radius_says_what_failed():
    class Broken(Bowl):
        def per_image(self, point):
            if float(point["w"][0]) > 1.5:
                raise MemoryError("no room")
            return super().per_image(point)

    with pytest.raises(InputError, match="the radius could not be chosen: MemoryError: no room"):
        auto_radius([Line(ORIGIN, X)], Broken(), standard_errors=1e9)


def test_auto_radius_refuses_what_has_no_error_bar():
    class Single(Bowl):
        def per_image(self, point):
            return torch.zeros(1), torch.ones(1, dtype=torch.bool)

    with pytest.raises(InputError, match="2 test images"):
        auto_radius([Line(ORIGIN, X)], Single())
    with pytest.raises(InputError, match="no directions"):
        auto_radius([], Bowl())
    with pytest.raises(InputError, match="bounds"):
        auto_radius([Line(ORIGIN, X)], Bowl(), smallest=2.0, largest=1.0)
