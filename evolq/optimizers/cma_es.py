"""CMA-ES through the `cma` package (Hansen 2016, "The CMA Evolution Strategy: A Tutorial")."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from evolq.errors import InputError
from evolq.optimizers.budgeted import BudgetedLoss, within_budget

# A full covariance matrix needs a multiple of dimension^2 evaluations to be learnt; beyond this
# many coordinates only its diagonal is (sep-CMA-ES, Ros and Hansen 2008).
LARGEST_FULL_DIMENSION = 100

# With the usual population, 4 + 3 ln(dimension), a small budget ends after two generations; the
# population is made smaller, down to 4, until so many generations fit.
GENERATIONS = 10


@within_budget
def cma_es(
    loss: BudgetedLoss,
    generator: torch.Generator,
    *,
    step: float = 0.02,
    population: int | None = None,
) -> Iterator[None]:
    """CMA-ES, the separable variant where there are more than a hundred coordinates.

    Args:
        loss: of log-scale coordinates.
        generator: seeds the package's own generator.
        step: initial standard deviation of a coordinate.
        population: of a generation; by default as large as the budget allows, see `GENERATIONS`.
    """
    import cma  # with pyplot: 0.3 seconds of every command that draws, if it stood above

    if loss.dimension < 2:
        raise InputError("cma needs 2 scales or more; choose coordinate-descent for a single one")
    usual = 4 + int(3 * math.log(loss.dimension))
    size = population or max(4, min(usual, int((loss.budget - loss.spent) / GENERATIONS)))
    seed = int(torch.randint(2**62, (), generator=generator))
    numbers = np.random.default_rng(seed)
    strategy = cma.CMAEvolutionStrategy(
        np.zeros(loss.dimension),
        step,
        {
            "popsize": size,
            "CMA_diagonal": loss.dimension > LARGEST_FULL_DIMENSION,
            "randn": lambda *shape: numbers.standard_normal(shape),
            "seed": np.nan,  # leave numpy's global generator alone
            "verbose": -9,
        },
    )
    generation = 0
    while True:  # the package's own rules for stopping are not asked: the budget decides
        generation += 1
        candidates = strategy.ask()
        losses = [
            loss(torch.from_numpy(np.asarray(candidate)), f"generation {generation}")
            for candidate in candidates
        ]
        strategy.tell(candidates, _comparable(losses))
        yield


def _comparable(losses: list[float]) -> list[float]:
    """Replace infinities, which the package cannot rank, by a bit more than the worst loss."""
    worst = max((value for value in losses if math.isfinite(value)), default=0.0)
    return [value if math.isfinite(value) else worst + 1 for value in losses]
