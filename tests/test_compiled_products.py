"""Compiled products of codes against their definitions; skipped where they cannot be built."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import plain
from torch import Tensor, nn
from torch.nn import functional

from evolq.network import kernels as module
from evolq.network import lowering, native
from evolq.network.integer_ops import WeightCodes
from evolq.network.kernels import Codes, attention, attention_in_floats, linear_gelu
from evolq.network.lowering import differing_codes, lower
from evolq.network.native import LANES, kernels
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point, select
from evolq.starts.calibration import calibrate
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import PerChannel, QuantSpec

needs_kernel = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="the processor lacks AVX-512 VNNI"
)

# One code off is a tie to within float32 rounding: a few in a million.
TIES = 2e-5


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def operand(shape: tuple[int, ...], scale: float, zero: float, shift: int, seed: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    return codes, torch.tensor(scale), torch.tensor(zero), shift


def operands(tokens: int, depth: int, columns: int, shift: int = 128) -> tuple[Codes, Codes, Codes]:
    """Queries, keys and values of 3 images and 2 heads, in memory as a layer of all three left."""
    queries = operand((3, tokens, 2, depth), 0.01, 100.0, shift, 0)
    keys = operand((3, tokens, 2, depth), 0.02, 131.0, 128, 1)
    values = operand((3, tokens, 2, columns), 0.5, 90.0, 128, 2)
    return (
        (queries[0].transpose(1, 2), *queries[1:]),
        (keys[0].permute(0, 2, 3, 1), *keys[1:]),
        (values[0].transpose(1, 2), *values[1:]),
    )


def quantizer(scale: float, zero: float = 0.0, upper: float = 255.0) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value) for value in (scale, zero, 0.0, upper))


@needs_kernel
@pytest.mark.parametrize(
    ("tokens", "depth", "columns"), [(1, 4, 16), (5, 16, 16), (16, 12, 80), (197, 64, 64)]
)
@pytest.mark.parametrize("shift", [0, 128])
@pytest.mark.parametrize("probabilities", [(1 / 255,), (0.001, 7.0), (1 / 15, 0.0, 15.0)])
def test_attention_is_softmax_and_its_codes_times_values(
    tokens: int, depth: int, columns: int, shift: int, probabilities: tuple[float, ...]
) -> None:
    assert kernels() is not None
    queries, keys, values = operands(tokens, depth, columns, shift)
    scale, zero, lower, upper = quantizer(*probabilities)
    width = -(-tokens // LANES) * LANES
    identity = torch.eye(tokens, width, dtype=torch.int8).expand(3, 2, -1, -1)
    one = (identity, torch.tensor(1.0), torch.tensor(0.0), 0)

    found = attention(queries, keys, one, scale, zero, lower, upper)[..., :tokens] / scale
    left, right, factors = (
        codes.double() + shift - zero for codes, _, zero, shift in (queries, keys, values)
    )
    softmax = ((left @ right) * queries[1].double() * keys[1].double()).softmax(-1)
    steps = (softmax / scale.double() + zero).clamp(lower, upper).round() - zero
    off = found.round().double() - steps
    assert float(off.abs().max()) <= 1
    assert int((off != 0).sum()) <= TIES * off.numel()

    # of those codes the sums are exact: rounded twice, by two factors
    product = attention(queries, keys, values, scale, zero, lower, upper)
    exact = (found.round().double() @ factors) * float(scale * values[1])
    torch.testing.assert_close(product.double(), exact, rtol=3e-7, atol=0)


@needs_kernel
def test_logits_far_apart_are_one_probability_of_1() -> None:
    queries, keys, values = operands(40, 16, 16)
    far = (queries[0], torch.tensor(10.0), *queries[2:])
    found = attention(far, keys, values, *quantizer(1 / 255))
    expected = attention_in_floats(far, keys, values, *quantizer(1 / 255))
    torch.testing.assert_close(found, expected)


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_attention_depends_on_neither_threads_nor_batch_size() -> None:
    queries, keys, values = operands(50, 32, 32)
    whole = attention(queries, keys, values, *quantizer(1 / 255))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for image in range(3):
            part = ((codes[image : image + 1], *rest) for codes, *rest in (queries, keys, values))
            alone = attention(*part, *quantizer(1 / 255))  # type: ignore[arg-type]
            assert torch.equal(alone, whole[image : image + 1])


def test_without_the_kernel_attention_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = operands(30, 16, 16)
    found = attention(queries, keys, values, *quantizer(1 / 60))
    monkeypatch.setattr(module, "kernels", lambda: None)
    expected = attention(queries, keys, values, *quantizer(1 / 60))
    # no code of these is a tie to within float32 rounding
    torch.testing.assert_close(found, expected)


@needs_kernel
def test_a_kernel_that_cannot_be_built_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "kernels.cpp"
    broken.write_text("this is no C++\n")
    monkeypatch.setattr(native, "SOURCE", broken)
    kernels.cache_clear()
    with pytest.warns(UserWarning, match="the kernels of integer execution cannot be built here"):
        assert kernels() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels() is None
    kernels.cache_clear()


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="the processor lacks AMX")
def test_tiles_make_the_same_bits_as_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = operands(197, 36, 80)

    def made() -> list[Tensor]:
        return [
            attention(queries, keys, values, *quantizer(1 / 60)),
            linear_gelu(*layer(70, 68, 64, 4, 128, True)[0]),  # type: ignore[arg-type]
        ]

    found = made()
    assert hasattr(kernels(), "product")
    monkeypatch.setattr(native, "_tiles_work", lambda: False)
    kernels.cache_clear()
    try:
        expected = made()
        assert not hasattr(kernels(), "product")
    finally:
        kernels.cache_clear()
    assert all(map(torch.equal, found, expected))


# Layers with GELU ---------------------------------------------------------------------------------


def layer(
    rows: int, terms: int, columns: int, bits: int, shift: int, factors: bool
) -> tuple[tuple[object, ...], Tensor]:
    """Return the arguments of `linear_gelu`, and GELU in steps before rounding, in float64."""
    generator = torch.Generator().manual_seed(rows)
    codes, scale, zero, input_shift = operand((rows, terms), 0.02, 120.0, 128, rows + 1)
    weight = torch.randn(columns, terms, generator=generator)
    weight_scale = 0.02 * 2.0 ** (8 - bits) + 0.01 * torch.rand(columns, generator=generator)
    weight_zero = 2.0 ** (bits - 1) + 9 * torch.rand(columns, generator=generator)
    bias = torch.randn(columns, generator=generator)
    quantized = MomentMatchedQuantizer(QuantSpec(bits, granularity=PerChannel(0)))
    width = torch.tensor(float(bits))
    prepared = WeightCodes(quantized, input_shift)(
        weight, weight_scale, weight_zero, width, bias, scale, zero
    )
    matrix, *constants, _ = prepared
    factor = 2.0 ** torch.randint(0, 4, (columns,), generator=generator) if factors else None
    bounds = (0.05, 3.0, 0.0, 255.0) if shift else (0.05, 3.0, -128.0, 127.0)
    quantizer = tuple(map(torch.tensor, bounds))
    arguments = (codes, matrix, tuple(constants), factor, *quantizer, shift)

    inputs = (codes.double() + input_shift - zero) * scale
    made = quantized(weight, weight_scale, weight_zero, width)
    value = functional.gelu(functional.linear(inputs, made.double(), bias.double()))
    value = value if factor is None else value / factor
    return arguments, value / quantizer[0] + quantizer[1]


@needs_kernel
@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 4, 64), (50, 192, 128), (97, 20, 64)])
@pytest.mark.parametrize(("bits", "shift"), [(4, 128), (8, 0)])
@pytest.mark.parametrize("factors", [False, True])
def test_a_layer_with_gelu_has_the_codes_of_its_definition(
    rows: int, terms: int, columns: int, bits: int, shift: int, factors: bool
) -> None:
    arguments, steps = layer(rows, terms, columns, bits, shift, factors)
    found = linear_gelu(*arguments).double() + shift  # type: ignore[arg-type]
    lower, upper = arguments[-3:-1]
    # rounded to the nearest but for float32: 1e-3 of a step, where values are hundreds of steps
    off = (found - steps.clamp(lower, upper)).abs()  # type: ignore[arg-type]
    assert float(off.max()) < 0.501
    assert len(found.unique()) > 3


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_a_layer_with_gelu_depends_on_neither_threads_nor_batch_size() -> None:
    (codes, *rest), _ = layer(101, 48, 64, 4, 128, True)
    whole = linear_gelu(codes, *rest)  # type: ignore[arg-type]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        parts = [linear_gelu(part, *rest) for part in codes.split(17)]  # type: ignore[arg-type, attr-defined]
        assert torch.equal(torch.cat(parts), whole)


def test_without_the_kernel_a_layer_with_gelu_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, _ = layer(40, 32, 64, 4, 128, True)
    found = linear_gelu(*arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "kernels", lambda: None)
    # no code of these is a tie to within float32 rounding
    assert torch.equal(found, linear_gelu(*arguments))  # type: ignore[arg-type]


# In a network -------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two heads of 16 on 9 tokens, and a layer with GELU; images (n, 3, 12, 12), 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.qkv = nn.Linear(32, 96)
        self.fc1 = nn.Linear(32, 64)
        self.fc2 = nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        qkv = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*qkv.unbind(0))
        x = self.fc1(attended.transpose(1, 2).flatten(2))
        return self.head(self.fc2(functional.gelu(x)).mean(1))


def network(scheme: str, **options: object) -> tuple[QuantizedNetwork, Point, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(20, 3, 12, 12)
    built = quantize(Block().eval(), images[:2], plain(scheme, **options))
    return built, calibrate(built, images), images


def kernels_of(built: QuantizedNetwork) -> list[object]:
    targets = [node.target for node in lower(built.graph).nodes]
    return [target for target in targets if target in (attention, linear_gelu)]


@needs_kernel
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_a_network_runs_attention_as_one_function(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, point, images = network(scheme)
    assert kernels_of(built) == [attention, linear_gelu]
    counts = differing_codes(built.graph, point, images)
    assert counts.keys() == {name for name, site in built.sites.items() if site.kind != "weight"}
    # no code of these is a tie to within float32 rounding
    assert {differing for differing, _ in counts.values()} == {0}
    fused = built.executed("integer")
    assert fused.operations == built.operations
    with torch.no_grad():
        found = fused(point, images)
        torch.testing.assert_close(found, built(point, images), rtol=1e-4, atol=1e-5)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(point, images), found)
        for names in (["fc1.weight.scale"], list(select(point, {"scale"}))):
            assert torch.equal(fused.vary(names, point, images, 20)(point), found)
        monkeypatch.setattr(lowering, "kernels", lambda: None)
        assert kernels_of(built) == []
        products = network(scheme)[0].executed("integer")
        torch.testing.assert_close(found, products(point, images), rtol=1e-4, atol=1e-5)


@needs_kernel
def test_other_attention_stays_two_products() -> None:
    for built in (
        network("full", softmax="log2"),
        network("full", activation_bits=4),
        network("published"),
    ):
        assert kernels_of(built[0]) == [linear_gelu]
