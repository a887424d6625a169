"""Quantized values in ONNX, and products of their codes in the form that a runtime computes fast.

A weight is w[c] = scale[c] (q[c] - zero[c]) + shift[c] with codes q and one number per output
channel c; the shift is what moment matching leaves (its factor goes into the scale). A product of
quantized activations x with such a weight is written as a product of codes plus shift[c] times the
sum of all x that are multiplied with w[c].

What ONNX Runtime computes fast was found by measuring it (1.32, x86; docs/deploy.md):

- Matrix products multiply uint8 codes from the left with int8 codes from the right, and allow a
  zero point for each column. MatMul between DequantizeLinears is fused into one such product.
- Convolutions from codes to codes are one operator, QLinearConv. Its weights are int8 without zero
  points, and nothing can be added behind its sums.
- Other convolutions have one integer operator, ConvInteger, which is 2 to 20 times slower than
  floats. With many channels they are matrix products of patches, channels last, with the filters;
  the rest, depthwise ones among them, are fastest in floats.

`compact` and networks of quantized weights alone have weights dequantized in front of the product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evolq.errors import InputError
from evolq.files.codes import IntegerWeight
from evolq.files.onnx_operators import OnnxGraph, convolution_attributes, pad
from evolq.network.operators import VIEWS, aten, is_matrix_product, is_product, labeled
from evolq.tensor.quantizers import (
    MAX_BITS,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantSpec,
    codes_range,
)

# Four bits and scales per group came with opset 21.
FOUR_BIT_OPSET = 21

FLOAT = 1  # onnx.TensorProto.FLOAT

# Two products with codes of 255 do not leave 16 bits, where processors without VNNI add them.
LARGEST_UNSATURATED = 64
# Leaves half of int32 for the sum that is added to it.
LARGEST_BIAS = 2.0**30

# Below, the matrices of a convolution are so small that floats are faster.
FEWEST_CHANNELS = 64

# What the names of products end with that only add the shifts of a weight's rows.
SHIFT = "shift"


@dataclass(frozen=True)
class Target:
    """What a runtime wants.

    Attributes:
        integer_products: weights beside quantized activations stay codes up to the product.
        convolutions_as_matrices: where outputs are no codes, those with many channels as matrix
            products, others in floats; else Conv between DequantizeLinears.
        zero_points: weights may have them; else they are a part of the shift.
        fuses_elementwise: operators one by one cost no pass over memory each.
        symmetric: all zero points must be 0.
        without_vnni: 8-bit codes are multiplied as uint8 with uint8.
    """

    integer_products: bool = True
    convolutions_as_matrices: bool = True
    zero_points: bool = True
    fuses_elementwise: bool = False
    symmetric: bool = False
    without_vnni: bool = False

    def signed_activations(self, node: fx.Node) -> bool:
        """Whether the codes of the quantized activation `node` are int8."""
        mixed = self.integer_products and not self.without_vnni and wants_signed(node)
        return self.symmetric or mixed


COMPILER = Target(convolutions_as_matrices=False, zero_points=False, fuses_elementwise=True)

TARGETS = {
    "onnxruntime": Target(),
    "openvino": COMPILER,
    "tensorrt": replace(COMPILER, symmetric=True),
    "compact": Target(integer_products=False),
}
"""Runtimes that a network can be exported for, and the smallest file."""


@dataclass(frozen=True)
class Codes:
    """A quantized activation with one scale: names of its codes, its scale and its zero point."""

    name: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class Weight:
    """A quantized weight and the name of its quantizer."""

    name: str
    integer: IntegerWeight

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale, zero point (for codes from 0 up) and shift, one of each per row."""
        weight = self.integer
        shape = weight.spec.granularity.parameter_shape(tuple(weight.codes.shape))
        scale, zero = (
            parameter.reshape(()).expand(shape) if parameter.numel() == 1 else parameter
            for parameter in (
                weight.scale,
                _unsigned(weight.zero_point, weight.scale, weight.bits, weight.spec),
            )
        )
        if weight.moments is None:
            return scale, zero, torch.zeros_like(scale)
        own_mean, ratio, mean = (moment.reshape(shape) for moment in weight.moments)
        return scale * ratio, zero, mean - own_mean * ratio

    def has_rows(self, axis: int) -> bool:
        """Whether there is one scale for all, or one for each channel along `axis`."""
        granularity, rank = self.integer.spec.granularity, self.integer.codes.ndim
        if isinstance(granularity, PerChannel):
            return granularity.axis % rank == axis % rank
        return not isinstance(granularity, PerGroup)

    def rows(self, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `parameters`, of shape (channels along `axis`,)."""
        channels = self.integer.codes.shape[axis]
        return tuple(value.reshape(-1).expand(channels) for value in self.parameters())  # type: ignore[return-value]


def _unsigned(zero_point: Tensor | None, scale: Tensor, bits: float, spec: QuantSpec) -> Tensor:
    """Return the zero point that goes with codes from 0 up, of the scale's shape."""
    lowest, _ = codes_range(bits, spec)
    rounded = torch.zeros_like(scale) if zero_point is None else zero_point.round()
    return rounded - lowest


# Values -------------------------------------------------------------------------------------------


def dequantized(onnx: OnnxGraph, codes: Codes) -> str:
    """Write the values that codes of an activation stand for, and return their name."""
    return onnx.once("DequantizeLinear", codes.name, codes.scale, codes.zero_point)


def dequantized_constant(
    onnx: OnnxGraph, name: str, codes: Tensor, scale: Tensor, zero: Tensor, axis: int
) -> str:
    """Write the values that constant codes stand for, one scale for each index along `axis`."""
    parameters = {"codes": codes, "scale": scale, "zero_point": zero}
    names = (onnx.constant(value, f"{name}.{role}") for role, value in parameters.items())
    return onnx.once("DequantizeLinear", *names, axis=axis)


def dequantized_weight(onnx: OnnxGraph, named: Weight, opset: int) -> str:
    """Write a weight in as few bits as `opset` has, and the shift of its rows.

    Raises:
        InputError: for scales per group in an opset that has none.
    """
    name, weight = named.name, named.integer
    granularity = weight.spec.granularity
    scale, zero, shift = named.parameters()
    in_four_bits = weight.bits <= 4 and opset >= FOUR_BIT_OPSET
    if zero.min() < 0 or zero.max() > (15 if in_four_bits else 255):
        shift, zero = shift - zero * scale, torch.zeros_like(zero)
    attributes = {}
    if isinstance(granularity, PerChannel):
        attributes = {"axis": granularity.axis}
    elif isinstance(granularity, PerGroup):
        if opset < FOUR_BIT_OPSET:
            raise InputError(f"{name}: scales per group need opset {FOUR_BIT_OPSET}, not {opset}")
        attributes = {"axis": granularity.axis, "block_size": granularity.size}
    codes = onnx.constant(weight.codes, f"{name}.codes")
    zero_name = onnx.constant(zero.to(torch.uint8), f"{name}.zero_point")
    if in_four_bits:
        onnx.four_bits |= {codes, zero_name}
    value = onnx.once(
        "DequantizeLinear", codes, onnx.constant(scale, f"{name}.scale"), zero_name, **attributes
    )
    if not shift.any():
        return value
    aligned = onnx.constant(granularity.align(shift, weight.codes), f"{name}.shift")
    return onnx.once("Add", value, aligned)


def wants_signed(node: fx.Node) -> bool:
    """Whether `node`, or views of it, are the right operand of all products that read them."""
    operands = _operands(node)
    return bool(operands) and all(
        is_matrix_product(user) and index == 1 for user, index in operands
    )


def _operands(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Return the products that read `node` or views of it, each with the argument's index."""
    operands = []
    for user in node.users:
        if user.target in VIEWS:
            operands += _operands(user)
        elif is_product(user):
            operands += [(user, index) for index, arg in enumerate(user.args) if arg is node]
    return operands


def activation(
    onnx: OnnxGraph,
    name: str,
    x: str,
    behind: Sequence[fx.Node],
    spec: QuantSpec,
    signed: bool,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: Tensor,
) -> str | Codes:
    """Write the quantizer of a value, all of which shares one scale; channels may have zero points.

    Args:
        onnx: the graph.
        name: of the quantizer.
        x: of the value.
        behind: clamps and pads of the value, which are written on its codes (`behind_codes`).
        spec: the quantizer's constants.
        signed: whether codes are stored as int8, 2^(bits-1) below those from 0 up.
        scale: of a Point.
        zero_point: of a Point.
        bits: of a Point.

    Returns:
        The codes, or the name of the values where ONNX has no such codes, or channels have zero
        points.
    """
    scale = scale.reshape(())
    top = 2.0 ** float(bits) - 1
    if spec.kind == "log2":
        return _log2(onnx, x, scale, top + 1, math.log(2) / spec.octave_codes)
    zero = _unsigned(zero_point, scale, float(bits), spec)
    lowest = -(2.0 ** (float(bits) - 1)) if signed else 0.0
    dtype = torch.int8 if signed else torch.uint8
    bounds, stored = torch.iinfo(dtype), zero.reshape(-1) + lowest
    fits = stored.numel() == 1 and bool(bounds.min <= stored <= bounds.max)
    # others are added to what is quantized: a QuantizeLinear of channels is many times slower
    offset = None if fits else onnx.constant(zero * scale)
    stored = stored.reshape(()) if fits else torch.tensor(lowest)
    parameters = (
        onnx.constant(scale, f"{name}.scale"),
        onnx.constant(stored.to(dtype), f"{name}.zero_point"),
    )
    codes = onnx("QuantizeLinear", x if offset is None else onnx("Add", x, offset), *parameters)
    if bits < MAX_BITS:
        limits = (torch.tensor(limit).to(dtype) for limit in (lowest, lowest + top))
        codes = onnx("Clip", codes, *(onnx.constant(limit) for limit in limits))

    def code_of(value: float) -> Tensor:
        code = (value / scale).round() + zero.reshape(()) + lowest
        return code.clamp(lowest, lowest + top).to(dtype)

    for step in behind:
        codes = _on_codes(onnx, step, codes, code_of)
    if offset is None:
        return Codes(codes, *parameters)
    return onnx("Sub", onnx("DequantizeLinear", codes, *parameters), offset)


def _clamp(lower: float | None = None, upper: float | None = None) -> tuple[float, float]:
    return -math.inf if lower is None else lower, math.inf if upper is None else upper


CLAMPS: dict[Any, Callable[..., tuple[float, float]]] = {
    aten.relu.default: lambda: (0.0, math.inf),
    aten.relu6.default: lambda: (0.0, 6.0),
    aten.hardtanh.default: lambda lower=-1.0, upper=1.0: (lower, upper),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
}
"""Operators that bound each value, to their bounds from the arguments behind the value."""


def behind_codes(quantizer: fx.Node, spec: QuantSpec) -> list[fx.Node]:
    """Return clamps and pads in front of a quantizer, in order, that nothing else reads.

    They say the same behind it, on codes, since rounding is monotonic; a product in front of them
    then makes codes.
    """
    behind: list[fx.Node] = []
    node = quantizer.args[0]
    if spec.kind != "uniform" or not isinstance(spec.granularity, PerTensor):
        return behind
    while isinstance(node, fx.Node) and len(node.users) == 1 and _moves_to_codes(node):
        behind.insert(0, node)
        node = node.args[0]
    return behind


def _moves_to_codes(node: fx.Node) -> bool:
    is_constant_pad = node.target == aten.pad.default and "constant" in (*node.args, "constant")[:3]
    return is_constant_pad or node.target in CLAMPS


def _on_codes(
    onnx: OnnxGraph, node: fx.Node, codes: str, code_of: Callable[[float], Tensor]
) -> str:
    """Write a clamp or a pad on codes, and return the name of the result."""
    arguments: Any
    options: Any
    (_, *arguments), options = node.args, node.kwargs
    if node.target == aten.pad.default:
        return pad(onnx, node, codes, *arguments, **{**options, "constant": code_of})
    least, most = (code_of(bound) for bound in CLAMPS[node.target](*arguments, **options))
    if least == code_of(-math.inf) and most == code_of(math.inf):
        return codes
    return onnx("Clip", codes, onnx.constant(least), onnx.constant(most))


def _log2(onnx: OnnxGraph, x: str, scale: Tensor, highest: float, step: float) -> str:
    """Write `quantizers.quantize` and `dequantize` of kind log2; `highest` stands for zero.

    The codes are those of a uniform quantizer of the natural logarithm, of this `step`, with sign.
    """
    lowest = max(math.exp(-highest * step), torch.finfo(torch.float32).tiny)
    scale_name, step_name = onnx.constant(scale), onnx.constant(step)
    ratio = onnx("Clip", onnx("Div", x, scale_name), onnx.constant(lowest), onnx.constant(1.0))
    zero = onnx.constant(torch.tensor(0, dtype=torch.int8))
    codes = onnx("QuantizeLinear", onnx("Log", ratio), step_name, zero)
    logarithm = onnx("DequantizeLinear", codes, step_name, zero)
    value = onnx("Mul", onnx("Exp", logarithm), scale_name)
    kept = onnx("Greater", logarithm, onnx.constant((0.5 - highest) * step))
    return onnx("Where", kept, value, onnx.constant(0.0))


# Products -----------------------------------------------------------------------------------------


def integer_product(
    onnx: OnnxGraph, node: fx.Node, target: Target, arguments: Sequence[Any], options: dict
) -> str | None:
    """Write a product of a quantized activation with a quantized weight, and return its name.

    None for any other operator, and for weights with several scales along what is summed over.
    Products of two activations need no other form than DequantizeLinear in front of them.
    """
    product = INTEGER_PRODUCTS.get(node.target)
    if product is None or not target.integer_products:
        return None
    return product(onnx, node, target, *arguments, **options)


def _linear(
    onnx: OnnxGraph, node: fx.Node, target: Target, x: Any, weight: Any, bias: str | None = None
) -> str | None:
    return _matrix_product(onnx, node, target, x, weight, 0, bias)


def _addmm(
    onnx: OnnxGraph,
    node: fx.Node,
    target: Target,
    bias: str,
    x: Any,
    weight: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> str | None:
    return _matrix_product(onnx, node, target, x, weight, 1, bias) if alpha == beta == 1 else None


def _matmul(onnx: OnnxGraph, node: fx.Node, target: Target, x: Any, weight: Any) -> str | None:
    is_matrix = isinstance(weight, Weight) and weight.integer.codes.ndim == 2
    return _matrix_product(onnx, node, target, x, weight, 1, None) if is_matrix else None


def _matrix_product(
    onnx: OnnxGraph,
    node: fx.Node,
    target: Target,
    x: Any,
    weight: Any,
    axis: int,
    bias: str | None,
) -> str | None:
    """Write x times `weight`, whose output channels are along `axis` and become columns."""
    if not (isinstance(x, Codes) and isinstance(weight, Weight) and weight.has_rows(axis)):
        return None
    codes, scale, zero, shift = signed_rows(weight, axis, target)
    columns = codes.movedim(axis, -1)
    columns = columns.movedim(0, -2).flatten(0, -2)  # of a filter: channels last, as in patches
    values = dequantized_constant(onnx, weight.name, columns, scale, zero, 1)
    result = onnx("MatMul", dequantized(onnx, x), values)
    behind = torch.zeros_like(shift) if bias is None else onnx.constants[bias]
    # ONNX Runtime would make a Gemm of MatMul and Add for one row per image, and run it in floats.
    rank = len(onnx.shapes[node])
    join, behind, shift = ("Sub", -behind, -shift) if rank == 2 else ("Add", behind, shift)
    if not shift.any():
        return result if bias is None else onnx(join, result, onnx.constant(behind))
    total = onnx("ReduceSum", dequantized(onnx, x), onnx.constant([-1]), keepdims=1)
    if target.fuses_elementwise:
        shifts = onnx("Mul", total, onnx.constant(shift, f"{weight.name}.shift"))
        return onnx(join, result, onnx("Add", shifts, onnx.constant(behind)))
    # (sum of x, 1) times (shift, bias) passes over the outputs once, not twice
    widths = onnx.constant([0] * (2 * rank - 1) + [1])
    total = onnx("Pad", total, widths, onnx.constant(1.0))
    rows = onnx.constant(torch.stack([shift, behind]), f"{weight.name}.shift")
    return onnx(join, result, onnx("MatMul", total, rows, suffix=SHIFT))


def signed_rows(weight: Weight, axis: int, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes in int8 (uint8 without VNNI), and scale, zero point and shift of each row."""
    scale, zero, shift = weight.rows(axis)
    bits = weight.integer.bits
    unsigned = target.without_vnni and bits == MAX_BITS
    lowest = 0 if unsigned else 2 ** (bits - 1)
    dtype = torch.uint8 if unsigned else torch.int8
    bounds = torch.iinfo(dtype)
    codes = weight.integer.codes.to(torch.int32)
    centered = codes - _along(zero, axis, codes.ndim).to(torch.int32)
    fits = bounds.min <= centered.min() and centered.max() <= bounds.max
    if fits and not target.zero_points:
        return centered.to(dtype), scale, torch.zeros_like(zero).to(dtype), shift
    zero = zero - lowest
    if not target.zero_points or zero.min() < bounds.min or zero.max() > bounds.max:
        shift, zero = shift - zero * scale, torch.zeros_like(zero)
    return (codes - lowest).to(dtype), scale, zero.to(dtype), shift


def _along(value: Tensor, axis: int, rank: int) -> Tensor:
    """Return `value` (n,) with its dimension at `axis` of `rank`."""
    return value.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def _convolution(
    onnx: OnnxGraph,
    node: fx.Node,
    target: Target,
    x: Any,
    weight: Any,
    bias: str | None = None,
    *geometry: Any,
) -> str | None:
    if not (isinstance(x, Codes) and isinstance(weight, Weight) and weight.has_rows(0)):
        return None
    attributes = convolution_attributes(onnx, node, *geometry)
    if not target.convolutions_as_matrices:
        return _fused_convolution(onnx, target, x, weight, bias, attributes)
    if node in onnx.requantized:
        result = _convolution_to_codes(onnx, target, x, weight, bias, attributes)
        if result is not None:
            return result
    depth = weight.integer.codes.shape[1]
    if _is_tiled(onnx, node, attributes):
        depth *= math.prod(attributes["kernel_shape"])
    if attributes["group"] > 1 or depth < FEWEST_CHANNELS:
        return _float_convolution(onnx, x, weight, bias, attributes)
    cut = _tiles if _is_tiled(onnx, node, attributes) else _patches
    patches = cut(onnx, x, onnx.shapes[node], attributes)
    result = _matrix_product(onnx, node, target, patches, weight, 0, bias)
    rank = len(onnx.shapes[node])
    return result and onnx("Transpose", result, perm=[0, rank - 1, *range(1, rank - 1)])


def _fused_convolution(
    onnx: OnnxGraph,
    target: Target,
    x: Codes,
    weight: Weight,
    bias: str | None,
    attributes: dict[str, Any],
) -> str:
    """Write a Conv between DequantizeLinears, and one of the sums of x where rows have shifts."""
    codes, scale, zero, shift = signed_rows(weight, 0, target)
    values = dequantized_constant(onnx, weight.name, codes, scale, zero, 0)
    biases = () if bias is None else (bias,)
    result = onnx("Conv", dequantized(onnx, x), values, *biases, **attributes)
    if not shift.any():
        return result
    summed, depth = dequantized(onnx, x), codes.shape[1]
    if attributes["group"] == 1:
        summed, depth = onnx("ReduceSum", summed, onnx.constant([1]), keepdims=1), 1
    kernel = _along(shift, 0, codes.ndim).expand(-1, depth, *codes.shape[2:])
    kernel_name = onnx.constant(kernel, f"{weight.name}.shift")
    return onnx("Add", result, onnx("Conv", summed, kernel_name, suffix=SHIFT, **attributes))


def _convolution_to_codes(
    onnx: OnnxGraph,
    target: Target,
    x: Codes,
    weight: Weight,
    bias: str | None,
    attributes: dict[str, Any],
) -> str | None:
    """Write a Conv between DequantizeLinears whose bias is in int32, where sums of codes begin.

    None for a weight that is not int8 codes without zero points or shifts, as QLinearConv wants
    them: 8-bit codes whose zero point is far from their middle and matched moments are not.

    The bias is rounded to what a product of two codes of 1 stands for. So small codes are
    multiplied by what 7 bits have room for, and those of rows that are nearly 0 beside their bias
    divided until it fits.
    """
    codes, scale, _, shift = signed_rows(weight, 0, COMPILER)
    if shift.any():
        return None
    start = torch.zeros_like(scale) if bias is None else onnx.constants[bias]
    largest = codes.flatten(1).int().abs().amax(1)
    finer = (LARGEST_UNSATURATED / largest.clamp_min(1)).floor().clamp_min(1.0)
    finest = LARGEST_BIAS * scale * onnx.constants[x.scale] / start.abs()
    finer = torch.minimum(finer, finest)
    codes, scale = (codes * _along(finer, 0, codes.ndim)).round().int(), scale / finer
    unit = scale * onnx.constants[x.scale]
    saturates = target.without_vnni and bool(codes.abs().max() > LARGEST_UNSATURATED)
    middle, dtype = (128, torch.uint8) if saturates else (0, torch.int8)
    zero = torch.full(scale.shape, middle, dtype=dtype)
    values = dequantized_constant(onnx, weight.name, (codes + middle).to(dtype), scale, zero, 0)
    biases: tuple[str, ...] = ()
    if bias is not None:
        begins = (start / unit).round().int()
        biases = (dequantized_constant(onnx, bias, begins, unit, torch.zeros_like(begins), 0),)
    return onnx("Conv", dequantized(onnx, x), values, *biases, **attributes)


def _float_convolution(
    onnx: OnnxGraph, x: Codes, weight: Weight, bias: str | None, attributes: dict[str, Any]
) -> str:
    """Write a Conv in floats of the codes of x.

    The weight is a product of constants, which ONNX Runtime computes when it loads the model.
    """
    scale, zero, shift = weight.rows(0)
    rank = weight.integer.codes.ndim
    codes = onnx("Cast", onnx.constant(weight.integer.codes, f"{weight.name}.codes"), to=FLOAT)
    zeros = onnx.constant(_along(zero - shift / scale, 0, rank), f"{weight.name}.zero_point")
    scales = onnx.constant(_along(scale * onnx.constants[x.scale], 0, rank), f"{weight.name}.scale")
    values = onnx.once("Cast", x.name, to=FLOAT)
    if onnx.constants[x.zero_point] != 0:
        zero_point = onnx.constant(onnx.constants[x.zero_point].float(), f"{x.zero_point}.float")
        values = onnx.once("Sub", values, zero_point)
    biases = () if bias is None else (bias,)
    kernel = onnx("Mul", onnx("Sub", codes, zeros), scales)
    return onnx("Conv", values, kernel, *biases, **attributes)


def _is_tiled(onnx: OnnxGraph, node: fx.Node, attributes: dict[str, Any]) -> bool:
    """Whether a convolution sees each value exactly once, as a patch embedding does."""
    kernel = attributes["kernel_shape"]
    places = onnx.shapes[node][2:]
    exact = [at * width for at, width in zip(places, kernel, strict=True)]
    return (
        math.prod(kernel) > 1
        and kernel == attributes["strides"]
        and not any(attributes["pads"])
        and exact == list(onnx.input_shape(node)[2:])
    )


def _tiles(onnx: OnnxGraph, x: Codes, shape: Sequence[int], attributes: dict[str, Any]) -> Codes:
    """Return `_patches` of a tiled convolution, without a node for each place of the window."""
    kernel, spatial = attributes["kernel_shape"], shape[2:]
    rank = len(kernel)
    pairs = [size for pair in zip(spatial, kernel, strict=True) for size in pair]
    cut = onnx("Reshape", x.name, onnx.constant([0, -1, *pairs]))
    places, windows = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    turned = onnx("Transpose", cut, perm=[0, *places, *windows, 1])
    return replace(x, name=onnx("Reshape", turned, onnx.constant([0, *spatial, -1])))


def _patches(onnx: OnnxGraph, x: Codes, shape: Sequence[int], attributes: dict[str, Any]) -> Codes:
    """Return what each place of a convolution sees, (n, *spatial, window times channels)."""
    spatial = shape[2:]
    kernel, strides, dilations, pads = (
        attributes[name] for name in ("kernel_shape", "strides", "dilations", "pads")
    )
    axes = list(range(1, 1 + len(spatial)))
    name = onnx("Transpose", x.name, perm=[0, *(axis + 1 for axis in axes), 1])
    if any(pads):
        begins, ends = pads[: len(axes)], pads[len(axes) :]
        widths = onnx.constant([0, *begins, 0, 0, *ends, 0])
        name = onnx("Pad", name, widths, x.zero_point)
    parts = []
    for place in itertools.product(*map(range, kernel)):
        starts = [at * step for at, step in zip(place, dilations, strict=True)]
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, spatial, strides, strict=True)
        ]
        parts.append((starts, ends))
    if len(parts) > 1 or max(strides) > 1:
        cut = [onnx("Slice", name, *map(onnx.constant, (*part, axes, strides))) for part in parts]
        name = onnx("Concat", *cut, axis=-1) if len(cut) > 1 else cut[0]
    return replace(x, name=name)


INTEGER_PRODUCTS: dict[Any, Callable[..., str | None]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    **dict.fromkeys(labeled("matmul"), _matmul),
    **dict.fromkeys(labeled("conv"), _convolution),
}
"""Operators whose operands may be codes."""
