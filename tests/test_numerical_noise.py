import numpy as np
import pytest

from evolq.errors import InputError
from landscape.statistics.numerical_noise import jitter_gain, noise_floor


def test_the_floor_of_the_mean_loss_and_of_each_image():
    # Image 0 scatters by 1 up and down, image 1 against it, image 2 not at all.
    up = np.array([1.0, -1, 1, -1, 1, -1])
    opposite = noise_floor(np.stack([up, -up, 0 * up], axis=1))
    assert opposite.mean_loss.estimate == 0
    deviation = np.sqrt(6 / 5)
    assert opposite.per_image == pytest.approx(deviation * np.sqrt(2 / 3))
    together = noise_floor(np.stack([up, up, up], axis=1))
    assert together.mean_loss.estimate == pytest.approx(deviation)  # not less by sqrt 3
    assert (together.repeats, together.images) == (6, 3)
    assert together.mean_loss.over == ("repeats",)


@pytest.mark.parametrize("repeats", [3, 10])
def test_the_interval_of_the_floor_holds_the_truth(repeats):
    random = np.random.default_rng(repeats)
    held = []
    for losses in random.normal(0, 2.0, (3000, repeats, 4)):
        found = noise_floor(losses).mean_loss  # the truth is 2 / sqrt 4
        held.append(found.low <= 1 <= found.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.013)


@pytest.mark.parametrize(
    ("evaluations", "factor"),
    # Known: 0, 1 / sqrt(pi), 3 / (2 sqrt(pi)); the others from tables of normal order statistics.
    [
        (1, 0.0),
        (2, 1 / np.sqrt(np.pi)),
        (3, 1.5 / np.sqrt(np.pi)),
        (10, 1.53875),
        (100, 2.50759),
        (1000, 3.24144),
    ],
)
def test_drawing_lots_gains_the_expected_minimum(evaluations, factor):
    floor = noise_floor(np.random.default_rng(0).normal(size=(20, 5)))
    found = jitter_gain(floor, evaluations)
    assert found.estimate == pytest.approx(factor * floor.mean_loss.estimate, abs=1e-5)
    assert found.high == pytest.approx(factor * floor.mean_loss.high, abs=1e-5)


def test_lots_drawn_in_a_simulation_gain_as_much():
    random = np.random.default_rng(1)
    floor = noise_floor(random.normal(size=(2000, 1)))
    lowest = -random.normal(size=(4000, 40)).min(axis=1).mean()
    found = jitter_gain(floor, 40)
    assert found.low < lowest < found.high


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"not \(1, 5\)"):
        noise_floor(np.zeros((1, 5)))
    with pytest.raises(InputError, match="between 0 and 1"):
        noise_floor(np.zeros((3, 5)), level=2)
    with pytest.raises(InputError, match="not 0"):
        jitter_gain(noise_floor(np.zeros((3, 5))), 0)
