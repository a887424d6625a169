import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from evolq.errors import InputError
from landscape.probes.walks import random_walk, sample_walks

ORIGIN = {
    "a.scale": torch.full((40,), 0.5),
    "b.scale": torch.tensor([1e-3, 2.0, 7.0, 1.0]),
    "fixed": torch.ones(2),
}
NAMES = ("b.scale", "a.scale")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Losses:
    """Per image the sum of the scales, plus the image's number; of two moving entries alone."""

    images = 3
    names = None

    def vary(self, names, at):
        assert at is ORIGIN
        varied = type(self)()
        varied.names = names
        return varied

    def per_image(self, point):
        assert set(point) == set(self.names)
        total = sum(value.sum() for value in point.values())
        return total + torch.arange(self.images)


class Test(Losses):
    __test__ = False
    images = 5

    def per_image(self, point):
        losses = super().per_image(point)
        return losses, losses > 25


def test_every_step_has_the_length_and_moves_scales_by_factors():
    walk = random_walk(ORIGIN, NAMES, 0.1, 20, generator())
    assert walk[0] is ORIGIN
    assert len(walk) == 21
    for one, other in pairwise(walk):
        steps = torch.cat([(other[n].double() / one[n].double()).log() for n in NAMES])
        # float32 holds a relative step of 0.1 to 1e-6
        assert float(steps.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)
        assert other["fixed"] is ORIGIN["fixed"]
        assert all((other[n] > 0).all() for n in NAMES)


def test_a_walk_is_its_generator_and_not_the_order_of_names():
    one, other = (random_walk(ORIGIN, n, 0.3, 4, generator(3)) for n in (NAMES, NAMES[::-1]))
    assert all(torch.equal(a[n], b[n]) for a, b in zip(one, other, strict=True) for n in ORIGIN)
    another = random_walk(ORIGIN, NAMES, 0.3, 4, generator(4))
    assert not torch.equal(one[1]["a.scale"], another[1]["a.scale"])


def test_the_distance_from_the_start_grows_as_the_root_of_the_steps():
    steps, length = 25, 0.1
    walks = [random_walk(ORIGIN, NAMES, length, steps, generator(s)) for s in range(40)]
    squares = [
        torch.cat([(walk[-1][n] / ORIGIN[n]).log() for n in NAMES]).square().mean()
        for walk in walks
    ]
    # independent steps: mean square steps length^2; relative error of one square about
    # sqrt(2 / 44), of the mean of 40 about 0.034
    assert float(torch.stack(squares).mean()) == pytest.approx(steps * length**2, rel=0.12)


def test_losses_and_positions_of_walks():
    walks = [random_walk(ORIGIN, NAMES, 0.2, 6, generator(s)) for s in range(2)]
    seen = []
    dataset = sample_walks(
        walks, Losses(), Test(), lambda d, done, total: seen.append((done, total))
    )
    sizes = {"walk": 2, "step": 7, "component": 6, "calibration_image": 3, "image": 5}
    assert dict(dataset.sizes) == sizes
    assert seen == [(done, 14) for done in range(15)]
    for number, walk in enumerate(walks):
        for step, point in enumerate(walk):
            total = float(sum(point[n].sum() for n in NAMES))
            cell = dataset.isel(walk=number, step=step)
            assert float(cell.loss) == pytest.approx(total + 1, rel=1e-6)
            np.testing.assert_allclose(cell.test_loss_per_image, total + np.arange(5), rtol=1e-6)
            for other_step, other in enumerate(walk):
                logs = torch.cat([(point[n].double() / other[n].double()).log() for n in NAMES])
                apart = dataset.position[number, step] - dataset.position[number, other_step]
                wanted = math.sqrt(float(logs.square().mean()))
                # displacements from the start are float32
                assert float(np.linalg.norm(apart)) == pytest.approx(wanted, abs=1e-6)
    assert float(dataset.start_loss_per_image.mean()) == float(dataset.loss[0, 0])


def test_a_walk_longer_than_its_space_has_positions():
    origin = {"a.scale": torch.ones(2)}
    walk = random_walk(origin, ["a.scale"], 0.1, 9, generator())

    class Few(Losses):
        def vary(self, names, at):
            self.names = names
            return self

    class FewTest(Test, Few):
        def vary(self, names, at):
            return Few.vary(self, names, at)

    position = sample_walks([walk], Few(), FewTest()).position[0]
    assert position.shape == (10, 9)
    steps = np.linalg.norm(np.diff(position, axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.1, rtol=1e-4)


def test_walks_that_lead_nowhere_are_refused():
    with pytest.raises(InputError, match="length"):
        random_walk(ORIGIN, NAMES, 0.0, 3, generator())
    with pytest.raises(InputError, match="0 steps"):
        random_walk(ORIGIN, NAMES, 0.1, 0, generator())
    with pytest.raises(InputError, match="'c'"):
        random_walk(ORIGIN, ["c"], 0.1, 3, generator())
    with pytest.raises(InputError, match="nothing"):
        random_walk(ORIGIN, [], 0.1, 3, generator())
    one, other = (random_walk(ORIGIN, NAMES, 0.1, n, generator()) for n in (2, 3))
    with pytest.raises(InputError, match="one length"):
        sample_walks([one, other], Losses(), Test())
    with pytest.raises(InputError, match="no Points"):
        sample_walks([], Losses(), Test())
    elsewhere = [dict(one[0]), *one[1:]]
    with pytest.raises(InputError, match="same origin"):
        sample_walks([one, elsewhere], Losses(), Test())
    with pytest.raises(InputError, match="move no entry"):
        sample_walks([[ORIGIN, ORIGIN]], Losses(), Test())
