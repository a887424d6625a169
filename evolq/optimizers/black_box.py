"""Searches that only evaluate: random search, (1+1)-ES, SPSA, coordinate descent.

All move the logarithms of scales. A step of 0.02 changes a typical scale by 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evolq.optimizers.budgeted import BudgetedLoss, within_budget

# A first step of 2 %; those methods that adapt it go on from there.
STEP = 0.02

# Changes of a quantizer's log scale that coordinate descent tries, halved after each round: OMSE
# shrinks (Choukroun et al. 2019), and here the loss decides, so growing is tried as well.
GRID = (-0.2, -0.1, -0.05, 0.05, 0.1)


@within_budget
def random_search(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    smallest: float = 0.002,
    largest: float = 0.1,
) -> Iterator[None]:
    """Draw normal steps away from the start, each of its own length; the best is kept.

    The lengths (of a typical coordinate) are drawn between `smallest` and `largest`, uniformly in
    their logarithms: no scale of the landscape is assumed.
    """
    number = 0
    while True:
        share = float(torch.rand((), generator=generator))
        length = smallest * (largest / smallest) ** share
        number += 1
        loss(length * _normal(loss.dimension, generator), f"sample {number}")
        yield


@within_budget
def one_plus_one_es(
    loss: BudgetedLoss, generator: torch.Generator, *, step: float = STEP, growth: float = 1.5
) -> Iterator[None]:
    """(1+1) evolution strategy on all coordinates at once, with the 1/5 success rule.

    The step grows by a factor after a success and by its power of -1/4 after a failure (Kern et al.
    2004, "Learning probability distributions in continuous evolutionary algorithms", section 3.1).
    A tie is a success and replaces the parent: on a plateau the search drifts.
    """
    parent, parent_loss = loss.best, loss.best_loss
    number = 0
    while True:
        child = parent + step * _normal(loss.dimension, generator)
        number += 1
        child_loss = loss(child, f"child {number}")
        success = child_loss <= parent_loss and math.isfinite(child_loss)
        if success:
            parent, parent_loss = child, child_loss
        step = min(step * growth ** (1 if success else -1 / 4), 1.0)  # a factor e is far enough
        yield


@within_budget
def spsa(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    step: float = STEP,
    perturbation: float = STEP,
) -> Iterator[None]:
    """Simultaneous perturbation stochastic approximation (Spall 1998, the implementation guide).

    Each step takes two evaluations at opposite Rademacher perturbations and a third where it goes.
    The gains decay with Spall's exponents, 0.602 and 0.101; differences are divided by their root
    mean square so far, so that `step` is the length of a typical step whatever the loss measures. A
    step after which the loss is larger is taken back (Spall's blocking).
    """
    coordinates, here = loss.best, loss.best_loss
    squares = 0.0
    number = 0
    while True:
        number += 1
        width = perturbation / number**0.101
        signs = 2.0 * torch.randint(2, (loss.dimension,), generator=generator).double() - 1
        above = loss(coordinates + width * signs, f"step {number}, above")
        below = loss(coordinates - width * signs, f"step {number}, below")
        difference = above - below
        if math.isfinite(difference) and difference != 0:
            squares += difference**2
            gain = step * difference / math.sqrt(squares / number) / number**0.602
            there = coordinates - gain * signs
            reached = loss(there, f"step {number}")
            if reached <= here:
                coordinates, here = there, reached
        yield


@within_budget
def coordinate_descent(
    loss: BudgetedLoss, generator: torch.Generator, *, grid: tuple[float, ...] = GRID
) -> Iterator[None]:
    """Move the scales of one quantizer at a time by a grid of factors and keep the best.

    From the last quantizer to the first: late ones cost little, since only what comes after them
    runs. Nothing is drawn. The grid is halved after each round over all quantizers.
    """
    position = 0
    places = {}
    for name in loss.names:
        places[name] = slice(position, position + loss.start[name].numel())
        position = places[name].stop
    halvings = 0
    while True:
        for name in reversed(loss.names):
            loss.focus([name])
            center = loss.best
            for shift in grid:
                coordinates = center.clone()
                coordinates[places[name]] += shift * 0.5**halvings
                loss(coordinates, f"{name} {shift * 0.5**halvings:+.3g}")
            yield
        halvings += 1


def _normal(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)
