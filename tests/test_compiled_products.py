"""Compiled products of codes against their definitions; skipped where they cannot be built."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import plain
from torch import Tensor, nn
from torch.nn import functional

from evolq import native
from evolq.data.images import tensor_split
from evolq.native import LANES, kernels
from evolq.network import integer_ops, lowering
from evolq.network import kernels as module
from evolq.network.integer_ops import WeightCodes, encode
from evolq.network.kernels import (
    Codes,
    attention,
    attention_in_floats,
    column_steps,
    encode_heads,
    layer_norm,
    linear,
    quantizer_rows,
)
from evolq.network.lowering import differing_codes, lower
from evolq.network.quantized import QuantizedNetwork, fastest, quantize
from evolq.points import Point, select
from evolq.problem import problem_of
from evolq.starts.calibration import calibrate
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import PerChannel, PerTensor, Quantizer, QuantSpec

needs_kernel = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="the processor lacks AVX-512 VNNI"
)

# One code off is a tie to within float32 rounding: a few in a million.
TIES = 2e-5


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
    with pytest.warns(UserWarning, match="the functions in kernels.cpp cannot be built here"):
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
            linear(*layer(70, 68, 80, 4, 128)[0]),
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


# Layers -------------------------------------------------------------------------------------------


def quantizers(columns: int, shift: int, factors: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two quantizers of columns as `rows` has them, their zero points, and what divides values."""
    lowest = 0.0 if shift else -128.0
    bounds = (torch.tensor(lowest), torch.tensor(lowest + 255), shift)
    zeros = (torch.tensor(lowest + 3.0), torch.tensor(lowest + 140.0))
    given = [
        (times, torch.tensor(0.05), zero, *bounds)
        for times, zero in zip((1, 0.5), zeros, strict=True)
    ]
    counts = (16, columns - 16)
    generator = torch.Generator().manual_seed(columns)
    factor = 2.0 ** torch.randint(0, 4, (columns,), generator=generator) if factors else None
    rows = quantizer_rows(counts, given, factor)
    per_value = torch.tensor([1.0, 0.5]).repeat_interleave(torch.tensor(counts)) / 0.05
    per_value = per_value if factor is None else per_value / factor
    assert torch.allclose(rows[0], per_value)
    return rows, torch.stack(zeros).repeat_interleave(torch.tensor(counts)), per_value


def layer(
    rows: int,
    terms: int,
    columns: int,
    bits: int,
    shift: int | None,
    factors: bool = True,
    gelu: bool = True,
    added: str = "nothing",
) -> tuple[tuple[Any, ...], Tensor]:
    """Return the arguments of `linear`, and its values in float64: in stored codes with a shift."""
    generator = torch.Generator().manual_seed(rows)
    codes, scale, zero, input_shift = operand((rows, terms), 0.02, 120.0, 128, rows + 1)
    weight = torch.randn(columns, terms, generator=generator)
    weight_scale = 0.02 * 2.0 ** (8 - bits) + 0.01 * torch.rand(columns, generator=generator)
    weight_zero = 2.0 ** (bits - 1) + 9 * torch.rand(columns, generator=generator)
    bias = torch.randn(columns, generator=generator)
    symmetric = bits == 8
    kind = Quantizer if symmetric else MomentMatchedQuantizer
    quantized = kind(QuantSpec(bits, symmetric, symmetric, granularity=PerChannel(0)))
    prepared = WeightCodes(quantized, input_shift)(
        weight, weight_scale, None if symmetric else weight_zero, torch.tensor(float(bits)), bias,
        scale, zero,
    )  # fmt: skip
    matrix, *constants = prepared
    assert bool(constants[-1]) != symmetric, "sums of rows are needed, or not"

    inputs = (codes.double() + input_shift - zero) * scale
    made = quantized(
        weight, weight_scale, None if symmetric else weight_zero, torch.tensor(float(bits))
    )
    value = functional.linear(inputs, made.double(), bias.double())
    value = functional.gelu(value) if gelu else value
    more: Any = None
    if added == "floats":
        more = torch.randn(rows, columns, generator=generator)
        value = value + more
    elif added == "codes":
        own, own_scale, own_zero, own_shift = operand((rows, columns), 0.03, 100.0, 128, 7)
        factor = 2.0 ** torch.randint(0, 3, (columns,), generator=generator)
        more = own, column_steps(columns, own_scale, own_zero, own_shift, factor)
        value = value + (own.double() + own_shift - own_zero) * own_scale * factor
    if shift is None:
        return (codes, matrix, tuple(constants), gelu, more, None), value
    quantizer, zeros, per_value = quantizers(columns, shift, factors)
    steps = value * per_value.double() + zeros - shift
    return (codes, matrix, tuple(constants), gelu, more, quantizer), steps


