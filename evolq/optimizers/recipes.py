"""Recipes: everything that an evolutionary search of scales may choose, as data.

`published` is what the published Evol-Q code does (Frumkin et al. 2023, "Jumping through Local
Minima: Quantization in the Loss Landscape of Vision Transformers"), less its looks at the test set.
`default` is the best without gradients that `benchmarks/ablation.py` found; docs/evolq.md has its
table. `memetic` takes gradients, too (Moscato 1989, "On evolution, search, optimization, genetic
algorithms and martial arts: towards memetic algorithms": evolution with local search inside).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evolq.declared import check_fields
from evolq.errors import InputError
from evolq.quantization import MAX_BITS

# Far beyond what pays; a population is kept in memory.
LARGEST_POPULATION, MOST_CYCLES, LARGEST_ADAPTATION = 10_000, 1_000_000, 100.0

Perturbation = Callable[[Tensor, Tensor, float, float], Tensor]
"""(scale, noise in [-1, 1] of its shape, bits, step factor) to the perturbed scale."""


@dataclass(frozen=True)
class Absolute:
    """The published perturbation: a uniform amount whatever the scale is, absolute value taken.

    Attributes:
        coarse: largest amount up to 7 bits, in units of the scale.
        fine: likewise, at 8 bits.
    """

    coarse: float = 1e-3
    fine: float = 1e-4

    def __call__(self, scale: Tensor, noise: Tensor, bits: float, step: float) -> Tensor:
        """Return |scale + noise|, the noise in proportion to the amount."""
        amount = self.coarse if bits < MAX_BITS else self.fine
        return (scale + step * amount * noise).abs()


@dataclass(frozen=True)
class Relative:
    """A uniform step of a scale's logarithm.

    Attributes:
        amount: largest step of the natural logarithm; 0.08 moves a scale by up to 8 %.
    """

    amount: float = 0.08

    def __call__(self, scale: Tensor, noise: Tensor, bits: float, step: float) -> Tensor:
        """Return scale * exp(noise), the noise in proportion to the amount."""
        return scale * torch.exp(step * self.amount * noise)


@dataclass(frozen=True)
class Recipe:
    """How to search.

    Attributes:
        passes: P, times that all blocks are visited.
        population: K, candidates kept in a block.
        sample: S, candidates drawn for a tournament, whose fittest is the parent; one can be drawn
            several times.
        cycles: C, children in one visit of a block.
        perturbation: how a child differs from its parent.
        adaptation: factor of the step after a success; after a failure its power of -1/4, which
            holds the step where one child in five succeeds (Kern et al. 2004, "Learning
            probability distributions in continuous evolutionary algorithms", section 3.1).
        reevaluate: whether a visit begins with an evaluation of where it starts, though its
            fitness is known.
        newest_leaves: which of several worst candidates leaves: the newest, else the oldest, so
            that a population of one goes on from a child as good as its parent.
        attention_only: search attention blocks only; a network without any gives all its blocks.
        weights_only: move no activation's scales.
        at_once: all scales are one block.
        downhill: a child differs from its parent against the parent's straight-through gradient:
            of the noise of each scale only the size is random. A gradient costs three evaluations,
            and the network must not run on integers.
    """

    passes: int = 10
    population: int = 15
    sample: int = 10
    cycles: int = 3
    perturbation: Perturbation = Absolute()
    adaptation: float = 1.0
    reevaluate: bool = True
    newest_leaves: bool = True
    attention_only: bool = True
    weights_only: bool = True
    at_once: bool = False
    downhill: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_fields(
            self,
            passes=(0, sys.maxsize),
            population=(1, LARGEST_POPULATION),
            sample=(1, LARGEST_POPULATION),
            cycles=(1, MOST_CYCLES),
            adaptation=(1.0, LARGEST_ADAPTATION),
        )

    @property
    def cost_of_visit(self) -> int:
        """The cost of one visit, in evaluations of what its block's scales change."""
        return self.reevaluate + self.cycles * (4 if self.downhill else 1)


PUBLISHED = Recipe()

DEFAULT = replace(
    PUBLISHED,
    population=1,
    sample=1,
    cycles=4,
    perturbation=Relative(),
    adaptation=1.5,
    reevaluate=False,
    newest_leaves=False,
    attention_only=False,
    weights_only=False,
)
RECIPES: dict[str, Recipe] = {
    # P, K, S, C and all else: Frumkin et al. 2023, section 4 and published code (the Recipe's own
    # defaults).
    "published": PUBLISHED,
    "default": DEFAULT,
    # A gradient of one block costs hardly less than one of all.
    "memetic": replace(DEFAULT, cycles=1, passes=90, at_once=True, downhill=True),
}


def choose_recipe(name: str, **changes: object) -> Recipe:
    """Return the recipe `name` with fields changed; a change to None leaves the field as it is.

    Raises:
        InputError: for an unknown name, or numbers that make no search.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    given = {field: value for field, value in changes.items() if value is not None}
    return replace(RECIPES[name], **given)  # type: ignore[arg-type]
