"""AdaRound, block by block: learn for each weight whether to round it up or down.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": a weight's code
is floor(w / s) + h(V) with the rectified sigmoid h (eq. 23), V is learnt by Adam so that the output
is that of the full-precision network, and a regulariser (eq. 24) with an annealed exponent drives h
to 0 or 1. Blocks instead of single layers are reconstructed as in Li et al. 2021 ("BRECQ"). The
result is a start Point like those of the observers: see `evolq.starts.gptq`. Where the network
matches moments, so do the weights that are learnt.

Two departures keep one setting good for all blocks: the reconstruction error counts relative to
that of rounding to nearest, and the regulariser as a mean over weights. And a block whose learnt
rounding is no better than nearest, on all calibration images, is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from evolq.data.pixels import Images, batches
from evolq.errors import InputError
from evolq.network.blocks import find_blocks
from evolq.network.graph import Stage, ancestors, dependents, extract, module_path, part
from evolq.network.layers import (
    Layer,
    grid_of,
    matches_moments,
    move_into_cells,
    weighted_layers,
)
from evolq.network.operators import VIEWS
from evolq.network.quantized import BATCH_SIZE, QuantizedNetwork
from evolq.points import Point
from evolq.tensor.moments import moment_match

# Stretch of the rectified sigmoid and range of the exponent: Nagel et al. 2020, section 3.3 and its
# published code; so is the share of iterations before the regulariser sets in.
ZETA, GAMMA = 1.1, -0.1
FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0
WARM_UP = 0.2
# For each block. The published code takes 20,000 for each layer, on batches of 32.
ITERATIONS = 300

Values = dict[fx.Node, Any]


def adaround(
    network: QuantizedNetwork,
    start: Point,
    images: Images,
    *,
    generator: torch.Generator,
    iterations: int = ITERATIONS,
    learning_rate: float = 0.01,
    regularisation: float = 1.0,
    batch_size: int = BATCH_SIZE,
    on_rounded: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Return `start` with each block's weights rounded by AdaRound, block by block.

    A block sees its inputs in the quantized network, the blocks before it rounded already, and
    should give the full-precision network's outputs.

    Args:
        network: from `quantize`.
        start: a complete Point; never changed.
        images: (n, channels, height, width) calibration images.
        generator: draws the batch of each iteration.
        iterations: of Adam for each block, each on one batch; 0 rounds to nearest.
        learning_rate: of Adam, for V.
        regularisation: weight of the mean of 1 - |2 h - 1|^beta.
        batch_size: images per pass and iteration.
        on_rounded: called with the number of blocks that are rounded, and that of all.

    Raises:
        InputError: if there are no images, or the number of iterations is negative.
    """
    if len(images) == 0:
        raise InputError("AdaRound needs at least one calibration image and got none")
    if iterations < 0:
        raise InputError(f"iterations is {iterations}; give 0 or more")
    point = dict(start)
    blocks = _blocks(network)
    for done, inside in enumerate(blocks, 1):
        block = _Block(network, point, inside, list(batches(images, batch_size)))
        learnt = block.learn(iterations, learning_rate, regularisation, generator)
        point |= block.weights_of(block.better(learnt))
        if on_rounded is not None:
            on_rounded(done, len(blocks))
    return point


def adaround_cost(
    network: QuantizedNetwork, count: int, batch_size: int, iterations: int = ITERATIONS
) -> float:
    """Return what `adaround` costs, in forward passes of its `count` images.

    In multiply-accumulates: for each block a run up to its inputs and one of full precision up to
    its outputs, two evaluations of the block on all images, and its iterations on a batch each, a
    gradient counting as two evaluations more.
    """
    graph, total = network.graph, 0.0
    for inside in _blocks(network):
        output = _output(network, inside)
        inputs = _stage(network, inside, output).inputs
        up_to = ancestors(graph.module.graph, [output])
        before = ancestors(graph.module.graph, inputs)
        evaluations = 2 + 3 * iterations * min(batch_size, count) / count
        total += part(graph, before) + part(graph, up_to)
        total += part(graph, up_to - before) * evaluations
    return total


def _blocks(network: QuantizedNetwork) -> list[list[Layer]]:
    """Return the layers of each block that has some, in the order in which they run."""
    layers = {layer.name: layer for layer in weighted_layers(network)}
    blocks = [
        [layers[name] for name in layers if f"{name}.scale" in entries]
        for entries in find_blocks(network).values()
    ]
    return [inside for inside in blocks if inside]


