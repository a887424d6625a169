"""GPTQ: weights rounded column by column, each error made good by the columns that follow.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1, with two steps around it.

Before: what quantizing a layer's input does is made good by the weight. It becomes the one that
makes of the quantized inputs, in the least squares and with a ridge, what the weight makes of the
exact ones (Zhong et al. 2024, "ERQ: Error Reduction for Post-Training Quantization of Vision
Transformers", its first step).

Around: the grid that a Point's scales and zero points span is a first guess, as an observer knows
the weights and not what multiplies them. So each layer is rounded on several grids, the observer's
with wider and narrower steps, and each scale gets the step whose codes change the layer's outputs
least (their squared change over the calibration images, w H w^T).

The result is a start Point like those of the observers: its weights lie in the cells of the chosen
codes, with the moments of the original ones (`layers.move_into_cells`), and every evaluation rounds
them again, so that they keep their codes at these scales and may flip at others.

Where the network matches moments, what a code stands for is shifted and stretched to those of the
original weight. The columns are then rounded to the grid as matching leaves it for codes rounded to
nearest. The chosen codes match a little differently; to repeat this with their moments was measured
to gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from evolq.data.pixels import Images, batches
from evolq.errors import InputError
from evolq.network.graph import Stage, ancestors, extract
from evolq.network.layers import (
    Grid,
    Layer,
    grid_of,
    matches_moments,
    move_into_cells,
    weighted_layers,
)
from evolq.network.operators import SELECTIONS, VIEWS
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point
from evolq.tensor.moments import before_matching, moment_match
from evolq.tensor.quantizers import Quantizer, QuantSpec

# Of the mean of the Hessian's diagonal: Frantar et al. 2023, section 4 ("Step 3").
DAMPING = 0.01
# Columns whose errors reach the columns behind them together: section 4 ("Step 2").
TOGETHER = 128
# Values of a layer's input whose products are taken at once: with those beside them that a
# convolution reads, some MiB.
TOGETHER_VALUES = 2**18
# Of the same mean. On DeiT-Tiny (W4A4 `linear`, 100 calibration and 500 test images) the test loss
# is 1.90 without compensation, 1.53 with 0.01 and 1.54 with 0.1.
RIDGE = 0.01
# Steps of the grids that are tried, in those of the observer; of equal ones the first is taken. On
# DeiT-Tiny (W3A8 `full`, the same images) they took the test loss from 1.33 to 1.27.
STEPS = (1.0, 0.95, 0.9, 0.85, 0.8, 1.05, 1.1)


def gptq(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    batch_size: int = BATCH_SIZE,
    damping: float = DAMPING,
    on_rounded: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return `start` with each layer's weight and its scales chosen by GPTQ, layer by layer.

    A layer's inputs are those in the quantized network, the layers before it rounded already.
    Layers run in the order of the graph, each part of it once; of all images, the values
    that later parts read are kept meanwhile. Weights that `weighted_layers` leaves out stay as they
    are.

    Args:
        network: from `quantize`.
        start: a complete Point; never changed.
        images: (n, channels, height, width) calibration images.
        batch_size: images per pass.
        damping: added to the Hessian's diagonal, in units of its mean.
        on_rounded: called with the number of layers that are rounded, and that of all.

    Raises:
        InputError: if there are no images, or the damping is not positive.
    """
    if len(images) == 0:
        raise InputError("GPTQ needs at least one calibration image and got none")
    if damping <= 0:
        raise InputError(f"the damping is {damping:g}; give a positive number such as {DAMPING:g}")
    point = dict(start)
    layers = weighted_layers(network)
    inputs_of = layer_inputs(network, point, layers, list(batches(images, batch_size)))
    for done, (layer, inputs) in enumerate(inputs_of, 1):
        weight = point[layer.name]
        hessian, cross = _products(layer, inputs, weight)
        target = compensate(layer.matrices(weight.double()), hessian, cross)
        spec, grid = network.sites[layer.name].spec, grid_of(network, point, layer.name)
        matched = matches_moments(network, layer.quantizer)
        codes, steps = _chosen(layer, weight, target, hessian, grid, spec, matched, damping)
        scale = point[f"{layer.name}.scale"]
        point[f"{layer.name}.scale"] = scale * steps.reshape(scale.shape)
        grid = grid_of(network, point, layer.name)
        point[layer.name] = move_into_cells(weight, codes, grid, spec)
        if on_rounded is not None:
            on_rounded(done, len(layers))
    return point


