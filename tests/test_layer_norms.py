"""LayerNorms folded into their parameters and the next layer's."""

from pathlib import Path

import pytest
import torch
from tiny_models import TinyTransformer, images, randomized
from torch import Tensor, nn

from evolq.files.saved import load_point, save
from evolq.losses.objective import predict
from evolq.network.layer_norms import fold_layer_norms
from evolq.network.quantized import quantize
from evolq.points import Point
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate

FOUR_BITS = Quantization("linear", 4, 4)
FOLDED = {f"{norm}.{role}" for norm in ("norm1", "norm2") for role in ("weight", "bias")}
FOLDED |= {f"{layer}.{role}" for layer in ("qkv", "fc1") for role in ("weight", "bias")}


def transformer(spread: float = 1.0) -> nn.Module:
    """Return a transformer whose first LayerNorm has channels far apart."""
    model = randomized(TinyTransformer())
    with torch.no_grad():
        model.norm1.weight *= spread ** torch.linspace(-1, 1, 8)
        model.norm1.bias += 2 * spread ** torch.linspace(1, -1, 8)
        model.qkv.weight /= spread ** torch.linspace(-1, 1, 8)
    return model


def changed(before: Point, after: Point) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_full_precision_stays_the_same() -> None:
    model = transformer(8.0)
    network = quantize(model, images(), FOUR_BITS)
    folded = fold_layer_norms(network, images())
    assert changed(network.weights, folded.weights) == FOLDED
    wanted = predict(model, images(20))
    logits = folded.full_precision()(folded.weights, images(20))
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_channels_get_one_range_with_zero_in_the_middle() -> None:
    network = quantize(transformer(8.0), images(), FOUR_BITS)
    seen: dict[str, Tensor] = {}

    def read(name: str, value: Tensor) -> None:
        seen[name] = value.flatten(0, -2)

    fold_layer_norms(network, images()).observe(images(), read)
    for name in ("qkv.input", "fc1.input"):
        low, high = (
            values.clamp(max=0) if side < 0 else values.clamp(min=0)
            for side, values in ((-1, seen[name].amin(0)), (1, seen[name].amax(0)))
        )
        reach = torch.maximum(high, -low)
        # a range that was widened to contain zero reaches as far on one side only
        torch.testing.assert_close(reach, reach.mean().expand_as(reach), rtol=1e-4, atol=0.0)


def test_layers_follow_in_closed_form() -> None:
    network = quantize(transformer(3.0), images(), FOUR_BITS)
    own, folded = network.weights, fold_layer_norms(network, images()).weights
    ratio = own["norm2.weight"] / folded["norm2.weight"]
    middle = own["norm2.bias"] - folded["norm2.bias"] * ratio
    torch.testing.assert_close(folded["fc1.weight"], own["fc1.weight"] * ratio)
    torch.testing.assert_close(folded["fc1.bias"], own["fc1.bias"] + own["fc1.weight"] @ middle)
    torch.testing.assert_close(ratio.log().mean(), torch.tensor(0.0), atol=1e-5, rtol=0.0)


class Reads(nn.Module):
    """A LayerNorm whose output is read in some way; images (n, 1, 8, 8) to 3 classes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(8, elementwise_affine=how != "no parameters")
        self.fc = nn.Linear(8, 8, bias=how != "no bias")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x[:, 0])
        y = self.fc(normed.mT if self.how == "another axis" else normed)
        if self.how == "the skip path, too":
            y = y + normed
        if self.how == "the weight twice":
            y = self.fc(y)
        z: Tensor = self.head(y.mean(1))
        return z


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("linear", 4),
        ("no parameters", 0),
        ("no bias", 0),
        ("another axis", 0),
        ("the skip path, too", 0),
        ("the weight twice", 0),
    ],
)
def test_what_cannot_be_folded_stays(how: str, count: int) -> None:
    network = quantize(randomized(Reads(how)), images(), FOUR_BITS)
    folded = fold_layer_norms(network, images())
    assert len(changed(network.weights, folded.weights)) == count
    wanted = network.full_precision()(network.weights, images())
    logits = network.full_precision()(folded.weights, images())
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_constant_layer_norm_stays() -> None:
    model = randomized(Reads("linear"))
    nn.init.zeros_(model.norm.weight)
    nn.init.zeros_(model.norm.bias)
    network = quantize(model, images(), FOUR_BITS)
    assert not changed(network.weights, fold_layer_norms(network, images()).weights)


def test_four_bits_lose_less() -> None:
    model = randomized(Reads("linear"))
    spread = 8 ** torch.linspace(-1, 1, 8)
    with torch.no_grad():
        model.norm.weight *= spread
        model.fc.weight /= spread
    wanted = predict(model, images())
    lost = []
    for fold in (True, False):
        quantization = Quantization("linear", 8, 4, fold_layer_norms=fold)
        network = quantize(model, images(), quantization)
        lost.append(float((network(calibrate(network, images()), images()) - wanted).norm()))
    assert lost[0] < 0.5 * lost[1]


def test_by_default_below_8_bits_of_activations() -> None:
    for scheme, bits, fold in (("linear", 4, True), ("full", 8, False), ("published", 4, False)):
        resolved = Quantization(scheme, 4, bits).resolved()  # type: ignore[arg-type]
        assert resolved.fold_layer_norms == fold


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_saved_start_comes_back(rounding: str, tmp_path: Path) -> None:
    model = transformer(8.0)
    network = quantize(model, images(), Quantization("linear", 4, 4, rounding=rounding))  # type: ignore[arg-type]
    start = calibrate(network, images())
    path = tmp_path / "start.safetensors"
    save(network, start, path, model, images())
    loaded = load_point(path, network, model)
    assert loaded.keys() == start.keys()
    assert all(torch.equal(loaded[name], value) for name, value in start.items())