def soft_round(value: Tensor) -> Tensor:
    """Return the rectified sigmoid h(V) in [0, 1] (Nagel et al. 2020, eq. 23)."""
    return (value.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_soft_round(share: Tensor) -> Tensor:
    """Return the V with `soft_round(V) == share`, for shares from 0 to 1."""
    return torch.logit((share - GAMMA) / (ZETA - GAMMA))


class _Block:
    """A block as a function of its layers' quantized weights, on recorded inputs."""

    def __init__(
        self,
        network: QuantizedNetwork,
        point: Point,
        layers: list[Layer],
        parts: list[Tensor],
    ) -> None:
        self.weights = {layer.name: point[layer.name] for layer in layers}
        self.grids = {layer.name: grid_of(network, point, layer.name) for layer in layers}
        self.quantizers = {layer.name: layer.quantizer for layer in layers}
        self.specs = {layer.name: network.sites[layer.name].spec for layer in layers}
        self.matched = {n for n, node in self.quantizers.items() if matches_moments(network, node)}
        self.output = _output(network, layers)
        self.stage = _stage(network, layers, self.output)
        needed = [node.name for node in self.stage.inputs if node not in self.quantizers.values()]
        self.inputs: list[Values] = []
        self.targets: list[Tensor] = []
        for batch in parts:
            recorded = network.record(needed, batch, point) if needed else {}
            self.inputs.append(
                {node: recorded[node.name] for node in self.stage.inputs if node.name in recorded}
            )
            self.targets.append(network.record([self.output.name], batch)[self.output.name])
        self.nearest = {name: self.grids[name].nearest_codes(w) for name, w in self.weights.items()}
        with torch.no_grad():
            self.nearest_error = float(self.error(self.nearest))

    def quantized(self, name: str, codes: Tensor) -> Tensor:
        """Return the weight that the network's quantizer makes of codes."""
        value = self.grids[name].values(codes)
        if name not in self.matched:
            return value
        return moment_match(value, self.weights[name], self.specs[name])

    def error(self, codes: Mapping[str, Tensor], batch: int | None = None) -> Tensor:
        """Return the mean squared error of the output for codes, on one batch or on all."""
        if batch is None:
            sizes = [len(target) for target in self.targets]
            errors = [self.error(codes, index) * size for index, size in enumerate(sizes)]
            return torch.stack(errors).sum() / sum(sizes)
        values = {self.quantizers[name]: self.quantized(name, codes[name]) for name in codes}
        made = self.stage.run({**self.inputs[batch], **values})[self.output]
        return (made - self.targets[batch]).square().mean()

    def learn(
        self,
        iterations: int,
        learning_rate: float,
        regularisation: float,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the codes, rounded as learnt."""
        floors, raw = {}, {}
        for name, weight in self.weights.items():
            codes = self.grids[name].codes(weight)
            floors[name] = codes.floor()
            raw[name] = inverse_soft_round(codes - floors[name]).requires_grad_()
        steps = torch.optim.Adam(raw.values(), learning_rate)
        count = sum(weight.numel() for weight in self.weights.values())
        for iteration in range(iterations if self.nearest_error > 0 else 0):
            batch = int(torch.randint(len(self.targets), (), generator=generator))
            shares = {name: soft_round(value) for name, value in raw.items()}
            soft = {name: floors[name] + share for name, share in shares.items()}
            loss = self.error(soft, batch) / self.nearest_error
            progress = (iteration / iterations - WARM_UP) / (1 - WARM_UP)
            if progress >= 0:
                exponent = FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * progress
                undecided = [1 - (2 * share - 1).abs() ** exponent for share in shares.values()]
                loss = loss + regularisation * sum(part.sum() for part in undecided) / count
            steps.zero_grad()
            loss.backward()
            steps.step()
        with torch.no_grad():
            up = {name: (soft_round(value) >= 0.5).to(value) for name, value in raw.items()}
            return {
                name: (floors[name] + up[name]).clamp(grid.lower, grid.upper)
                for name, grid in self.grids.items()
            }

    def weights_of(self, codes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights for a Point that has these codes."""
        return {
            name: move_into_cells(self.weights[name], codes[name], grid, self.specs[name])
            for name, grid in self.grids.items()
        }

    def better(self, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the learnt codes, or the nearest ones if those reconstruct as well."""
        with torch.no_grad():
            return learnt if float(self.error(learnt)) < self.nearest_error else self.nearest


def _output(network: QuantizedNetwork, layers: list[Layer]) -> fx.Node:
    """Return the node that a block ends with: the last one of its module, else its last layer."""
    paths = [module_path(layer.node).split(".") for layer in layers]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    path = ".".join(common)
    last = layers[-1].node
    inside = dependents(network.graph.module.graph, [layer.node for layer in layers])
    for node in network.graph.nodes:
        within = f"{module_path(node)}.".startswith(f"{path}.")
        if path and within and node in inside and node.op == "call_function":
            # placement copies views, which the full-precision network then lacks
            last = last if node.target in VIEWS else node
    return last


def _stage(network: QuantizedNetwork, layers: list[Layer], output: fx.Node) -> Stage:
    """Cut out what lies between the quantized weights of a block and its output."""
    weights = {layer.quantizer for layer in layers}
    module = network.graph.module
    after = dependents(module.graph, weights) - weights
    return extract(module, after & ancestors(module.graph, [output]), [output])
