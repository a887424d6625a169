"""Optimizers of scales, all with one interface: `OPTIMIZERS` lists them.

    optimizer(objective, start, *, names, budget, generator, **options) -> Iterator[Iterate]

- `names`: the scales that move. The coordinates are their logarithms, relative to the start.
- `budget`: forward-pass equivalents of the calibration set (`Objective.cost`), never exceeded: an
  evaluation counts the share of the network's multiply-accumulates that it runs, a gradient counts
  three times that (its backward pass counts two), and preparing a partial evaluation counts what
  that leaves out.
- `generator`: of all that is drawn.
- The first Iterate is the start with its loss. `point` is the best Point so far on the calibration
  images and `loss` its loss: losses never rise, and the last Iterate is the result.

A loss that is NaN counts as the worst. Neither the network nor the start is ever changed. Only an
`Objective` is accepted: test images cannot be searched on.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from evolq.errors import InputError
from evolq.losses.objective import Objective
from evolq.optimizers.black_box import coordinate_descent, one_plus_one_es, random_search, spsa
from evolq.optimizers.budgeted import Search, check_search
from evolq.optimizers.cma_es import cma_es
from evolq.optimizers.evolve import Iterate, search_scales
from evolq.optimizers.gradient import adam, adamw, sgd
from evolq.optimizers.powell import powell
from evolq.optimizers.recipes import choose_recipe
from evolq.points import Point


@dataclass(frozen=True)
class Optimizer:
    """A search of scales, and what is known about it; called as the search.

    Attributes:
        search: the function, see the top of this module.
        gradient: whether it descends along gradients. It then has an option `learning_rate`, and
            a network that runs on integers is simulated.
        deterministic: whether it draws nothing, so that every seed gives the same path.
    """

    search: Search
    gradient: bool = False
    deterministic: bool = False

    def __call__(
        self,
        objective: Objective,
        start: Point,
        *,
        names: Collection[str],
        budget: float,
        generator: torch.Generator,
        **options: Any,
    ) -> Iterator[Iterate]:
        """Return the Iterates of a search."""
        return self.search(
            objective, start, names=names, budget=budget, generator=generator, **options
        )


def evol_q(
    objective: Objective,
    start: Point,
    *,
    names: Collection[str],
    budget: float,
    generator: torch.Generator,
    recipe: str = "default",
) -> Iterator[Iterate]:
    """Evol-Q, block by block (`evolq.optimizers.evolve`), with as many passes as the budget allows.

    An Iterate follows each visit of a block. A visit that the budget does not cover is not begun,
    so that a part of it may be left.
    """
    check_search(objective, start, names, budget, generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    chosen = replace(choose_recipe(recipe), passes=sys.maxsize)
    return search_scales(objective, start, chosen, seed=seed, names=names, budget=budget)


OPTIMIZERS: dict[str, Optimizer] = {
    "evol-q": Optimizer(evol_q),
    "adam": Optimizer(adam, gradient=True, deterministic=True),
    "cma": Optimizer(cma_es),
    "sgd": Optimizer(sgd, gradient=True, deterministic=True),
    "adamw": Optimizer(adamw, gradient=True, deterministic=True),
    "spsa": Optimizer(spsa),
    "one-plus-one-es": Optimizer(one_plus_one_es),
    "random-search": Optimizer(random_search),
    "coordinate-descent": Optimizer(coordinate_descent, deterministic=True),
    "powell": Optimizer(powell, deterministic=True),
}


def choose_optimizer(name: str) -> Optimizer:
    """Return the optimizer `name`.

    Raises:
        InputError: for an unknown name.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]
