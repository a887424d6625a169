"""Bit-widths: evolution of the weight bits of each layer under a budget.

The same evolution as that of scales (tournament, one child, the worst leaves), over all layers at
once. A mutation gives a bit to one layer and takes bits from others. A change of bits brings the
scale and zero point of those bits, from a table made once: the old scale would keep the old error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evolq.declared import check_seed, check_value
from evolq.errors import InputError
from evolq.losses.objective import Objective
from evolq.network.deployed import constants, weight_nodes
from evolq.network.quantized import QuantizedNetwork
from evolq.optimizers.evolve import (
    Candidate,
    Iterate,
    comparable,
    fittest,
    survivors,
    tournament,
)
from evolq.optimizers.recipes import RECIPES, Recipe
from evolq.points import Point, role
from evolq.starts.calibration import observer_of, start_of
from evolq.tensor.quantizers import MAX_BITS, MIN_BITS

MAX_EVALUATIONS = 10**9

Table = Mapping[str, Mapping[int, Mapping[str, Tensor]]]
"""Entries of each weight's quantizer (its name) at each number of bits."""


def search_bits(
    objective: Objective,
    start: Point,
    average: float,
    *,
    evaluations: int = 100,
    recipe: Recipe = RECIPES["published"],
    seed: int = 0,
) -> Iterator[Iterate]:
    """Search the bits of each weight, at no more than `average` bits per weight value.

    The first Iterate has the same bits in all layers, the largest whole number within the budget;
    then one follows for each child, the last is the result. Activations stay as they are.
    Deterministic in `seed`. Every evaluation is a whole forward pass.

    Args:
        objective: on calibration images.
        start: a complete Point; its weights' scales, zero points and bits are replaced.
        average: bits of a weight value, from 2 to 8; scales and zero points are not counted.
        evaluations: number of children.
        recipe: only its population and sample are read.
        seed: of all that is drawn.

    Raises:
        TypeError: for anything but an `Objective`: test images must not be searched on.
        InputError: if `average` is outside 2 to 8, or the network has no quantized weights.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"a search needs an Objective on calibration images, not a {type(objective).__name__}"
        )
    check_value("average", average, float, (MIN_BITS, MAX_BITS))
    check_value("evaluations", evaluations, int, (0, MAX_EVALUATIONS))
    check_value("recipe", recipe, Recipe)
    check_seed(seed)
    weights = weight_values(objective.forward.network, start)
    if not weights:
        raise InputError("the network has no quantized weights, so there are no bits to search")
    table = calibration_table(objective.forward.network, weights)
    sizes = {name: value.numel() for name, value in weights.items()}
    return _search(objective, start, average, evaluations, recipe, table, sizes, seed)


def _search(
    objective: Objective,
    start: Point,
    average: float,
    evaluations: int,
    recipe: Recipe,
    table: Table,
    sizes: Mapping[str, int],
    seed: int,
) -> Iterator[Iterate]:
    generator = torch.Generator().manual_seed(seed)
    cost_before = objective.cost
    uniform = entries_at(dict.fromkeys(sizes, math.floor(average)), table)
    part = objective.vary(list(uniform), at=start)

    def candidate(entries: Point) -> Candidate:
        return Candidate(entries, comparable(part(entries)))

    population = [candidate(uniform)] * recipe.population
    for number in range(1, evaluations + 2):
        best = fittest(population)
        point = {**start, **best.entries}
        label = f"{average_bits(bits_in(best.entries), sizes):.2f} bits on average"
        yield Iterate(number, objective.cost - cost_before, best.loss, point, label)
        if number <= evaluations:
            parent = tournament(population, recipe, generator)
            bits = move_bits(bits_in(parent.entries), sizes, average, generator)
            child = candidate(entries_at(bits, table))
            population = survivors([*population, child], recipe.newest_leaves)


def move_bits(
    bits: Mapping[str, int], sizes: Mapping[str, int], average: float, generator: torch.Generator
) -> dict[str, int]:
    """Return bits with one more for a layer drawn at random, and fewer for others to pay for it.

    Layers are drawn to lose a bit until the average is within the budget again; then layers are
    drawn to gain one, as long as there are some for which it fits.
    """
    child = dict(bits)
    budget = average * sum(sizes.values())

    def total() -> int:
        return sum(child[name] * sizes[name] for name in child)

    def draw(names: list[str]) -> str:
        return names[int(torch.randint(len(names), (), generator=generator))]

    lucky = draw([name for name in child if child[name] < MAX_BITS] or list(child))
    child[lucky] = min(child[lucky] + 1, MAX_BITS)
    while total() > budget:
        others = [name for name in child if child[name] > MIN_BITS and name != lucky]
        if not others:  # this one cannot be paid for
            child = dict(bits)
            break
        child[draw(others)] -= 1
    while fitting := [
        name for name in child if child[name] < MAX_BITS and total() + sizes[name] <= budget
    ]:
        child[draw(fitting)] += 1
    return child


def bits_in(point: Point) -> dict[str, int]:
    """Return the bits of each quantizer in a Point, by its name."""
    return {
        name.rpartition(".")[0]: int(value) for name, value in point.items() if role(name) == "bits"
    }


def average_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Return the bits of a weight value on average; both by the weights' quantizers."""
    return sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())


def entries_at(bits: Mapping[str, int], table: Table) -> dict[str, Tensor]:
    """Return the weights' entries at these bits."""
    return {entry: value for name in bits for entry, value in table[name][bits[name]].items()}


def weight_values(network: QuantizedNetwork, point: Point) -> dict[str, Tensor]:
    """Return each weight as its quantizer reads it at a Point, by the quantizer's name."""
    values = constants(network, point)
    return {name: values[node.args[0]] for name, node in weight_nodes(network).items()}  # type: ignore[index]


def calibration_table(network: QuantizedNetwork, weights: Mapping[str, Tensor]) -> Table:
    """Calibrate each weight at each number of bits from 2 to 8."""
    table: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, weight in weights.items():
        site = network.sites[name]
        observer = observer_of(network, site)
        table[name] = {}
        for bits in range(MIN_BITS, MAX_BITS + 1):
            found = start_of(replace(site, spec=replace(site.spec, bits=bits)), [weight], observer)
            table[name][bits] = {f"{name}.{entry}": value for entry, value in found.items()}
    return table