def gptq_cost(network: QuantizedNetwork) -> float:
    """Return what `gptq` costs, in forward passes of its images.

    In multiply-accumulates: one pass, and twice the products of a layer's inputs with themselves
    instead of with its weight, of what they are and of what they lost.
    """
    products = 0.0
    for layer in weighted_layers(network):
        outputs, inputs = layer.matrices(network.weights[layer.name]).shape[1:]
        products += 2 * network.graph.operations[layer.node.name] * inputs / outputs
    return 1 + products / network.operations


class Inputs(NamedTuple):
    """What a layer reads of one batch of images: as the network has it, and before quantizing."""

    quantized: Tensor
    exact: Tensor


def layer_inputs(
    network: QuantizedNetwork, point: Point, layers: Sequence[Layer], batches: Sequence[Tensor]
) -> Iterator[tuple[Layer, list[Inputs]]]:
    """Yield each layer with its inputs, one for each batch of images; no operator runs twice.

    The network runs on from one layer's input to the next one's at what `point` holds by then: to
    round a layer's weight, change it there before the next layer is asked for.

    Args:
        network: from `quantize`.
        point: complete.
        layers: in the order in which they run.
        batches: of images, each (n, channels, height, width).
    """
    graph = network.graph
    done = {graph.images, *graph.entries.values()}
    kept: list[dict[fx.Node, Any]] = [{graph.images: batch} for batch in batches]
    reads = [_read(network, layer) for layer in layers]
    for index, layer in enumerate(layers):
        missing = ancestors(graph.module.graph, [layer.input]) - done
        done |= missing
        wanted = {node for read in reads[index:] for node in read.needed}
        read_later = [
            n for n in graph.nodes if n in done and (n in wanted or not done.issuperset(n.users))
        ]
        part = extract(graph.module, missing, [n for n in read_later if n in missing])
        at, inputs = graph.values(point), []
        for batch, values in enumerate(kept):
            with torch.no_grad():
                values = {**values, **part.run({**at, **values})}
                exact = reads[index].value({**at, **values})
            kept[batch] = {node: values[node] for node in read_later if node in values}
            inputs.append(Inputs(values[layer.input], exact))
        yield layer, inputs


class _Read(NamedTuple):
    """Where a layer's input comes from: what its quantizer reads, and the views behind it."""

    exact: fx.Node
    quantized: fx.Node
    views: Stage | None

    @property
    def needed(self) -> list[fx.Node]:
        """The nodes whose values `value` reads."""
        behind = self.views.inputs if self.views else ()
        return [self.exact, *(node for node in behind if node is not self.quantized)]

    def value(self, values: dict[fx.Node, Any]) -> Tensor:
        """Return the layer's input without its quantizer."""
        exact: Tensor = values[self.exact]
        if self.views is not None:
            (exact,) = self.views.run({**values, self.quantized: exact}).values()
        return exact


def _read(network: QuantizedNetwork, layer: Layer) -> _Read:
    made: Any = layer.input
    views = set()
    while made.target in VIEWS | SELECTIONS:
        views.add(made)
        made = made.args[0]
    stage = extract(network.module, views, [layer.input]) if views else None
    quantized = made.op == "call_module" and isinstance(
        network.module.get_submodule(str(made.target)), Quantizer
    )
    return _Read(made.args[0] if quantized else made, made, stage)


