"""Both losses of one Point, image by image: the piece of work that sampling is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from evolq.points import Point
from landscape.ledger import Arrays
from landscape.work.shared import Received, Shared


class CalibrationLoss(Protocol):
    """What sampling needs of an objective: `evolq.losses.objective.Objective` has it."""

    def per_image(self, point: Point) -> Tensor:
        """Return the values of each calibration image, shape (calibration_image,)."""

    def vary(self, names: tuple[str, ...], at: Point) -> CalibrationLoss:
        """Return the same loss as a function of a Point of these names alone."""


class HeldOutLoss(Protocol):
    """What sampling needs of a test: `evolq.losses.objective.TestEvaluation` has it."""

    def per_image(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return cross entropy and correctness of each test image, both of shape (image,)."""

    def vary(self, names: tuple[str, ...], at: Point) -> HeldOutLoss:
        """Return the same measurement as a function of a Point of these names alone."""


class NoLoss:
    """Stands for a calibration loss that nobody asks for."""

    def per_image(self, point: Point) -> Tensor:
        """Return the values of no image."""
        return torch.zeros(0)

    def vary(self, names: tuple[str, ...], at: Point) -> NoLoss:
        """Return the same."""
        return self


class Evaluation:
    """Measures Points around an origin; workers get it once."""

    def __init__(
        self,
        objective: CalibrationLoss,
        test: HeldOutLoss,
        origin: Point,
        at: Callable[..., Point],
    ) -> None:
        """Keep what is needed.

        Args:
            objective: on calibration images.
            test: on test images.
            origin: the start.
            at: from coordinates, which are small, to a Point.
        """
        self.origin = origin
        self._constant = (objective, test, origin, at)
        self._varied: tuple[tuple[str, ...], CalibrationLoss, HeldOutLoss] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all but what is made where it is needed."""
        return Evaluation, self._constant

    def at(self, names: tuple[str, ...], *coordinates: Any) -> Arrays:
        """Measure the Point at coordinates; see `measure`."""
        return self.measure(names, self._constant[-1](*coordinates))

    def measure(self, names: tuple[str, ...], point: Point) -> Arrays:
        """Measure a Point that differs from the origin in the entries `names` alone."""
        made = self._varied
        if made is None or made[0] != names:
            made = self._varied = None  # of two, memory may hold one
            objective, test, origin, _ = self._constant
            made = (names, objective.vary(names, origin), test.vary(names, origin))
            self._varied = made
        _, calibration, tested = made
        varied = {name: point[name] for name in names}
        cross_entropy, correct = tested.per_image(varied)
        return {
            "loss": calibration.per_image(varied).detach().cpu().numpy(),
            "test_loss": cross_entropy.detach().cpu().numpy(),
            "test_correct": correct.cpu().numpy(),
        }


def evaluate(
    evaluation: Shared[Evaluation] | Received, names: tuple[str, ...], *coordinates: Any
) -> Arrays:
    """Measure the Point at coordinates, wherever this runs."""
    return evaluation.get().at(names, *coordinates)
