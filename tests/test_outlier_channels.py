"""Channels far out in front of a linear layer: their factors move into the layer's weight."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from tiny_models import images
from torch import Tensor, nn

from evolq.files.onnx import export_onnx
from evolq.files.saved import load_point, save
from evolq.losses.objective import predict
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.optimizers.mixed_precision import calibration_table, weight_values
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate
from evolq.tensor.observers import outlier_factor

FACTOR, WEIGHT = "act.output.factor", "fc2.weight"


class Outlier(nn.Module):
    """Images (n, 1, 8, 8) to 3 classes; channel 5 of the GELU is far out."""

    def __init__(self, bias: float = 300.0) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 3)
        with torch.no_grad():
            self.fc1.bias[5] = bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x.flatten(1))))
        return y


def made(
    bias: float = 300.0, rounding: str = "nearest", bits: int = 4
) -> tuple[nn.Module, QuantizedNetwork, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Outlier(bias).eval()
    network = quantize(model, images(), Quantization("full", bits, 8, rounding=rounding))  # type: ignore[arg-type]
    return model, network, calibrate(network, images())


def test_factors_are_powers_of_two_of_four_medians() -> None:
    reach = torch.tensor([1.0, -1, 1, 7.9, 8, 15.9, -16, 1e9, 0])
    values = torch.cat([reach, torch.ones(20)])[None]  # the median is 1
    assert outlier_factor([values, values / 2], -1)[:9].tolist() == [1, 1, 1, 1, 2, 2, 4, 256, 1]
    assert outlier_factor([torch.zeros(2, 3)], -1).tolist() == [1, 1, 1]


def test_factors_move_into_the_weight() -> None:
    _, network, start = made()
    factor = start[FACTOR]
    assert (factor > 1).nonzero().flatten().tolist() == [5]
    assert factor[5] > 8
    assert torch.equal(start[WEIGHT], network.weights[WEIGHT] * factor)
    _, network, start = made(bias=0.0)
    assert torch.equal(start[FACTOR], torch.ones(16))
    assert torch.equal(start[WEIGHT], network.weights[WEIGHT])


def test_the_ordinary_channels_keep_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    # without the factor a code is 300 / 255 wide, about all that the other channels hold
    model, network, start = made(bits=8)
    monkeypatch.setattr("evolq.tensor.observers.USUAL_REACH", 1e9)
    without = calibrate(network, images())
    assert torch.equal(without[FACTOR], torch.ones(16))
    wanted = predict(model, images())
    kept, lost = ((network(at, images()) - wanted).norm() for at in (start, without))
    assert kept < lost
    # 300 is divided by the factor, 64; a GELU's least value, -0.17, is not: 3.6 % of what is left
    ratio = without["act.output.scale"] / start["act.output.scale"]
    torch.testing.assert_close(ratio, start[FACTOR].max(), rtol=0.04, atol=0.0)


@pytest.mark.slow
def test_integers_give_what_is_simulated() -> None:
    _, network, start = made(bits=8)
    simulated = network(start, images())
    executed = network.executed("integer")(start, images())
    # sums of float32 products against exact ones
    torch.testing.assert_close(executed, simulated, rtol=1e-5, atol=1e-5 * float(simulated.max()))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_saved_start_comes_back(rounding: str, tmp_path: Path) -> None:
    model, network, start = made(rounding=rounding)
    path = tmp_path / "start.safetensors"
    save(network, start, path, model, images())
    loaded = load_point(path, network, model)
    assert loaded.keys() == start.keys()
    assert all(torch.equal(loaded[name], value) for name, value in start.items())


def test_the_exported_network_has_them(tmp_path: Path) -> None:
    _, network, start = made(bits=8)
    path = tmp_path / "model.onnx"
    export_onnx(network, start, path, images())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    wanted = network(start, images())
    # one code of the widest channel, where the runtime's GELU rounds otherwise at a tie
    assert (torch.from_numpy(logits) - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_other_bits_are_calibrated_on_the_weight_that_is_quantized() -> None:
    _, network, start = made(bits=8)
    table = calibration_table(network, weight_values(network, start))
    for entry, value in table[WEIGHT][8].items():
        assert torch.equal(value, start[entry])
