"""Powell's method through scipy, on one multiplier for each name of a tensor (LAPQ)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from evolq.optimizers.budgeted import BudgetedLoss, within_budget

# First steps of a line search, in log scales.
STEP = 0.1


@within_budget
def powell(loss: BudgetedLoss, generator: torch.Generator) -> Iterator[None]:
    """Powell's conjugate directions (1964) from the start, as in LAPQ.

    Nahshan et al. 2021 ("Loss aware post-training quantization", section 4.3) search one step size
    per layer with thousands of evaluations; here a coordinate is one multiplier common to all
    scales of equally named tensors (`weight`, `input`, `left`, ...), few enough for small budgets.
    Nothing is drawn. The search ends before its budget where it has converged.
    """
    tensors = [name.split(".")[-2] for name in loss.names]
    order = sorted(set(tensors))
    columns = np.repeat(
        [order.index(tensor) for tensor in tensors],
        [loss.start[name].numel() for name in loss.names],
    )

    def evaluate(multipliers: NDArray[np.float64]) -> float:
        value = loss(torch.from_numpy(np.asarray(multipliers)[columns]), "line search")
        return value if math.isfinite(value) else 1e30  # line searches subtract losses

    with np.errstate(all="ignore"):  # such losses overflow in a parabola's vertex
        minimize(
            evaluate,
            np.zeros(len(order)),
            method="Powell",
            options={"direc": STEP * np.eye(len(order)), "xtol": 1e-2, "ftol": 1e-7},
        )
    yield
