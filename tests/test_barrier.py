"""Barriers between two ends, on surfaces whose barrier is known."""

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from synthetic_comparisons import comparison

from landscape.ledger import Ledger
from landscape.paths.barrier import Barrier, barrier, choose_ends, sample_between
from landscape.paths.comparison import Run
from landscape.plots.comparison_info import barrier_words

START = {"a.scale": torch.tensor([1.0, 2.0]), "w": torch.ones(3)}
NAMES = ("a.scale",)
IMAGES = 40


class Surface:
    """Losses of images along x, the logarithm of the first scale: a shape, and what images add."""

    def __init__(self, shape):
        self.shape = shape

    def vary(self, names, at):
        assert names == NAMES
        return self

    def losses(self, point):
        x = torch.log(point["a.scale"][0].double())
        return self.shape(x) + 0.1 * torch.arange(IMAGES)

    def per_image(self, point):
        return self.losses(point)


class SurfaceTest(Surface):
    """The same as test losses."""

    def per_image(self, point):
        losses = self.losses(point)
        return losses, losses < 1


def run(x, *losses):
    point = START | {"a.scale": START["a.scale"] * torch.exp(torch.tensor([x, 0.0]))}
    return Run([SimpleNamespace(loss=loss, point=point) for loss in losses])


def measured(shape, ends=(-1.0, 1.0), ledger=None, points=11) -> Barrier:
    found = choose_ends({"adam": [run(ends[0], 1.0)], "cma": [run(ends[1], 1.0)]})
    surfaces = Surface(shape), SurfaceTest(shape)
    between = sample_between(found, NAMES, START, *surfaces, points, ledger)
    repeats = xr.DataArray(np.zeros((8, IMAGES)), dims=("repeat", "image"))
    return barrier(between.assign(repeat_test_loss_per_image=repeats))


def test_a_double_well_has_its_known_barrier():
    found = measured(lambda x: 0.3 * (x**2 - 1) ** 2)
    assert found.height.estimate == pytest.approx(0.3, abs=1e-5)
    assert found.at == 0.5
    assert found.ends == ("adam, seed 0", "cma, seed 0")
    tilted = measured(lambda x: 0.3 * (x**2 - 1) ** 2 + 0.05 * x)
    assert tilted.height.estimate == pytest.approx(0.3 - 0.05, abs=1e-3), "above the higher end"
    assert barrier_words(tilted).endswith("a barrier")


def test_a_quadratic_has_none():
    found = measured(lambda x: x**2)
    assert found.height.estimate == pytest.approx(0.8**2 - 1, abs=1e-5), "the nearest inner point"
    assert found.height.high < 0
    assert "no barrier" in barrier_words(found)


def test_the_ways_ends_are_the_ends_and_shares_are_of_the_logarithm():
    found = measured(lambda x: x, ends=(0.5, 2.5), points=5)
    np.testing.assert_allclose(found.way, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.above, [-2, -1.5, -1, -0.5, 0], atol=1e-6)


def test_the_interval_holds_the_barrier_and_knows_of_the_choice_of_the_highest():
    """Of flat surfaces, 5 % or fewer have a barrier; the double well's is in nearly all."""
    generator = np.random.default_rng(0)
    way = np.linspace(0, 1, 11)
    repeats = xr.DataArray(np.zeros((8, IMAGES)), dims=("repeat", "image"))
    false, held, naive = [], [], []
    for number in range(200):
        noise = generator.normal(size=(11, IMAGES))
        shape = np.sin(np.pi * way)[:, None] if number % 2 else 0.0
        between = xr.Dataset(
            {"between_test_loss_per_image": (("between", "image"), shape + noise)},
            {"between": way},
            {"between_from": "a", "between_to": "b"},
        ).assign(repeat_test_loss_per_image=repeats)
        height = barrier(between).height
        if number % 2:
            held.append(height.low <= 1 <= height.high)
        else:
            false.append(height.low > 0)
            naive.append(height.estimate > 0)
    assert np.mean(held) >= 0.93
    assert np.mean(false) <= 0.05
    assert np.mean(naive) > 0.2, "the highest of nine alone would be called a barrier"


def test_points_that_are_in_the_ledger_are_not_measured_again(tmp_path):
    def never(x):
        raise AssertionError("measured again")

    def shape(x):
        return 0.3 * (x**2 - 1) ** 2

    with closing(Ledger(tmp_path / "ledger", {})) as ledger:
        first = measured(shape, ledger=ledger)
        again = measured(never, ledger=ledger)
    np.testing.assert_array_equal(first.above, again.above)


def test_the_ends_are_those_of_the_best_methods_median_runs():
    runs = {
        "evol-q": [run(0.0, 5.0, 3.0)],
        "cma": [run(0.1, 1.0), run(0.2, 3.0), run(0.3, 2.0)],
        "adam": [run(0.4, 2.0)],
        "sgd": [run(0.5, 1.0)],
    }
    gradient, other = choose_ends(runs)
    assert gradient[:2] == ("sgd", 0)
    assert other[:2] == ("cma", 2)
    assert other.point is runs["cma"][2].path[-1].point
    assert choose_ends({"cma": runs["cma"], "evol-q": runs["evol-q"]}) is None


def test_equal_ends_have_no_line():
    ends = choose_ends({"adam": [run(0.3, 1.0)], "cma": [run(0.3, 1.0)]})
    assert sample_between(ends, NAMES, START, None, None) is None


def test_words_say_what_the_numbers_do():
    dataset = comparison()
    assert "a barrier" in barrier_words(barrier(dataset))
    few = dataset.isel(image=slice(5))
    assert "fewer than 10 images" in barrier_words(barrier(few))
    flat = dataset.final_test_loss_per_image.isel(optimizer=1, seed=0).values
    noise = np.random.default_rng(0).normal(size=(5, IMAGES))
    noise -= noise.mean(axis=1, keepdims=True)
    noise[1:-1] -= 0.05
    wide = dataset.assign(between_test_loss_per_image=(("between", "image"), flat + 9 * noise))
    assert "no barrier seen" in barrier_words(barrier(wide))
    assert "is not excluded" in barrier_words(barrier(wide))
    jittered = dataset.assign(repeat_test_loss_per_image=40 * dataset.repeat_test_loss_per_image)
    assert "of the size of numerical noise" in barrier_words(barrier(jittered))
    dataset["between_test_loss_per_image"][2, 3] = np.inf
    assert "not finite" in barrier_words(barrier(dataset))
    assert barrier(dataset.drop_vars("between_test_loss_per_image")) is None
