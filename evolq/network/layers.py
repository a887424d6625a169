"""Layers with quantized weights, as methods that choose how to round each weight see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from evolq.network.operators import OPERATORS, from_matrices, layer_operator, weight_matrices
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.quantizers import codes_range


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

    def nearest(self, weight: Tensor) -> Tensor:
        """Round to nearest."""
        return self.values(self.codes(weight).round())

    def map(self, rearrange: Any) -> Grid:
        """Return the grid of a weight that is rearranged or indexed."""
        return replace(self, scale=rearrange(self.scale), zero_point=rearrange(self.zero_point))


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