def compensate(weight: Tensor, hessian: Tensor, cross: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return the weight that makes of quantized inputs what `weight` makes of exact ones.

    In the least squares, with a ridge on the change: ERQ (see above), equation of its first step.

    Args:
        weight: (groups, outputs, inputs), float64.
        hessian: (groups, inputs, inputs), the sum of x x^T over the quantized inputs x.
        cross: likewise of (e - x) x^T, where e are the exact inputs.
        ridge: in units of the mean of the Hessian's diagonal.
    """
    size = hessian.diagonal(0, 1, 2).mean(1)[:, None, None]
    if not bool((size > 0).all()):  # no input ever differs from zero
        return weight
    damped = hessian + ridge * size * torch.eye(hessian.shape[-1]).to(hessian)
    return weight + torch.linalg.solve(damped, weight @ cross, left=False)


def round_columns(weight: Tensor, hessian: Tensor, grid: Grid, damping: float = DAMPING) -> Tensor:
    """Return `weight` rounded to `grid`, little changed as a function of inputs.

    Args:
        weight: (groups, outputs, inputs), float64.
        hessian: (groups, inputs, inputs), the sum of x x^T over the layer's inputs x.
        grid: of the same shape as the weight.
        damping: see `gptq`.
    """
    inputs = weight.shape[-1]
    diagonal = hessian.diagonal(0, 1, 2)
    identity = torch.eye(inputs).to(hessian)
    damped = hessian + damping * diagonal.mean(1)[:, None, None] * identity
    # where no input ever differs from zero, there is nothing to make good
    damped = torch.where(damped.diagonal(0, 1, 2).gt(0).all(1)[:, None, None], damped, identity)
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
    )
    left = weight.clone()
    rounded, errors = torch.empty_like(weight), torch.empty_like(weight)
    for first in range(0, inputs, TOGETHER):
        end = min(first + TOGETHER, inputs)
        for column in range(first, end):
            place = slice(column, column + 1)
            rounded[..., place] = grid.map(lambda t, p=place: t[..., p]).nearest(left[..., place])
            lost = left[..., place] - rounded[..., place]
            errors[..., place] = lost / inverse[:, place, place]
            left[..., column + 1 : end] -= errors[..., place] * inverse[:, place, column + 1 : end]
        left[..., end:] -= errors[..., first:end] @ inverse[:, first:end, end:]
    return rounded


def _chosen(
    layer: Layer,
    weight: Tensor,
    target: Tensor,
    hessian: Tensor,
    grid: Grid,
    spec: QuantSpec,
    matched: bool,
    damping: float,
) -> tuple[Tensor, Tensor]:
    """Return the code of each weight, and the entry of `STEPS` for each scale.

    Args:
        target: what the codes should stand for, as matrices (groups, outputs, inputs), float64.
        matched: whether codes stand for values with the moments of `weight`.
    """
    aim = layer.from_matrices(target, weight).to(weight.dtype)
    grids = [replace(grid, scale=grid.scale * step) for step in STEPS]
    wanted = [before_matching(aim, g.nearest(aim), spec, weight) if matched else aim for g in grids]

    def side_by_side(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([layer.matrices(value.double()) for value in values], 1)

    # in one loop over the columns, which is what takes the time
    exact = replace(
        grid,
        scale=side_by_side([g.scale for g in grids]),
        zero_point=side_by_side([g.zero_point for g in grids]),
    )
    rounded = round_columns(side_by_side(wanted), hessian, exact, damping)
    codes, errors = [], []
    for one, made in zip(grids, rounded.chunk(len(grids), 1), strict=True):
        codes.append(one.nearest_codes(layer.from_matrices(made, weight).to(weight.dtype)))
        value = one.values(codes[-1])
        value = moment_match(value, weight, spec) if matched else value
        change = layer.matrices(value.double()) - target
        # of an output, whose groups of weights take the same step
        error = ((change @ hessian) * change).sum(-1, keepdim=True).expand_as(change)
        errors.append(spec.granularity.rows(layer.from_matrices(error, weight)).sum(1))
    best = torch.stack(errors).argmin(0)
    rows = torch.stack([spec.granularity.rows(one) for one in codes])
    chosen = rows[best, torch.arange(len(best), device=best.device)]
    return spec.granularity.from_rows(chosen, weight.shape), torch.tensor(STEPS).to(weight)[best]


def _products(layer: Layer, inputs: Sequence[Inputs], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of x x^T and (e - x) x^T, each (groups, inputs, inputs), float64.

    x is a layer's input and e what it is before it is quantized.
    """
    groups, _, size = layer.matrices(weight).shape
    hessian = torch.zeros(groups, size, size, dtype=torch.float64, device=weight.device)
    cross = torch.zeros_like(hessian)
    for batch in inputs:
        # few images at a time: rows of a convolution hold each value many times over
        few = max(1, TOGETHER_VALUES * len(batch.exact) // batch.exact.numel())
        for quantized, exact in zip(*(values.split(few) for values in batch), strict=True):
            rows = layer.rows(quantized, weight).double()
            hessian += rows.transpose(1, 2) @ rows
            if batch.exact is not batch.quantized:
                lost = layer.rows(exact, weight).double() - rows
                cross += lost.transpose(1, 2) @ rows
    return hessian, cross
