import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, nn
from torch.nn import functional

from evolq.data.images import bundled_split
from evolq.data.models import BUNDLED, load_model, weights_hash
from evolq.errors import InputError
from evolq.files.codes import IntegerWeight, integer_weights, pack, unpack
from evolq.files.saved import load, load_point, read, save
from evolq.network.quantized import quantize
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate
from evolq.tensor.quantizers import PerChannel, QuantSpec


class Standardized(nn.Module):
    """A convolution whose weight is computed, behind a batch norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.weight = nn.Parameter(torch.zeros(3, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(self.norm(x), weight).flatten(1)


MODELS = {"transformer": TinyTransformer, "residual": TinyResidual, "standardized": Standardized}

CASES = {
    "plain": ("residual", {"scheme": "none"}),
    "linear": ("transformer", {"scheme": "linear", "weight_bits": 3, "activation_bits": 6}),
    "full": ("transformer", {"scheme": "full", "weight_bits": 4, "moment_matching": True}),
    "integers": ("transformer", {"scheme": "full", "integer_layer_norm": True}),
    "symmetric": (
        "residual",
        {"weight_bits": 3, "weight_symmetric": True, "activation_symmetric": True},
    ),
    "groups": (
        "transformer",
        {
            "scheme": "weights",
            "weight_bits": 4,
            "weight_granularity": "group",
            "group_size": 4,
            "moment_matching": True,
        },
    ),
    "one scale": ("residual", {"weight_bits": 2, "weight_granularity": "tensor"}),
    "computed": ("standardized", {"weight_bits": 4, "moment_matching": True}),
}


class Case:
    """A small network at a Point with broken zero points and bits of its own."""

    def __init__(self, kind: str, **options: object) -> None:
        self.model = randomized(MODELS[kind]())
        self.network = quantize(self.model, images(), plain(**options))
        self.point = calibrate(self.network, images())
        generator = torch.Generator().manual_seed(7)
        for name, value in self.point.items():
            if name.endswith(".zero_point"):
                self.point[name] = value + torch.rand(value.shape, generator=generator) - 0.4
            if name.endswith(".bits") and "weight" in name:
                self.point[name] = value - 1 if value > 3 else value

    def save(self, path: Path, **options: object) -> Path:
        save(self.network, self.point, path, self.model, images(), **options)
        return path

    def logits(self, module: nn.Module | None = None, count: int = 6) -> Tensor:
        x = images(count, seed=3)
        with torch.no_grad():
            return self.network(self.point, x) if module is None else module(x)


@pytest.fixture(scope="module")
def linear() -> Case:
    return Case("residual", scheme="linear", weight_bits=4)


# Packing ------------------------------------------------------------------------------------------


@given(st.data(), st.integers(2, 8))
def test_packed_codes_come_back(data: st.DataObject, bits: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.shape == (-(-len(codes) * bits // 8),)
    assert unpack(packed, bits, len(codes)).tolist() == codes


def test_codes_fill_bytes_from_the_lowest_bit() -> None:
    assert pack(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8), 4).tolist() == [0x21, 0x43]
    # 3 bits: 001 010 111 from the right, 0b11010001 and the highest bit of 111 in the next byte
    assert pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3).tolist() == [0b11010001, 0b1]


def test_a_weight_is_what_its_codes_stand_for() -> None:
    codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    scale, zero_point = torch.tensor([0.5, 2.0]), torch.tensor([-0.6, 1.2])
    spec = QuantSpec(2, signed=True, granularity=PerChannel(0))
    weight = IntegerWeight(codes, scale, zero_point, 2, spec, None)
    # codes -2, 1 and -1, 0; zero points -1 and 1
    assert weight.value().tolist() == [[-0.5, 1.0], [-4.0, -2.0]]
    moments = torch.tensor([[0.25, -3.0], [2.0, 1.0], [0.0, 5.0]])
    weight = IntegerWeight(codes, scale, zero_point, 2, spec, moments)
    assert weight.value().tolist() == [[-1.5, 1.5], [4.0, 6.0]]


# There and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",  # `groups` is the case whose attention is one operator
    [c if c in ("full", "groups") else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
)
def test_a_loaded_network_predicts_the_same_bits(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    made = Case(kind, **options)
    path = made.save(tmp_path / "model.safetensors")
    architecture = randomized(MODELS[kind](), seed=5)  # other weights, which must not matter
    module = load(path, architecture)
    for count in (1, 6):
        assert torch.equal(made.logits(module, count), made.logits(count=count))
    assert not list(module.parameters())

    point = load_point(path, made.network, made.model)
    assert list(point) == list(made.point)
    for name, value in made.point.items():
        assert torch.equal(point[name], value), name
        assert point[name].dtype == value.dtype


def test_a_file_holds_codes_and_no_full_precision_weight(linear: Case, tmp_path: Path) -> None:
    tensors = load_file(linear.save(tmp_path / "model.safetensors"))
    assert "conv1.weight" not in tensors
    assert tensors["conv1.weight.codes"].dtype == torch.uint8
    assert len(tensors["conv1.weight.codes"]) == -(-6 * 9 * 3 // 8)  # 3 bits, see Case
    assert tensors["conv1.weight.bits"].item() == 3
    assert tensors["conv1.weight.bits"].dtype == torch.uint8
    assert torch.equal(tensors["conv1.bias"], linear.point["conv1.bias"])


def test_a_file_describes_itself(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors", provenance={"seed": 4, "note": "é"})
    header, _ = read(path)
    assert header.model is None
    assert (header.classes, header.image_shape) == (3, (1, 8, 8))
    assert header.quantization == linear.network.quantization
    assert header.weight_shapes["conv1.weight"] == (6, 1, 3, 3)
    assert header.weights_hash == weights_hash(linear.model)
    assert header.provenance == {"seed": 4, "note": "é"}


def test_equal_networks_give_equal_bytes(linear: Case, tmp_path: Path) -> None:
    first, second = (linear.save(tmp_path / name).read_bytes() for name in "ab")
    assert first == second


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor, int]]:
    """Both bundled networks at 4 bits: file, logits on the test images, size in fp32."""
    x = bundled_split(50, 0, 100).test.images
    made = {}
    for name in BUNDLED:
        model = load_model(name)
        network = quantize(model, x, plain("linear", 4, 8))
        point = calibrate(network, bundled_split(50, 0, 1).calibration.images)
        path = tmp_path_factory.mktemp("saved") / f"{name}.safetensors"
        save(network, point, path, model, x, name)
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        with torch.no_grad():
            made[name] = path, network(point, x), size
    return made


LOAD = """
import sys, numpy, torch
from evolq.data.images import bundled_split
from evolq.files.saved import load
torch.set_num_threads(int(sys.argv[1]))
for path in sys.argv[2:]:
    with torch.no_grad():
        logits = load(path)(bundled_split(50, 0, 100).test.images)
    numpy.save(path + ".npy", logits.numpy())
