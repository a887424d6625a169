"""Observers: from calibration tensors to the scale and zero point at which a quantizer starts.

An observer is a function of a sequence of batches and a `QuantSpec`; a weight is a sequence of one
tensor. `OBSERVERS` lists them. All share these rules:

- The range always includes zero, which then has a code of its own: without it a tensor of one sign
  would be clipped to a part of its range. (`QuantSpec.published` leaves it as it is, and clips.)
- A range of zero (a constant tensor of zeros) gets the scale `ZERO_RANGE_SCALE`.
- A symmetric range reaches as far below zero as above it. The full range of codes is used: the
  scale is the largest magnitude over half of (highest - lowest code), as in the published FQ-ViT
  code, and not over the highest code.
- A log2 quantizer has one parameter, the value of code 0: the smallest power of two that is not
  below the range's upper end, so 1 for a softmax's output, as published.

All compute in float32, and raise InputError for no batches, an empty batch, NaN or infinite values,
and shapes that disagree about the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from evolq.errors import InputError
from evolq.native import kernels
from evolq.tensor.quantizers import PerChannel, QuantSpec, codes_range

Observer = Callable[[Sequence[Tensor], QuantSpec], tuple[Tensor, Tensor | None]]

# The published FQ-ViT code clamps every scale from below to float32's epsilon. Here only a scale of
# zero becomes that: a tensor of tiny values keeps the scale that suits it.
ZERO_RANGE_SCALE = torch.finfo(torch.float32).eps

# Published FQ-ViT code: both moving averages, and the percentile.
AVERAGING_SIGMA = 0.01
PERCENTILE = 0.99999

# Published FQ-ViT code (OMSE): 90 factors by which the range (min, max) is multiplied.
SHRINK_FACTORS = tuple(1.0 - 0.01 * step for step in range(90))

# FQ-ViT, Power-of-Two Factor, with K = 3: powers of two from 2^0 to 2^K.
POWER_OF_TWO_FACTORS = (1, 2, 4, 8)

# Of factors whose range is searched: aligned to the finest channel, 8-bit codes fit in 16 bits.
LARGEST_EXPONENT = 8

# Medians of the channels' magnitudes: channels from twice as many on are far out. On the inputs of
# fc2 in an ImageNet ViT-Tiny one channel of 9,216 is, 92 medians out. Factors for all channels of
# that layer lessen its error by 14 dB at W4A8 and 15 at W8A8; in other layers they cost up to 4 dB
# at W4A8, as the columns that they multiply widen the weight's range.
USUAL_REACH = 4

# Squared errors are scored on the values themselves up to this many per parameter, and on a
# histogram beyond: 64 bins for each step of an 8-bit quantizer, 7 at the smallest shrink factor, so
# that the bins' width adds at most 1/7^2 of the rounding error, about the same for each factor.
EXACT_VALUES = 2**16
HISTOGRAM_BINS = 2**14

# How much better than the best one's a factor's error may be than its histogram says: twice what
# the bins' width adds, 1/7^2 at most.
HISTOGRAM_DOUBT = 2 / 7**2

# Values scored at once: two float32 buffers of this length stay in a second-level cache (1 MiB).
CHUNK_VALUES = 2**17


def _rows(batches: Sequence[Tensor], spec: QuantSpec) -> list[Tensor]:
    """Return each batch as a matrix (parameters, values that share one parameter), checked."""
    if not batches:
        raise InputError("an observer needs at least one batch of values, and got none")
    for batch in batches:
        if not batch.numel():
            raise InputError(f"a batch of shape {tuple(batch.shape)} holds no values to observe")
    shapes = {spec.granularity.parameter_shape(batch.shape) for batch in batches}
    if len(shapes) > 1:
        raise InputError(f"batches disagree about the shape of the scale: {sorted(shapes)}")
    return [spec.granularity.rows(batch.detach().float()).contiguous() for batch in batches]


def _parameters(low: Tensor, high: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return scale and zero point (zeros if the spec has none) of ranges, shapes (parameters,)."""
    lower, upper = codes_range(spec.bits, spec)
    if not spec.published:
        low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.kind == "log2":
        scale = torch.exp2(torch.ceil(torch.log2(high)))
    elif not spec.symmetric:
        scale = (high - low) / (upper - lower)
    elif spec.signed:
        scale = torch.maximum(-low, high) / ((upper - lower) / 2)
    else:
        scale = high / upper
    scale = torch.where(scale > 0, scale, ZERO_RANGE_SCALE)
    if not spec.has_zero_point:
        return scale, torch.zeros_like(scale)
    return scale, (lower - (low / scale).round()).clamp(lower, upper)  # type: ignore[arg-type]


