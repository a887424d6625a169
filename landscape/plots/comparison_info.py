"""What a figure of a comparison of optimizers shows, computed once and drawn by either library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xarray import Dataset

from evolq.optimizers.registry import OPTIMIZERS
from landscape.paths.barrier import Barrier, barrier
from landscape.paths.comparison import Outcome, outcomes
from landscape.plots.info import Axis, Quantity, quantity_of
from landscape.plots.palette import Look, looks
from landscape.statistics.resampling import FEWEST_IMAGES
from landscape.words import TEST_LOSS_WORDS, configuration_of, criterion_words, title_of

COST_WORDS = "Cost (forward passes of the calibration set)"
DISTANCE_UNIT = "RMS log change of the scales"

# Costs at which curves are read off.
COSTS = 121


@dataclass(frozen=True, eq=False)
class Band:
    """One loss of one optimizer against cost: its mean, least and largest value over the seeds."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Route:
    """Where one run went on the plane, and how far off it: arrays over its Iterates."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    cost: NDArray[np.float64]
    distance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OptimizerInfo:
    """All that a figure shows of one optimizer; bands are over `ComparisonInfo.costs`."""

    name: str
    look: Look
    loss: Band
    test_loss: Band
    distance: Band
    routes: tuple[Route, ...]
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class ComparisonInfo:
    """All that a figure of a comparison shows; surfaces are (y, x)."""

    title: str
    subtitle: str
    loss_measure: str
    test_loss_measure: str
    costs: NDArray[np.float64]
    start_loss: float
    start_test_loss: float
    start_accuracy: float
    x: Axis
    y: Axis
    loss: Quantity
    test_loss: Quantity
    optimizers: tuple[OptimizerInfo, ...]
    barrier: Barrier | None


def comparison_info(dataset: Dataset) -> ComparisonInfo:
    """Return what a figure of the comparison in `dataset` shows."""
    configuration = configuration_of(dataset)
    measure = criterion_words(configuration)
    costs = np.linspace(1.0, float(dataset.cost.max()), COSTS)
    look_of = looks([str(name) for name in dataset.optimizer.values], OPTIMIZERS)
    found = []
    for outcome in outcomes(dataset):
        part = dataset.sel(optimizer=outcome.optimizer)
        # an optimizer that draws nothing has one route for all seeds
        routes = {
            route.x.tobytes() + route.y.tobytes(): route
            for route in (_route(part.sel(seed=seed)) for seed in dataset.seed.values)
        }
        found.append(
            OptimizerInfo(
                outcome.optimizer,
                look_of[outcome.optimizer],
                _band(part, "loss", costs),
                _band(part, "test_loss", costs),
                _band(part, "distance", costs),
                tuple(routes.values()),
                outcome,
            )
        )
    seeds = dataset.sizes["seed"]
    loss, test_loss, status = (
        dataset[f"surface_{name}"].transpose("y", "x") for name in ("loss", "test_loss", "status")
    )
    return ComparisonInfo(
        title=f"{title_of(configuration)}: gradient against evolution at equal cost",
        subtitle=" · ".join(
            [
                f"{configuration.get('calibration_images', '?')} calibration images",
                f"{dataset.sizes['image']:,} test images",
                seeds_words(seeds),
                dataset.attrs["plane"],
            ]
        ),
        loss_measure=measure,
        test_loss_measure=TEST_LOSS_WORDS,
        costs=costs,
        start_loss=float(dataset.loss.isel(optimizer=0, seed=0, iterate=0)),
        start_test_loss=float(dataset.start_test_loss_per_image.mean(dtype=np.float64)),
        start_accuracy=float(dataset.start_test_correct_per_image.mean(dtype=np.float64)),
        x=Axis(dataset.attrs["x_name"], DISTANCE_UNIT, dataset.x.values.astype(np.float64)),
        y=Axis(dataset.attrs["y_name"], DISTANCE_UNIT, dataset.y.values.astype(np.float64)),
        loss=quantity_of(loss, status, "Calibration loss on the plane", measure),
        test_loss=quantity_of(test_loss, status, "Test loss on the plane", TEST_LOSS_WORDS),
        optimizers=tuple(found),
        barrier=barrier(dataset),
    )


def at_costs(
    cost: NDArray[np.float64], values: NDArray[np.float64], costs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the last of `values` that was reached within each of `costs`; NaN before the first."""
    known = np.isfinite(cost) & np.isfinite(values)
    cost, values = cost[known], values[known]
    last = np.searchsorted(cost, costs + 1e-9, side="right") - 1
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)


def interval_words(mean: float, low: float, high: float, percent: bool = False) -> str:
    """Return a difference and its confidence interval in words."""
    if percent:
        return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def seeds_words(seeds: int) -> str:
    """Return what the intervals of so many seeds speak of."""
    if seeds == 1:
        return "1 seed: intervals are over test images and speak of these runs only"
    return f"intervals over {seeds} seeds and the test images"


def barrier_words(found: Barrier) -> str:
    """Return how high a barrier is and whether it is one, in words."""
    height = found.height
    if not np.isfinite(height.estimate):
        return "unknown: a loss on the way is not finite"
    if not np.isfinite(height.low):
        return f"{height.estimate:+.4f} nats; fewer than {FEWEST_IMAGES} images tell nothing"
    if height.low > 0:
        verdict = "a barrier"
        if height.estimate < 2 * found.floor:
            verdict += " on these very pixels, but of the size of numerical noise"
    elif height.high <= 0:
        verdict = "no barrier: every point between is lower than the higher end"
    elif height.estimate <= 0:
        verdict = (
            "no barrier seen, since no point between is higher than the higher end; one of up to "
            f"{height.high:.4f} is not excluded"
        )
    else:
        verdict = "no barrier is told apart from sampling noise"
    return (
        f"{interval_words(height.estimate, height.low, height.high)} nats at {found.at:.0%} of the "
        f"way, numerical noise {found.floor:.4f}: {verdict}"
    )


def against_words(outcome: Outcome) -> str:
    """Return the difference to the first optimizer in words, empty for the first itself."""
    against = outcome.against_first
    return "" if against is None else interval_words(*against, percent=True)


def cost_words(outcome: Outcome) -> str:
    """Return the cost of a run in words, that of a sweep in brackets."""
    sweep = f" ({outcome.sweep_cost:.0f})" if outcome.sweep_cost else ""
    return f"{outcome.cost:.0f}{sweep}"


def _band(part: Dataset, name: str, costs: NDArray[np.float64]) -> Band:
    curves = np.stack(
        [
            at_costs(
                part.cost.sel(seed=seed).values.astype(np.float64),
                part[name].sel(seed=seed).values.astype(np.float64),
                costs,
            )
            for seed in part.seed.values
        ]
    )
    return Band(curves.mean(0), curves.min(0), curves.max(0))


def _route(run: Dataset) -> Route:
    columns = [run[name].values.astype(np.float64) for name in ("path_x", "path_y", "cost")]
    distance = run.distance.values.astype(np.float64)
    known = np.isfinite(columns[0])
    return Route(*(values[known] for values in (*columns, distance)))
