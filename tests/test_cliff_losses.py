"""The loss around cliffs, on tiny networks whose codes and logits are all known."""

import numpy as np
import pytest
import torch
from tiny_models import TinyTransformer, images, plain, randomized
from torch import nn

from evolq.errors import InputError
from evolq.files.saved import integer_weights
from evolq.network.quantized import quantize
from evolq.points import select
from evolq.starts.calibration import calibrate
from landscape.probes.cliff_losses import (
    Variation,
    frozen,
    held_losses,
    loss_jumps,
    scan_intervals,
)
from landscape.probes.cliffs import find_cliffs
from landscape.probes.directions import gaussian, normalize
from landscape.probes.slices import Line


class SquaredLogits:
    """Per image the mean square of the logits: a smooth function of the quantized weights."""

    def __init__(self, network, function=None):
        self.network, self.function, self.points = network, function, 0

    def vary(self, names, at):
        return SquaredLogits(self.network, self.network.vary(names, at, images()))

    def per_image(self, point):
        self.points += 1
        with torch.no_grad():
            return self.function(point).square().mean(1)


def losses_of(network, point):
    with torch.no_grad():
        return network(point, images()).double().square().mean(1).numpy()


def split_variation(network, line, distances):
    objective = SquaredLogits(network)
    varied = objective.vary(sorted(line.direction), line.origin)
    points = [{n: p[n] for n in line.direction} for p in map(line.at, map(float, distances))]
    following = np.array([varied.per_image(point).double().numpy() for point in points])
    return Variation(following, held_losses(network, objective, line, distances))


def prepared(matching, within="fc1.weight.scale", scheme="weights", seed=0):
    model = randomized(TinyTransformer())
    network = quantize(model, images(), plain(scheme, 4, 8, moment_matching=matching))
    point = calibrate(network, images())
    moving = select(point, ("scale",), within)
    direction = normalize(gaussian(moving, torch.Generator().manual_seed(seed)), point)
    return network, Line(point, direction)


@pytest.mark.parametrize("matching", [False, True])
def test_frozen_weights_keep_their_codes_and_take_the_new_scale(matching):
    network, line = prepared(matching, "*.weight.scale")
    here, there = line.at(0.0), line.at(0.4)
    held = frozen(network, here, there)
    network.check(held)
    codes, followed, at_start = (integer_weights(network, p) for p in (held, there, here))
    for name, weight in codes.items():
        assert torch.equal(weight.codes, at_start[name].codes), name
        if matching:  # the quantized weight does not depend on the scale while its codes are held
            assert torch.equal(weight.value(), at_start[name].value())
        else:
            factor = (there[f"{name}.scale"] / here[f"{name}.scale"]).reshape(
                -1, *[1] * (weight.codes.dim() - 1)
            )
            torch.testing.assert_close(weight.value(), at_start[name].value() * factor)
    assert any(not torch.equal(followed[n].codes, codes[n].codes) for n in codes)


@pytest.mark.parametrize("matching", [False, True])
def test_frozen_between_two_cliffs_is_the_point_itself(matching):
    network, line = prepared(matching, "*.weight.scale")
    found = find_cliffs(network, line, 0.01)
    gap = np.argmax(np.diff(found.distance))
    a, b = found.distance[gap : gap + 2]
    here, there = (line.at(float(a + f * (b - a))) for f in (0.1, 0.9))
    held = frozen(network, here, there)
    # equal but for float32 rounding of products and sums
    np.testing.assert_allclose(losses_of(network, held), losses_of(network, there), rtol=1e-5)


@pytest.mark.parametrize("matching", [False, True])
def test_the_jump_at_a_cliff_is_that_of_one_step_of_one_weight(matching):
    network, line = prepared(matching)
    found = find_cliffs(network, line, 0.05)
    jumps = loss_jumps(SquaredLogits(network), line, found)
    assert len(jumps.jump) > 3
    assert (jumps.cliffs == 1).all()
    for index in range(len(found)):
        a = float(found.distance[index])
        codes = [
            integer_weights(network, line.at(a + side * 1e-5))["fc1.weight"].codes.int()
            for side in (-1, 1)
        ]
        difference = (codes[1] - codes[0]).flatten()
        assert difference.nonzero().flatten().tolist() == [found.element[index]]
        wanted = losses_of(network, line.at(a + 1e-5)) - losses_of(network, line.at(a - 1e-5))
        # float32 losses of about 1, and a drift over 2e-5
        np.testing.assert_allclose((jumps.after - jumps.before)[index], wanted, atol=2e-5)
        assert jumps.standard_error[index] == pytest.approx(
            (jumps.after - jumps.before)[index].std(ddof=1) / np.sqrt(6)
        )
    assert jumps.above(0.0).all()
    assert not jumps.above(np.abs(jumps.jump).max()).any()
    few = loss_jumps(SquaredLogits(network), line, found, [2, 0])
    np.testing.assert_array_equal(few.jump, jumps.jump[[0, 2]])
    with pytest.raises(InputError, match="floor"):
        jumps.above(-1.0)


