import dataclasses

import pytest
import torch
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Objective, TestEvaluation, predict
from evolq.network.quantized import quantize
from evolq.points import select
from evolq.starts import calibration
from evolq.starts.calibration import calibrate
from evolq.tensor.observers import OBSERVERS

COUNT = 10


@pytest.fixture(scope="module")
def model():
    return randomized(TinyTransformer())


@pytest.fixture(scope="module")
def data():
    return LabeledImages(images(COUNT), torch.arange(COUNT) % 3, tuple(map(str, range(COUNT))))


@pytest.fixture(scope="module")
def network(model):
    return quantize(model, images(), plain("linear", weight_bits=3))


@pytest.fixture(scope="module")
def point(network):
    return calibrate(network, images(COUNT))


def objective(network, data, model, name="info_nce", batch_size=4) -> Objective:
    teacher = predict(model, data.images)
    return Objective.of(network, data, CRITERIA[name], teacher, batch_size)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_loss_is_the_criterion_of_the_networks_logits(network, point, data, model, name):
    measured = objective(network, data, model, name)
    logits = torch.cat([network(point, batch) for batch in data.images.split(4)])
    expected = CRITERIA[name].per_image(logits, predict(model, data.images), data.labels)
    assert torch.equal(measured.per_image(point), expected)
    assert torch.equal(measured(point), expected.mean())


def test_a_part_gives_the_same_values_at_its_share_of_the_cost(network, point, data, model):
    whole = objective(network, data, model)
    expected = whole.per_image(point)
    assert whole.cost == 1
    scales = select(point, {"scale"}, within="head.*")
    part = whole.vary(list(scales), point)
    share = part.forward.function.share
    assert 0 < share < 0.1
    assert part.cost == whole.cost == pytest.approx(2 - share), "preparing a part is not free"
    assert torch.equal(part.per_image(scales), expected)
    assert part.cost == whole.cost == pytest.approx(2)


@pytest.mark.parametrize("name", ["info_nce", "kl"])
def test_the_gradient_equals_plain_automatic_differentiation(network, point, data, model, name):
    moving = select(point, {"scale", "zero_point"})
    part = objective(network, data, model, name).vary(list(moving), point)
    before = part.cost
    loss, gradient = part.gradient(moving)
    assert part.cost - before == pytest.approx(3)
    leaves = {key: value.clone().requires_grad_() for key, value in moving.items()}
    logits = network({**point, **leaves}, data.images)
    expected = CRITERIA[name].per_image(logits, predict(model, data.images), data.labels).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for key, leaf in leaves.items():
        # float32 sums over images in another order
        torch.testing.assert_close(gradient[key], leaf.grad, rtol=1e-3, atol=1e-5)


def test_evaluations_leave_no_gradient_and_change_nothing(network, point, data, model):
    before = {name: value.clone() for name, value in point.items()}
    moving = {name: value.clone().requires_grad_() for name, value in point.items()}
    assert not objective(network, data, model).per_image(moving).requires_grad
    assert all(torch.equal(before[name], value) for name, value in point.items())


def test_the_test_evaluation_is_another_type(network, point, data):
    test = TestEvaluation.of(network, data, batch_size=4)
    assert not isinstance(test, Objective)
    cross_entropy, correct = test.per_image(point)
    logits = torch.cat([network(point, batch) for batch in data.images.split(4)])
    assert torch.equal(correct, logits.argmax(1) == data.labels)
    expected = -logits.log_softmax(1)[torch.arange(COUNT), data.labels]
    torch.testing.assert_close(cross_entropy, expected)
    head = select(point, {"scale"}, within="head.*")
    assert torch.equal(test.vary(list(head), point).per_image(head)[0], cross_entropy)


def test_a_teacher_of_other_images_is_refused(network, data, model):
    with pytest.raises(InputError, match="one row for each of the 10 images"):
        Objective.of(network, data, CRITERIA["kl"], predict(model, data.images[:4]))
    with pytest.raises(InputError, match="not finite"):
        Objective.of(network, data, CRITERIA["kl"], torch.full((COUNT, 3), float("nan")))


class TestCalibrate:
    @pytest.mark.parametrize("observer", OBSERVERS)
    @pytest.mark.parametrize("scheme", ["linear", pytest.param("full", marks=pytest.mark.slow)])
    def test_every_observer_gives_a_complete_point(self, model, observer, scheme):
        observers = {"weight_observer": observer, "activation_observer": observer}
        network = quantize(model, images(), plain(scheme, weight_bits=4, **observers))
        point = calibrate(network, images(COUNT), batch_size=4)
        assert tuple(point) == network.names
        network.check(point)

    def test_min_max_by_hand(self, model, network):
        point = calibrate(network, images(COUNT))
        tokens = model.embed(images(COUNT)).flatten(2).transpose(1, 2)
        seen = model.norm1(tokens).detach()
        low, high = seen.min().clamp(max=0), seen.max().clamp(min=0)
        torch.testing.assert_close(point["qkv.input.scale"], (high - low) / 255)
        weight = model.fc1.weight.detach()
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        torch.testing.assert_close(point["fc1.weight.scale"], (high - low) / 7)

    def test_weights_may_have_an_observer_of_their_own(self, model):
        def start(weights, activations):
            observers = {"weight_observer": weights, "activation_observer": activations}
            network = quantize(model, images(), plain(weight_bits=3, **observers))
            return network, calibrate(network, images(COUNT))

        network, mixed = start("minmax", "mse")
        minmax, mse = start("minmax", "minmax")[1], start("mse", "mse")[1]
        for name, site in network.sites.items():
            expected = minmax if site.kind == "weight" else mse
            assert torch.equal(mixed[f"{name}.scale"], expected[f"{name}.scale"])
        assert any(not torch.equal(minmax[name], mse[name]) for name in network.names)

    def test_little_memory_changes_nothing(self, network, monkeypatch):
        expected = calibrate(network, images(COUNT), batch_size=4)
        monkeypatch.setattr(calibration, "MEMORY_BYTES", 1000)
        small = calibrate(network, images(COUNT), batch_size=4)
        assert all(torch.equal(expected[name], value) for name, value in small.items())

    def test_bad_input(self, model, network):
        with pytest.raises(InputError, match="unknown `weight_observer` 'max'"):
            calibrate(quantize(model, images(), plain(weight_observer="max")), images())
        with pytest.raises(InputError, match="n > 0"):
            calibrate(network, images()[:0])
        broken = images()
        broken[0, 0, 0, 0] = float("nan")
        with pytest.raises(InputError, match="NaN"):
            calibrate(network, broken)


def test_residual_networks_work_alike(data):
    model = randomized(TinyResidual())
    network = quantize(model, images(), plain("full", weight_bits=4))
    point = calibrate(network, images(COUNT))
    measured = objective(network, data, model, "mse")
    assert dataclasses.is_dataclass(measured)
    assert measured(point) < measured(
        {**point, "head.weight.scale": 9 * point["head.weight.scale"]}
    )
