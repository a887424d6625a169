"""Gradient descent on scales: straight-through gradients of the same loss and coordinates.

The gradients are LSQ's (Esser et al. 2020, "Learned Step Size Quantization", eq. 3) in log-scale
coordinates, over all calibration images at once: nothing is drawn, so that every seed gives the
same run. torch.optim makes the updates. The learning rate has the same meaning for all three
methods, the change of a typical scale's logarithm in the first step: for SGD the loss is divided by
the root mean square of its first gradient (Adam does the like by itself).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evolq.losses.objective import Objective
from evolq.optimizers.budgeted import BudgetedLoss, Search, within_budget
from evolq.optimizers.evolve import Iterate
from evolq.points import Point

# Of landscape.compare's sweep: a factor of about 3 apart, around what helps at 3 bits.
LEARNING_RATES = (0.003, 0.01, 0.03)
DEFAULT_LEARNING_RATE = 0.01

MakeUpdate = Callable[[Tensor], torch.optim.Optimizer]


@within_budget
def sgd(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    momentum: float = 0.9,
) -> Iterator[None]:
    """Stochastic gradient descent with momentum, here without noise: all images at once."""
    return _descend(
        loss,
        lambda coordinates: torch.optim.SGD([coordinates], learning_rate, momentum),
        normalized=True,
    )


@within_budget
def adam(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    learning_rate: float = DEFAULT_LEARNING_RATE,
) -> Iterator[None]:
    """Adam (Kingma and Ba 2015) with its own defaults for all but the learning rate."""
    return _descend(loss, lambda coordinates: torch.optim.Adam([coordinates], learning_rate))


@within_budget
def adamw(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    learning_rate: float = DEFAULT_LEARNING_RATE,
    weight_decay: float = 1.0,
) -> Iterator[None]:
    """AdamW (Loshchilov and Hutter 2019); the decay pulls the scales back to the start."""
    return _descend(
        loss,
        lambda coordinates: torch.optim.AdamW(
            [coordinates], learning_rate, weight_decay=weight_decay
        ),
    )


def _descend(
    loss: BudgetedLoss, make_update: MakeUpdate, normalized: bool = False
) -> Iterator[None]:
    """Descend for ever.

    Where the loss or its gradient is not finite, go on at the best so far with half the learning
    rate.
    """
    loss.differentiate()
    coordinates = loss.best.clone()
    update = make_update(coordinates)
    size = math.nan
    failures = 0
    for number in itertools.count(1):
        value, gradient = loss.gradient(coordinates, f"gradient {number}")
        if math.isfinite(value) and bool(gradient.isfinite().all()):
            if math.isnan(size):
                size = float(gradient.square().mean().sqrt()) or 1.0
            coordinates.grad = gradient / size if normalized else gradient
            update.step()
        else:
            failures += 1
            coordinates.copy_(loss.best)
            update = make_update(coordinates)
            for group in update.param_groups:
                group["lr"] *= 0.5**failures
        yield


class Sweep(NamedTuple):
    """The outcome of a sweep of learning rates.

    Attributes:
        learning_rate: with the least calibration loss at the end of the budget.
        iterates: of that run.
        cost: forward-pass equivalents of all runs together.
        losses: at the end, by learning rate.
    """

    learning_rate: float
    iterates: list[Iterate]
    cost: float
    losses: dict[float, float]


def sweep_learning_rate(
    search: Search,
    objective: Objective,
    start: Point,
    *,
    names: Collection[str],
    budget: float,
    generator: torch.Generator,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Sweep:
    """Run a gradient method with each learning rate, each with the whole budget.

    The runs are judged by the calibration loss alone. What the sweep costs is reported and not
    charged to the winner: at equal budget the gradient is favored, since its learning rate is
    known.
    """
    runs = {
        rate: list(
            search(
                objective,
                start,
                names=names,
                budget=budget,
                generator=generator,
                learning_rate=rate,
            )
        )
        for rate in learning_rates
    }
    return best_of_sweep(runs)


def best_of_sweep(runs: Mapping[float, list[Iterate]]) -> Sweep:
    """Return the outcome of runs by learning rate; see `sweep_learning_rate`."""
    losses = {rate: iterates[-1].loss for rate, iterates in runs.items()}
    best = min(losses, key=lambda rate: losses[rate])
    cost = sum(iterates[-1].cost for iterates in runs.values())
    return Sweep(best, runs[best], cost, losses)
