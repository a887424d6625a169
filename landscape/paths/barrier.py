"""The barrier between the ends of two optimizers: one valley, or two?

Along the straight line between two Points in log-scale space, the barrier is the highest loss above
the higher of the two ends (linear interpolation: Goodfellow et al. 2015, "Qualitatively
characterizing neural network optimization problems"; as a barrier Frankle et al. 2020, "Linear Mode
Connectivity and the Lottery Ticket Hypothesis"). A line without a barrier joins the ends in one
valley; a line with one does not prove that there are two, since a bent path may go around.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from evolq.losses.objective import Objective, TestEvaluation
from evolq.optimizers.registry import choose_optimizer
from evolq.points import Point, displacement, norm
from landscape.ledger import Ledger
from landscape.paths.comparison import Run
from landscape.probes.evaluation import CalibrationLoss, Evaluation, HeldOutLoss
from landscape.probes.jitter import add_repeats
from landscape.probes.sampling import sample_cells
from landscape.probes.slices import Line
from landscape.statistics.intervals import IMAGES, Interval
from landscape.statistics.numerical_noise import noise_floor
from landscape.statistics.resampling import FEWEST_IMAGES
from landscape.statistics.simultaneous import simultaneous_bands

# Points of the line, both ends included, and repeats of one end for the numerical floor.
POINTS, REPEATS = 11, 8
LEVEL = 0.05


class End(NamedTuple):
    """Where a run ended: its optimizer, the number of its seed, and the Point."""

    optimizer: str
    seed: int
    point: Point


def choose_ends(runs: Mapping[str, Sequence[Run]]) -> tuple[End, End] | None:
    """Return the ends of the best gradient method and of the best other one.

    The best is the one with the least calibration loss, on average over its seeds; its run is that
    of the median seed (of two, the better one). None without a method of each kind.

    Args:
        runs: from `run_optimizers`.
    """
    ends = []
    for gradient in (True, False):
        losses = {
            name: [run.path[-1].loss for run in many]
            for name, many in runs.items()
            if choose_optimizer(name).gradient == gradient
        }
        if not losses:
            return None
        best = min(losses, key=lambda name: float(np.mean(losses[name])))
        seed = losses[best].index(sorted(losses[best])[(len(losses[best]) - 1) // 2])
        ends.append(End(best, seed, runs[best][seed].path[-1].point))
    return ends[0], ends[1]


def sample_between(
    ends: tuple[End, End],
    names: Collection[str],
    start: Point,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    points: int = POINTS,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset | None:
    """Measure the test loss along the straight line between two ends; None if they are one Point.

    Args:
        ends: from `choose_ends`.
        names: the scales that moved.
        start: a complete Point, which the ends differ from in `names` alone.
        objective: on calibration images.
        test: on test images.
        points: of the line, both ends included.
        ledger: see `landscape.sample_plane`.
        executor: likewise.

    Returns:
        A Dataset over `between` (the share of the way): `between_loss`, `between_test_loss`, and
        `between_test_loss_per_image` (between, image); attributes `between_from`, `between_to`.
    """
    first, last = ends
    way = displacement(first.point, last.point, names)
    if norm(way) == 0:
        return None
    line = Line(first.point, way)
    shares = np.linspace(0.0, 1.0, points)
    axis = {"long_name": f"Way from {first.optimizer} to {last.optimizer}", "units": "1"}
    coordinates = {"between": xr.Variable("between", shares, axis)}
    cells = (({"between": number}, (float(t),)) for number, t in enumerate(shares))
    evaluation = Evaluation(objective, test, start, line.at)
    found = sample_cells(
        evaluation, coordinates, [(tuple(sorted(names)), cells)], None, None, ledger, executor
    )
    kept = found[["loss", "test_loss", "test_loss_per_image"]]
    kept = kept.drop_vars([name for name in kept.coords if name != "between"])
    kept = kept.rename({name: f"between_{name}" for name in kept.data_vars})
    words = [f"{end.optimizer}, seed {end.seed}" for end in ends]
    return kept.assign_attrs(between_from=words[0], between_to=words[1])


def with_barrier(
    dataset: xr.Dataset,
    between: xr.Dataset,
    end: Point,
    objective: Objective,
    test: TestEvaluation,
    seed: int,
    ledger: Ledger | None = None,
) -> xr.Dataset:
    """Return a comparison with the line between two of its ends, and the numerical noise at one.

    Args:
        dataset: from `landscape.paths.comparison.measure_runs`.
        between: from `sample_between`.
        end: where `add_repeats` measures again: `repeat_test_loss_per_image` (repeat, image).
        objective: on calibration images.
        test: on test images.
        seed: of the jitter.
        ledger: keeps the repeats.
    """
    merged = dataset.merge(between).assign_attrs(between.attrs)
    generator = torch.Generator().manual_seed(seed)
    add_repeats(merged, objective, test, end, REPEATS, generator, ledger)
    return merged


@dataclass(frozen=True, eq=False)
class Barrier:
    """How far the mean test loss rises between two ends above the higher of them, in nats.

    Attributes:
        ends: the two optimizers and seeds, in words.
        way: shares of the way, (points,), from 0 to 1.
        above: loss above the higher end at each of them, (points,).
        low: lower bounds of all of them at once, (points,), 95 %; NaN where there are none (fewer
            than 10 images, or a loss that is not finite).
        high: upper bounds likewise.
        height: the highest between the ends, with its interval over images. Below 0 where every
            point between is lower than the higher end.
        at: share of the way at which it lies.
        floor: numerical noise of such a difference: sqrt(2) times the scatter of one mean loss.
    """

    ends: tuple[str, str]
    way: NDArray[np.float64]
    above: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    height: Interval
    at: float
    floor: float


def barrier(dataset: xr.Dataset) -> Barrier | None:
    """Return the barrier of a comparison, None if it has none measured.

    The highest of several measured points lies above the truth on average: on flat lines of 11
    points and 40 images it was above 0 in 86 % of 400 simulations, the lower bound in 0.3 %. The
    differences of all points t from both ends e are bounded at once,
    |D(t, e) - truth| <= c error (`simultaneous_bands`, both sides), and the barrier, max over t of
    min over e of D(t, e), rises with each of them: its bounds are those of the bounds. They hold
    the truth of these points in 95 % of samples or more; between the points the line may be higher.

    Args:
        dataset: with the variables of `with_barrier`.
    """
    if "between_test_loss_per_image" not in dataset:
        return None
    losses = dataset.between_test_loss_per_image.transpose("between", "image").values
    losses = losses.astype(np.float64)
    differences = losses[:, None] - losses[[0, -1]]  # (point, end, image)
    change = differences.mean(axis=2)
    above = change.min(axis=1)
    low = high = np.full(len(above), np.nan)
    if np.isfinite(losses).all() and losses.shape[1] >= FEWEST_IMAGES:
        bands = simultaneous_bands(differences, np.random.default_rng(0), LEVEL, "both")
        reach = bands.critical * bands.error
        low, high = ((change + side * reach).min(axis=1) for side in (-1, 1))
    highest = 1 + int(np.argmax(above[1:-1]))
    height, least, most = (float(part[1:-1].max()) for part in (above, low, high))
    floor = noise_floor(dataset.repeat_test_loss_per_image.transpose("repeat", "image").values)
    return Barrier(
        ends=(dataset.attrs["between_from"], dataset.attrs["between_to"]),
        way=dataset.between.values.astype(np.float64),
        above=above,
        low=low,
        high=high,
        height=Interval(height, least, most, 1 - LEVEL, IMAGES),
        at=float(dataset.between[highest]),
        floor=float(np.sqrt(2) * floor.mean_loss.estimate),
    )
