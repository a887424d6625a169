"""Quantizers: from real values to integer codes and back, differentiable straight through.

Two kinds share one interface. With scale s, zero point z and codes q from `lower` to `upper`:

- uniform: `q = clamp(round(x / s + round(z)), lower, upper)`, value `(q - round(z)) * s`
  (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
  Integer-Arithmetic-Only Inference", eq. 1). Rounding is half to even.
- log2: `q = clamp(round(-n log2(x / s)), 0, 2^bits)`, value `s * 2^(-q / n)`, and zero for the last
  code. With n = 1 code for each factor of two it is that of FQ-ViT (Lin et al. 2022,
  Log-Int-Softmax), with n = 2 log sqrt 2 of RepQ-ViT (Li et al. 2023, section 3.3).

Scale, zero point and bit-width are entries of a Point; everything that cannot vary is a
`QuantSpec`. The functions check nothing, so that they trace and compile: `check_parameters` checks
once, where a Point enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evolq.errors import InputError
from evolq.quantization import MAX_BITS, MIN_BITS
from evolq.tensor.uniform import codes_in_one_buffer, rounded


def _checked_axis(axis: int, shape: tuple[int, ...]) -> int:
    """Return `axis` counted from the front, or raise InputError if `shape` has no such axis."""
    if not -len(shape) <= axis < len(shape):
        raise InputError(
            f"axis {axis} does not exist in a tensor of shape {tuple(shape)}; "
            f"choose one from {-len(shape)} to {len(shape) - 1}"
        )
    return axis % len(shape)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor: value (4, 10, 32), scale ()."""

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scale and zero point for a value of `shape`."""
        return ()

    def align(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Return `parameter` in a shape that broadcasts against `value`."""
        return parameter

    def rows(self, value: Tensor) -> Tensor:
        """Return `value` as a matrix (parameters, values that share one parameter)."""
        return value.reshape(1, -1)

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the value of `shape` whose rows these are."""
        return rows.reshape(shape)


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`: value (48, 64), axis 0, scale (48,).

    A convolution's weight (12, 3, 4, 4) with axis 0 has scale (12,); an activation (4, 10, 32) with
    axis -1 has scale (32,). A parameter of one element is shared by all channels.
    """

    axis: int = 0

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scale and zero point for a value of `shape`.

        Raises:
            InputError: if `shape` has no such axis.
        """
        return (shape[_checked_axis(self.axis, shape)],)

    def align(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Return `parameter` in a shape that broadcasts against `value`."""
        shape = [1] * value.ndim
        shape[self.axis] = -1
        return parameter.reshape(shape)

    def rows(self, value: Tensor) -> Tensor:
        """Return `value` as a matrix (parameters, values that share one parameter)."""
        return value.movedim(self.axis, 0).reshape(value.shape[self.axis], -1)

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the value of `shape` whose rows these are."""
        channels_first = [*shape]
        channels_first.insert(0, channels_first.pop(self.axis))
        return rows.reshape(channels_first).movedim(0, self.axis)


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` neighbors along `axis`; `size` must divide the axis.

    The scale has the value's shape, except that `axis` is `size` times shorter: value (48, 64),
    axis 1, size 16, scale (48, 4). This is the blocked quantization of ONNX's QuantizeLinear.
    """

    axis: int = -1
    size: int = 32

    def __post_init__(self) -> None:
        """Check the size."""
        if self.size < 1:
            raise InputError(f"a group holds {self.size} values; give a size of at least 1")

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scale and zero point for a value of `shape`.

        Raises:
            InputError: if `shape` has no such axis, or if the size does not divide it.
        """
        axis = _checked_axis(self.axis, shape)
        if shape[axis] % self.size:
            raise InputError(
                f"groups of {self.size} do not divide axis {self.axis} of length {shape[axis]} "
                f"(shape {tuple(shape)}); choose a divisor of {shape[axis]}"
            )
        return (*shape[:axis], shape[axis] // self.size, *shape[axis + 1 :])

    def align(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Return `parameter` in a shape that broadcasts against `value`."""
        return parameter.repeat_interleave(self.size, dim=self.axis)

    def rows(self, value: Tensor) -> Tensor:
        """Return `value` as a matrix (parameters, values that share one parameter)."""
        axis = self.axis % value.ndim
        return value.unflatten(axis, (-1, self.size)).movedim(axis + 1, -1).reshape(-1, self.size)

    def from_rows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the value of `shape` whose rows these are."""
        axis = self.axis % len(shape)
        grouped = rows.reshape(*self.parameter_shape(shape), self.size)
        return grouped.movedim(-1, axis + 1).reshape(shape)


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True)
class QuantSpec:
    """What cannot vary about a quantizer. Its scale, zero point and bit-width live in a Point.

    Attributes:
        bits: the width at which the quantizer starts, 2 to 8; a Point's own `bits` entry overrides
            it at evaluation.
        signed: codes from -2^(bits-1) to 2^(bits-1) - 1 instead of 0 to 2^bits - 1.
        symmetric: the zero point is 0 and not an entry of a Point (its tensor is None).
        kind: "uniform" or "log2"; log2 is unsigned and has no zero point.
        octave_codes: of log2, codes for each factor of two: 1, or 2 for log sqrt 2.
        granularity: which values share one scale.
        published: the scale starts as in the published FQ-ViT code: ranges are not widened to
            contain zero, and power-of-two factors are those of the raw range, up to 2^3.

    A symmetric signed quantizer uses the full range of codes, -2^(bits-1) included (Esser et al.
    2020, "Learned Step Size Quantization", section 2), and not the restricted one that leaves out
    the lowest code: at 2 bits that would waste a quarter of them.

    Raises:
        InputError: if the bits are outside 2 to 8, a log2 quantizer is to be signed, or its codes
            for a factor of two are not 1 or 2.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    kind: Literal["uniform", "log2"] = "uniform"
    octave_codes: int = 1
    granularity: Granularity = PerTensor()
    published: bool = False

    def __post_init__(self) -> None:
        """Check the constants."""
        if self.bits not in range(MIN_BITS, MAX_BITS + 1):
            raise InputError(
                f"bits must be a whole number from {MIN_BITS} to {MAX_BITS}, not {self.bits}"
            )
        if self.kind not in ("uniform", "log2"):
            raise InputError(f"unknown kind of quantizer {self.kind!r}; choose uniform or log2")
        if self.kind == "log2" and self.signed:
            raise InputError("a log2 quantizer has no code for negative values; use signed=False")
        if self.octave_codes not in (1, 2):
            raise InputError(f"`octave_codes` is {self.octave_codes}; give 1, or 2 for log sqrt 2")

    @property
    def has_zero_point(self) -> bool:
        """Whether a Point holds a zero point for this quantizer."""
        return self.kind == "uniform" and not self.symmetric


