import numpy as np
import pytest
import torch

from evolq.errors import InputError
from landscape.probes.jitter import repeats
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
