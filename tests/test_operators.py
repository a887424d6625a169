"""The table of operators: what an entry says is what the operator does."""

from pathlib import Path

import pytest
import torch
from tiny_models import images, plain, randomized
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evolq.errors import InputError
from evolq.files.onnx import export_onnx
from evolq.files.saved import load, save
from evolq.network.graph import Graph, export
from evolq.network.layers import weighted_layers
from evolq.network.operators import (
    OPERATORS,
    REFUSED,
    Operator,
    aten,
    from_matrices,
    layer_operator,
    weight_matrices,
)
from evolq.network.quantized import quantize
from evolq.starts.adaround import adaround
from evolq.starts.calibration import calibrate
from evolq.starts.gptq import gptq


class AddMM(nn.Module):
    """A linear layer as `addmm`, its weight of shape (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


# Each layer with the shape of its input, and its multiply-accumulates for one image by hand:
# for a convolution outputs x inputs of one output, for a transposed one inputs x outputs of one.
LAYERS = {
    "linear": (nn.Linear(7, 5), (7,), 35),
    "linear on tokens": (nn.Linear(7, 5), (3, 7), 3 * 35),
    "addmm": (AddMM(7, 5), (7,), 35),
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1), (4, 9), 6 * 5 * 4 * 3),
    "conv1d same": (nn.Conv1d(4, 6, 4, padding="same"), (4, 9), 6 * 9 * 4 * 4),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), (2, 1), 1, (1, 2), 2), (4, 8, 7), 6 * 4 * 7 * 2 * 6),
    "conv2d same": (nn.Conv2d(4, 6, 3, padding="same"), (4, 8, 7), 6 * 56 * 4 * 9),
    "conv3d": (nn.Conv3d(2, 4, 2, groups=2), (2, 4, 4, 4), 4 * 27 * 8),
    "conv3d same": (nn.Conv3d(2, 4, 3, padding="same"), (2, 4, 4, 4), 4 * 64 * 2 * 27),
    "transposed 1": (nn.ConvTranspose1d(4, 6, 3, 2, 1), (4, 9), 4 * 9 * 6 * 3),
    "transposed 2": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), (4, 5, 5), 4 * 25 * 3 * 9),
    "dilated transposed 2": (nn.ConvTranspose2d(4, 6, 3, dilation=2), (4, 5, 5), 4 * 25 * 6 * 9),
    "transposed 3": (nn.ConvTranspose3d(2, 4, 2), (2, 3, 3, 3), 2 * 27 * 4 * 8),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def exported(name: str) -> tuple[Graph, nn.Module, Tensor]:
    """The graph of a layer, the layer, and its input."""
    layer, shape, _ = LAYERS[name]
    values = numbers(2, *shape)
    return export(randomized(layer), values), layer, values


@pytest.mark.slow
def test_every_layer_of_the_table_is_tested() -> None:
    tested = {node.target for name in LAYERS for node in exported(name)[0].nodes}
    assert {target for target, rule in OPERATORS.items() if rule.weight is not None} <= tested


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrices_are_the_layer(name: str) -> None:
    graph, layer, values = exported(name)
    (node,) = (node for node in graph.nodes if layer_operator(node))
    rule, weight = OPERATORS[node.target], graph.weights["weight"]
    assert node.args[rule.input] is graph.images
    assert graph.name_of(node.args[rule.weight]) == "weight"
    assert graph.name_of(node.args[rule.bias]) == "bias"
    rows, matrices = rule.rows(node, values, weight), weight_matrices(node, weight)
    assert torch.equal(from_matrices(node, matrices, weight), weight)
    made = rows @ matrices.transpose(1, 2)  # (groups, positions, outputs)
    with torch.no_grad():
        wanted = layer(values)
    if "linear" not in name:
        wanted = wanted.movedim(1, -1)  # channels last
    bias = graph.weights["bias"]
    made = made.movedim(0, 1).flatten(1).reshape(wanted.shape) + bias
    # sums of up to 72 products in another order, in float32
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_accumulates_by_hand(name: str) -> None:
    assert sum(exported(name)[0].operations.values()) == LAYERS[name][2]


@pytest.mark.parametrize(("left", "right", "count"), [((3, 4), (4,), 12), ((4,), (4,), 4)])
def test_products_with_a_vector_are_counted(
    left: tuple[int, ...], right: tuple[int, ...], count: int
) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Parameter(numbers(*left))
            self.right = nn.Parameter(numbers(*right))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.matmul(self.left, self.right).sum()

    # the same for every batch, here of two images
    assert sum(export(Vector(), images()).operations.values()) == count / 2


@pytest.mark.parametrize("name", ["fashion_vit", "fashion_resnet"])
def test_the_bundled_networks_cost_what_torch_counts(name: str) -> None:
    from evolq.data.models import load_model

    model, values = load_model(name), numbers(2, 1, 28, 28)
    network = quantize(model, values, plain("linear"))
    # attention in its plain form: torch has no formula for the processor's fused kernel
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), attention, FlopCounterMode(display=False) as flops:
        model(values)
    assert network.operations == flops.get_total_flops() / 2 / len(values)


class TestEntriesThatLackSomething:
    def test_a_weight_without_rows(self) -> None:
        with pytest.raises(InputError, match=r"'mine' has a weight, and no rule"):
            Operator("mine", "product", {0: "input"}, weight=1)

    def test_a_product_that_torch_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Gate(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x * x).flatten(1)

        monkeypatch.setitem(
            OPERATORS, aten.mul.Tensor, Operator("mul", "product", {0: "left", 1: "right"})
        )
        with pytest.raises(InputError, match=r"aten\.mul\.Tensor .* counts no operations"):
            quantize(Gate(), images(), plain())

    def test_a_product_that_is_no_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Added(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1, 2)
                return torch.baddbmm(x, x, x.transpose(1, 2)).flatten(1)

        with pytest.raises(InputError, match="batched product with addition"):
            quantize(Added(), images(), plain())
        monkeypatch.delitem(REFUSED, aten.baddbmm.default)
        with pytest.raises(InputError, match=r"multiplies and sums \(aten\.baddbmm"):
            quantize(Added(), images(), plain())


class Decoder(nn.Module):
    """A network with transposed convolutions, one grouped and one in front of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 4, stride=4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.ConvTranspose2d(6, 2, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.down(x))).relu()
        return self.head(self.out(x).flatten(1))


