"""GPTQ: weights rounded column by column, each error made good by the columns that follow.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1, on the grid that a Point's scales and zero points span. The result is a
start Point like those of the observers: the rounded weights take the place of the Point's own, and
every evaluation rounds them again, so that they keep their codes at these scales and may flip at
others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evolq.errors import InputError
from evolq.graph import aten
from evolq.layers import Grid, Layer, grid_of, weighted_layers
from evolq.network import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point

# Of the mean of the Hessian's diagonal: Frantar et al. 2023, section 4 ("Step 3").
DAMPING = 0.01


def gptq(
    network: QuantizedNetwork,
    start: Point,
    images: Tensor,
    batch_size: int = BATCH_SIZE,
    damping: float = DAMPING,
) -> dict[str, Tensor]:
    """Return `start` with each layer's weight rounded by GPTQ, layer by layer.

    A layer's Hessian comes from its inputs in the quantized network, the layers before it rounded
    already. Layers run in the order of the graph; weights of other operators than linear layers and
    2-D convolutions stay as they are.

    Args:
        network: from `quantize`.
        start: a complete Point; never changed.
        images: (n, channels, height, width) calibration images.
        batch_size: images per pass.
        damping: added to the Hessian's diagonal, in units of its mean.

    Raises:
        InputError: if there are no images, or the damping is not positive.
    """
    if len(images) == 0:
        raise InputError("GPTQ needs at least one calibration image and got none")
    if damping <= 0:
        raise InputError(f"the damping is {damping:g}; give a positive number such as {DAMPING:g}")
    point = dict(start)
    for layer in weighted_layers(network):
        if layer.node.target not in (aten.linear.default, aten.conv2d.default):
            continue
        hessian = _hessian(network, point, layer, images.split(batch_size))
        weight = point[layer.name]
        rows_of = partial(_rows, groups=len(hessian))
        grid = grid_of(network, point, layer.name).map(rows_of)
        rounded = [
            round_columns(rows, part, grid.map(lambda t, g=group: t[g]), damping)
            for group, (rows, part) in enumerate(zip(rows_of(weight), hessian, strict=True))
        ]
        point[layer.name] = torch.stack(rounded).reshape(weight.shape).to(weight.dtype)
    return point


def round_columns(weight: Tensor, hessian: Tensor, grid: Grid, damping: float = DAMPING) -> Tensor:
    """Return `weight` (outputs, inputs) rounded to `grid`, little changed as a function of inputs.

    Args:
        weight: float64.
        hessian: (inputs, inputs), the sum of x x^T over the layer's inputs x.
        grid: of the same shape as the weight.
        damping: see `gptq`.
    """
    inputs = weight.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(inputs).to(hessian)
    if not bool(damped.diagonal().gt(0).all()):  # no input ever differs from zero
        return grid.nearest(weight)
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
    )
    left = weight.clone()
    rounded = torch.empty_like(weight)
    for column in range(inputs):
        place = slice(column, column + 1)
        rounded[:, place] = grid.map(lambda t, p=place: t[:, p]).nearest(left[:, place])
        error = (left[:, place] - rounded[:, place]) / inverse[column, column]
        left[:, column + 1 :] -= error * inverse[column, column + 1 :]
    return rounded


def _rows(weight: Tensor, groups: int) -> Tensor:
    """Return a weight as matrices (groups, outputs, inputs), float64."""
    return weight.reshape(groups, weight.shape[0] // groups, -1).double()


def _hessian(
    network: QuantizedNetwork, point: Point, layer: Layer, batches: tuple[Tensor, ...]
) -> Tensor:
    """Return the sum of x x^T over a layer's inputs, (groups, inputs, inputs), float64."""
    source = layer.node.all_input_nodes[0].name
    total: Tensor | float = 0.0
    for batch in batches:
        values = network.record([source], batch, point)[source]
        rows = _input_rows(layer, values, point[layer.name]).double()
        total = total + rows.transpose(1, 2) @ rows
    assert isinstance(total, Tensor)
    return total


def _input_rows(layer: Layer, values: Tensor, weight: Tensor) -> Tensor:
    """Return a layer's inputs as rows, (groups, positions, inputs): a convolution's patches."""
    if layer.node.target is aten.linear.default:
        return values.reshape(1, -1, values.shape[-1])
    # conv2d(input, weight, bias, stride, padding, dilation, groups)
    defaults: tuple[Any, ...] = (None, None, None, (1, 1), (0, 0), (1, 1), 1)
    given: tuple[Any, ...] = layer.node.args
    stride, padding, dilation, groups = (*given, *defaults[len(given) :])[3:7]
    patches = functional.unfold(values, weight.shape[2:], dilation, padding, stride)
    images, size, places = patches.shape
    split = patches.reshape(images, groups, size // groups, places)
    return split.permute(1, 0, 3, 2).flatten(1, 2)
