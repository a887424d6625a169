"""GPTQ: weights rounded column by column, each error made good by the columns that follow.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1, on the grid that a Point's scales and zero points span. The result is a
start Point like those of the observers: its weights lie in the cells of the chosen codes, with the
moments of the original ones (`layers.move_into_cells`), and every evaluation rounds them again, so
that they keep their codes at these scales and may flip at others.

Where the network matches moments, what a code stands for is shifted and stretched. The columns are
then rounded to the grid as matching leaves it for codes rounded to nearest. The chosen codes match
a little differently; to repeat this with their moments was measured to gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx

from evolq.data.pixels import Images, batches
from evolq.errors import InputError
from evolq.network.graph import ancestors, extract
from evolq.network.layers import (
    Grid,
    Layer,
    grid_of,
    matches_moments,
    move_into_cells,
    weighted_layers,
)
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point
from evolq.tensor.moments import before_matching

# Of the mean of the Hessian's diagonal: Frantar et al. 2023, section 4 ("Step 3").
DAMPING = 0.01


def gptq(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    batch_size: int = BATCH_SIZE,
    damping: float = DAMPING,
    on_rounded: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return `start` with each layer's weight rounded by GPTQ, layer by layer.

    A layer's Hessian comes from its inputs in the quantized network, the layers before it rounded
    already. Layers run in the order of the graph, each part of it once; of all images, the values
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
        hessian = _hessian(layer, inputs, weight)
        spec, grid = network.sites[layer.name].spec, grid_of(network, point, layer.name)
        wanted = weight
        if matches_moments(network, layer.quantizer):
            wanted = before_matching(weight, grid.nearest(weight), spec)
        matrices = layer.matrices(wanted.double())
        exact = grid.map(lambda t, f=layer.matrices: f(t).double())
        rounded = [
            round_columns(matrix, part, exact.map(lambda t, g=group: t[g]), damping)
            for group, (matrix, part) in enumerate(zip(matrices, hessian, strict=True))
        ]
        made = layer.from_matrices(torch.stack(rounded), weight).to(weight.dtype)
        point[layer.name] = move_into_cells(weight, grid.nearest_codes(made), grid, spec)
        if on_rounded is not None:
            on_rounded(done, len(layers))
    return point


def gptq_cost(network: QuantizedNetwork) -> float:
    """Return what `gptq` costs, in forward passes of its images.

    In multiply-accumulates: one pass, and the Hessians, which multiply a layer's inputs with
    themselves instead of with its weight.
    """
    hessians = 0.0
    for layer in weighted_layers(network):
        outputs, inputs = layer.matrices(network.weights[layer.name]).shape[1:]
        hessians += network.graph.operations[layer.node.name] * inputs / outputs
    return 1 + hessians / network.operations


def layer_inputs(
    network: QuantizedNetwork, point: Point, layers: Sequence[Layer], batches: Sequence[Tensor]
) -> Iterator[tuple[Layer, list[Tensor]]]:
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
    kept: list[dict[fx.Node, Tensor]] = [{graph.images: batch} for batch in batches]
    for layer in layers:
        missing = ancestors(graph.module.graph, [layer.input]) - done
        done |= missing
        read_later = [n for n in graph.nodes if n in done and not done.issuperset(n.users)]
        part = extract(graph.module, missing, [n for n in read_later if n in missing])
        at = graph.values(point)
        for index, values in enumerate(kept):
            with torch.no_grad():
                values = {**values, **part.run({**at, **values})}
            kept[index] = {node: values[node] for node in read_later if node in values}
        yield layer, [values[layer.input] for values in kept]


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


def _hessian(layer: Layer, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Return the sum of x x^T over a layer's inputs, (groups, inputs, inputs), float64."""
    total: Tensor | float = 0.0
    for values in inputs:
        rows = layer.rows(values, weight).double()
        total = total + rows.transpose(1, 2) @ rows
    assert isinstance(total, Tensor)
    return total
