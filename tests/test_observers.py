"""Observers: contracts over the whole registry, and what each one promises of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolq.errors import InputError
from evolq.tensor import observers
from evolq.tensor.observers import (
    OBSERVERS,
    minmax,
    mse,
    omse,
    power_of_two_factor,
    wide_power_of_two_factor,
)
from evolq.tensor.quantizers import (
    PerChannel,
    PerGroup,
    PerTensor,
    QuantSpec,
    check_parameters,
    codes_range,
    fake_quantize,
)

UNIFORM = [(False, False), (True, False), (True, True), (False, True)]  # signed, symmetric
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(1, 4)]

specs = st.builds(
    lambda bits, kind, granularity: QuantSpec(bits, *kind, granularity=granularity),
    st.integers(2, 8),
    st.sampled_from(UNIFORM),
    st.sampled_from(GRANULARITIES),
)
seeds = st.integers(0, 2**32 - 1)
each_observer = pytest.mark.parametrize("name", OBSERVERS)


def heavy_tailed(seed: int, shape: tuple[int, ...] = (6, 8)) -> Tensor:
    """Return values whose few largest are far from the rest, so that clipping them pays."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def squared_error(
    value: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QuantSpec
) -> Tensor:
    """Return the squared error of each row."""
    error = fake_quantize(value, scale, zero_point, spec.bits, spec) - value
    return spec.granularity.rows(error.double()).square().sum(1)


@each_observer
@given(specs, seeds)
@settings(deadline=None, max_examples=20)
def test_parameters_are_valid_and_of_the_right_shape(name: str, spec: QuantSpec, seed: int) -> None:
    batches = [heavy_tailed(seed), heavy_tailed(seed + 1)]
    scale, zero_point = OBSERVERS[name](batches, spec)
    check_parameters("q", scale, zero_point, spec.bits, spec)
    assert scale.shape == spec.granularity.parameter_shape((6, 8))
    assert scale.dtype == torch.float32
    if zero_point is not None:
        lower, upper = codes_range(spec.bits, spec)
        assert zero_point.shape == scale.shape
        assert torch.equal(zero_point, zero_point.round().clamp(lower, upper))


@each_observer
@given(specs, seeds, st.integers(-12, 12))
@settings(deadline=None, max_examples=20)
def test_scale_follows_a_power_of_two(name: str, spec: QuantSpec, seed: int, exponent: int) -> None:
    value = heavy_tailed(seed)
    scale, zero_point = OBSERVERS[name]([value], spec)
    scaled, same_zero_point = OBSERVERS[name]([value * 2.0**exponent], spec)
    empty = scale == observers.ZERO_RANGE_SCALE
    assert torch.equal(scaled, torch.where(empty, scale, scale * 2.0**exponent))
    if zero_point is not None:
        assert torch.equal(same_zero_point, zero_point)


@pytest.mark.parametrize("name", sorted(OBSERVERS.keys() - {"omse"}))  # one factor for all rows
@pytest.mark.parametrize("granularity", [PerChannel(0), PerChannel(-1), PerGroup(1, 4)], ids=repr)
@pytest.mark.parametrize("kind", UNIFORM)
def test_each_row_is_a_tensor_of_its_own(name: str, granularity, kind) -> None:
    value = heavy_tailed(3)
    scale, zero_point = OBSERVERS[name]([value], QuantSpec(4, *kind, granularity=granularity))
    for index, row in enumerate(granularity.rows(value)):
        own_scale, own_zero_point = OBSERVERS[name]([row], QuantSpec(4, *kind))
        assert scale.flatten()[index] == own_scale
        if zero_point is not None:
            assert zero_point.flatten()[index] == own_zero_point


@each_observer
@pytest.mark.parametrize("kind", UNIFORM)
def test_a_tensor_of_zeros_stays_zero(name: str, kind: tuple[bool, bool]) -> None:
    spec = QuantSpec(4, *kind)
    value = torch.zeros(6, 8)
    scale, zero_point = OBSERVERS[name]([value], spec)
    check_parameters("q", scale, zero_point, 4, spec)
    assert not fake_quantize(value, scale, zero_point, 4, spec).any()


@each_observer
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("signed", [False, True])
def test_one_sign_is_not_clipped_to_a_part_of_its_range(name: str, sign: int, signed: bool) -> None:
    value = sign * torch.linspace(10, 11, 48).reshape(6, 8)
    spec = QuantSpec(8, signed)
    scale, zero_point = OBSERVERS[name]([value], spec)
    result = fake_quantize(value, scale, zero_point, 8, spec)
    # Half a step and the rounding of the zero point, of a range that reaches to zero.
    torch.testing.assert_close(result, value, rtol=0, atol=11 / 255)


