"""Layers with quantized weights, as methods that choose how to round each weight see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evolq.network.operators import OPERATORS, from_matrices, layer_operator, weight_matrices
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import QuantSpec, codes_range


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is an entry of Points and quantized: linear, convolution, and so on.

    Attributes:
        name: of the weight, and of its quantizer.
        node: of the product in the network's graph.
        quantizer: the node that makes the quantized weight.
    """

    name: str
    node: fx.Node
    quantizer: fx.Node

    @property
    def input(self) -> fx.Node:
        """The node whose values the weight multiplies."""
        return self.node.args[OPERATORS[self.node.target].input]  # type: ignore[return-value]

    def rows(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return values of the input as rows (groups, positions, inputs)."""
        rows = OPERATORS[self.node.target].rows
        assert rows is not None, "the table has no weight without"
        return rows(self.node, values, weight)

    def matrices(self, weight: Tensor) -> Tensor:
        """Return the weight, or what has its shape, as matrices (groups, outputs, inputs)."""
        return weight_matrices(self.node, weight)

    def from_matrices(self, matrices: Tensor, like: Tensor) -> Tensor:
        """Return matrices in the shape of the weight `like`."""
        return from_matrices(self.node, matrices, like)


def weighted_layers(network: QuantizedNetwork) -> list[Layer]:
    """Return the layers in the order in which they run.

    Left out are weights that several operators share, that are read through a view, or that are an
    operand of a plain product of matrices: they are rounded to nearest as always.
    """
    layers = []
    for node in network.graph.nodes:
        operator = layer_operator(node)
        if operator is None:
            continue
        quantizer: Any = node.args[operator.weight]  # type: ignore[index]
        if quantizer.op != "call_module" or len(quantizer.users) > 1:
            continue
        weight = quantizer.args[0]
        name = network.graph.name_of(weight)
        if name in network.sites and len(weight.users) == 1:
            layers.append(Layer(str(name), node, quantizer))
    return layers


@dataclass(frozen=True)
class Grid:
    """The values that a weight's quantizer can give, for each element of the weight.

    Attributes:
        scale: of the weight's shape.
        zero_point: likewise, whole codes.
        lower: lowest code.
        upper: highest code.
    """

    scale: Tensor
    zero_point: Tensor
    lower: float
    upper: float

    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes of `weight` before rounding and clamping."""
        return weight / self.scale + self.zero_point

    def values(self, codes: Tensor) -> Tensor:
        """Return what codes stand for, those beyond the range clamped."""
        return (codes.clamp(self.lower, self.upper) - self.zero_point) * self.scale

    def nearest_codes(self, weight: Tensor) -> Tensor:
        """Return the codes of `weight`, rounded to nearest."""
        return self.codes(weight).clamp(self.lower, self.upper).round()

    def nearest(self, weight: Tensor) -> Tensor:
        """Round to nearest."""
        return self.values(self.nearest_codes(weight))

    def map(self, rearrange: Any) -> Grid:
        """Return the grid of a weight that is rearranged or indexed."""
        return replace(self, scale=rearrange(self.scale), zero_point=rearrange(self.zero_point))


def matches_moments(network: QuantizedNetwork, node: fx.Node) -> bool:
    """Return whether the quantizer `node` matches moments."""
    return isinstance(network.module.get_submodule(str(node.target)), MomentMatchedQuantizer)


# How far inside its cell a moved weight stays, in steps, so that float32 rounding cannot flip it.
MARGIN = 1e-3
# Rounds of keeping moments and cells in turn. Rows of bundled and real networks take about ten.
MOMENT_ROUNDS = 200
# Relative to a row's deviation: that of a float32 mean and deviation.
MOMENT_TOLERANCE = 1e-7


def move_into_cells(weight: Tensor, codes: Tensor, grid: Grid, spec: QuantSpec) -> Tensor:
    """Return the weight, moved so that rounding it to nearest gives `codes`.

    That is how a Point holds codes that are not the nearest ones, as each evaluation rounds its
    weights again. Values that another code was chosen for move to what that code stands for, the
    others stay. Then the mean and the deviation of each row are made those of the original again,
    so that moment matching sees what it would have seen, with all values kept in their cells
    (alternating projections). Where a row's cells leave no room for that, its moments come as close
    as they can. A row whose codes are the nearest ones stays as it is, bit for bit.

    Args:
        weight: of any shape.
        codes: whole numbers from `grid.lower` to `grid.upper`, of the same shape.
        grid: likewise.
        spec: of the weight's quantizer; its granularity says what a row is.
    """
    rows = spec.granularity.rows
    original, chosen, scale, zero_point = (
        rows(value).double() for value in (weight, codes, grid.scale, grid.zero_point)
    )
    other = rows(codes != grid.nearest_codes(weight))
    changed = other.any(1)
    lowest = torch.where(chosen > grid.lower, chosen - 0.5 + MARGIN, -torch.inf)
    highest = torch.where(chosen < grid.upper, chosen + 0.5 - MARGIN, torch.inf)
    lowest, highest = (lowest - zero_point) * scale, (highest - zero_point) * scale
    deviation, mean = torch.std_mean(original, dim=1, correction=0, keepdim=True)
    moved = torch.where(other, (chosen - zero_point) * scale, original)
    for _ in range(MOMENT_ROUNDS):
        own_deviation, own_mean = torch.std_mean(moved, dim=1, correction=0, keepdim=True)
        error = torch.maximum((own_mean - mean).abs(), (own_deviation - deviation).abs())
        if bool((error <= MOMENT_TOLERANCE * deviation)[changed].all()):
            break
        ratio = torch.where(own_deviation > 0, deviation / own_deviation, 1.0)
        moved = ((moved - own_mean) * ratio + mean).clamp(lowest, highest)
    made = torch.where(changed[:, None], moved, original).to(weight.dtype)
    return spec.granularity.from_rows(made, weight.shape)


def grid_of(network: QuantizedNetwork, point: Point, name: str) -> Grid:
    """Return the grid of the weight `name` at a Point."""
    spec = network.sites[name].spec
    weight = point[name]
    lower, upper = codes_range(float(point[f"{name}.bits"]), spec)
    scale = spec.granularity.align(point[f"{name}.scale"], weight)
    zero_point = torch.zeros((), device=weight.device)
    if spec.has_zero_point:
        zero_point = spec.granularity.align(point[f"{name}.zero_point"], weight).round()
    return Grid(scale.expand_as(weight), zero_point.expand_as(weight), float(lower), float(upper))
