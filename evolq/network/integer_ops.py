"""What the nodes of a lowered graph compute: operators on integer codes; see `lowering`."""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import CDLL
from functools import cache

import torch
from torch import Tensor, nn

from evolq.errors import InputError
from evolq.native import LANES, kernels, tile_product
from evolq.tensor.moments import EPSILON, MomentMatchedQuantizer, moments
from evolq.tensor.quantizers import (
    PerChannel,
    Quantizer,
    QuantSpec,
    codes_range,
    dequantize,
    quantize,
)

# Codes from 0 to 255 minus this fit in int8.
STORED_SHIFT = 128

# So many products of two int8 codes sum to at most 2^24: every partial sum is a float32.
EXACT_TERMS = 2**24 // 128**2

# Sums in int32 hold zero points up to this for layers of up to 8,000 inputs. No zero point gets
# there in earnest: 256 codes off, all values have one code.
LARGEST_ZERO_POINT = 2**11

# The most terms of which two such activations have sums in int32.
LARGEST_SUM = 2**31 // (LARGEST_ZERO_POINT + 255) ** 2


def code_bounds(
    zero_point: Tensor | None, bits: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rounded zero point, the lowest and the highest code, 0-dim each.

    Raises:
        InputError: for a zero point too far off for sums in int32.
    """
    lower, upper = map(bits.new_tensor, codes_range(float(bits), QuantSpec(signed=signed)))
    zero = torch.zeros_like(lower) if zero_point is None else zero_point.round()
    _check_zero_point(zero)
    return zero, lower, upper


def encode(
    value: Tensor, scale: Tensor, zero: Tensor, lower: Tensor, upper: Tensor, shift: int
) -> Tensor:
    """Return the stored codes of `value`: int8, the code minus `shift`.

    By `kernels.cpp` where it can be, with the same bits; inside of what is compiled it is traced.
    """
    quantizer = (scale, zero, lower, upper)
    if (
        not torch.compiler.is_compiling()
        and value.device.type == "cpu"
        and value.dtype == torch.float32
        and value.is_contiguous()
        and all(one.numel() == 1 for one in quantizer)
        and (library := kernels()) is not None
    ):
        stored = torch.empty(value.shape, dtype=torch.int8)
        library.encode(
            value.data_ptr(),
            *(*map(float, quantizer), shift, value.numel()),
            *(stored.data_ptr(), torch.get_num_threads()),
        )
        return stored
    codes = (value / scale + zero).clamp_min(lower).clamp_max(upper).round()
    return (codes - shift).to(torch.int8)


def decode(codes: Tensor, scale: Tensor, zero: Tensor, shift: int) -> Tensor:
    """Return the values that stored codes stand for."""
    return (codes.to(scale.dtype) + shift - zero) * scale


def steps(value: Tensor, scale: Tensor, zero: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return codes minus zero point, as floats."""
    codes = (value / scale + zero).clamp_min(lower).clamp_max(upper).round()
    return codes - zero


def log2_softmax(logits: Tensor, scale: Tensor, bits: Tensor, axis: int) -> Tensor:
    """Return the log2-quantized softmax over `axis` in units of `scale`: powers of two, and zero.

    With t = log2(e) (x - max x), log2 of a probability is t - log2 sum 2^t; its code is the rounded
    log2(scale) minus that, from 0 to 2^bits, of which the last stands for zero.
    """
    _, upper = codes_range(bits, QuantSpec(kind="log2"))
    # The largest logit, but not as amax: the compiler takes that for the beginning of a softmax of
    # floats and then stores the logits twice, which takes half as long again.
    largest = -(-logits).amin(axis, keepdim=True)
    t = (logits - largest) * math.log2(math.e)
    log2_sum = torch.log2(torch.exp2(t).sum(axis, keepdim=True))
    codes = (torch.log2(scale) + log2_sum - t).clamp_min(0.0).clamp_max(upper).round()
    # 2^-code as the bits of a float32, where exponent 0 is 127, and 0 what lies below 2^-126
    powers = ((127 - codes.to(torch.int32)).clamp_min(0) << 23).view(torch.float32)
    return torch.where(codes < upper, powers, 0.0)


def zero_point_term(
    codes: Tensor, axis: int, zero: Tensor | None, shift: int, other: Tensor, other_shift: int
) -> Tensor:
    """Return sums of stored codes minus their zero point, times the other operand's zero point.

    Int32, with `axis` of length 1. A zero point of None is 0; each is shifted as its codes are.
    """
    # in floats, whose sums are exact up to 2^24: sums of int8 are slow
    sums = codes.to(torch.float32).sum(axis, keepdim=True)
    if zero is not None:
        sums = sums - codes.shape[axis] * (zero - shift)
    return sums.to(torch.int32) * (other - other_shift).to(torch.int32)


def times_scales(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return a product of steps in the units of the values."""
    return product.to(left.dtype) * (left * right)


def row_sums(codes: Tensor, needed: Tensor) -> Tensor:
    """Return the sums over the last axis, int32 (..., 1); one zero if they are not needed."""
    if not bool(needed):
        return codes.new_zeros([1] * codes.dim(), dtype=torch.int32)
    # sixteen equal columns: the product is faster than a sum of int8 and no slower than one column
    ones = codes.new_ones(codes.shape[-1], 16)
    return integer_product(codes, ones)[..., :1]


def tiles(codes: Tensor, height: int, width: int) -> Tensor:
    """Return the windows of (n, channels, H, W) side by side: (n, rows, columns, values)."""
    count, channels = codes.shape[:2]
    rows, columns = codes.shape[2] // height, codes.shape[3] // width
    codes = codes[:, :, : rows * height, : columns * width]
    windows = codes.reshape(count, channels, rows, height, columns, width)
    return windows.permute(0, 2, 4, 1, 3, 5).reshape(count, rows, columns, -1)


def integer_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the exact product of int8 matrices as int32.

    (..., n, K) by (K, m), or by (..., K, m) with the same leading axes, gives (..., n, m).
    """
    if left.device.type != "cpu" or not _int8_is_exact():
        return _product_in_floats(left, right)
    if _fits_tiles(left, right) and (multiply := tile_product()) is not None:
        return _product_in_tiles(left.contiguous(), right.contiguous(), multiply)
    left, right = _with_plain_strides(left), _with_plain_strides(right)
    if right.dim() == 2:
        product = torch._int_mm(left.reshape(-1, left.shape[-1]), right)
    else:
        lefts, rights = left.flatten(0, -3), right.flatten(0, -3)
        product = left.new_empty(*lefts.shape[:2], rights.shape[2], dtype=torch.int32)
        for index in range(len(product)):
            torch._int_mm(lefts[index], rights[index], out=product[index])
    return product.view(*left.shape[:-1], right.shape[-1])


def _fits_tiles(left: Tensor, right: Tensor) -> bool:
    """Whether `kernels.cpp` can multiply these; `torch._int_mm` says what is wrong with others."""
    if right.dim() != 2 or not left.dtype == right.dtype == torch.int8:
        return False
    terms, columns = right.shape
    return left.shape[-1] == terms > 0 and terms % 4 == 0 and columns % LANES == 0


def _product_in_tiles(left: Tensor, right: Tensor, multiply: Callable[..., None]) -> Tensor:
    """Do what `torch._int_mm` does, faster where terms are few."""
    terms, columns = right.shape
    product = left.new_empty(*left.shape[:-1], columns, dtype=torch.int32)
    multiply(
        *(left.data_ptr(), right.data_ptr()),
        *(left.numel() // terms, terms, columns),
        *(product.data_ptr(), torch.get_num_threads()),
    )
    return product


def _with_plain_strides(matrices: Tensor) -> Tensor:
    """Return matrices as `torch._int_mm` reads them rightly.

    It trusts the stride of an axis of length 1, which may be anything, even in what torch calls
    contiguous, and does not know rows that are one and the same.
    """
    if 1 not in matrices.shape[-2:] and 0 not in matrices.stride()[-2:]:
        return matrices
    return matrices.clone(memory_format=torch.contiguous_format)


def _product_in_floats(left: Tensor, right: Tensor) -> Tensor:
    """Do what `torch._int_mm` does, exactly and anywhere."""
    pairs = zip(left.split(EXACT_TERMS, -1), right.split(EXACT_TERMS, -2), strict=True)
    parts = [(a.to(torch.float32) @ b.to(torch.float32)).to(torch.int32) for a, b in pairs]
    return torch.stack(parts).sum(0, dtype=torch.int32)


@cache
def _int8_is_exact() -> bool:
    """Whether int8 products are exact here: processors without VNNI may saturate sums of two."""
    left = torch.full((64, 256), -128, dtype=torch.int8)
    right = torch.full((256, 64), 127, dtype=torch.int8)
    right[:, ::2] = -128
    try:
        return torch.equal(torch._int_mm(left, right), _product_in_floats(left, right))
    except RuntimeError:
        return False


def rescale(
    sums: Tensor,
    rows: Tensor,
    offset: Tensor,
    zero: Tensor,
    factor: Tensor,
    slope: Tensor,
    bias: Tensor,
) -> Tensor:
    """Return a linear layer's output from sums of stored codes, as `WeightCodes` explains."""
    # in floats, since a product of int32 takes longer than all else here
    rows = rows.to(factor.dtype)
    exact = (sums - offset).to(factor.dtype) - zero * rows
    return exact * factor + (rows * slope + bias)


class WeightCodes(nn.Module):
    """A weight as a node of a lowered graph: codes, and what turns sums of codes into values.

    A weight's value is (code - zero point) * scale; with moment matching that is shifted and scaled
    once more for each output, to (code - zero point) * f + g. So is the output: with x the input's
    stored codes, a its stored zero point, s its scale,

        y = s f [sum x w - b sum x - a (sum w - K b)] + s g (sum x - K a) + bias

    Returned are w as int8 (K, N), and in the order of `rescale` the offset a (sum w - K b), int32
    (N,), and b, s f, s g and bias - s g K a, float (N,); last, whether b or s g differ from zero:
    only then sums of the rows of x are needed.
    """

    def __init__(self, quantizer: Quantizer, shift: int) -> None:
        """Keep the weight's quantizer, and what the input's stored codes were shifted by."""
        super().__init__()
        self.spec = quantizer.spec
        self.matched = isinstance(quantizer, MomentMatchedQuantizer)
        self.shift = shift

    def forward(
        self,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bits: Tensor,
        bias: Tensor | None,
        input_scale: Tensor,
        input_zero: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return codes and constants.

        Raises:
            InputError: for a zero point too far off for sums in int32.
        """
        zero = weight.new_zeros(()) if zero_point is None else zero_point.round()
        _check_zero_point(zero)
        whole_rows = not self.matched or self.spec.granularity == PerChannel(0)
        library = kernels() if weight.device.type == "cpu" and whole_rows else None
        if library is not None:
            given = (weight, scale, zero, bits, bias, input_scale, input_zero)
            return self._compiled(library, *given)
        codes = quantize(weight, scale, zero_point, bits, self.spec)
        factor, slope = scale, torch.zeros_like(scale)
        if self.matched:
            dequantized = dequantize(codes, scale, zero_point, bits, self.spec)
            mean, ratio, new_mean = moments(dequantized, weight, self.spec)
            factor, slope = scale * ratio, new_mean - mean * ratio
        outputs = len(codes)
        zero, factor, slope = (value.expand(outputs) for value in (zero, factor, slope))
        codes = codes.flatten(1)
        centered = codes if zero_point is None else codes - zero[:, None]
        lowest, highest = centered.aminmax()
        if bool((lowest > -STORED_SHIFT) & (highest < STORED_SHIFT)):
            stored, zero = centered, torch.zeros_like(zero)
        elif self.spec.signed:
            stored = codes
        else:
            stored, zero = codes - STORED_SHIFT, zero - STORED_SHIFT
        count = stored.shape[1]
        input_zero = input_zero - self.shift
        offset = input_zero * (stored.sum(1) - count * zero)
        slope = input_scale * slope
        constant = -slope * count * input_zero
        return (
            stored.to(torch.int8).t().contiguous(),
            offset.to(torch.int32),
            zero,
            input_scale * factor,
            slope,
            constant if bias is None else constant + bias,
            (zero != 0).any() | (slope != 0).any(),
        )

    def _compiled(
        self,
        library: CDLL,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor,
        bits: Tensor,
        bias: Tensor | None,
        input_scale: Tensor,
        input_zero: Tensor,
    ) -> tuple[Tensor, ...]:
        """Do the same by `kernels.cpp`; `zero` is the rounded zero point."""
        outputs, terms = len(weight), weight[0].numel()
        weight = weight.contiguous()
        scale, zero = (value.expand(outputs).contiguous() for value in (scale, zero))
        bias = None if bias is None else bias.contiguous()
        matrix = torch.empty(terms, outputs, dtype=torch.int8)
        offset = torch.empty(outputs, dtype=torch.int32)
        constants = weight.new_empty(4, outputs)
        needed = library.weight_codes(
            *(value.data_ptr() for value in (weight, scale, zero)),
            *codes_range(float(bits), self.spec),
            0 if self.spec.signed else STORED_SHIFT,
            *(self.matched, EPSILON),
            None if bias is None else bias.data_ptr(),
            *(float(input_scale), float(input_zero) - self.shift, outputs, terms),
            *(value.data_ptr() for value in (matrix, offset, *constants)),
            torch.get_num_threads(),
        )
        return (matrix, offset, *constants, torch.tensor(bool(needed)))


def _check_zero_point(zero: Tensor) -> None:
    """Raise InputError for zero points too far off for sums in int32."""
    largest = float(zero.abs().max())
    if not largest <= LARGEST_ZERO_POINT:
        raise InputError(
            f"a zero point of {largest:g} is too far off for integer execution; wanted at most "
            f"{LARGEST_ZERO_POINT} in magnitude, or execution simulated"
        )