def codes_range(bits: Tensor | float, spec: QuantSpec) -> tuple[Tensor | float, Tensor | float]:
    """Return the lowest and the highest code at `bits`: 0-dim tensors for a tensor, else numbers.

    For log2 the highest code is 2^bits, one more than `bits` can hold, and stands for the value
    zero: the published FQ-ViT code sets to zero what would need a code of 2^bits or more, while
    code 2^bits - 1 keeps its value.
    """
    # a shift is exact, and compiled code that repeats it for each value does so at no cost
    levels = (1 << bits.to(torch.int32)).to(bits.dtype) if isinstance(bits, Tensor) else 2**bits
    if spec.kind == "log2":
        return 0 * levels, levels
    lower = -levels / 2 if spec.signed else 0 * levels
    return lower, lower + levels - 1


def round_straight_through(value: Tensor) -> Tensor:
    """Round half to even, with the identity's gradient (Bengio et al. 2013, arXiv:1308.3432)."""
    if not torch.is_grad_enabled():
        return value.round()
    # Exact: the difference has no rounding error, so that the sum is the rounded value itself.
    return value + (value.round() - value).detach()


def quantize(
    value: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor | float,
    spec: QuantSpec,
) -> Tensor:
    """Return the codes of `value`: integers held in a float tensor of its shape.

    Args:
        value: any shape.
        scale: shape by `spec.granularity`, positive.
        zero_point: likewise, in codes, rounded before use; read only if `spec.has_zero_point`.
        bits: 0-dim tensor or number.
        spec: the quantizer's constants.
    """
    lower, upper = codes_range(bits, spec)
    scale = spec.granularity.align(scale, value)
    if spec.kind == "log2":
        # Values that are not positive are set apart: the gradient of log2 is infinite at zero.
        positive = value > 0
        exponent = torch.log2(scale) - torch.log2(torch.where(positive, value, 1.0))
        exponent = exponent * spec.octave_codes
        codes = round_straight_through(torch.clamp(exponent, lower, upper))  # type: ignore[arg-type]
        return torch.where(positive, codes, upper)
    offset = _offset(zero_point, value, spec)
    if not torch.is_grad_enabled():
        return codes_in_one_buffer(value, scale, offset, (lower, upper))
    codes = value / scale
    if offset is not None:
        codes = codes + offset
    # Clamping before rounding gives the same codes (the bounds are integers), and the gradient of
    # LSQ: zero as soon as a value lies beyond the last code, not only beyond half a step more.
    return round_straight_through(torch.clamp(codes, lower, upper))  # type: ignore[arg-type]


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor | float,
    spec: QuantSpec,
) -> Tensor:
    """Return the values that `codes` stand for; arguments as for `quantize`."""
    scale = spec.granularity.align(scale, codes)
    if spec.kind == "log2":
        powers = torch.exp2(-codes / spec.octave_codes)
        return torch.where(codes < codes_range(bits, spec)[1], powers * scale, 0.0)
    offset = _offset(zero_point, codes, spec)
    return (codes if offset is None else codes - offset) * scale


