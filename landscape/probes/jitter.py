"""Measure one Point again and again, each time changed by what means nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import xarray as xr

from evolq.errors import InputError
from evolq.losses.jitter import RELATIVE, jittered
from evolq.losses.objective import Objective, TestEvaluation
from evolq.points import Point, displace, role
from landscape.ledger import Arrays, Ledger, remember
from landscape.probes.evaluation import CalibrationLoss, Evaluation, HeldOutLoss
from landscape.probes.sampling import OnPoint, sample_cells


def repeats(
    objective: CalibrationLoss,
    test: HeldOutLoss,
    point: Point,
    names: Collection[str],
    count: int,
    generator: torch.Generator,
    relative: float = RELATIVE,
    on_point: OnPoint | None = None,
) -> xr.Dataset:
    """Measure the losses at `count` Points next to `point`, jittered independently.

    Each entry is multiplied by exp(`relative` x a normal number) if it is a scale, and by
    1 + `relative` x a normal number if it is a weight. How far the losses scatter is the numerical
    noise of each of them (`statistics.numerical_noise`).

    Args:
        objective: on calibration images.
        test: on test images.
        point: the Point; `start_...` in the result is measured there, without jitter.
        names: entries to jitter, scales or weights.
        count: number of repeats.
        generator: on the CPU; draws the jitter.
        relative: standard deviation of the relative change.
        on_point: see `sample_plane`.

    Returns:
        A Dataset with the dimension `repeat`, laid out as docs/design.md says.

    Raises:
        InputError: before any work: fewer than 1 repeat, a jitter that is not positive, names that
            are missing, and those that are neither scales nor weights.
    """
    if count < 1:
        raise InputError(f"1 repeat or more was expected, not {count}")
    if not 0 < relative < np.inf:
        raise InputError(f"the relative jitter must be positive and finite, not {relative}")
    names = tuple(sorted(names))
    if not names:
        raise InputError("no names were given to jitter; choose scales or weights of the Point")
    for name in names:
        if name not in point:
            raise InputError(f"the Point has no {name!r} to jitter")
        if role(name) not in ("scale", "weight"):
            raise InputError(f"{name!r} cannot be jittered; choose scales or weights")

    def drawn() -> dict[str, torch.Tensor]:
        direction = {}
        for name in names:
            value = point[name]
            normal = torch.randn(value.shape, generator=generator).to(value)
            direction[name] = normal if role(name) == "scale" else normal * value
        return displace({name: point[name] for name in names}, direction, relative)

    cells = (({"repeat": number}, (drawn(),)) for number in range(count))
    coordinates = {"repeat": xr.Variable("repeat", np.arange(count))}
    evaluation = Evaluation(objective, test, point, dict)
    return sample_cells(evaluation, coordinates, [(names, cells)], on_point)


def add_repeats(
    dataset: xr.Dataset,
    objective: Objective,
    test: TestEvaluation,
    point: Point,
    count: int,
    generator: torch.Generator,
    ledger: Ledger | None = None,
) -> None:
    """Measure the losses at `point` under changes that mean nothing, and add them to a scan.

    Pixels and scales of activations change by 1e-6 of their value (`evolq.losses.jitter`). Unlike
    jittered scales of weights (`repeats`), this changes no weight's code. In place.

    Args:
        dataset: of a scan, which gets `repeat_loss_per_image` (repeat, calibration_image) and
            `repeat_test_loss_per_image` (repeat, image).
        objective: on calibration images.
        test: on test images.
        point: the start.
        count: number of repeats.
        generator: on the CPU; draws the jitter.
        ledger: keeps them when all are finished.
    """

    def measure() -> Arrays:
        losses, test_losses = [], []
        for _ in range(count):
            calibrated, moved = jittered(objective, point, generator)
            losses.append(calibrated.per_image(moved).cpu().numpy())
            tested, moved = jittered(test, point, generator)
            test_losses.append(tested.per_image(moved)[0].cpu().numpy())
        return {"loss": np.stack(losses), "test_loss": np.stack(test_losses)}

    found = remember(ledger, "repeats", measure)
    for name, image in (("loss", "calibration_image"), ("test_loss", "image")):
        dataset[f"repeat_{name}_per_image"] = (("repeat", image), found[name].astype(np.float32))
