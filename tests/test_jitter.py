import numpy as np
import pytest
import torch

from evolq.errors import InputError
from evolq.losses.jitter import RELATIVE, expected_maximum, jittered
from evolq.problem import Settings, prepare
from evolq.quantization import Quantization
from landscape import PlaneScan
from landscape.probes.jitter import add_repeats, repeats
from landscape.statistics.numerical_noise import noise_floor

POINT = {
    "a.weight.scale": torch.tensor([0.5, 2.0]),
    "a.weight": torch.tensor([3.0, -4.0]),
    "a.weight.zero_point": torch.tensor([1.0]),
}


class Chaos:
    """Losses that grow a relative change of each entry by 1e5: image 0 by that of the first."""

    def __init__(self, names=()):
        self.names = names

    def vary(self, names, at):
        assert at is POINT
        return type(self)(names)

    def per_image(self, point):
        assert set(point) == set(self.names)
        changes = [point[name].double() / POINT[name].double() - 1 for name in self.names]
        return 1e5 * torch.cat(changes)


class ChaosTest(Chaos):
    def per_image(self, point):
        losses = super().per_image(point)
        return 2 * losses, losses > 0


def measure(seed=0, count=200, names=("a.weight", "a.weight.scale"), **options):
    generator = torch.Generator().manual_seed(seed)
    return repeats(Chaos(), ChaosTest(), POINT, names, count, generator, **options)


def test_each_repeat_is_jittered_by_itself_and_relatively():
    found = measure()
    assert found.test_loss_per_image.dims == ("repeat", "image")
    assert dict(found.sizes) == {"repeat": 200, "image": 4, "calibration_image": 4}
    assert (found.status == 1).all()
    # The start is measured without jitter.
    assert (found.start_test_loss_per_image == 0).all()
    losses = found.loss_per_image.values / 1e5
    # 4 entries x 200 normal numbers: their standard deviation is known to 4 sqrt(1 / 1600) = 10 %;
    # float32 rounds a relative change by up to 6e-8 of 1e-6.
    assert losses.std(axis=0) == pytest.approx(np.full(4, 1e-6), rel=0.2)
    assert losses.std() == pytest.approx(1e-6, rel=0.1)
    assert np.abs(np.corrcoef(losses.T) - np.eye(4)).max() < 0.3
    assert measure(relative=1e-4).loss_per_image.values.std() == pytest.approx(10, rel=0.1)


def test_the_floor_is_that_of_the_repeats():
    found = measure(count=500)
    floor = noise_floor(found.test_loss_per_image.values)
    # 4 independent images of deviation 2 x 1e5 x 1e-6.
    assert floor.mean_loss.low < 0.1 < floor.mean_loss.high
    assert floor.per_image == pytest.approx(0.2, rel=0.1)


def test_the_same_generator_gives_the_same_repeats():
    assert measure(3, 5).identical(measure(3, 5))
    assert not measure(3, 5).equals(measure(4, 5))


def test_the_order_of_names_does_not_matter():
    assert measure(1, 5).identical(measure(1, 5, names=("a.weight.scale", "a.weight")))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="1 repeat or more was expected, not 0"):
        measure(count=0)
    with pytest.raises(InputError, match="positive and finite"):
        measure(relative=0.0)
    with pytest.raises(InputError, match="no names"):
        measure(names=())
    with pytest.raises(InputError, match="'b' to jitter"):
        measure(names=("b",))
    with pytest.raises(InputError, match="zero_point' cannot be jittered"):
        measure(names=("a.weight.zero_point",))


def test_pixels_and_scales_of_activations_are_jittered_and_nothing_else():
    problem = prepare(Settings(calibration_images=10, selection_images=0, test_images=10))
    before = problem.test.forward
    again, point = jittered(problem.test, problem.start, torch.Generator().manual_seed(0))
    changes = (again.forward.images[:] / before.images - 1)[before.images != 0]
    assert float(changes.abs().max()) < 6 * RELATIVE
    assert float(changes.double().std()) == pytest.approx(RELATIVE, rel=0.05)  # float32: 6e-8
    assert again.forward.network is before.network
    moved = {name for name in point if not torch.equal(point[name], problem.start[name])}
    sites = problem.network.sites
    assert moved <= {f"{name}.scale" for name in sites if sites[name].kind != "weight"}
    assert len(moved) > 40
    for name in moved:
        assert float((point[name] / problem.start[name] - 1).abs().max()) < 6 * RELATIVE


@pytest.mark.slow
def test_full_precision_has_no_floor_to_speak_of_and_a_quantized_network_has():
    floors = {}
    for quantization in (Quantization("none"), Quantization("full", weight_bits=4)):
        settings = Settings(
            quantization=quantization, calibration_images=10, selection_images=0, test_images=20
        )
        over = "weights" if quantization.scheme == "none" else "scales"
        scan = PlaneScan(over=over, points=2, radius=0.01, repeats=4)
        found = scan.sample(prepare(settings))
        assert found.repeat_loss_per_image.sizes == {"repeat": 4, "calibration_image": 10}
        assert found.repeat_test_loss_per_image.sizes == {"repeat": 4, "image": 20}
        floors[quantization.scheme] = noise_floor(found.repeat_test_loss_per_image.values)
    assert floors["none"].per_image < 1e-4
    assert floors["full"].per_image > 10 * floors["none"].per_image


@pytest.mark.slow
def test_repeats_can_be_left_out():
    problem = prepare(Settings(calibration_images=10, selection_images=0, test_images=10))
    scan = PlaneScan(points=2, radius=0.01, repeats=0)
    assert "repeat" not in scan.sample(problem).dims
    found = scan.sample(problem)
    add_repeats(
        found, problem.objective, problem.test, problem.start, 3, torch.Generator().manual_seed(0)
    )
    assert found.sizes["repeat"] == 3


@pytest.mark.parametrize(("number", "mean"), [(1, 0.0), (2, np.pi**-0.5), (3, 1.5 * np.pi**-0.5)])
def test_expected_maximum_in_closed_form(number, mean):
    assert expected_maximum(number) == pytest.approx(mean, abs=1e-12)
