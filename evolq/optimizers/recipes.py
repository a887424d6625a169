"""Recipes: everything that an evolutionary search of scales may choose, as data.

`published` is what the published Evol-Q code does (Frumkin et al. 2023, "Jumping through Local
Minima: Quantization in the Loss Landscape of Vision Transformers"), less its looks at the test set.
`default` is the best that `benchmarks/ablation.py` found; docs/evolq.md has its table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evolq.errors import InputError
from evolq.points import role
from evolq.tensor.quantizers import QuantSpec, codes_range

Perturbation = Callable[[str, Tensor, Tensor, float, QuantSpec, float], Tensor]
"""(name, value, noise in [-1, 1] of its shape, bits, spec, step factor) to the perturbed value."""


@dataclass(frozen=True)
class Absolute:
    """The published perturbation: a uniform amount whatever the scale is, absolute value taken.

    Attributes:
        coarse: largest amount up to 4 bits, in units of the scale.
        fine: likewise, above 4 bits.
    """

    coarse: float = 1e-3
    fine: float = 1e-4

    def __call__(
        self, name: str, value: Tensor, noise: Tensor, bits: float, spec: QuantSpec, step: float
    ) -> Tensor:
        """Return |value + noise|, the noise scaled."""
        amount = self.coarse if bits <= 4 else self.fine
        return (value + step * amount * noise).abs()


@dataclass(frozen=True)
class Relative:
    """A uniform step of a scale's logarithm, and of a zero point in shares of its codes.

    Attributes:
        scale: largest step of a scale's natural logarithm; 0.08 moves it by up to 8 %.
        zero_point: largest step of a zero point as a share of all codes; it stays a code.
    """

    scale: float = 0.08
    zero_point: float = 0.02

    def __call__(
        self, name: str, value: Tensor, noise: Tensor, bits: float, spec: QuantSpec, step: float
    ) -> Tensor:
        """Return the value moved by scaled noise."""
        if role(name) == "scale":
            return value * torch.exp(step * self.scale * noise)
        lower, upper = (float(code) for code in codes_range(bits, spec))
        moved = value + step * self.zero_point * (upper - lower + 1) * noise
        return moved.clamp(lower, upper)


@dataclass(frozen=True)
class Recipe:
    """How to search.

    Attributes:
        passes: P, times that all blocks are visited.
        population: K, candidates kept in a block.
        sample: S, candidates in a tournament, whose fittest is the parent.
        cycles: C, children in one visit of a block.
        perturbation: how a child differs from its parent.
        mutation_rate: chance of each scale (or zero point) to be perturbed.
        recombination: chance of each of the child's entries to come from a second parent.
        replacement: whether a tournament can draw a candidate twice.
        adaptation: factor of the step after a success; after a failure its power of -1/4, which
            holds the step where one child in five succeeds (Kern et al. 2004, "Learning
            probability distributions in continuous evolutionary algorithms", section 3.1).
        reevaluate: whether a visit begins with an evaluation of where it starts, though its
            fitness is known.
        attention_only: search attention blocks only; a network without any gives all its blocks.
        last_block_first: the order in which a pass visits the blocks.
        roles: roles of the entries that move.
        weights_only: move no activation's entries.
        patience: with selection images, passes without improvement after which the search ends;
            None for never.
    """

    passes: int = 10
    population: int = 15
    sample: int = 10
    cycles: int = 3
    perturbation: Perturbation = Absolute()
    mutation_rate: float = 1.0
    recombination: float = 0.0
    replacement: bool = True
    adaptation: float = 1.0
    reevaluate: bool = True
    attention_only: bool = True
    last_block_first: bool = True
    roles: tuple[str, ...] = ("scale",)
    weights_only: bool = True
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("passes", 0), ("population", 1), ("sample", 1), ("cycles", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is {getattr(self, name)}; give a whole number from {least} on"
                )
        if not self.replacement and self.sample > self.population:
            raise InputError(
                f"a sample of {self.sample} cannot be drawn from a population of "
                f"{self.population} without replacement; lower the sample"
            )


PUBLISHED = Recipe()

RECIPES: dict[str, Recipe] = {
    # P, K, S, C and all else: Frumkin et al. 2023, section 4 and published code (the Recipe's own
    # defaults).
    "published": PUBLISHED,
    "default": replace(
        PUBLISHED,
        population=1,
        sample=1,
        cycles=4,
        perturbation=Relative(),
        adaptation=1.5,
        reevaluate=False,
        attention_only=False,
        weights_only=False,
    ),
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