"""


@pytest.mark.slow
def test_another_process_predicts_the_same_bits(
    bundled: dict[str, tuple[Path, Tensor, int]],
) -> None:
    paths = [path for path, _, _ in bundled.values()]
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", LOAD, threads, *paths], check=True)
    for path, logits, _ in bundled.values():
        assert np.array_equal(np.load(f"{path}.npy"), logits.numpy())


def test_four_bits_take_an_eighth(bundled: dict[str, tuple[Path, Tensor, int]]) -> None:
    path, _, size = bundled["fashion_resnet"]
    assert path.stat().st_size <= (4 / 32 + 0.03) * size
    # In the small transformer, biases, norms and embeddings in full precision are 3.7 % themselves,
    # scales and zero points 1.7 %, and the 300 names in the header 3.5 %.
    path, _, size = bundled["fashion_vit"]
    assert path.stat().st_size <= (4 / 32 + 0.09) * size


@pytest.mark.slow
@pytest.mark.parametrize("moment_matching", [False, True])
def test_a_four_bit_deit_takes_an_eighth(
    evolq_data: Path, tmp_path: Path, moment_matching: bool
) -> None:
    name = "deit_tiny_patch16_224"
    weights = evolq_data / f"{name}.safetensors"
    model, x = load_model(name, weights), torch.zeros(2, 3, 224, 224)
    network = quantize(model, x, plain(weight_bits=4, moment_matching=moment_matching))
    path = tmp_path / "model.safetensors"
    save(network, calibrate(network, x), path, model, x, name)
    assert path.stat().st_size <= (4 / 32 + 0.03) * weights.stat().st_size


# Bad input ----------------------------------------------------------------------------------------


def test_a_point_of_other_weights_is_refused(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    other = randomized(TinyResidual(), seed=5)
    theirs, ours = weights_hash(linear.model)[:12], weights_hash(other)[:12]
    with pytest.raises(InputError, match=f"weights {theirs} .* has weights {ours}; give"):
        load_point(path, linear.network, other)


def test_a_point_of_another_scheme_is_refused(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    for options, wanted in [
        ({"scheme": "weights"}, "scheme linear, and the network has weights"),
        ({"weight_symmetric": True}, "weight_symmetric False, and the network has True"),
    ]:
        with pytest.raises(InputError, match=wanted):
            load_point(path, quantize(linear.model, images(), plain(**options)), linear.model)


def test_a_network_of_other_bits_takes_the_point(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    other = plain(weight_bits=8, activation_bits=4, softmax="uniform", fold_layer_norms=False)
    network = quantize(linear.model, images(), other)
    point = load_point(path, network, linear.model)
    with torch.no_grad():
        assert torch.equal(network(point, images()), linear.network(linear.point, images()))


def test_weights_that_moved_are_deployed_but_not_a_start(tmp_path: Path) -> None:
    made = Case("residual", weight_bits=4, moment_matching=True)
    point = {name: value + 0.01 * name.endswith(".weight") for name, value in made.point.items()}
    path = tmp_path / "model.safetensors"
    save(made.network, point, path, made.model, images())
    module = load(path, TinyResidual())
    with torch.no_grad():
        assert torch.equal(module(images()), made.network(point, images()))
    with pytest.raises(InputError, match="from moved weights"):
        load_point(path, made.network, made.model)


@pytest.mark.parametrize("matching", [False, True])
@pytest.mark.parametrize("kind", ["transformer", "residual"])
def test_rounded_weights_come_back(kind: str, matching: bool, tmp_path: Path) -> None:
    made = Case(kind, weight_bits=3, moment_matching=matching, rounding="gptq")
    start = calibrate(made.network, images())
    own = made.network.weights
    assert any(not torch.equal(start[name], own[name]) for name in own)
    path = tmp_path / "model.safetensors"
    save(made.network, start, path, made.model, images())
    again = load_point(path, made.network, made.model)
    assert all(torch.equal(again[name], start[name]) for name in start), "a start, bit for bit"

    moved = {
        name: value * 1.02 if name.endswith("weight.scale") else value
        for name, value in start.items()
    }
    save(made.network, moved, path, made.model, images())
    again = load_point(path, made.network, made.model)
    for name, weight in integer_weights(made.network, moved).items():
        assert torch.equal(integer_weights(made.network, again)[name].codes, weight.codes)
    with torch.no_grad():
        # moments of float32 sums, at most 72 terms
        torch.testing.assert_close(
            made.network(again, images()), made.network(moved, images()), rtol=1e-4, atol=1e-4
        )


def test_the_architecture_must_be_known(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"names no architecture; load\(path, model\)"):
        load(path)
    linear.save(path, model_name="fashion_vot")
    with pytest.raises(InputError, match="unknown model 'fashion_vot'"):
        load(path)


def test_the_architecture_must_fit(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"has conv1\.bias, which the model lacks"):
        load(path, randomized(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))
    wider = TinyResidual()
    wider.head = nn.Linear(6, 4)
    with pytest.raises(InputError, match=r"has head\.weight in shape \(3, 6\) instead of \(4, 6\)"):
        load(path, wider)


def test_files_that_are_no_networks_are_refused(linear: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="there is no file"):
        load(path)
    whole = linear.save(path).read_bytes()
    for damaged in (b"", b"rubbish!", whole[:4], whole[:200], whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot read"):
            load(path)
    torch.save({"weight": torch.zeros(2)}, path)  # a pickle
    with pytest.raises(InputError, match="cannot read"):
        load(path)
    for metadata in (None, {"evolq": "{"}, {"evolq": "[]"}, {"evolq": json.dumps({"format": "2"})}):
        save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(InputError, match="is not a quantized network of this program"):
            load(path)


def test_a_missing_tensor_is_named(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    tensors, (header, _) = load_file(path), read(path)
    del tensors["conv1.weight.codes"]
    save_file(tensors, path, {"evolq": header.to_json(tensors)})
    with pytest.raises(InputError, match=r"it lacks conv1\.weight\.codes"):
        load(path, TinyResidual())


def test_every_flipped_bit_is_found(linear: Case, tmp_path: Path) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(8 * len(whole), (100,), generator=generator).tolist():
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            read(path)


def test_a_file_of_format_1_still_loads() -> None:
    path = Path(__file__).parent / "golden" / "format_1.safetensors"
    header, _ = read(path)
    assert header.quantization == Quantization(
        *("linear", 3, 6),
        moment_matching=True,
        integer_layer_norm=False,
        softmax="uniform",
        fold_layer_norms=False,
    )
    model = randomized(TinyTransformer())
    network = quantize(model, images(), header.quantization)
    with torch.no_grad():
        logits = network(load_point(path, network, model), images())
        # moments in the file are from before EPSILON was added to deviations
        torch.testing.assert_close(load(path, TinyTransformer())(images()), logits)


def test_what_cannot_be_saved_is_refused(linear: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    wrong = {**linear.point, "conv1.bias": linear.point["conv1.bias"].double()}
    with pytest.raises(InputError, match=r"conv1\.bias is strided float64 on cpu"):
        save(linear.network, wrong, path, linear.model, images())
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    linear: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = linear.save(tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with path.open("rb") as reader:  # who reads the old file goes on reading it
        linear.save(path, provenance={"other": True})
        assert reader.read() == before
    linear.save(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*model.safetensors: No space left"):
        linear.save(path, provenance={"other": True})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(InputError, match="No such file or directory"):
        linear.save(tmp_path / "nowhere" / "model.safetensors")
