"""Quantizers against their closed forms and their invariants."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from evolq.errors import InputError
from evolq.tensor import uniform
from evolq.tensor.quantizers import (
    PerChannel,
    PerGroup,
    PerTensor,
    Quantizer,
    QuantSpec,
    check_parameters,
    codes_range,
    dequantize,
    fake_quantize,
    quantize,
)

SHAPE = (6, 8)
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(1, 4), PerGroup(0, 3)]
UNIFORM = [(False, False), (True, False), (True, True), (False, True)]  # signed, symmetric

specs = st.builds(
    lambda bits, kind, granularity: QuantSpec(bits, *kind, granularity=granularity),
    st.integers(2, 8),
    st.sampled_from(UNIFORM),
    st.sampled_from(GRANULARITIES),
)
seeds = st.integers(0, 2**32 - 1)


def draw(spec: QuantSpec, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a value of `SHAPE`, partly outside of the codes, with scale and zero point."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(SHAPE, generator=generator)
    shape = spec.granularity.parameter_shape(SHAPE)
    scale = torch.rand(shape, generator=generator) * 4 / 2**spec.bits + 0.5 / 2**spec.bits
    lower, upper = codes_range(spec.bits, spec)
    zero_point = lower + (upper - lower) * torch.rand(shape, generator=generator)
    return value, scale, zero_point if spec.has_zero_point else None


def aligned(spec: QuantSpec, *parameters: Tensor | None) -> list[Tensor]:
    """Return each parameter, zeros for None, repeated to one entry for each value."""
    value = torch.empty(SHAPE)
    return [
        torch.zeros(SHAPE) if p is None else spec.granularity.align(p, value).expand(SHAPE)
        for p in parameters
    ]


@pytest.mark.parametrize(
    ("bits", "signed", "expected"), [(4, False, (0, 15)), (4, True, (-8, 7)), (2, True, (-2, 1))]
)
def test_codes_fill_the_bits(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    spec = QuantSpec(signed=signed)
    assert codes_range(bits, spec) == expected
    assert tuple(map(float, codes_range(torch.tensor(float(bits)), spec))) == expected


def test_rounding_is_half_to_even_and_the_zero_point_is_rounded() -> None:
    value = torch.tensor([-0.5, 0.5, 1.5, 2.5, 99.0, -99.0])
    codes = quantize(value, torch.tensor(1.0), torch.tensor(3.4), 4, QuantSpec(4))
    assert codes.tolist() == [2, 4, 4, 6, 15, 0]


@pytest.mark.parametrize("as_tensor", [False, True])
@given(specs, seeds)
@settings(deadline=None, max_examples=30)
def test_uniform_codes_are_the_definition(as_tensor: bool, spec: QuantSpec, seed: int) -> None:
    value, scale, zero_point = draw(spec, seed)
    bits = torch.tensor(float(spec.bits)) if as_tensor else spec.bits
    codes = quantize(value, scale, zero_point, bits, spec)
    lower, upper = codes_range(spec.bits, spec)
    scales, offsets = aligned(spec, scale, zero_point)
    # A slow reference, one value at a time; Python rounds half to even too.
    for index in range(math.prod(SHAPE)):
        position = float(value.flatten()[index] / scales.flatten()[index])
        code = round(float(torch.tensor(position) + round(float(offsets.flatten()[index]))))
        assert codes.flatten()[index] == min(max(code, lower), upper)
    values = dequantize(codes, scale, zero_point, bits, spec)
    torch.testing.assert_close(values, (codes - offsets.round()) * scales, rtol=0, atol=0)


@given(specs, seeds)
@settings(deadline=None)
def test_quantizing_twice_changes_nothing(spec: QuantSpec, seed: int) -> None:
    value, *parameters = draw(spec, seed)
    once = fake_quantize(value, *parameters, spec.bits, spec)
    assert torch.equal(once, fake_quantize(once, *parameters, spec.bits, spec))


@given(specs, seeds)
@settings(deadline=None)
def test_the_error_inside_the_range_is_half_a_step(spec: QuantSpec, seed: int) -> None:
    value, scale, zero_point = draw(spec, seed)
    scales, offsets = aligned(spec, scale, zero_point)
    lower, upper = codes_range(spec.bits, spec)
    low, high = ((bound - offsets.round()) * scales for bound in (lower, upper))
    inside = (value >= low) & (value <= high)
    error = (fake_quantize(value, scale, zero_point, spec.bits, spec) - value).abs()
    assert bool((error[inside] <= scales[inside] / 2 * (1 + 1e-4)).all())


@given(specs, seeds, st.integers(-20, 20))
@settings(deadline=None)
def test_a_power_of_two_passes_through(spec: QuantSpec, seed: int, exponent: int) -> None:
    value, scale, zero_point = draw(spec, seed)
    plain = fake_quantize(value, scale, zero_point, spec.bits, spec)
    factor = 2.0**exponent
    scaled = fake_quantize(value * factor, scale * factor, zero_point, spec.bits, spec)
    assert torch.equal(plain * factor, scaled)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=repr)
@pytest.mark.parametrize("kind", UNIFORM)
def test_each_row_is_a_tensor_of_its_own(granularity, kind: tuple[bool, bool]) -> None:
    spec = QuantSpec(3, *kind, granularity=granularity)
    value, scale, zero_point = draw(spec, seed=0)
    rows = granularity.rows(fake_quantize(value, scale, zero_point, 3, spec))
    for index, row in enumerate(granularity.rows(value)):
        own_zero_point = None if zero_point is None else zero_point.flatten()[index]
        own = fake_quantize(row, scale.flatten()[index], own_zero_point, 3, QuantSpec(3, *kind))
        assert torch.equal(rows[index], own)


@pytest.mark.parametrize("granularity", [*GRANULARITIES, PerChannel(1), PerGroup(-2, 3)], ids=repr)
@pytest.mark.parametrize("shape", [(6, 12), (6, 12, 3, 2)])
def test_rows_and_parameters_have_one_order(granularity, shape: tuple[int, ...]) -> None:
    if isinstance(granularity, PerGroup) and shape[granularity.axis] % granularity.size:
        pytest.skip("the groups do not divide this shape")
    value = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    rows = granularity.rows(value)
    parameter = torch.arange(len(rows)).reshape(granularity.parameter_shape(shape))
    per_value = granularity.align(parameter, value).expand(shape)
    for index, row in enumerate(rows):
        assert torch.equal(row.sort().values, value[per_value == index].sort().values)
    assert torch.equal(granularity.from_rows(rows, shape), value)


def test_a_shared_zero_point_serves_all_channels() -> None:
    spec = QuantSpec(4, granularity=PerChannel(-1))
    value, scale, _ = draw(spec, seed=1)
    shared = fake_quantize(value, scale, torch.tensor(7.0), 4, spec)
    assert torch.equal(shared, fake_quantize(value, scale, torch.full((8,), 7.0), 4, spec))


@given(specs, seeds)
@settings(deadline=None, max_examples=30)
def test_gradients_are_those_of_lsq(spec: QuantSpec, seed: int) -> None:
    value, scale, zero_point = draw(spec, seed)
    inputs = [value, scale] if zero_point is None else [value, scale, zero_point]
    for tensor in inputs:
        tensor.requires_grad_()
    output = fake_quantize(value, scale, zero_point, spec.bits, spec)
    incoming = torch.linspace(-1, 1, value.numel()).reshape(SHAPE)
    gradients = torch.autograd.grad(output, inputs, incoming)

    with torch.no_grad():
        scales, offsets = aligned(spec, scale, zero_point)
        z = offsets.round()
        lower, upper = codes_range(spec.bits, spec)
        position = value / scales + z
        inside = (position >= lower) & (position <= upper)
        bound = torch.where(position < lower, lower, upper)
        by_value = inside * incoming
        by_scale = torch.where(inside, position.round() - position, bound - z) * incoming
        by_zero_point = torch.where(inside, 0.0, -scales) * incoming
        summed = [
            spec.granularity.rows(g).sum(1).reshape(scale.shape) for g in (by_scale, by_zero_point)
        ]
    torch.testing.assert_close(gradients[0], by_value)
    torch.testing.assert_close(gradients[1], summed[0], rtol=1e-4, atol=1e-4 * 2**spec.bits)
    if zero_point is not None:
        torch.testing.assert_close(gradients[2], summed[1], rtol=1e-4, atol=1e-5)


def test_gradients_lead_no_further_than_the_last_code() -> None:
    # 15.4 rounds to the last code, but lies beyond it: LSQ counts it as clipped.
    value = torch.tensor([14.6, 15.4], requires_grad=True)
    fake_quantize(value, torch.tensor(1.0), torch.tensor(0.0), 4, QuantSpec(4)).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [1, 0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_log2_rounds_the_exponent(bits: int) -> None:
    spec = QuantSpec(bits, kind="log2")
    exponents = torch.arange(0.0, 2**bits)[:120]
    scale = torch.tensor(1.0)
    exact = torch.exp2(-exponents)
    assert torch.equal(fake_quantize(exact, scale, None, bits, spec), exact)
    nearby = exact * 2**0.4
    assert torch.equal(quantize(nearby, scale, None, bits, spec), exponents)
    assert torch.equal(fake_quantize(exact * 8, torch.tensor(8.0), None, bits, spec), exact * 8)


def test_log_sqrt_2_has_two_codes_for_a_factor_of_two() -> None:
    spec = QuantSpec(4, kind="log2", octave_codes=2)
    codes = torch.arange(0.0, 16)
    values = 0.7 * 2 ** (-codes / 2)
    scale = torch.tensor(0.7)
    torch.testing.assert_close(fake_quantize(values, scale, None, 4, spec), values)
    for factor in (2**0.24, 2**-0.24):  # less than half a code away
        assert torch.equal(quantize(values * factor, scale, None, 4, spec), codes)
    assert fake_quantize(0.7 * 2 ** torch.tensor(-7.8), scale, None, 4, spec) == 0  # code 16
    with pytest.raises(InputError, match="`octave_codes` is 3"):
        QuantSpec(4, kind="log2", octave_codes=3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_log2_sets_to_zero_what_has_no_code(bits: int) -> None:
    spec = QuantSpec(bits, kind="log2")
    value = torch.tensor([0.0, -1.0, 2.0 ** -(2**bits) if bits < 7 else 0.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    output = fake_quantize(value, scale, None, torch.tensor(float(bits)), spec)
    assert output.tolist() == [0, 0, 0]
    assert quantize(value, scale, None, bits, spec).tolist() == [2**bits] * 3
    for gradient in torch.autograd.grad(output.sum(), (value, scale)):
        assert not gradient.any()


@pytest.mark.parametrize("octave_codes", [1, 2])
def test_log2_gradients(octave_codes: int) -> None:
    value = torch.tensor([0.3, 0.09, 5.0], requires_grad=True)  # the last one above the scale
    scale = torch.tensor([0.8, 0.8, 0.8], requires_grad=True)
    spec = QuantSpec(4, kind="log2", octave_codes=octave_codes, granularity=PerChannel(0))
    output = fake_quantize(value, scale, None, 4, spec)
    by_value, by_scale = torch.autograd.grad(output.sum(), (value, scale))
    torch.testing.assert_close(by_value, (output / value).detach() * torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(by_scale, torch.tensor([0.0, 0, 1]))


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(3),
        QuantSpec(3, True, True, granularity=PerChannel(0)),
        QuantSpec(3, True, granularity=PerGroup(1, 4)),
        QuantSpec(3, kind="log2"),
        QuantSpec(3, kind="log2", octave_codes=2),
    ],
    ids=repr,
)
def test_compiling_and_gradients_off_change_nothing(spec: QuantSpec) -> None:
    value, scale, zero_point = draw(spec, seed=2)
    torch.compiler.reset()
    compiled = torch.compile(Quantizer(spec), backend="aot_eager", fullgraph=True)
    for bits in (torch.tensor(3.0), torch.tensor(5.0)):
        expected = fake_quantize(value, scale, zero_point, bits, spec)
        assert torch.equal(compiled(value, scale, zero_point, bits), expected)
        with torch.no_grad():
            assert torch.equal(fake_quantize(value, scale, zero_point, bits, spec), expected)


def test_a_quantizer_says_what_it_is() -> None:
    assert repr(Quantizer(QuantSpec(4, True, True, granularity=PerChannel(0)))) == (
        "Quantizer(4 bits, signed, symmetric, PerChannel(axis=0))"
    )


@pytest.mark.parametrize(
    "fields",
    [{"bits": 1}, {"bits": 9}, {"bits": 4.5}, {"kind": "log2", "signed": True}, {"kind": "log3"}],
)
def test_a_wrong_spec_is_refused(fields: dict) -> None:
    with pytest.raises(InputError):
        QuantSpec(**fields)


def test_a_wrong_granularity_is_refused() -> None:
    with pytest.raises(InputError, match=r"choose a divisor of 8"):
        PerGroup(1, 3).parameter_shape(SHAPE)
    with pytest.raises(InputError, match=r"axis 2 does not exist"):
        PerChannel(2).parameter_shape(SHAPE)
    with pytest.raises(InputError, match=r"at least 1"):
        PerGroup(1, 0)


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits", "symmetric", "message"),
    [
        (0.0, 1.0, 4, False, r"q\.scale holds 0"),
        (-1.0, 1.0, 4, False, r"q\.scale holds -1"),
        (math.nan, 1.0, 4, False, r"q\.scale holds nan"),
        (math.inf, 1.0, 4, False, r"q\.scale holds inf"),
        (1.0, math.nan, 4, False, r"q\.zero_point"),
        (1.0, None, 4, False, r"needs a zero point"),
        (1.0, 0.0, 4, True, r"has no zero point"),
        (1.0, 1.0, 9, False, r"q\.bits is 9"),
        (1.0, 1.0, 3.5, False, r"q\.bits is 3\.5"),
        (1.0, 1.0, math.nan, False, r"q\.bits is nan"),
    ],
)
def test_wrong_parameters_are_named(scale, zero_point, bits, symmetric, message) -> None:
    zero_point = None if zero_point is None else torch.tensor(zero_point)
    with pytest.raises(InputError, match=message):
        check_parameters(
            "q",
            torch.tensor([1.0, scale]),
            zero_point,
            torch.tensor(bits),
            QuantSpec(symmetric=symmetric),
        )


def test_right_parameters_pass() -> None:
    check_parameters("q", torch.tensor(0.1), torch.tensor(3.0), torch.tensor(4.0), QuantSpec())
    check_parameters("q", torch.tensor(0.1), None, 4, QuantSpec(symmetric=True))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(1, 4)])
def test_values_do_not_depend_on_whether_gradients_are_wanted(
    signed: bool, symmetric: bool, granularity: PerTensor | PerChannel | PerGroup
) -> None:
    spec = QuantSpec(4, signed=signed, symmetric=symmetric, granularity=granularity)
    value = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    before = value.clone()
    scale = torch.full(granularity.parameter_shape(value.shape), 0.13)
    zero_point = None if symmetric else torch.full_like(scale, 3.4)
    with_gradients = fake_quantize(value, scale, zero_point, torch.tensor(4.0), spec)
    with torch.no_grad():
        without = fake_quantize(value, scale, zero_point, torch.tensor(4.0), spec)
    assert torch.equal(with_gradients, without)
    assert torch.equal(value, before)


IN_ROWS = [QuantSpec(3), QuantSpec(3, True, True), QuantSpec(3, granularity=PerChannel(0))]


def with_gradients(
    spec: QuantSpec, value: Tensor, scale: Tensor, zero_point: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the output, and the gradients of a sum with weights, of `fake_quantize`."""
    given = [
        part.detach().requires_grad_() for part in (value, scale, zero_point) if part is not None
    ]
    output = fake_quantize(given[0], given[1], given[2] if given[2:] else None, 3, spec)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return output.detach(), *torch.autograd.grad((weights * output).sum(), given)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("spec", IN_ROWS, ids=repr)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (4, 4096), (2, 50, 100)])