@each_observer
def test_a_log2_quantizer_starts_at_a_power_of_two(name: str) -> None:
    spec = QuantSpec(4, kind="log2", granularity=PerChannel(0))
    value = torch.tensor([[0.1, 0.6], [0.1, 0.5], [0.0, 3.0], [0.0, 0.0]])
    scale, zero_point = OBSERVERS[name]([value], spec)
    assert zero_point is None
    assert scale[:3].tolist() == [1, 0.5, 4]
    assert scale[3] == observers.ZERO_RANGE_SCALE


@each_observer
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    value = torch.ones(2, 3)
    value[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        OBSERVERS[name]([torch.ones(2, 3), value], QuantSpec())


@each_observer
def test_batches_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="no values"):
        OBSERVERS[name]([torch.empty(0, 3)], QuantSpec())
    with pytest.raises(InputError, match="at least one batch"):
        OBSERVERS[name]([], QuantSpec())
    with pytest.raises(InputError, match="disagree"):
        OBSERVERS[name]([torch.ones(2, 3), torch.ones(2, 4)], QuantSpec(granularity=PerChannel(1)))
    with pytest.raises(InputError, match="do not divide"):
        OBSERVERS[name]([torch.ones(2, 3)], QuantSpec(granularity=PerGroup(1, 2)))


@each_observer
def test_batches_may_differ_in_size(name: str) -> None:
    OBSERVERS[name]([torch.ones(5, 3), torch.ones(2, 3)], QuantSpec(granularity=PerChannel(-1)))


@each_observer
def test_gradients_are_not_recorded(name: str) -> None:
    scale, _ = OBSERVERS[name]([heavy_tailed(0).requires_grad_()], QuantSpec())
    assert not scale.requires_grad


def test_minmax_is_the_definition() -> None:
    value = torch.tensor([[-1.0, 2.0], [0.5, 6.0]])
    scale, zero_point = minmax([value], QuantSpec(4, granularity=PerChannel(0)))
    torch.testing.assert_close(scale, torch.tensor([3 / 15, 6 / 15]))
    assert zero_point is not None
    assert zero_point.tolist() == [5, 0]
    scale, zero_point = minmax([value], QuantSpec(4, True, True))
    torch.testing.assert_close(scale, torch.tensor(6 / 7.5))
    assert zero_point is None


@given(seeds, st.integers(0, 3000))
@settings(deadline=None, max_examples=20)
def test_percentile_agrees_with_torch(seed: int, length: int) -> None:
    values = heavy_tailed(seed, (1, length + 1))
    torch.testing.assert_close(
        observers._upper_percentile(values),
        torch.quantile(values.double(), observers.PERCENTILE, dim=1).float(),
        rtol=1e-5,
        atol=1e-6,
    )


def errors_of_shrunk_ranges(value: Tensor, spec: QuantSpec) -> Tensor:
    """Return the squared error of each row at each shrink factor, shape (factors, rows)."""
    rows = spec.granularity.rows(value)
    ends = torch.stack(torch.aminmax(rows, dim=1), dim=1)
    stretched = torch.cat([ends * factor for factor in observers.SHRINK_FACTORS])
    plain = QuantSpec(spec.bits, spec.signed, spec.symmetric, granularity=PerChannel(0))
    repeated = rows.repeat(len(observers.SHRINK_FACTORS), 1)
    errors = squared_error(repeated, *minmax([stretched], plain), plain)
    return errors.reshape(len(observers.SHRINK_FACTORS), len(rows))