def _shaped(
    low: Tensor, high: Tensor, batches: Sequence[Tensor], spec: QuantSpec
) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point of ranges in the shapes that a Point holds."""
    return _in_shape(*_parameters(low, high, spec), batches, spec)


def _in_shape(
    scale: Tensor, zero_point: Tensor, batches: Sequence[Tensor], spec: QuantSpec
) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point in the shapes that a Point holds."""
    shape = spec.granularity.parameter_shape(batches[0].shape)
    return scale.reshape(shape), zero_point.reshape(shape) if spec.has_zero_point else None


def _extremes(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of each row over all batches.

    Raises:
        InputError: if a value is not finite.
    """
    # not aminmax, which takes twelve times as long along an axis
    low = torch.stack([row.amin(1) for row in rows]).amin(0)
    high = torch.stack([row.amax(1) for row in rows]).amax(0)
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        raise InputError(
            f"a tensor of {rows[0].numel()} values holds NaN or infinite ones; a range cannot be "
            "observed: look for broken weights or images"
        )
    return low, high


def _moving_average(ranges: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the ranges' exponential moving average, from the first batch's onwards."""
    low, high = ranges[0]
    for next_low, next_high in ranges[1:]:
        low = low + AVERAGING_SIGMA * (next_low - low)
        high = high + AVERAGING_SIGMA * (next_high - high)
    return low, high


def _upper_percentile(row: Tensor) -> Tensor:
    """Return each row's `PERCENTILE`, interpolated linearly between neighbors in rank."""
    # Like torch.quantile, which refuses more than 16 million values and sorts them all.
    rank = PERCENTILE * (row.shape[1] - 1)
    floor = int(rank)
    top = row.topk(row.shape[1] - floor, dim=1).values
    next_above = top[:, -2:][:, 0]  # of a single value, itself
    return torch.lerp(top[:, -1], next_above, rank - floor)


def minmax(batches: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Take the least and the greatest value of all batches as the range."""
    return _shaped(*_extremes(_rows(batches, spec)), batches, spec)


def ema(batches: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Average the batches' ranges exponentially, weight 0.01 for each after the first."""
    ranges = [_extremes([row]) for row in _rows(batches, spec)]
    return _shaped(*_moving_average(ranges), batches, spec)


def percentile(batches: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Average, as `ema` does, the range from percentile 0.001 to 99.999 of each batch."""
    rows = _rows(batches, spec)
    _extremes(rows)  # all must be finite
    ranges = [(-_upper_percentile(-row), _upper_percentile(row)) for row in rows]
    return _shaped(*_moving_average(ranges), batches, spec)


def _samples(rows: Sequence[Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return values and their counts (None: one each), matrices (parameters, values).

    `low` and `high` (parameters,) bound the values of each row.

    Beyond `EXACT_VALUES` per parameter these are the centers and counts of equal bins, which is
    deterministic and bounds memory.
    """
    if sum(row.shape[1] for row in rows) <= EXACT_VALUES:
        return torch.cat(list(rows), dim=1), None
    counts = torch.zeros(len(low), HISTOGRAM_BINS, device=low.device)
    for row in rows:
        for channel, (least, greatest) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            counts[channel] += torch.histc(row[channel], HISTOGRAM_BINS, least, greatest)
    centers = (torch.arange(HISTOGRAM_BINS, device=low.device) + 0.5) / HISTOGRAM_BINS
    return torch.lerp(low[:, None], high[:, None], centers), counts


def _squared_errors(values: Tensor, scale: Tensor, zero_points: Tensor, spec: QuantSpec) -> Tensor:
    """Return the sum of squared errors of each row of `values` at each of its zero points.

    Args:
        values: (parameters, values).
        scale: (parameters,).
        zero_points: (choices, parameters).
        spec: of the quantizer.

    Returns:
        (choices, parameters).
    """
    lower, upper = codes_range(spec.bits, spec)
    library = kernels() if values.device.type == "cpu" else None
    if library is not None:
        errors = zero_points.new_empty(zero_points.shape, dtype=torch.float32)
        values, scale, zero_points = (
            part.float().contiguous() for part in (values, scale, zero_points)
        )
        library.squared_errors(
            *(values.data_ptr(), scale.data_ptr(), zero_points.data_ptr(), lower, upper),
            *(*values.shape, len(zero_points), errors.data_ptr(), torch.get_num_threads()),
        )
        return errors * scale.square()
    sums = []
    size = max(1, CHUNK_VALUES // values.shape[1])
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        # In units of the scale. Rounding before adding the zero point may break a tie the other
        # way, at the same error.
        steps = values[part] / scale[part, None]
        rounded = steps.round()
        errors = torch.empty_like(steps)
        for zero_point in zero_points:
            offset = zero_point[part, None]
            torch.maximum(rounded, lower - offset, out=errors)
            torch.minimum(errors, upper - offset, out=errors).sub_(steps).square_()
            sums.append(errors.sum(1))
    per_choice = [torch.cat(sums[one :: len(zero_points)]) for one in range(len(zero_points))]
    return torch.stack(per_choice) * scale.square()


def _histogram_errors(
    centers: Tensor, counts: Tensor, scale: Tensor, zero_points: Tensor, spec: QuantSpec
) -> Tensor:
    """Return the sums of squared errors of a histogram, from sums over the bins of each code.

    With n bins and c codes an error takes c look-ups in running sums instead of n roundings: bins
    that round to code k, at zero point 0, hold N values of sum A and sum of squares B, and lose
    B - 2 s k A + s^2 k^2 N at scale s.

    Args:
        centers: (bins,), rising.
        counts: (bins,).
        scale: (choices,).
        zero_points: (choices, offsets).
        spec: of the quantizer.

    Returns:
        (choices, offsets).
    """
    lower, upper = (int(code) for code in codes_range(spec.bits, spec))
    steps = torch.arange(lower, upper + 1, device=scale.device) - zero_points[..., None]
    place = torch.searchsorted(centers, (steps[..., :-1] + 0.5) * scale[:, None, None])
    first = torch.zeros_like(place[..., :1])
    place = torch.cat([first, place, first + len(centers)], -1)
    number, value = counts.double(), centers.double()

    def of_each_code(summed: Tensor) -> Tensor:
        return functional.pad(summed.cumsum(0), (1, 0))[place].diff()

    size, steps = scale.double()[:, None], steps.double()
    products = (steps * of_each_code(number * value)).sum(-1)
    squares = (steps.square() * of_each_code(number)).sum(-1)
    lost = (number * value.square()).sum() - 2 * size * products + size.square() * squares
    return lost.clamp_min(0).float()


def _exact_errors(
    values: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    spec: QuantSpec,
    scored: Iterable[int],
    together: bool,
) -> Tensor:
    """Return `_squared_errors` of each range, infinite for those that need not be scored.

    Args:
        values: (parameters, values).
        scales: (ranges, parameters), of falling ranges.
        zero_points: (ranges, offsets, parameters), those to try; the first is the range's own.
        spec: of the quantizer.
        scored: places of the ranges that may be the best.
        together: whether an error is the sum over all parameters.
    """
    lower, upper = codes_range(spec.bits, spec)
    reach = zero_points.shape[1] // 2 + 1  # of the offsets, which lie around 0, and rounding
    least, greatest = values.amin(1), values.amax(1)
    errors = torch.full(zero_points.shape, torch.inf, device=values.device)
    best = torch.tensor(torch.inf, device=values.device)
    for one in scored:
        found = _squared_errors(values, scales[one], zero_points[one], spec)
        if together:
            found = found.double().sum(1, True).float()
        errors[one] = found
        best = torch.minimum(best, found.amin(0))
        # The extreme values alone lose at least this much at every later factor: the last codes'
        # values only come closer to zero, but for the steps by which the zero point may differ.
        nearest = zero_points[one, 0]
        top = (upper - nearest + reach) * scales[one]
        bottom = (lower - nearest - reach) * scales[one]
        lost = (greatest - top).relu().square() + (bottom - least).relu().square()
        if bool(((lost.sum(0, True) if together else lost) > best).all()):
            break
    return errors


def _best(
    rows: Sequence[Tensor],
    low: Tensor,
    high: Tensor,
    spec: QuantSpec,
    factors: Sequence[float],
    offsets: Sequence[int] = (0,),
    together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the parameters of least squared error on `rows`: of each parameter, or together.

    Args:
        rows: batches, each (parameters, values).
        low: (parameters,), of the range.
        high: likewise.
        spec: of the quantizer.
        factors: of the range, falling.
        offsets: of the rounded zero point, in codes; 0 comes first.
        together: whether one factor serves all parameters.

    Returns:
        Scale and zero point (parameters,). Of equal errors the first factor wins, the largest, and
        the first offset.
    """
    lower, upper = codes_range(spec.bits, spec)
    of_range = torch.tensor(factors, device=low.device)[:, None]
    scales, nearest = _parameters(low * of_range, high * of_range, spec)
    shifts = torch.tensor(offsets, device=low.device)[:, None]
    zero_points = (nearest[:, None] + shifts).clamp(lower, upper)  # type: ignore[arg-type]
    values, counts = _samples(rows, low, high)
    if counts is None:
        errors = _exact_errors(values, scales, zero_points, spec, range(len(scales)), together)
    else:
        per_row = [
            _histogram_errors(*bins, scales[:, row], zero_points[..., row], spec)
            for row, bins in enumerate(zip(values, counts, strict=True))
        ]
        errors = torch.stack(per_row, -1)
        if together:
            # the histogram says which factors are worth scoring on the values themselves
            about = errors.sum((1, 2))
            near = (about <= (1 + HISTOGRAM_DOUBT) * about.min()).nonzero()[:, 0].tolist()
            values = torch.cat(list(rows), dim=1)
            errors = _exact_errors(values, scales, zero_points, spec, near, together)
    chosen = errors.flatten(0, 1).argmin(0)  # of equal ones the first
    scale = scales.gather(0, chosen[None] // len(offsets))[0]
    return scale, zero_points.flatten(0, 1).gather(0, chosen[None])[0]


def omse(batches: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Shrink the range by the one factor, equal for all channels, of least squared error.

    As published (FQ-ViT's code after Choukroun et al. 2019, "Low-bit Quantization of Neural
    Networks for Efficient Inference"): 90 factors 1.00, 0.99, ..., 0.11, the error summed over the
    whole tensor. The range is that of all batches, but only the last one is scored. Of long tensors
    a histogram says which factors are worth scoring. A log2 quantizer has nothing to shrink.
    """
    rows = _rows(batches, spec)
    low, high = _extremes(rows)
    if spec.kind == "log2":
        return _shaped(low, high, batches, spec)
    found = _best(rows[-1:], low, high, spec, SHRINK_FACTORS, together=True)
    return _in_shape(*found, batches, spec)


def mse(batches: Sequence[Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    """Give each channel (or group) the range and the zero point of least squared error.

    The range is stretched by the factors of `omse` and by larger ones, down from where one code
    would be left over (symmetric and signed: from where the largest magnitude is that of the
    highest code, as there is one code less above zero than below). At each factor the rounded zero
    point and its two neighbors are tried. Every batch is scored; more than 65,536 values per
    parameter are scored on a histogram of 16,384 equal bins. A log2 quantizer has nothing to
    search.
    """
    rows = _rows(batches, spec)
    low, high = _extremes(rows)
    if spec.kind == "log2":
        return _shaped(low, high, batches, spec)
    lower, upper = (float(code) for code in codes_range(spec.bits, spec))
    steps = upper - lower
    widest = steps / 2 / upper if spec.symmetric and spec.signed else steps / (steps - 1)
    beyond = range(int(100 * (widest - 1)), 0, -1)
    factors = (widest, *(1 + 0.01 * step for step in beyond), *SHRINK_FACTORS)
    offsets = (0, -1, 1) if spec.has_zero_point else (0,)
    return _in_shape(*_best(rows, low, high, spec, factors, offsets), batches, spec)


def power_of_two_factor(
    batches: Sequence[Tensor], spec: QuantSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's scale and zero point, and for each channel an integer factor of the scale.

    Power-of-two factor (PTF; Lin et al. 2022, "FQ-ViT", K = 3): channel c is quantized with scale
    `factors[c] * scale` and the layer's zero point. The largest scale, at factor 8, is that of the
    min-max range of all batches; each channel takes the factor of least squared error on the last
    batch, as in the published code.

    Args:
        batches: activations.
        spec: uniform with a zero point; its granularity `PerChannel(axis)` says which axis the
            channels are.

    Returns:
        Scale (), zero point () and factors (channels,), each 1, 2, 4 or 8.

    Raises:
        InputError: for another kind of spec, and as every observer does.
    """
    if not (isinstance(spec.granularity, PerChannel) and spec.has_zero_point):
        raise InputError(f"a power-of-two factor needs an asymmetric spec per channel, not {spec}")
    rows = _rows(batches, spec)
    low, high = _extremes(rows)
    largest, zero_point = _parameters(low.amin(), high.amax(), spec)
    scale = largest / POWER_OF_TWO_FACTORS[-1]
    last = rows[-1]
    zero_points = zero_point.expand(1, len(last))
    errors = torch.cat(
        [
            _squared_errors(last, (scale * f).expand(len(last)), zero_points, spec)
            for f in POWER_OF_TWO_FACTORS
        ]
    )
    factors = torch.tensor(POWER_OF_TWO_FACTORS, dtype=scale.dtype, device=scale.device)
    return scale, zero_point, factors[errors.argmin(0)]


def wide_power_of_two_factor(
    batches: Sequence[Tensor], spec: QuantSpec
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Do what `power_of_two_factor` does for channels that lie far apart.

    The residual stream of some transformers has channels a hundred times as wide as the others,
    and of one sign. With one zero point for all, such a channel has half of its codes. Here each
    channel has its own, with which its range lies in the middle of the codes; exponents reach from
    the widest channel's step down to that of the narrowest, at most `LARGEST_EXPONENT`; all batches
    are scored.

    Returns:
        Scale (), zero points (channels,) or None, and factors (channels,), powers of two, the least
        one 1.
    """
    rows = _rows(batches, spec)
    low, high = _extremes(rows)
    low, high = low.clamp(max=0), high.clamp(min=0)
    lower, upper = codes_range(spec.bits, spec)
    steps, zero_points = _parameters(low, high, spec)
    varying = low < high
    if not bool(varying.any()):
        return steps[0], zero_points if spec.has_zero_point else None, torch.ones_like(low)
    steps = steps[varying]
    exponent = float((steps.amax() / steps.amin()).log2().ceil().clamp(max=LARGEST_EXPONENT))
    factors = torch.exp2(torch.arange(exponent + 1, device=low.device))
    scale = steps.amax() / factors[-1]
    middle = (lower + upper - (low + high) / (scale * factors[:, None])) / 2
    zeros = middle.round().clamp(lower, upper) if spec.has_zero_point else 0 * middle  # type: ignore[arg-type]
    errors = [
        sum(_squared_errors(row, (scale * f).expand(len(row)), zero[None], spec)[0] for row in rows)
        for f, zero in zip(factors, zeros, strict=True)
    ]
    best = torch.stack(errors).argmin(0)  # type: ignore[arg-type]
    least = factors[best][varying].amin()
    chosen = torch.where(varying, factors[best] / least, 1.0)
    zero_points = zeros.gather(0, best[None])[0]
    return scale * least, zero_points if spec.has_zero_point else None, chosen


def outlier_factor(batches: Sequence[Tensor], axis: int) -> Tensor:
    """Return a power of two for each channel: 1, but for those far out.

    A channel whose largest magnitude is r times `USUAL_REACH` medians of all channels' has the
    greatest power of two up to r. To divide by it and multiply the next weight's columns changes
    nothing in full precision (as SmoothQuant does; Xiao et al. 2023, equation 3).

    Args:
        batches: activations.
        axis: of the channels.

    Returns:
        Factors (channels,), 1 or more.
    """
    low, high = _extremes([PerChannel(axis).rows(batch) for batch in batches])
    reach = torch.maximum(high, -low)
    usual = USUAL_REACH * reach.median()
    if usual == 0:
        return torch.ones_like(reach)
    return torch.exp2((reach / usual).log2().floor().clamp(0, LARGEST_EXPONENT))


OBSERVERS: dict[str, Observer] = {
    "minmax": minmax,
    "ema": ema,
    "percentile": percentile,
    "omse": omse,
    "mse": mse,
}