def fake_quantize(
    value: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor | float,
    spec: QuantSpec,
) -> Tensor:
    """Return `value` rounded to the values that codes stand for; arguments as for `quantize`.

    Straight-through gradients of a uniform quantizer, with code q and zero point z (rounded); a
    value is inside if x / s + z lies between the lowest and the highest code:

        with respect to     inside          outside
        value               1               0
        scale               q - z - x / s   bound - z
        zero point          0               -s

    These are LSQ's (Esser et al. 2020) without its factor 1 / sqrt(N Qp), and LSQ+'s (Bhalgat et
    al. 2020) with the offset in codes. For log2, rounding the exponent straight through gives
    output / value for the value and 0 for the scale inside; 0 and 1 above the scale; 0 and 0 where
    the output is zero.
    """
    if spec.kind == "uniform":
        offset = _offset(zero_point, value, spec)
        scale, bounds = spec.granularity.align(scale, value), codes_range(bits, spec)
        return rounded(value, scale, offset, bounds)
    if torch.is_grad_enabled():
        return _Log2.apply(value, spec.granularity.align(scale, value), bits, spec.octave_codes)
    codes = quantize(value, scale, zero_point, bits, spec)
    return dequantize(codes, scale, zero_point, bits, spec)


# by codes for a factor of two; compiled code can look one up and not make one
_LOG2 = {octave_codes: QuantSpec(kind="log2", octave_codes=octave_codes) for octave_codes in (1, 2)}


