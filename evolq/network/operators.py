"""What an operator is: one table over ATen operators, from which all else about them follows.

Quantizers are placed, batch norms folded, multiply-accumulates counted, weights rounded and regions
cut by what stands here. A new operator is one entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from evolq.errors import InputError

aten = torch.ops.aten

Kind = Literal[
    "weight", "product", "output", "softmax", "layer_norm", "activation", "residual", "operand"
]


@dataclass(frozen=True)
class Operator:
    """What carries a quantizer around one ATen operator, and how its weight multiplies.

    A product is an operator of kind `product`: its multiply-accumulates are what an evaluation
    costs (`counter`).

    Attributes:
        label: the operator's name in the names of a Point.
        kind: the kind of its inputs, or of its output if it has no quantized inputs.
        inputs: label of each quantized input, by argument index.
        weight: argument index of the weight, if it has one.
        bias: argument index of what is added to each output channel, if there is such a thing.
        weight_axis: the weight's axis of output channels, 0 or 1; the other one is of inputs.
        rows: how the weight's inputs become rows; see `linear_rows`. Every weight needs it.

    Raises:
        InputError: for a weight without rows or without an input that it multiplies.
    """

    label: str
    kind: Kind
    inputs: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    weight: int | None = None
    bias: int | None = None
    weight_axis: int = 0
    rows: Callable[[fx.Node, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse an entry that would be left out silently somewhere."""
        if self.weight is not None and (self.rows is None or len(self.inputs) != 1):
            raise InputError(
                f"operator {self.label!r} has a weight, and no rule says how it multiplies its "
                "inputs; give one input and `rows`"
            )

    @property
    def is_product(self) -> bool:
        """Whether the operator multiplies and sums."""
        return self.kind == "product"

    @property
    def input(self) -> int:
        """Argument index of what the weight multiplies."""
        (index,) = self.inputs
        return index


# Rows: a layer as a product of matrices -----------------------------------------------------------


def linear_rows(node: fx.Node, values: Tensor, weight: Tensor) -> Tensor:
    """Return a layer's inputs as rows (groups, positions, inputs).

    With `weight_matrices` the layer's outputs are rows times matrices, before the bias.

    Args:
        node: of the layer in a graph.
        values: of its input.
        weight: of its weight.
    """
    return values.reshape(1, -1, values.shape[-1])