def test_values_and_gradients_are_the_same_without_kernels(
    spec: QuantSpec, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=generator)
    scale = 0.2 + 0.1 * torch.rand(spec.granularity.parameter_shape(shape), generator=generator)
    zero_point = 3 * torch.rand(scale.shape, generator=generator) if spec.has_zero_point else None
    found = with_gradients(spec, value, scale, zero_point)
    torch.set_num_threads(3)
    again = with_gradients(spec, value, scale, zero_point)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))

    monkeypatch.setattr(uniform, "kernels", lambda: None)
    expected = with_gradients(spec, value, scale, zero_point)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for one, other in zip(found[2:], expected[2:], strict=True):
        # float32 sums of up to 16,384 terms, in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_what_is_no_number_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    scale = torch.tensor(0.5)
    for _ in range(2):
        output, of_value, *_ = with_gradients(QuantSpec(3), value, scale, torch.tensor(1.0))
        assert output[0].isnan()
        assert output[1:].tolist() == [3.0, -0.5, 0.0]
        assert of_value[1:3].tolist() == [0, 0]
        monkeypatch.setattr(uniform, "kernels", lambda: None)


@pytest.mark.parametrize("spec", IN_ROWS, ids=repr)
def test_second_derivatives_are_those_of_the_definition(spec: QuantSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(3, 40, generator=generator)
    scale = torch.full(spec.granularity.parameter_shape(value.shape), 0.3)
    given = [value, scale, *([scale + 2] if spec.has_zero_point else [])]

    def second(function: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> list[Tensor]:
        parts = [part.clone().requires_grad_() for part in given]
        output = function(parts[0], parts[1], parts[2] if parts[2:] else None)
        first = torch.autograd.grad(output.pow(3).sum(), parts, create_graph=True)
        return list(torch.autograd.grad(sum(part.pow(2).sum() for part in first), parts))

    found = second(lambda *parts: fake_quantize(*parts, 3, spec))
    expected = second(
        lambda *parts: dequantize(quantize(*parts, 3, spec), parts[1], parts[2], 3, spec)
    )
    for one, other in zip(found, expected, strict=True):
        # float32 sums of a few hundred terms that partly cancel
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_what_is_traced_is_not_left_to_the_kernel() -> None:
    scale, spec = torch.tensor(0.1), QuantSpec(4, True, True)
    values = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))

    def function(value: Tensor) -> Tensor:
        return fake_quantize(value, scale, None, 4, spec)

    with torch.no_grad():
        for traced in (make_fx(function)(values[0]), torch.jit.trace(function, values[0])):
            assert torch.equal(traced(values[1]), function(values[1]))


def test_only_float32_is_left_to_the_kernel() -> None:
    value = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    scale, spec = torch.tensor(0.1), QuantSpec(4, True, True)
    expected = fake_quantize(value, scale, None, 4, spec)
    for dtype in (torch.float64, torch.bfloat16):
        found = fake_quantize(value, scale.to(dtype), None, 4, spec)
        assert float((found - expected).abs().max()) < 0.11  # another code at most
    torch.set_default_dtype(torch.float64)
    try:
        found = with_gradients(spec, value, scale, None)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, with_gradients(spec, value, scale, None), strict=True):
        assert one.dtype == torch.float32
        assert one.isfinite().all()
        assert one.shape == other.shape
