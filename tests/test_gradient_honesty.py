import math

import numpy as np
import pytest
import torch

from evolq.errors import InputError
from evolq.points import select
from evolq.problem import prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from landscape.probes.directions import gaussian, normalize
from landscape.probes.gradient_honesty import gradient_honesty

START = {"a.scale": torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)}
UNITS = [{"a.scale": row} for row in torch.eye(3, dtype=torch.float64)]


def random():
    return np.random.default_rng(0)


class Smooth:
    """Half the squared distance in log scales from a minimum, plus a ripple nobody derives.

    f = |log s - m|^2 / 2 + ripple sin(log s / width), and the gradient of the first part alone:
    what straight-through gradients do with rounding.
    """

    minimum = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def __init__(self, ripple=0.0, width=1.0):
        self.ripple, self.width = ripple, width

    def __call__(self, point):
        logs = point["a.scale"].log()
        ripple = self.ripple * torch.sin(logs / self.width).sum()
        return ((logs - self.minimum) ** 2).sum() / 2 + ripple

    def gradient(self, point):
        scale = point["a.scale"]
        return self(point), {"a.scale": (scale.log() - self.minimum) / scale}


def test_an_exact_gradient_agrees_at_every_step():
    found = gradient_honesty(Smooth(), START, UNITS, [1e-3, 0.1, 1.0])
    # central differences of a quadratic are exact
    wanted = (START["a.scale"].log() - Smooth.minimum).numpy()
    np.testing.assert_allclose(found.predicted, wanted, rtol=1e-12)
    np.testing.assert_allclose(found.measured, np.tile(wanted, (3, 1)), rtol=1e-9)
    assert found.resolved.all()
    cosine, signs = found.cosine(random()), found.sign_agreement(random())
    np.testing.assert_allclose(cosine.value, 1)
    np.testing.assert_allclose(signs.value, 1)
    np.testing.assert_allclose(cosine.low, 1)


def test_below_a_ripple_the_gradient_does_not_speak_of_the_loss():
    # the ripple's slope is up to 50, the gradient's 2.2 at most; over many ripples it averages out
    found = gradient_honesty(Smooth(ripple=0.05, width=1e-3), START, UNITS, [1e-5, 1.0])
    slopes = np.cos(START["a.scale"].log().numpy() / 1e-3) * 50 * math.sin(0.01) / 0.01
    np.testing.assert_allclose(found.measured[0], found.predicted + slopes, rtol=1e-6)
    products = found.predicted * found.measured[0]
    wanted = products.sum() / np.linalg.norm(found.predicted) / np.linalg.norm(found.measured[0])
    cosine = found.cosine(random())
    assert cosine.value[0] == pytest.approx(wanted)
    assert found.sign_agreement(random()).value[0] == (products > 0).mean() < 1
    assert cosine.value[1] > 0.99
    assert found.sign_agreement(random()).value[1] == 1


def test_differences_within_the_floor_are_left_out():
    loss = Smooth()
    slopes = np.abs((START["a.scale"].log() - Smooth.minimum).numpy())
    floor = 2 * 0.1 * (np.sort(slopes)[0] + np.sort(slopes)[1]) / 2  # between two differences
    found = gradient_honesty(loss, START, UNITS, [0.01, 0.1], floor)
    assert found.resolved.sum(axis=1).tolist() == [0, 2]
    cosine = found.cosine(random())
    assert np.isnan(cosine.value[0])
    assert cosine.value[1] == pytest.approx(1)


def test_intervals_cover_what_more_directions_give():
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(1)
    dims = 200
    start = {"a.scale": torch.ones(dims, dtype=torch.float64)}
    gradient = torch.randn(dims, dtype=torch.float64, generator=generator)
    true = gradient + torch.randn(dims, dtype=torch.float64, generator=generator)

    class Linear:
        def __call__(self, point):
            return true @ point["a.scale"].log()

        def gradient(self, point):
            return self(point), {"a.scale": gradient}

    wanted = float(gradient @ true / gradient.norm() / true.norm())
    # signs of two normal slopes with this correlation agree with probability 1 - arccos(r) / pi
    signs = 1 - math.acos(wanted) / math.pi
    hits = []
    for _ in range(40):
        directions = [gaussian(start, generator) for _ in range(60)]
        found = gradient_honesty(Linear(), start, directions, [0.1])
        for agreement, truth in (
            (found.cosine(rng, 400), wanted),
            (found.sign_agreement(rng, 400), signs),
        ):
            hits.append(agreement.low[0] <= truth <= agreement.high[0])
    assert np.mean(hits) > 0.85  # 80 intervals of 95 %: fewer than 68 hits in 1 of 1,000 cases


@pytest.mark.slow
def test_slopes_of_a_quantized_network_are_those_of_its_objective():
    problem = prepare(
        Settings(
            quantization=Quantization(weight_bits=4, moment_matching=False),
            calibration_images=8,
            selection_images=0,
            test_images=2,
        )
    )
    moving = select(problem.start, ("scale",), "*.weight.scale")
    objective = problem.objective.vary(tuple(moving), at=problem.start)
    generator = torch.Generator().manual_seed(0)
    directions = [normalize(gaussian(moving, generator), problem.start) for _ in range(8)]
    found = gradient_honesty(objective, problem.start, directions, [0.05, 0.2])
    assert found.measured.shape == (2, 8)
    full, varied = (o.gradient(problem.start)[1] for o in (problem.objective, objective))
    assert varied.keys() == moving.keys()
    for name in moving:  # the same gradient, seen from all entries
        torch.testing.assert_close(full[name], varied[name])
    slope = sum((problem.start[n] * varied[n] * directions[3][n]).double().sum() for n in moving)
    assert found.predicted[3] == pytest.approx(float(slope), rel=1e-5)
    at = {n: problem.start[n] * torch.exp(0.2 * directions[3][n]) for n in moving}
    back = {n: problem.start[n] * torch.exp(-0.2 * directions[3][n]) for n in moving}
    wanted = (float(objective(at)) - float(objective(back))) / 0.4
    assert found.measured[1, 3] == pytest.approx(wanted, rel=1e-5)


def test_nothing_to_compare_is_refused():
    for directions, steps in (([], [0.1]), (UNITS, [])):
        with pytest.raises(InputError, match="at least one"):
            gradient_honesty(Smooth(), START, directions, steps)
    with pytest.raises(InputError, match="positive"):
        gradient_honesty(Smooth(), START, UNITS, [0.1, 0.0])
    with pytest.raises(InputError, match="floor"):
        gradient_honesty(Smooth(), START, UNITS, [0.1], -1.0)
    with pytest.raises(InputError, match="no gradient"):
        gradient_honesty(Smooth(), START, [{"b.scale": torch.ones(3)}], [0.1])
    with pytest.raises(InputError, match="zero"):
        gradient_honesty(Smooth(), START, [{"a.scale": torch.zeros(3)}], [0.1])