def test_cliffs_that_float32_cannot_tell_apart_are_one_place():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    model = randomized(model)
    with torch.no_grad():
        model[1].weight[0, 1::2] = model[1].weight[0, 0::2]  # every weight twice
    network = quantize(model, images(), plain("weights", 4))
    point = calibrate(network, images())
    line = Line(point, {"1.weight.scale": torch.tensor([1.0, 0.0])})
    found = find_cliffs(network, line, 0.1)
    jumps = loss_jumps(SquaredLogits(network), line, found)
    assert len(found) == 2 * len(jumps.jump)
    assert (jumps.cliffs == 2).all()
    assert (jumps.low[1:] > jumps.high[:-1]).all()


def test_drift_and_jumps_of_a_line():
    network, line = prepared(False, "*.weight.scale")
    distances = np.linspace(-0.02, 0.02, 81)
    found = split_variation(network, line, distances)
    steps = np.diff(found.following.mean(axis=1))
    np.testing.assert_allclose(found.drift + found.jump, steps, atol=1e-12)
    one = found.of_images(np.array([2, 2]))
    np.testing.assert_allclose(one.jump, found.following[1:, 2] - found.held[:, 2], atol=1e-12)
    cliffs = find_cliffs(network, line, 0.02).distance
    quiet = np.histogram(cliffs, distances)[0] == 0
    assert 5 < quiet.sum() < 75
    # nothing flips in a quiet step; float32 rounds losses of about 1
    np.testing.assert_allclose(found.jump[quiet], 0, atol=1e-6)
    assert np.abs(found.jump[~quiet]).min() > 0
    assert 0.5 < found.share_of_jumps() < 1
    floor = np.abs(found.drift).max()
    assert found.share_of_jumps(floor) == 1  # what is left is jumps
    assert np.isnan(found.share_of_jumps(np.abs(found.jump).max() + floor))
    with pytest.raises(InputError, match="floor"):
        found.share_of_jumps(-1.0)


def test_moment_matched_weights_do_not_drift():
    network, line = prepared(True, "*.weight.scale")
    found = split_variation(network, line, np.linspace(-0.1, 0.1, 21))
    np.testing.assert_allclose(found.drift, 0, atol=1e-6)
    assert found.share_of_jumps() > 0.999


def test_activations_alone_make_only_drift():
    network, line = prepared(False, "fc1.input.scale", "linear")
    found = split_variation(network, line, np.linspace(-0.1, 0.1, 5))
    assert found.share_of_jumps() == 0
    still = Line(line.origin, {"fc1.input.scale": torch.tensor(1e-12)})  # less than float32 holds
    constant = split_variation(network, still, np.linspace(-0.1, 0.1, 3))
    assert np.isnan(constant.share_of_jumps())


def test_an_exact_scan_finds_the_minimum_of_the_line():
    network, line = prepared(True)
    objective = SquaredLogits(network)
    found = scan_intervals(network, objective, line, 0.1)
    assert found.constant
    assert len(found.low) == len(find_cliffs(network, line, 0.1)) + 1
    assert (found.low < found.high).all()
    assert (found.low[1:] > found.high[:-1]).all()
    lowest = found.losses.mean(axis=1)[found.minimum]
    fine = np.linspace(-0.1, 0.1, 201)
    sampled = np.array([losses_of(network, line.at(float(a))).mean() for a in fine])
    inside = np.searchsorted(found.low, fine, side="right") - 1
    # float32 losses of about 1; the grid's points are all inside some interval
    np.testing.assert_allclose(sampled, found.losses.mean(axis=1)[inside], atol=2e-6)
    assert lowest <= sampled.min() + 2e-6
    assert not scan_intervals(prepared(False)[0], objective, line, 0.01).constant


def test_what_cannot_be_scanned_exactly_is_refused():
    network, line = prepared(False, "fc1.*.scale", "linear")
    with pytest.raises(InputError, match=r"fc1\.input\.scale"):
        scan_intervals(network, SquaredLogits(network), line, 0.1)
    network, line = prepared(False)
    with pytest.raises(InputError, match="intervals"):
        scan_intervals(network, SquaredLogits(network), line, 0.2, most=3)
    with pytest.raises(InputError, match="ascending"):
        held_losses(network, SquaredLogits(network), line, np.array([0.0, 0.0]))


class Tied(nn.Module):
    """A weight that is read by another operator than its layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        return self.linear(x.flatten(1)) + self.linear.weight.mean()


def test_a_weight_that_others_read_cannot_be_held():
    network = quantize(randomized(Tied()), images(), plain("weights", 4))
    point = calibrate(network, images())
    line = Line(point, {"linear.weight.scale": torch.ones(64)})
    with pytest.raises(InputError, match="several operators"):
        frozen(network, point, line.at(0.1))
