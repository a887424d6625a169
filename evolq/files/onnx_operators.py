"""ATen operators in ONNX: one function each, and a graph as plain data to write them into.

Every function takes the `OnnxGraph`, the fx node, and the node's arguments, in which tensors and
sizes that depend on the batch are names of ONNX values; it returns the name of its result. Nothing
here imports onnx.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from evolq.errors import InputError
from evolq.network.graph import module_path
from evolq.network.operators import aten, labeled

Translation = Callable[..., Any]


@dataclass
class OnnxGraph:
    """A graph in the making.

    Attributes:
        shapes: of the values of the fx graph, for a batch of some size.
        nodes: (kind, inputs, outputs, attributes) in order.
        constants: tensors by name.
        requantized: nodes of the fx graph whose values are read as codes alone.
        four_bits: names of constants whose values, 0 to 15, take 4 bits each.
    """

    shapes: dict[fx.Node, torch.Size]
    requantized: Collection[fx.Node] = ()
    nodes: list[tuple[str, tuple[str, ...], list[str], dict[str, Any]]] = field(
        default_factory=list
    )
    constants: dict[str, Tensor] = field(default_factory=dict)
    four_bits: set[str] = field(default_factory=set)
    scope: str = ""
    names: set[str] = field(default_factory=set)

    def __call__(
        self, kind: str, *inputs: str, suffix: str | None = None, **attributes: Any
    ) -> str:
        """Add a node, named by `suffix` or its kind, and return the name of its output.

        '' is an input left out.
        """
        name = self.name(suffix or kind)
        self.nodes.append((kind, inputs, [name], attributes))
        return name

    def outputs(self, count: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node and return the names of its `count` outputs."""
        names = [self.name(kind) for _ in range(count)]
        self.nodes.append((kind, inputs, names, attributes))
        return names

    def once(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Return the name of the output of such a node; it is added if there is none."""
        for node in self.nodes:
            if node[0] == kind and node[1] == inputs and node[3] == attributes:
                return node[2][0]
        return self(kind, *inputs, **attributes)

    def constant(self, value: Tensor | Sequence[int] | float, name: str | None = None) -> str:
        """Add a constant and return its name; a number becomes float32 (), integers int64 (n,)."""
        if not isinstance(value, Tensor):
            whole = isinstance(value, Sequence)
            value = torch.tensor(value, dtype=torch.int64 if whole else torch.float32)
        known = None if name is None else self.constants.get(name)
        if name is None or not (known is None or torch.equal(known, value)):
            name = self.name(name or "constant")
        self.constants[name] = value
        return name

    def name(self, suffix: str) -> str:
        """Return a new name within the present scope."""
        stem = f"{self.scope}.{suffix}" if self.scope else suffix
        count, name = 1, stem
        while name in self.names:
            count += 1
            name = f"{stem}_{count}"
        self.names.add(name)
        return name

    def input_shape(self, node: fx.Node, index: int = 0) -> torch.Size:
        """Return the shape of argument `index` of `node`."""
        argument = node.args[index]
        assert isinstance(argument, fx.Node)
        return self.shapes[argument]

    def sizes(self, values: Sequence[int | str]) -> str:
        """Return int64 (n,), some of whose entries may be known at run time only."""
        if all(isinstance(value, int) for value in values):
            return self.constant(list(values))  # type: ignore[arg-type]
        parts = [value if isinstance(value, str) else self.constant([value]) for value in values]
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=0)


def translate(onnx: OnnxGraph, node: fx.Node, arguments: Sequence[Any], options: dict) -> Any:
    """Write `node` into `onnx`, and return the name (or a tuple of names) of its result.

    Raises:
        InputError: for an operator that is not in the table, or used in a way that ONNX lacks.
    """
    translation = TRANSLATIONS.get(node.target)
    if translation is None:
        raise refused(node, f"{node.target} has no translation")
    return translation(onnx, node, *arguments, **options)


def refused(node: fx.Node, reason: str) -> InputError:
    """Return the error for a node that cannot be written."""
    place = module_path(node) or "the model"
    return InputError(f"cannot write {place} as ONNX: {reason}; replace it or leave out ONNX")


# Families -----------------------------------------------------------------------------------------


def _unary(name: str, **attributes: Any) -> Translation:
    """An operator of one tensor with the same meaning in ONNX."""
    return lambda onnx, node, x: onnx(name, x, **attributes)


def _same(onnx: OnnxGraph, node: fx.Node, x: str, *_: Any, **__: Any) -> str:
    """An operator that does nothing in evaluation mode."""
    return x


def _binary(name: str) -> Translation:
    """An operator of two tensors, or a tensor and a number; `alpha` multiplies the second."""

    def translation(onnx: OnnxGraph, node: fx.Node, a: Any, b: Any, *, alpha: float = 1) -> str:
        a, b = (x if isinstance(x, str) else onnx.constant(float(x)) for x in (a, b))
        return onnx(name, a, b if alpha == 1 else onnx("Mul", b, onnx.constant(float(alpha))))

    return translation


def _reduction(name: str) -> Translation:
    """A reduction over some axes, all of them by default."""

    def translation(
        onnx: OnnxGraph,
        node: fx.Node,
        x: str,
        dim: int | Sequence[int] | None = None,
        keepdim: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> str:
        axes = [dim] if isinstance(dim, int) else list(dim or ())
        inputs = (x, onnx.constant(axes)) if axes else (x,)
        return onnx(name, *inputs, keepdims=int(keepdim))

    return translation


# Products -----------------------------------------------------------------------------------------


def _linear(onnx: OnnxGraph, node: fx.Node, x: str, weight: str, bias: str | None = None) -> str:
    product = onnx("MatMul", x, onnx("Transpose", weight, perm=[1, 0]))
    return product if bias is None else onnx("Add", product, bias)


def _addmm(
    onnx: OnnxGraph,
    node: fx.Node,
    bias: str,
    x: str,
    weight: str,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> str:
    return onnx("Gemm", x, weight, bias, alpha=float(alpha), beta=float(beta))


def _convolution(
    onnx: OnnxGraph, node: fx.Node, x: str, weight: str, bias: str | None = None, *geometry: Any
) -> str:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return onnx("Conv", *inputs, **convolution_attributes(onnx, node, *geometry))


def convolution_attributes(
    onnx: OnnxGraph,
    node: fx.Node,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> dict[str, Any]:
    """Return the attributes of ONNX's Conv for a convolution of ATen's."""
    kernel = list(onnx.input_shape(node, 1)[2:])
    dilations = _per_axis(dilation, len(kernel))
    if padding == "same":  # the odd one out comes last
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = 2 * _per_axis(0 if padding == "valid" else padding, len(kernel))  # type: ignore[arg-type]
    return {
        "kernel_shape": kernel,
        "strides": _per_axis(stride, len(kernel)),
        "pads": pads,
        "dilations": dilations,
        "group": groups,
    }


def _per_axis(value: int | Sequence[int], count: int) -> list[int]:
    """Return one number per spatial axis, given one for all or one each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


# Normalization and activation functions -----------------------------------------------------------


def _layer_norm(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    shape: Sequence[int],
    weight: str | None = None,
    bias: str | None = None,
    epsilon: float = 1e-5,
    _: bool = True,
) -> str:
    weight = onnx.constant(torch.ones(*shape)) if weight is None else weight
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return onnx("LayerNormalization", *inputs, axis=-len(shape), epsilon=epsilon)


def _group_norm(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    groups: int,
    weight: str | None = None,
    bias: str | None = None,
    epsilon: float = 1e-5,
    _: bool = True,
) -> str:
    # ONNX changed the shape of GroupNormalization's scale, so it is spelled out.
    channels, *spatial = onnx.shapes[node][1:]
    size = channels // groups * torch.Size(spatial).numel()
    rows = onnx("Reshape", x, onnx.constant([0, groups, -1]))
    ones = onnx.constant(torch.ones(size))
    value = onnx("LayerNormalization", rows, ones, axis=-1, epsilon=epsilon)
    value = onnx("Reshape", value, onnx.constant([-1, channels, *spatial]))
    axes = onnx.constant(list(range(1, 1 + len(spatial))))
    for name, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            value = onnx(name, value, onnx("Unsqueeze", factor, axes))
    return value


def _batch_norm(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    weight: str | None,
    bias: str | None,
    mean: str,
    variance: str,
    momentum: float,
    epsilon: float,
) -> tuple[str]:
    channels = onnx.input_shape(node)[1]
    weight = onnx.constant(torch.ones(channels)) if weight is None else weight
    bias = onnx.constant(torch.zeros(channels)) if bias is None else bias
    return (onnx("BatchNormalization", x, weight, bias, mean, variance, epsilon=epsilon),)


def _softmax(onnx: OnnxGraph, node: fx.Node, x: str, dim: int, dtype: object = None) -> str:
    return onnx("Softmax", x, axis=dim)


def _gelu(onnx: OnnxGraph, node: fx.Node, x: str, *, approximate: str = "none") -> str:
    return onnx("Gelu", x, approximate=approximate)


def _silu(onnx: OnnxGraph, node: fx.Node, x: str) -> str:
    return onnx("Mul", x, onnx("Sigmoid", x))


def _rsqrt(onnx: OnnxGraph, node: fx.Node, x: str) -> str:
    return onnx("Reciprocal", onnx("Sqrt", x))


def _clamp(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    lower: float | None = None,
    upper: float | None = None,
) -> str:
    bounds = ("" if bound is None else onnx.constant(float(bound)) for bound in (lower, upper))
    return onnx("Clip", x, *bounds)


def _hardtanh(
    onnx: OnnxGraph, node: fx.Node, x: str, lower: float = -1.0, upper: float = 1.0
) -> str:
    return _clamp(onnx, node, x, lower, upper)


def _leaky_relu(onnx: OnnxGraph, node: fx.Node, x: str, slope: float = 0.01) -> str:
    return onnx("LeakyRelu", x, alpha=slope)


def _elu(onnx: OnnxGraph, node: fx.Node, x: str, alpha: float = 1.0) -> str:
    return onnx("Elu", x, alpha=alpha)


def _vector_norm(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    order: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
) -> str:
    if order not in (1, 2):
        raise refused(node, f"a vector norm of order {order} has no translation")
    return _reduction(f"ReduceL{int(order)}")(onnx, node, x, dim, keepdim)


# Pooling ------------------------------------------------------------------------------------------


def _max_pool(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> str:
    count = len(onnx.shapes[node]) - 2
    return onnx(
        "MaxPool",
        x,
        kernel_shape=_per_axis(kernel, count),
        strides=_per_axis(stride or kernel, count),
        pads=2 * _per_axis(padding, count),
        dilations=_per_axis(dilation, count),
        ceil_mode=int(ceil_mode),
    )


def _average_pool(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    if divisor is not None:
        raise refused(node, "average pooling with a divisor of its own has no translation")
    count = len(onnx.shapes[node]) - 2
    return onnx(
        "AveragePool",
        x,
        kernel_shape=_per_axis(kernel, count),
        strides=_per_axis(stride or kernel, count),
        pads=2 * _per_axis(padding, count),
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


def _adaptive_average_pool(
    onnx: OnnxGraph, node: fx.Node, x: str, size: int | Sequence[int]
) -> str:
    spatial = onnx.input_shape(node)[2:]
    made = onnx.shapes[node][2:]
    if any(length % out for length, out in zip(spatial, made, strict=True)):
        raise refused(node, f"pooling {list(spatial)} to {list(made)} in unequal cells")
    kernel = [length // out for length, out in zip(spatial, made, strict=True)]
    return _average_pool(onnx, node, x, kernel)


# Shapes and indices -------------------------------------------------------------------------------


def _size_of(onnx: OnnxGraph, node: fx.Node, x: str, dim: int) -> str:
    dim %= len(onnx.input_shape(node))
    return onnx("Shape", x, start=dim, end=dim + 1)


def _times(onnx: OnnxGraph, node: fx.Node, *sizes: int | str) -> str:
    return onnx("Mul", *(onnx.sizes([size]) for size in sizes))


def _reshape(onnx: OnnxGraph, node: fx.Node, x: str, sizes: Sequence[int | str]) -> str:
    unknown = [size for size in sizes if isinstance(size, str) or size == -1]
    if len(unknown) == 1:  # Reshape finds it out
        sizes = [-1 if isinstance(size, str) else size for size in sizes]
    return onnx("Reshape", x, onnx.sizes(sizes))


def _expand(
    onnx: OnnxGraph, node: fx.Node, x: str, sizes: Sequence[int | str], *, implicit: bool = False
) -> str:
    return onnx("Expand", x, onnx.sizes([1 if size == -1 else size for size in sizes]))


def _permute(onnx: OnnxGraph, node: fx.Node, x: str, dims: Sequence[int]) -> str:
    return onnx("Transpose", x, perm=[dim % len(dims) for dim in dims])


def _transpose(onnx: OnnxGraph, node: fx.Node, x: str, first: int = 0, second: int = 1) -> str:
    order = list(range(len(onnx.shapes[node])))
    order[first], order[second] = order[second], order[first]
    return onnx("Transpose", x, perm=order)


def _unsqueeze(onnx: OnnxGraph, node: fx.Node, x: str, dim: int) -> str:
    return onnx("Unsqueeze", x, onnx.constant([dim]))


def _squeeze(onnx: OnnxGraph, node: fx.Node, x: str, dim: int | Sequence[int]) -> str:
    shape = onnx.input_shape(node)
    return onnx("Squeeze", x, onnx.constant([d for d in _per_axis(dim, 1) if shape[d] == 1]))


def _concatenate(onnx: OnnxGraph, node: fx.Node, values: Sequence[str], dim: int = 0) -> str:
    return onnx("Concat", *values, axis=dim)


def _stack(onnx: OnnxGraph, node: fx.Node, values: Sequence[str], dim: int = 0) -> str:
    return _concatenate(onnx, node, [_unsqueeze(onnx, node, x, dim) for x in values], dim)


def _slice(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    dim: int = 0,
    start: int | str | None = None,
    end: int | str | None = None,
    step: int = 1,
) -> str:
    bounds = (0 if start is None else start, torch.iinfo(torch.int64).max if end is None else end)
    return onnx("Slice", x, *(onnx.sizes([at]) for at in (*bounds, dim, step)))


def _select(onnx: OnnxGraph, node: fx.Node, x: str, dim: int, index: int) -> str:
    return onnx("Gather", x, onnx.constant(torch.tensor(index)), axis=dim)


def _unbind(onnx: OnnxGraph, node: fx.Node, x: str, dim: int = 0) -> tuple[str, ...]:
    count = onnx.input_shape(node)[dim]
    return tuple(_select(onnx, node, x, dim, index) for index in range(count))


def _split(
    onnx: OnnxGraph, node: fx.Node, x: str, sizes: int | Sequence[int], dim: int = 0
) -> tuple[str, ...]:
    if isinstance(sizes, int):
        length = onnx.input_shape(node)[dim]
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    return tuple(onnx.outputs(len(sizes), "Split", x, onnx.constant(list(sizes)), axis=dim))


def _index(onnx: OnnxGraph, node: fx.Node, x: str, indices: Sequence[str | None]) -> str:
    given = [(axis, name) for axis, name in enumerate(indices) if name is not None]
    if len(given) > 1:
        raise refused(node, "indexing by several tensors has no translation")
    ((axis, name),) = given
    return onnx("Gather", x, name, axis=axis)


def _roll(
    onnx: OnnxGraph, node: fx.Node, x: str, shifts: Sequence[int], dims: Sequence[int]
) -> str:
    # one without dims goes from image to image, which `quantize` refuses
    for shift, dim in zip(shifts, dims, strict=True):
        cut = -shift % onnx.shapes[node][dim]
        x = _concatenate(
            onnx, node, [_slice(onnx, node, x, dim, cut), _slice(onnx, node, x, dim, 0, cut)], dim
        )
    return x


def pad(
    onnx: OnnxGraph,
    node: fx.Node,
    x: str,
    widths: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
    constant: Callable[[float], Tensor] = torch.tensor,
) -> str:
    """Write a pad of `x`, with what `constant` makes of the value, and return the result's name."""
    # ATen lists begin and end of each axis, last axis first; ONNX all begins, then all ends
    begins, ends = [0] * len(onnx.shapes[node]), [0] * len(onnx.shapes[node])
    for place, (begin, end) in enumerate(zip(widths[::2], widths[1::2], strict=True), start=1):
        begins[-place], ends[-place] = begin, end
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise refused(node, f"padding mode {mode!r} has no translation")
    filling = onnx.constant(constant(float(value or 0)))
    return onnx("Pad", x, onnx.constant(begins + ends), filling, mode=modes[mode])


def _masked_fill(onnx: OnnxGraph, node: fx.Node, x: str, mask: str, value: str | float) -> str:
    value = value if isinstance(value, str) else onnx.constant(float(value))
    return onnx("Where", mask, value, x)


def _where(onnx: OnnxGraph, node: fx.Node, condition: str, a: str, b: str) -> str:
    return onnx("Where", condition, a, b)


def _item(onnx: OnnxGraph, node: fx.Node, values: Sequence[str], place: int) -> str:
    return values[place]


TRANSLATIONS: dict[Any, Translation] = {
    operator.getitem: _item,
    operator.mul: _times,
    aten.sym_size.int: _size_of,
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    **dict.fromkeys(labeled("conv"), _convolution),
    aten.matmul.default: _binary("MatMul"),
    aten.bmm.default: _binary("MatMul"),
    aten.mm.default: _binary("MatMul"),
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.rsub.Scalar: lambda onnx, node, a, b: _binary("Sub")(onnx, node, b, a),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.mean.dim: _reduction("ReduceMean"),
    aten.sum.dim_IntList: _reduction("ReduceSum"),
    aten.amax.default: _reduction("ReduceMax"),
    aten.linalg_vector_norm.default: _vector_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.softmax.int: _softmax,
    aten.gelu.default: _gelu,
    aten.silu.default: _silu,
    aten.relu.default: _unary("Relu"),
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.hardswish.default: _unary("HardSwish"),
    aten.hardsigmoid.default: _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.relu6.default: lambda onnx, node, x: _clamp(onnx, node, x, 0.0, 6.0),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.tanh.default: _unary("Tanh"),
    aten.exp.default: _unary("Exp"),
    aten.sqrt.default: _unary("Sqrt"),
    aten.rsqrt.default: _rsqrt,
    aten.neg.default: _unary("Neg"),
    aten.abs.default: _unary("Abs"),
    aten.erf.default: _unary("Erf"),
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten.reshape.default: _reshape,
    aten.expand.default: _expand,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.cat.default: _concatenate,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.index.Tensor: _index,
    aten.roll.default: _roll,
    aten.pad.default: pad,
    aten.masked_fill.Scalar: _masked_fill,
    aten.where.self: _where,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.detach.default: _same,
}
"""What the networks of timm are made of. A new operator is one function and one line here."""