class _Log2(torch.autograd.Function):
    """A log2 quantizer, its scale aligned with the value, and the gradient of `fake_quantize`.

    Left to autograd, it takes four times as long: a logarithm, a power and three masks are kept or
    computed again for a gradient that output, value and scale are enough for.
    """

    @staticmethod
    def forward(value: Tensor, scale: Tensor, bits: Tensor | float, octave_codes: int) -> Tensor:
        spec = _LOG2[octave_codes]
        return dequantize(quantize(value, scale, None, bits, spec), scale, None, bits, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, scale, *_ = inputs
        ctx.save_for_backward(value, scale, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        value, scale, output = ctx.saved_tensors
        above = value > scale
        inside = (output > 0) & ~above
        ratio = output / torch.where(inside, value, 1.0)  # no 0 / 0, whose own gradient is NaN
        of_value = torch.where(inside, gradients[0] * ratio, 0.0)
        of_scale = torch.where(above, gradients[0], 0.0).sum_to_size(scale.shape)
        return of_value, of_scale, None, None


def _offset(zero_point: Tensor | None, value: Tensor, spec: QuantSpec) -> Tensor | None:
    """Return the zero point, rounded straight through and aligned; None if there is none."""
    if not spec.has_zero_point:
        return None
    assert zero_point is not None
    return round_straight_through(spec.granularity.align(zero_point, value))


class Quantizer(nn.Module):
    """`fake_quantize` as a node of a graph: holds the constants only, never a parameter."""

    def __init__(self, spec: QuantSpec) -> None:
        """Keep `spec`."""
        super().__init__()
        self.spec = spec

    def forward(
        self, value: Tensor, scale: Tensor, zero_point: Tensor | None, bits: Tensor | float
    ) -> Tensor:
        """Return `fake_quantize(value, scale, zero_point, bits, self.spec)`."""
        return fake_quantize(value, scale, zero_point, bits, self.spec)

    def extra_repr(self) -> str:
        """Return the constants in words, as in `4 bits, unsigned, PerChannel(axis=0)`."""
        spec = self.spec
        words = [f"{spec.bits} bits"]
        log2 = "log2" if spec.octave_codes == 1 else f"log2, {spec.octave_codes} codes an octave"
        words += [log2] if spec.kind == "log2" else ["signed" if spec.signed else "unsigned"]
        words += ["symmetric"] if spec.symmetric else []
        return ", ".join([*words, repr(spec.granularity)])


def check_parameters(
    name: str,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor | float,
    spec: QuantSpec,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Check the entries of a Point that belong to the quantizer `name`. Call it once per Point.

    Args:
        name: of the quantizer.
        scale: its entry.
        zero_point: its entry, None if there is none.
        bits: its entry.
        spec: its constants.
        shape: of the scale, and of the zero point but for one per channel; None for any.

    Raises:
        InputError: if the scale has another shape, a scale is not positive and finite, a zero point
            is missing, superfluous or not finite, or the bits are not a whole number from 2 to 8.
    """
    if isinstance(bits, Tensor) and bits.numel() != 1:
        raise InputError(f"{name}.bits has shape {tuple(bits.shape)}; give one number")
    if shape is not None and tuple(scale.shape) not in (shape, (1,) * len(shape)):
        raise InputError(f"{name}.scale has shape {tuple(scale.shape)}; give {shape}")
    width = float(bits)
    if not (MIN_BITS <= width <= MAX_BITS and width == int(width)):
        raise InputError(
            f"{name}.bits is {width:g}; give a whole number from {MIN_BITS} to {MAX_BITS}"
        )
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        bad = scale[~(torch.isfinite(scale) & (scale > 0))].flatten()[0].item()
        raise InputError(f"{name}.scale holds {bad:g}; scales must be positive and finite")
    if spec.has_zero_point != (zero_point is not None):
        wanted = "needs a zero point" if spec.has_zero_point else "has no zero point: leave it out"
        raise InputError(
            f"{name}: this quantizer ({spec.kind}, symmetric={spec.symmetric}) {wanted}"
        )
    if zero_point is not None and not bool(torch.isfinite(zero_point).all()):
        raise InputError(f"{name}.zero_point is not finite; give codes, for instance 0")