def test_a_transposed_convolution_is_a_layer_like_others(tmp_path: Path) -> None:
    model, data = randomized(Decoder()), images(12)
    network = quantize(model, data, plain("linear", 4))
    assert list(network.sites) == [
        f"{layer}.{tensor}" for layer in ("down", "up", "out", "head")
        for tensor in ("input", "weight")
    ]  # fmt: skip
    assert "norm.weight" not in network.weights, "folded"
    start = calibrate(network, data)
    assert start["up.weight.scale"].shape == (3,), "output channels within a group"
    assert start["out.weight.scale"].shape == (2,)
    with torch.no_grad():
        torch.testing.assert_close(network.observe(data, lambda *_: None), model(data))
    assert network.share(["out.weight.scale"]) == (6 * 16 * 2 * 9 + 96) / network.operations

    names = [layer.name for layer in weighted_layers(network)]
    assert names == [f"{layer}.weight" for layer in ("down", "up", "out", "head")]
    rounded = gptq(network, start, data)
    network.check(rounded)
    assert not torch.equal(rounded["up.weight"], start["up.weight"])
    generator = torch.Generator().manual_seed(0)
    network.check(adaround(network, start, data, generator=generator, iterations=3))

    save(network, start, tmp_path / "decoder.safetensors", model, data)
    deployed = load(tmp_path / "decoder.safetensors", Decoder())
    assert torch.equal(deployed(data), network(start, data))
    with pytest.raises(InputError, match=r"cannot write up as ONNX.*conv_transpose2d"):
        export_onnx(network, start, tmp_path / "decoder.onnx", data)


def test_gptq_of_a_transposed_convolution_lowers_its_error() -> None:
    data = images(12)
    network = quantize(randomized(Decoder()), data, plain("linear", 3))
    start = calibrate(network, data)
    point = gptq(network, start, data)
    name = "out.weight"
    (found,) = (each for each in weighted_layers(network) if each.name == name)
    source = found.input.name
    values = network.record([source], data, point)[source]

    def error(weight: Tensor) -> float:
        made = dict(point) | {name: weight}
        quantized = network.record([found.quantizer.name], data, made)[found.quantizer.name]
        change = found.matrices(quantized - start[name])
        return float((found.rows(values, weight) @ change.transpose(1, 2)).square().sum())

    assert error(point[name]) < error(start[name])