@given(specs, seeds)
@settings(deadline=None, max_examples=20)
def test_omse_finds_the_least_error(spec: QuantSpec, seed: int) -> None:
    value = heavy_tailed(seed)
    errors = errors_of_shrunk_ranges(value, spec)
    together = squared_error(value, *omse([value], spec), spec).sum()
    torch.testing.assert_close(together, errors.sum(1).amin(), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_comes_close_to_the_best_scale_and_zero_point(bits: int, symmetric: bool) -> None:
    """Against every zero point, and scales a third of a step apart."""
    generator = torch.Generator().manual_seed(bits)
    value = torch.randn(20, 300, generator=generator) + torch.randn(20, 1, generator=generator)
    spec = QuantSpec(bits, symmetric, symmetric, granularity=PerChannel(0))
    widest, _ = minmax([value], spec)
    zero_points = [None] if symmetric else [torch.full((20,), float(z)) for z in range(2**bits)]
    best = torch.stack(
        [
            squared_error(value, widest * factor, zero_point, spec)
            for zero_point in zero_points
            for factor in torch.linspace(0.1, 1.6, 450)
        ]
    ).amin(0)
    found = squared_error(value, *mse([value], spec), spec)
    # steps of a hundredth cost little, and few rows want a zero point two codes away; without its
    # neighbors the error is 2 % larger at 2 bits
    assert found.sum() <= 1.01 * best.sum()


def test_mse_reaches_a_constant_that_min_max_clips() -> None:
    value, spec = torch.full((4,), 0.5), QuantSpec(2, True, True)
    assert fake_quantize(value, *minmax([value], spec), 2, spec)[0] == pytest.approx(1 / 3)
    assert fake_quantize(value, *mse([value], spec), 2, spec)[0] == pytest.approx(0.5)


@given(specs, seeds)
@settings(deadline=None, max_examples=20)
def test_mse_is_never_worse_than_minmax_or_omse(spec: QuantSpec, seed: int) -> None:
    value = heavy_tailed(seed)
    best = squared_error(value, *mse([value], spec), spec)
    for other in (minmax, omse):
        assert bool((best <= squared_error(value, *other([value], spec), spec) * (1 + 1e-5)).all())


def test_mse_scores_all_batches_and_omse_the_last_one() -> None:
    calm, wild = torch.linspace(-1, 1, 1000), torch.tensor([-4.0, 4.0])
    spec = QuantSpec(4)
    assert mse([calm, wild], spec)[0] == mse([wild, calm], spec)[0]
    assert omse([wild, calm], spec)[0] < 0.5 * omse([calm, wild], spec)[0]


@pytest.mark.parametrize("observer", [mse, omse])
def test_far_outliers_are_clipped_down_to_the_smallest_factor(observer) -> None:
    value = torch.cat([torch.linspace(-1, 1, 20_000), torch.tensor([-9.0, 9.0])])
    spec = QuantSpec(2, True, True)
    torch.testing.assert_close(observer([value], spec)[0], minmax([value], spec)[0] * 0.11)


@given(st.integers(2, 8), st.sampled_from(UNIFORM), seeds)
@settings(deadline=None)
def test_errors_of_a_histogram_are_those_of_its_bins(
    bits: int, kind: tuple[bool, bool], seed: int
) -> None:
    """Dense, in float64: each bin rounded by itself."""
    generator = torch.Generator().manual_seed(seed)
    spec = QuantSpec(bits, *kind)
    centers = torch.randn(200, generator=generator).sort().values
    counts = torch.randint(0, 9, (200,), generator=generator).float()
    scale = torch.rand(3, generator=generator) + 0.01
    zeros = torch.randint(-3, 2**bits, (3, 2), generator=generator).float()
    found = observers._histogram_errors(centers, counts, scale, zeros, spec)
    lower, upper = codes_range(bits, spec)
    size, zero = scale.double()[:, None, None], zeros.double()[..., None]
    codes = (centers / size).round().clamp(lower - zero, upper - zero)
    dense = (counts * (codes * size - centers).square()).sum(-1)
    # float32 rounding of where codes end moves values next to it, at the same error
    torch.testing.assert_close(found.double(), dense, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)], ids=repr)
def test_a_histogram_stands_for_many_values(bits: int, granularity, monkeypatch) -> None:
    batches = [heavy_tailed(seed, (2, 3_000)) for seed in range(4)]
    spec = QuantSpec(bits, granularity=granularity)
    monkeypatch.setattr(observers, "EXACT_VALUES", 2**20)
    exact = mse(batches, spec)
    monkeypatch.setattr(observers, "EXACT_VALUES", 2**10)
    values = torch.cat(batches, dim=1)
    approximate = squared_error(values, *mse(batches, spec), spec)
    # The least error is flat: a factor one step off costs little.
    torch.testing.assert_close(approximate, squared_error(values, *exact, spec), rtol=1e-3, atol=0)