@needs_kernel
@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 4, 32), (50, 192, 128), (97, 20, 80)])
@pytest.mark.parametrize(("bits", "shift"), [(4, 128), (8, 0)])
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("added", ["nothing", "floats", "codes"])
def test_a_layer_has_the_codes_of_its_definition(
    rows: int,
    terms: int,
    columns: int,
    bits: int,
    shift: int,
    factors: bool,
    gelu: bool,
    added: str,
) -> None:
    assert kernels() is not None
    arguments, steps = layer(rows, terms, columns, bits, shift, factors, gelu, added)
    found = linear(*arguments)
    # rounded to the nearest but for float32: 1e-3 of a step, where values are hundreds of steps
    off = (found.double() - steps.clamp(-128, 127)).abs()
    assert float(off.max()) < 0.501
    assert len(found.unique()) > 3


@needs_kernel
@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 4, 16), (97, 20, 80)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("added", ["nothing", "floats", "codes"])
def test_a_layer_has_the_values_of_its_definition(
    rows: int, terms: int, columns: int, bits: int, gelu: bool, added: str
) -> None:
    arguments, expected = layer(rows, terms, columns, bits, None, False, gelu, added)
    # float32 sums of a few terms, up to some hundreds
    torch.testing.assert_close(linear(*arguments).double(), expected, rtol=1e-5, atol=1e-4)


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_a_layer_depends_on_neither_threads_nor_batch_size() -> None:
    (codes, *rest), _ = layer(101, 48, 64, 4, 128)
    whole = linear(codes, *rest)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(torch.cat([linear(part, *rest) for part in codes.split(17)]), whole)


@pytest.mark.parametrize("shift", [128, None])
@pytest.mark.parametrize("added", ["nothing", "floats", "codes"])
def test_without_the_kernel_a_layer_is_the_same(
    shift: int | None, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, _ = layer(40, 32, 64, 4, shift, added=added)
    found = linear(*arguments)
    monkeypatch.setattr(module, "kernels", lambda: None)
    # no code of these is a tie to within float32 rounding
    torch.testing.assert_close(linear(*arguments), found, rtol=1e-5, atol=1e-4)


@needs_kernel
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("outputs", "terms"), [(1, 1), (5, 12), (7, 33), (48, 64)])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("zero_point", [None, 9.0, 300.0])
@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_of_weights_are_the_same_bits(
    outputs: int,
    terms: int,
    bits: int,
    signed: bool,
    zero_point: float | None,
    matched: bool,
    per_channel: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(terms)
    weight = torch.randn(outputs, terms, generator=generator)
    weight[-1] = 0.5  # codes that are all one
    shape = (outputs,) if per_channel else ()
    scale = 2.0 ** (3 - bits) * (0.5 + torch.rand(shape, generator=generator))
    zero = None if zero_point is None else zero_point * torch.rand(shape, generator=generator)
    granularity = PerChannel(0) if per_channel else PerTensor()
    kind = MomentMatchedQuantizer if matched else Quantizer
    spec = QuantSpec(bits, signed, zero_point is None, granularity=granularity)
    node = WeightCodes(kind(spec), 128)
    arguments = (
        *(weight, scale, zero, torch.tensor(float(bits)), torch.randn(outputs)),
        *(torch.tensor(0.02), torch.tensor(100.0)),
    )
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(node(*arguments))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

    monkeypatch.setattr(integer_ops, "kernels", lambda: None)
    expected = node(*arguments)
    for part in (0, 1, 2, -1):  # codes, sums, zero points, whether sums of rows are needed
        assert torch.equal(found[0][part], expected[part])
    for constant, wanted in zip(found[0][3:-1], expected[3:-1], strict=True):
        # means and deviations in float32, in another order
        largest = float(wanted.abs().max())
        torch.testing.assert_close(constant, wanted, rtol=1e-5, atol=1e-5 * largest)


@needs_kernel
def test_sums_of_squares_of_a_long_row_do_not_overflow() -> None:
    terms = 140_000  # codes of about 192: their squares add up to 5e9
    weight = 1 + torch.rand(2, terms, generator=torch.Generator().manual_seed(0))
    node = WeightCodes(
        MomentMatchedQuantizer(QuantSpec(8, False, False, granularity=PerChannel(0))), 128
    )
    scale = torch.full((2,), 2 / 255)
    *_, factor, _, _, _ = node(
        *(weight, scale, torch.zeros(2), torch.tensor(8.0), None),
        *(torch.tensor(1.0), torch.tensor(0.0)),
    )
    # codes have the deviation of weights but for rounding, a twelfth of a squared step in 5,300
    torch.testing.assert_close(factor, scale, rtol=1e-3, atol=0)


def norm(rows: int, columns: int, codes: bool) -> tuple[tuple[Any, ...], Tensor]:
    """Return the arguments of `layer_norm`, and its stored codes before rounding, in float64."""
    generator = torch.Generator().manual_seed(rows)
    weight, bias = (torch.randn(columns, generator=generator) for _ in range(2))
    given: Any = 3 * torch.randn(rows, columns, generator=generator) + 1
    value = given.double()
    if codes:
        own, scale, zero, shift = operand((rows, columns), 0.03, 100.0, 128, 7)
        zeros = zero + torch.arange(columns)
        given = own, column_steps(columns, scale, zeros, shift, None)
        value = (own.double() + shift - zeros) * scale
    made = functional.layer_norm(value, (columns,), weight.double(), bias.double(), 1e-6)
    quantizer, zeros, per_value = quantizers(columns, 128, False)
    return (given, weight, bias, 1e-6, quantizer), made * per_value.double() + zeros - 128


@needs_kernel
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (50, 192)])
@pytest.mark.parametrize("codes", [False, True])
def test_a_layer_norm_has_the_codes_of_its_definition(rows: int, columns: int, codes: bool) -> None:
    arguments, steps = norm(rows, columns, codes)
    found = layer_norm(*arguments)
    assert float((found.double() - steps.clamp(-128, 127)).abs().max()) < 0.501
    assert len(found.unique()) > 3


