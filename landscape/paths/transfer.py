"""How gains on calibration images carry over to test images, by criterion and number of images.

The paper's claim is about overfitting: a search lowers any loss on the images that it sees, and
what that is worth shows on images that it does not see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr

from evolq.losses.criteria import choose_criterion
from evolq.losses.objective import Objective, TestEvaluation
from evolq.losses.paired import Difference, paired_difference
from evolq.optimizers.gradient import LEARNING_RATES
from evolq.points import Point
from landscape.ledger import Ledger
from landscape.paths.comparison import run_optimizers


def transfer(
    objective: Objective,
    start: Point,
    test: TestEvaluation,
    *,
    names: Collection[str],
    criteria: Sequence[str],
    optimizers: Sequence[str],
    budget: float,
    seeds: Sequence[int],
    learning_rates: Sequence[float] = LEARNING_RATES,
    on_run: Callable[[str, str, int], None] | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Return what optimizers reach with each criterion on one calibration set.

    Args:
        objective: on calibration images; its criterion is replaced.
        start: a complete Point.
        test: looked at after each run, at its result.
        names: the scales that move.
        criteria: names in `CRITERIA`.
        optimizers: names in `OPTIMIZERS`.
        budget: of each run, in forward passes of this calibration set.
        seeds: of all that is drawn, one for each run.
        learning_rates: swept for gradient methods, by the calibration loss.
        on_run: called with criterion, optimizer and seed before each run.
        ledger: keeps each run when it is finished; those that are there are not searched again.
        executor: runs searches side by side; see `landscape.sample_plane`.

    Returns:
        A Dataset over `criterion`, `optimizer`, `seed`: `loss`, `cost`; with `image`:
        `final_test_loss_per_image`; over `criterion`: `start_loss` and `ideal_loss`, that of the
        full-precision predictions themselves; over `image`: `start_test_loss_per_image`; and the
        scalar coordinate `size`, the number of calibration images.
    """
    parts = []
    for name in criteria:
        criterion = choose_criterion(name)
        ideal = criterion.per_image(objective.teacher, objective.teacher, objective.labels).mean()
        runs = run_optimizers(
            replace(objective, criterion=criterion),
            start,
            names=names,
            optimizers=optimizers,
            budget=budget,
            seeds=seeds,
            learning_rates=learning_rates,
            on_run=partial(on_run, name) if on_run else None,
            ledger=ledger,
            key=f"search {len(objective.labels)} {name}",
            executor=executor,
        )
        tested: dict[int, np.ndarray] = {}
        for many in runs.values():
            for run in many:
                point = run.path[-1].point
                if id(point) not in tested:
                    tested[id(point)] = test.per_image(point)[0].cpu().numpy()
        shape = ("optimizer", "seed")
        parts.append(
            xr.Dataset(
                {
                    "loss": (shape, [[r.path[-1].loss for r in many] for many in runs.values()]),
                    "cost": (shape, [[r.path[-1].cost for r in many] for many in runs.values()]),
                    "final_test_loss_per_image": (
                        (*shape, "image"),
                        np.array(
                            [
                                [tested[id(run.path[-1].point)] for run in many]
                                for many in runs.values()
                            ]
                        ),
                    ),
                    "start_loss": ((), next(iter(runs.values()))[0].path[0].loss),
                    "ideal_loss": ((), float(ideal)),
                }
            )
        )
    dataset = xr.concat(parts, "criterion", join="exact")
    dataset["start_test_loss_per_image"] = ("image", test.per_image(start)[0].cpu().numpy())
    return dataset.assign_coords(
        criterion=list(criteria),
        optimizer=list(optimizers),
        seed=list(seeds),
        size=len(objective.labels),
    )


class TransferRow(NamedTuple):
    """What one criterion was worth, on average over the seeds.

    Attributes:
        criterion: its name.
        size: number of calibration images.
        optimizer: its name.
        closed: the part of the calibration loss above that of the full-precision predictions which
            the search took away; criteria have no common unit, this they share.
        test_loss_change: cross entropy on test images, from the start, paired.
    """

    criterion: str
    size: int
    optimizer: str
    closed: float
    test_loss_change: Difference


def transfer_rows(dataset: xr.Dataset) -> list[TransferRow]:
    """Return a row for each optimizer, criterion and number of images, in this order."""
    rows = []
    for optimizer in dataset.optimizer.values:
        for criterion in dataset.criterion.values:
            for size in dataset["size"].values:
                cell = dataset.sel(optimizer=optimizer, criterion=criterion, size=size)
                gap = float(cell.start_loss - cell.ideal_loss)
                gain = float(cell.start_loss - cell.loss.mean())
                before = cell.start_test_loss_per_image.values
                final = cell.final_test_loss_per_image.mean("seed").values
                rows.append(
                    TransferRow(
                        str(criterion),
                        int(size),
                        str(optimizer),
                        gain / gap if gap else 0.0,
                        paired_difference(before, final),
                    )
                )
    return rows
