"""What the optimizers share: a loss of log-scale coordinates, under a budget.

An optimizer sees one vector, the coordinates: the change of each scale's natural logarithm from the
start. Zero is the start, steps are relative, and no step can turn a scale negative. Gradients are
those of the same coordinates, s dL/ds for a scale s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from evolq.declared import LARGEST_FLOAT, check_value
from evolq.errors import InputError
from evolq.losses.objective import Objective
from evolq.optimizers.evolve import ROUNDING, Iterate, comparable
from evolq.points import Point, displace, role

Method = Callable[..., Iterator[None]]
"""(loss, generator, **options) to a generator that yields now and then, and may never end."""

Search = Callable[..., Iterator[Iterate]]
"""(objective, start, *, names, budget, generator, **options) to the Iterates of a search."""


class BudgetSpent(Exception):  # noqa: N818  the usual end of a search, not an error
    """The next evaluation would go beyond the budget."""


class BudgetedLoss:
    """The loss of log-scale coordinates; it keeps account of the cost and of the best so far.

    Attributes:
        start: a complete Point, the origin of the coordinates.
        names: the scales that are coordinates, in order.
        dimension: number of coordinates.
        budget: in forward-pass equivalents.
        spent: of it, so far.
        best: coordinates (dimension,) with the least loss so far, float64; zero at first.
        best_loss: their loss.
    """

    def __init__(
        self, objective: Objective, start: Point, names: Collection[str], budget: float
    ) -> None:
        """Evaluate the start, at a cost of one forward pass."""
        self.start = start
        self.names = tuple(name for name in start if name in set(names))
        self.dimension = sum(start[name].numel() for name in self.names)
        self.budget = budget
        self.spent = 0.0
        self.best = torch.zeros(self.dimension, dtype=torch.float64)
        self.best_loss = math.inf
        self._best_point: Point = start
        self._objective = objective
        self._evaluations = 0
        self._iterates: list[Iterate] = []
        self.focus(self.names)
        self(self.best, "start")

    def focus(self, names: Collection[str]) -> None:
        """Move only `names` from now on, away from the best coordinates: evaluations cost less.

        Costs the part of a forward pass that later evaluations leave out.

        Raises:
            BudgetSpent: if not one evaluation could follow.
        """
        self._afford(1.0)
        with self._metered():
            self._part = self._objective.vary(names, at=self._best_point)
        self._moving = tuple(names)

    def differentiate(self) -> None:
        """Go on with an objective that has gradients (`Objective.differentiable`).

        Costs what `focus` does, if this one runs on integers.

        Raises:
            BudgetSpent: if not one evaluation could follow.
        """
        if self._objective.forward.network.execution == "integer":
            self._objective = self._objective.differentiable()
            self.focus(self._moving)

    def __call__(self, coordinates: Tensor, label: str) -> float:
        """Return the loss at coordinates (dimension,); NaN counts as infinity, the worst.

        Raises:
            BudgetSpent: instead of going beyond the budget.
        """
        self._afford(self._part.forward.function.share)
        with self._metered():
            loss = comparable(self._part(self._entries(coordinates)))
        self._record(coordinates, loss, label)
        return loss

    def gradient(self, coordinates: Tensor, label: str) -> tuple[float, Tensor]:
        """Return the loss and its straight-through gradient (dimension,), at three evaluations.

        Raises:
            BudgetSpent: instead of going beyond the budget.
        """
        self._afford(3 * self._part.forward.function.share)
        entries = self._entries(coordinates)
        with self._metered():
            measured, found = self._part.gradient(entries)
        loss = comparable(measured)
        self._record(coordinates, loss, label)
        parts = [(entries[name] * found[name]).flatten().double() for name in self.names]
        return loss, torch.cat(parts).cpu()

    def take_iterates(self) -> list[Iterate]:
        """Return an Iterate for each evaluation since this was last called."""
        taken, self._iterates = self._iterates, []
        return taken

    def _entries(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Return the moving scales at coordinates (dimension,)."""
        sizes = [self.start[name].numel() for name in self.names]
        offsets = {
            name: part.reshape(self.start[name].shape).to(self.start[name])
            for name, part in zip(self.names, coordinates.split(sizes), strict=True)
            if name in self._moving
        }
        return displace({name: self.start[name] for name in self._moving}, offsets)

    def _record(self, coordinates: Tensor, loss: float, label: str) -> None:
        if loss < self.best_loss:
            self.best, self.best_loss = coordinates.clone(), loss
            if self._evaluations > 0:  # the start itself is given, not made
                self._best_point = {**self._best_point, **self._entries(coordinates)}
        self._evaluations += 1
        self._iterates.append(
            Iterate(self._evaluations, self.spent, self.best_loss, self._best_point, label)
        )

    def _afford(self, cost: float) -> None:
        if self.spent + cost > self.budget + ROUNDING:
            raise BudgetSpent

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Count what is spent inside; others may use the same objective in between."""
        before = self._objective.cost
        yield
        self.spent += self._objective.cost - before


def within_budget(method: Method) -> Search:
    """Make a search out of a method that only says where to step next.

    The search yields an Iterate for the start and for each evaluation: `point` is the best Point
    so far and `loss` its loss, so that the last Iterate is the result. It ends where the next
    evaluation would go beyond the budget, or where the method ends.
    """

    @wraps(method)
    def search(
        objective: Objective,
        start: Point,
        *,
        names: Collection[str],
        budget: float,
        generator: torch.Generator,
        **options: Any,
    ) -> Iterator[Iterate]:
        check_search(objective, start, names, budget, generator, options)
        return run(objective, start, names, budget, generator, options)

    def run(
        objective: Objective,
        start: Point,
        names: Collection[str],
        budget: float,
        generator: torch.Generator,
        options: dict[str, Any],
    ) -> Iterator[Iterate]:
        loss = BudgetedLoss(objective, start, names, budget)
        yield from loss.take_iterates()
        try:
            for _ in method(loss, generator, **options):
                yield from loss.take_iterates()
        except BudgetSpent:
            pass
        yield from loss.take_iterates()

    return search


def check_search(
    objective: Objective,
    start: Point,
    names: Collection[str],
    budget: float,
    generator: torch.Generator,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check what every optimizer is given.

    Raises:
        TypeError: for anything but an `Objective`: test images must not be searched on.
        InputError: for names that are not scales of the start, a budget that pays for nothing, no
            generator, or a learning rate that is none.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"an optimizer needs an Objective on calibration images, not a "
            f"{type(objective).__name__}"
        )
    others = sorted(name for name in names if name not in start or role(name) != "scale")
    if others or not names:
        given = repr(others[0]) if others else "no name"
        raise InputError(
            f"an optimizer moves scales of the start and was given {given}; "
            "choose names with select(start, {'scale'})"
        )
    check_value("budget", budget, float, (1, LARGEST_FLOAT))
    check_value("generator", generator, torch.Generator)
    rate = (options or {}).get("learning_rate", 1.0)
    check_value("learning_rate", rate, float, (0, LARGEST_FLOAT))