@needs_kernel
@pytest.mark.usefixtures("threads")
def test_a_layer_norm_depends_on_neither_threads_nor_batch_size() -> None:
    (value, *rest), _ = norm(101, 48, False)
    whole = layer_norm(value, *rest)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(torch.cat([layer_norm(part, *rest) for part in value.split(17)]), whole)


@pytest.mark.parametrize("codes", [False, True])
def test_without_the_kernel_a_layer_norm_is_the_same(
    codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, _ = norm(40, 64, codes)
    found = layer_norm(*arguments)
    monkeypatch.setattr(module, "kernels", lambda: None)
    assert torch.equal(layer_norm(*arguments), found)


@needs_kernel
def test_attention_makes_the_codes_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = operands(30, 16, 32)
    # no code of these is a tie to within float32 rounding
    rows, *_ = quantizers(64, 128, False)
    value = attention(queries, keys, values, *quantizer(1 / 61.7))
    found = attention(queries, keys, values, *quantizer(1 / 61.7), rows)
    assert found.dtype == torch.int8
    assert torch.equal(found, encode_heads(value, rows))
    monkeypatch.setattr(module, "kernels", lambda: None)
    assert torch.equal(found, attention(queries, keys, values, *quantizer(1 / 61.7), rows))


@needs_kernel
@pytest.mark.parametrize("count", [1, 15, 16, 1000])
@pytest.mark.parametrize("shift", [0, 128])
def test_codes_are_the_same_bits(count: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value = 3 * torch.randn(count, generator=torch.Generator().manual_seed(count))
    value[0] = 0.05 * 2.5  # a tie
    lowest = shift - 128.0
    parameters = [torch.tensor(number) for number in (0.05, 3 + lowest, lowest, lowest + 255)]
    found = encode(value, *parameters, shift)
    monkeypatch.setattr(integer_ops, "kernels", lambda: None)
    assert torch.equal(encode(value, *parameters, shift), found)


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
    return [target for target in targets if target in (attention, layer_norm, linear)]


@needs_kernel
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_a_network_runs_attention_as_one_function(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, point, images = network(scheme)
    # embedding, queries, keys and values, and the two layers behind attention
    assert kernels_of(built) == [linear, linear, attention, linear, linear]
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
        assert kernels_of(built[0]) == [linear] * 4


@needs_kernel
def test_integers_are_the_default_where_nothing_has_to_be_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built, *_ = network("full")
    assert fastest(built) == "integer"
    assert fastest(network("none")[0]) == "simulated"
    assert fastest(network("full", softmax="log2")[0]) == "integer"
    assert fastest(network("full", weight_granularity="group", group_size=4)[0]) == "simulated"
    split = tensor_split(torch.randn(30, 3, 12, 12), torch.arange(30) % 4, 12, 8, 10)
    assert problem_of(Block(), split).settings.execution == "integer"
    chosen = problem_of(Block(), split, execution="simulated")
    assert chosen.settings.execution == chosen.network.execution == "simulated"
    monkeypatch.setattr(lowering, "kernels", lambda: None)
    assert fastest(built) == "simulated"