@given(seeds, st.integers(2, 8))
@settings(deadline=None, max_examples=20)
def test_power_of_two_factors_are_the_best_of_each_channel(seed: int, bits: int) -> None:
    spread = torch.tensor([0.05, 0.2, 0.5, 1.0, 3.0])
    batches = [heavy_tailed(seed, (7, 5)) * spread, heavy_tailed(seed + 1, (9, 5)) * spread]
    spec = QuantSpec(bits, granularity=PerChannel(-1))
    scale, zero_point, factors = power_of_two_factor(batches, spec)
    assert scale.shape == zero_point.shape == ()
    assert set(factors.tolist()) <= set(observers.POWER_OF_TWO_FACTORS)
    widest, widest_zero_point = minmax(batches, QuantSpec(bits))
    assert scale * 8 == widest
    assert zero_point == widest_zero_point
    best = squared_error(batches[-1], scale * factors, zero_point, spec)
    for factor in observers.POWER_OF_TWO_FACTORS:
        other = squared_error(batches[-1], scale * factor, zero_point, spec)
        assert bool((best <= other * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize(
    "spec",
    [QuantSpec(), QuantSpec(symmetric=True, granularity=PerChannel(-1))],
)
def test_power_of_two_factors_need_channels_and_a_zero_point(spec: QuantSpec) -> None:
    with pytest.raises(InputError, match="power-of-two"):
        power_of_two_factor([torch.ones(2, 3)], spec)


def test_factors_reach_as_far_as_channels_lie_apart() -> None:
    """A channel of one sign, 32 times as wide as two others, has as many codes as they have."""
    spec = QuantSpec(8, granularity=PerChannel(-1))
    ramp = torch.linspace(-1, 1, 1001)
    batch = torch.stack([ramp, 64 * (ramp - 1) / 2, ramp, torch.zeros(1001)], dim=1)
    scale, zero_point, factors = wide_power_of_two_factor([batch], spec)
    assert zero_point is not None
    # every channel's range lies in the middle of the codes, and has all of them
    assert [float(z) for z in zero_point[:3]] in ([128, 255, 128], [127, 255, 127])
    assert factors.tolist() == [1, 32, 1, 1]
    assert float(scale) == pytest.approx(2 / 255, rel=0.01)
    published, at, eight = power_of_two_factor([batch], spec)
    wide = fake_quantize(batch, scale * factors, zero_point, 8, spec) - batch
    narrow = fake_quantize(batch, published * eight, at.expand(4), 8, spec) - batch
    assert 10 * wide[:, 0].square().mean() < narrow[:, 0].square().mean()


@given(seeds, st.integers(2, 8), st.booleans())
def test_wide_factors_are_powers_of_two_from_one_on(seed: int, bits: int, symmetric: bool) -> None:
    spec = QuantSpec(bits, symmetric, symmetric, granularity=PerChannel(-1))
    width = torch.exp2(torch.arange(8.0) * 2)
    batches = [heavy_tailed(seed + n) * width for n in range(2)]
    scale, zero_point, factors = wide_power_of_two_factor(batches, spec)
    assert (zero_point is None) == symmetric
    assert factors.min() == 1
    assert torch.equal(factors.log2(), factors.log2().round())
    assert factors.max() <= 2**observers.LARGEST_EXPONENT
    assert float(scale) > 0


def test_a_published_range_is_not_widened_to_zero() -> None:
    """Values from 3 to 5 get all codes, and those above 2 clip: the code 255 is 2 above zero."""
    batch = torch.linspace(3, 5, 101)
    scale, zero_point = minmax([batch], QuantSpec(8, published=True))
    assert float(scale) == pytest.approx(2 / 255)
    assert float(zero_point) == 0
    assert float(minmax([batch], QuantSpec(8))[0]) == pytest.approx(5 / 255)


@given(seeds, st.integers(2, 8))
@settings(deadline=None, max_examples=10)
def test_omse_of_long_tensors_is_scored_on_the_values(seed: int, bits: int) -> None:
    spec = QuantSpec(bits)
    batch = heavy_tailed(seed, (observers.EXACT_VALUES + 1,))
    scale, zero_point = omse([batch], spec)
    errors = []
    for factor in observers.SHRINK_FACTORS:
        found = minmax([torch.stack(torch.aminmax(batch)) * factor], spec)
        errors.append(squared_error(batch, *found, spec))
    assert squared_error(batch, scale, zero_point, spec) <= min(errors) * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 1024), (2, 2500)])
@pytest.mark.parametrize("choices", [1, 3])
def test_squared_errors_are_the_same_without_kernels(
    shape: tuple[int, int], choices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator)
    scale = 0.1 + torch.rand(shape[0], generator=generator)
    zero_points = torch.randint(0, 16, (choices, shape[0]), generator=generator).float()
    spec = QuantSpec(4, granularity=PerChannel(0))
    found = observers._squared_errors(values, scale, zero_points, spec)
    assert torch.equal(observers._squared_errors(values.double(), scale, zero_points, spec), found)
    monkeypatch.setattr(observers, "kernels", lambda: None)
    expected = observers._squared_errors(values, scale, zero_points, spec)
    # float32 sums of up to 2,500 errors, in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