def convolution_rows(node: fx.Node, values: Tensor, weight: Tensor) -> Tensor:
    """Return a convolution's patches as rows (groups, positions, inputs); see `linear_rows`.

    A weight that is 1 at one place of its window and 0 elsewhere gives what is multiplied by that
    place: the same operator, with such a weight for each place and each input channel, gives all.
    It serves transposed convolutions likewise.
    """
    channels, window = values.shape[1], weight.shape[2:]
    places = torch.eye(window.numel()).to(values)
    if OPERATORS[node.target].weight_axis == 0:
        ones = places.reshape(-1, 1, *window).repeat(channels, *[1] * (1 + len(window)))
    else:
        ones = places.reshape(1, -1, *window).repeat(channels, *[1] * (1 + len(window)))
    given = arguments(node) | {"input": values, "weight": ones, "bias": None, "groups": channels}
    patches: Tensor = node.target(**given)  # type: ignore[operator]
    count = group_count(node)
    return patches.flatten(2).unflatten(1, (count, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def weight_matrices(node: fx.Node, weight: Tensor) -> Tensor:
    """Return a layer's weight as matrices (groups, outputs, inputs)."""
    return _by_outputs(node, weight).flatten(2)


def from_matrices(node: fx.Node, matrices: Tensor, like: Tensor) -> Tensor:
    """Return matrices (groups, outputs, inputs) in the shape of the layer's weight `like`."""
    moved = matrices.reshape(_by_outputs(node, like).shape)
    return moved.movedim(1, 1 + OPERATORS[node.target].weight_axis).flatten(0, 1)


def _by_outputs(node: fx.Node, weight: Tensor) -> Tensor:
    """Return a weight as (groups, outputs, ...)."""
    axis = OPERATORS[node.target].weight_axis
    return weight.unflatten(0, (group_count(node), -1)).movedim(1 + axis, 1)


def group_count(node: fx.Node) -> int:
    """Return the number of groups of a layer: 1 but for grouped convolutions."""
    count: int = arguments(node).get("groups", 1)
    return count


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of an ATen operator by name, its defaults included."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    names = [argument.name for argument in schema.arguments]
    return defaults | dict(zip(names, node.args, strict=False)) | node.kwargs


# The table ----------------------------------------------------------------------------------------

INPUT = MappingProxyType({0: "input"})

LINEAR = Operator("linear", "product", INPUT, weight=1, bias=2, rows=linear_rows)
CONVOLUTION = Operator("conv", "product", INPUT, weight=1, bias=2, rows=convolution_rows)
# Channels of all groups share a scale if they have the same place in their groups.
TRANSPOSED = Operator(
    "conv_transpose", "product", INPUT, weight=1, bias=2, weight_axis=1, rows=convolution_rows
)
MATRIX_PRODUCT = Operator("matmul", "product", MappingProxyType({0: "left", 1: "right"}))

OPERATORS: dict[object, Operator] = {
    aten.linear.default: LINEAR,
    aten.addmm.default: Operator(
        "linear",
        "product",
        MappingProxyType({1: "input"}),
        weight=2,
        bias=0,
        weight_axis=1,
        rows=linear_rows,
    ),
    aten.conv1d.default: CONVOLUTION,
    aten.conv1d.padding: CONVOLUTION,
    aten.conv2d.default: CONVOLUTION,
    aten.conv2d.padding: CONVOLUTION,
    aten.conv3d.default: CONVOLUTION,
    aten.conv3d.padding: CONVOLUTION,
    aten.conv_transpose1d.default: TRANSPOSED,
    aten.conv_transpose2d.input: TRANSPOSED,
    aten.conv_transpose3d.input: TRANSPOSED,
    aten.matmul.default: MATRIX_PRODUCT,
    aten.mm.default: MATRIX_PRODUCT,
    aten.bmm.default: MATRIX_PRODUCT,
    aten.layer_norm.default: Operator("layer_norm", "layer_norm", INPUT),
    aten.softmax.int: Operator("softmax", "softmax"),
    aten.gelu.default: Operator("gelu", "activation"),
    aten.silu.default: Operator("silu", "activation"),
    aten.hardswish.default: Operator("hardswish", "activation"),
    aten.add.Tensor: Operator("add", "residual"),
}


def is_product(node: fx.Node) -> bool:
    """Whether `node` multiplies and sums."""
    return node.target in OPERATORS and OPERATORS[node.target].is_product


def is_matrix_product(node: fx.Node) -> bool:
    """Whether `node` is a product of two matrices, neither of which is a weight by its place."""
    return is_product(node) and OPERATORS[node.target].weight is None


def layer_operator(node: fx.Node) -> Operator | None:
    """Return the operator of a node that has a weight (linear, convolution), None for others."""
    rule = OPERATORS.get(node.target)
    return None if rule is None or rule.weight is None else rule


def labeled(label: str) -> list[Any]:
    """Return the ATen operators with a label of the table."""
    return [target for target, rule in OPERATORS.items() if rule.label == label]


# Operators that only rearrange values: a quantizer commutes with them. `export` leaves no view that
# cannot copy.
VIEWS = frozenset(
    {
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.detach.default,
        aten.dropout.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.roll.default,
        aten.flip.default,
    }
)

# Operators that combine several values, or a value and a weight, without products of their own that
# a quantizer would have to see: elementwise ones, normalizations, and those that put together, pick
# or place values. Any other such operator that the table lacks is refused (`why_refused`).
HARMLESS = frozenset(
    {
        aten.sub.Tensor,
        aten.subtract.Tensor,
        aten.rsub.Tensor,
        aten.mul.Tensor,
        aten.multiply.Tensor,
        aten.div.Tensor,
        aten.div.Tensor_mode,
        aten.divide.Tensor,
        aten.true_divide.Tensor,
        aten.floor_divide.default,
        aten.remainder.Tensor,
        aten.pow.Tensor_Tensor,
        aten.addcmul.default,
        aten.addcdiv.default,
        aten.lerp.Tensor,
        aten.lerp.Scalar,
        aten.atan2.default,
        aten.maximum.default,
        aten.minimum.default,
        aten.max.other,
        aten.min.other,
        aten.clamp.Tensor,
        aten.clamp_min.Tensor,
        aten.clamp_max.Tensor,
        aten.prelu.default,
        aten.where.self,
        aten.masked_fill.Tensor,
        aten.eq.Tensor,
        aten.ne.Tensor,
        aten.lt.Tensor,
        aten.le.Tensor,
        aten.gt.Tensor,
        aten.ge.Tensor,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.instance_norm.default,
        aten.group_norm.default,
        aten.rms_norm.default,
        aten.cat.default,
        aten.concat.default,
        aten.stack.default,
        aten.hstack.default,
        aten.vstack.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.index_put.default,
        aten.gather.default,
        aten.take_along_dim.default,
        aten.scatter.src,
        aten.slice_scatter.default,
        aten.select_scatter.default,
        aten.copy.default,
        aten.expand_as.default,
        aten.view_as.default,
        aten.reshape_as.default,
        aten.type_as.default,
        aten.grid_sampler.default,
        aten.grid_sampler_2d.default,
    }
)

# Operators that take some of the values that they read: what is quantized stays so.
SELECTIONS = frozenset(
    {
        operator.getitem,
        aten.unbind.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.slice.Tensor,
        aten.select.int,
    }
)

# Operators with weights or products inside that the table does not cover: an unquantized product
# in a network called quantized would be a silent lie, so they are refused by name.
REFUSED: dict[object, str] = {
    aten.baddbmm.default: "batched product with addition",
    aten.addbmm.default: "batched product with addition",
    aten.mv.default: "product of matrix and vector",
    aten.addmv.default: "product of matrix and vector",
    aten.dot.default: "product of vectors",
    aten.tensordot.default: "tensordot",
    aten.bilinear.default: "bilinear layer",
    aten.einsum.default: "einsum",
    aten.lstm.input: "LSTM",
    aten.gru.input: "GRU",
    aten.embedding.default: "embedding",
}


def is_random(node: fx.Node) -> bool:
    """Whether `node` draws random numbers: no dropout that is switched off does."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = arguments(node)
    active = given.get("train", given.get("training", True))
    return bool(active) and given.get("p", given.get("dropout_p")) != 0


def why_refused(
    node: fx.Node, on_images: Collection[fx.Node], on_weights: Collection[fx.Node], counted: bool
) -> str | None:
    """Return what `node` is, if it may hide products that no quantizer would see, None if not.

    Args:
        node: of a graph.
        on_images: the nodes that depend on the images.
        on_weights: the nodes that depend on the weights.
        counted: whether torch counts multiply-accumulates for it.
    """
    if node.target in REFUSED:
        return REFUSED[node.target]
    if node.target in OPERATORS or node.op != "call_function":
        return None
    if counted:
        return "an operator that multiplies and sums"
    if node.target in HARMLESS | VIEWS:
        return None
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    varying = sum(n in on_images for n in operands)
    weights = sum(n in on_weights and n not in on_images for n in operands)
    if varying and varying + weights > 1:
        return "an operator that combines values or weights in a way that is not known"
    return None


# Counting -----------------------------------------------------------------------------------------


def counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, two for each multiply-accumulate.

    Its formulas are by what an operator runs in the end, with two that torch lacks.
    """
    return FlopCounterMode(display=False, custom_mapping={aten.mv: _inner, aten.dot: _inner})


def _inner(left: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of a product with a vector: every value of the left operand is read once."""
    return 2 * math.prod(left)


def multiply_accumulates(node: fx.Node, operations: int) -> float:
    """Return the multiply-accumulates of a node that torch counted some operations for.

    Raises:
        InputError: for a product of the table that torch does not count: it would cost nothing.
    """
    if operations == 0 and is_product(node):
        raise InputError(
            f"{node.target} is a product of the table of operators, and torch counts no operations "
            "for it; give its formula to `counter`"
        )
    return operations / 2
