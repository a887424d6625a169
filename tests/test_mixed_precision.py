"""The search of bit-widths: its budget, its table, and that it finds the layer that matters."""

import math

import pytest
import torch
from tiny_models import plain
from torch import Tensor, nn

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA, Criterion
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.optimizers.mixed_precision import (
    average_bits,
    bits_in,
    move_bits,
    search_bits,
    weight_values,
)
from evolq.starts.calibration import calibrate

SIZES = {"small": 10, "middle": 100, "large": 300}


class Layers(nn.Module):
    """Three linear layers, of which the second one needs no more than 2 bits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, (outputs, inputs) in {"a": (20, 16), "b": (20, 20), "c": (4, 20)}.items():
            layer = nn.Linear(inputs, outputs)
            layer.weight.data = torch.randn(outputs, inputs, generator=generator)
            setattr(self, name, layer)
        self.b.weight.data = torch.randint(-1, 3, (20, 20), generator=generator).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.c(self.b(self.a(images.flatten(1)).relu()).relu())


@pytest.fixture(scope="module")
def data() -> LabeledImages:
    images = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return LabeledImages(images, torch.arange(16) % 4, tuple(map(str, range(16))))


@pytest.fixture(scope="module")
def network(data: LabeledImages) -> QuantizedNetwork:
    return quantize(Layers(), data.images[:2], plain(weight_bits=3, weight_observer="mse"))


@pytest.fixture(scope="module")
def start(network: QuantizedNetwork, data: LabeledImages) -> dict[str, Tensor]:
    return calibrate(network, data.images)


def objective(
    network: QuantizedNetwork, data: LabeledImages, criterion: Criterion = CRITERIA["mse"]
) -> Objective:
    return Objective.of(network, data, criterion, predict(Layers(), data.images))


def sizes(network: QuantizedNetwork) -> dict[str, int]:
    return {name: network.weights[name].numel() for name in ("a.weight", "b.weight", "c.weight")}


@pytest.mark.parametrize("average", [2.0, 2.5, 3.0, 7.9, 8.0])
def test_a_move_keeps_the_budget_and_uses_it_up(average: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = dict.fromkeys(SIZES, math.floor(average))
    seen = set()
    for _ in range(200):
        bits = move_bits(bits, SIZES, average, generator)
        assert all(2 <= width <= 8 for width in bits.values())
        left = average * 410 - sum(bits[name] * SIZES[name] for name in SIZES)
        assert left >= 0
        assert all(SIZES[name] > left for name in SIZES if bits[name] < 8), "nothing more fits"
        seen.add(tuple(bits.values()))
    assert len(seen) == 1 if average in (2.0, 8.0) else len(seen) > 1


def test_the_search_beats_uniform_bits_within_the_budget(
    network: QuantizedNetwork, start: dict[str, Tensor], data: LabeledImages
) -> None:
    measured = objective(network, data)
    iterates = list(search_bits(measured, start, 3.0, evaluations=40))
    assert len(iterates) == 41
    uniform = bits_in(iterates[0].point)
    assert {uniform[name] for name in sizes(network)} == {3}
    assert iterates[0].loss == float(measured(start)), "uniform bits at 3 are the start itself"
    losses = [iterate.loss for iterate in iterates]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    found = bits_in(iterates[-1].point)
    assert average_bits(found, sizes(network)) <= 3
    assert iterates[-1].loss == float(measured(iterates[-1].point))
    assert found["b.weight"] == 2
    assert found["a.input"] == 8, "activations stay"


def test_changed_bits_bring_their_own_calibration(
    network: QuantizedNetwork, start: dict[str, Tensor], data: LabeledImages
) -> None:
    last = list(search_bits(objective(network, data), start, 4.0, evaluations=20))[-1]
    network.check(last.point)
    for name in sizes(network):
        bits = bits_in(last.point)[name]
        at_bits = plain(weight_bits=bits, weight_observer="mse")
        alone = calibrate(quantize(Layers(), data.images[:2], at_bits), data.images)
        for entry in (f"{name}.scale", f"{name}.zero_point", f"{name}.bits"):
            assert torch.equal(last.point[entry], alone[entry])


def test_the_seed_decides_and_the_cost_is_true(
    network: QuantizedNetwork, start: dict[str, Tensor], data: LabeledImages
) -> None:
    measured = objective(network, data)
    runs = [
        [bits_in(i.point) for i in search_bits(measured, start, 3.0, evaluations=10, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    before = measured.cost
    last = list(search_bits(measured, start, 3.0, evaluations=10))[-1]
    assert last.evaluations == 11
    assert last.cost == pytest.approx(measured.cost - before) == pytest.approx(11)


def test_nan_is_the_worst(
    network: QuantizedNetwork, start: dict[str, Tensor], data: LabeledImages
) -> None:
    first = network(start, data.images)
    trap = Criterion(
        "trap",
        lambda student, teacher, labels: torch.full(
            (16,), 1.0 if torch.equal(student, first) else float("nan")
        ),
    )
    iterates = list(search_bits(objective(network, data, trap), start, 3.0, evaluations=20))
    assert iterates[-1].loss == 1.0
    assert set(bits_in(iterates[-1].point).values()) == {3, 8}


def test_what_cannot_be_searched_is_refused(
    network: QuantizedNetwork, start: dict[str, Tensor], data: LabeledImages
) -> None:
    with pytest.raises(TypeError, match="TestEvaluation"):
        search_bits(TestEvaluation.of(network, data), start, 3.0)
    for average in (1.9, 8.5, float("nan")):
        with pytest.raises(InputError, match="number from 2 to 8"):
            search_bits(objective(network, data), start, average)
    assert list(weight_values(network, start)) == ["a.weight", "b.weight", "c.weight"]
