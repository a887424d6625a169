"""Optimizers compared: from the same start, at equal cost, on one map.

A comparison is one Dataset: what each optimizer reached with each seed at each cost, on calibration
images while it ran and on test images afterwards; where it went relative to one plane; and the loss
surface of that plane.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from evolq.errors import InputError
from evolq.losses.objective import Objective, TestEvaluation
from evolq.losses.paired import Difference
from evolq.optimizers.evolve import Iterate
from evolq.optimizers.gradient import LEARNING_RATES, best_of_sweep
from evolq.optimizers.registry import Optimizer, choose_optimizer
from evolq.points import Point
from landscape.ledger import Arrays, Ledger, folder_of
from landscape.paths.trajectories import (
    measure_path,
    pca_plane,
    plane_through,
    project_path,
)
from landscape.probes.directions import orthogonal_pair
from landscape.probes.sampling import OnPoint, sample_plane
from landscape.probes.slices import Plane
from landscape.statistics.intervals import crossed_interval
from landscape.work.pieces import Failed, Piece, finish
from landscape.work.shared import Received, Shared

PLANES = ("ends", "pca", "random")

# How far the map reaches beyond the paths, in their extent along an axis; and the least extent of
# one axis, in that of the other.
MARGIN = 0.25
NARROWEST = 0.4


class Run(NamedTuple):
    """One optimizer with one seed.

    Attributes:
        path: its Iterates, the start first.
        learning_rate: chosen by a sweep on calibration images, NaN where there is none.
        sweep_cost: forward-pass equivalents of all runs of the sweep, this one included; 0 without.
    """

    path: list[Iterate]
    learning_rate: float = float("nan")
    sweep_cost: float = 0.0


def run_optimizers(
    objective: Objective,
    start: Point,
    *,
    names: Collection[str],
    optimizers: Sequence[str],
    budget: float,
    seeds: Sequence[int],
    learning_rates: Sequence[float] = LEARNING_RATES,
    on_run: Callable[[str, int], None] | None = None,
    ledger: Ledger | None = None,
    key: str = "search",
    executor: Executor | None = None,
) -> dict[str, list[Run]]:
    """Return each optimizer's runs, one for each seed, from the same start and at equal budget.

    Gradient methods get the best of `learning_rates`, by calibration loss at the end of the budget;
    the sweep is reported, not charged. What draws nothing runs once and counts for every seed.

    Args:
        objective: on calibration images.
        start: a complete Point.
        names: the scales that move.
        optimizers: names in `OPTIMIZERS`.
        budget: of each run, in forward-pass equivalents.
        seeds: of all that is drawn, one for each run.
        learning_rates: of the sweep.
        on_run: called with the optimizer's name and the seed before each run.
        ledger: keeps each run when it is finished; those that are there are not searched again.
        key: of these runs in the ledger.
        executor: runs searches side by side; see `landscape.sample_plane`.

    Raises:
        InputError: if a search failed each time that it was tried.
    """
    chosen = {name: choose_optimizer(name) for name in optimizers}
    seeds_of = {name: seeds[:1] if each.deterministic else seeds for name, each in chosen.items()}
    rates_of = {
        name: tuple(learning_rates) if each.gradient else (None,) for name, each in chosen.items()
    }
    searches = _Searches(objective, start, tuple(names), chosen, budget)
    shared = Shared(searches, folder_of(ledger))

    def key_of(name: str, seed: int, rate: float | None) -> str:
        return f"{key} {name} {seed}" + ("" if rate is None else f" at {rate}")

    def pieces() -> Iterator[Piece]:
        for name, own in seeds_of.items():
            for seed in own:
                if on_run:
                    on_run(name, seed)
                for rate in rates_of[name]:
                    yield Piece(key_of(name, seed, rate), _search, (shared, name, seed, rate))

    found = _finished(pieces(), ledger, executor)

    def run(name: str, seed: int) -> Run:
        paths = {}
        for rate in rates_of[name]:
            path = _from_arrays(found[key_of(name, seed, rate)], start)
            if rate is None:
                return Run(path)
            paths[rate] = path
        best = best_of_sweep(paths)
        return Run(best.iterates, best.learning_rate, best.cost)

    return {
        name: [run(name, seed) for seed in own] * (len(seeds) // len(own))
        for name, own in seeds_of.items()
    }


def _finished(
    pieces: Iterable[Piece], ledger: Ledger | None, executor: Executor | None
) -> dict[str, Arrays]:
    """Return what came out of each piece.

    Raises:
        InputError: if one failed each time that it was tried, when all others are done.
    """
    found = {}
    for which, arrays in dict(finish(pieces, ledger, executor)).items():
        if isinstance(arrays, Failed):
            raise InputError(f"{which} failed: {arrays.error}; all others were made")
        found[which] = arrays
    return found


class _Searches(NamedTuple):
    """What searches have in common; see `run_optimizers`."""

    objective: Objective
    start: Point
    names: tuple[str, ...]
    optimizers: Mapping[str, Optimizer]
    budget: float


def _search(
    shared: Shared[_Searches] | Received, name: str, seed: int, learning_rate: float | None
) -> Arrays:
    """Run an optimizer, wherever this is called."""
    objective, start, names, optimizers, budget = shared.get()
    path = optimizers[name](
        objective.with_own_cost(),
        start,
        names=names,
        budget=budget,
        generator=torch.Generator().manual_seed(seed),
        **({} if learning_rate is None else {"learning_rate": learning_rate}),
    )
    return _as_arrays(list(path), start, names)


def _as_arrays(path: Sequence[Iterate], start: Point, names: Collection[str]) -> Arrays:
    """Return a path as arrays; Points that Iterates share are kept once, the start not at all."""
    points = {id(point): point for point in (start, *(iterate.point for iterate in path))}
    order = {key: number for number, key in enumerate(points)}
    moved = [point for point in points.values() if point is not start]
    columns = {
        name: np.array([getattr(iterate, name) for iterate in path])
        for name in Iterate._fields
        if name != "point"
    }
    return {
        **{f"point {name}": _stacked([point[name] for point in moved]) for name in names if moved},
        **columns,
        "which": np.array([order[id(iterate.point)] for iterate in path]),
    }


def _stacked(values: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.stack([value.detach().cpu() for value in values]).numpy()


def _from_arrays(arrays: Arrays, start: Point) -> list[Iterate]:
    """Return the path that `_as_arrays` was given; what it did not move is the start's."""
    stacks = {
        name.removeprefix("point "): torch.from_numpy(values).to(start[name.removeprefix("point ")])
        for name, values in arrays.items()
        if name.startswith("point ")
    }
    moved = [
        {**start, **{name: values[number] for name, values in stacks.items()}}
        for number in range(int(arrays["which"].max()))
    ]
    points = [start, *moved]
    columns = [arrays[name].tolist() for name in Iterate._fields if name != "point"]
    return [
        Iterate(evaluations, cost, loss, points[which], label)
        for evaluations, cost, loss, label, which in zip(*columns, arrays["which"], strict=True)
    ]


def check_plane(name: str, optimizers: Sequence[str]) -> None:
    """Check that a plane is known and possible, before there are paths.

    Raises:
        InputError: for an unknown name, or ends without both a gradient method and another one.
    """
    if name not in PLANES:
        raise InputError(f"unknown `plane` {name!r}; choose from {', '.join(PLANES)}")
    if name == "ends" and len({choose_optimizer(each).gradient for each in optimizers}) < 2:
        raise InputError(
            "`plane` ends goes through the end of a gradient method and of another one, and "
            f"`optimizers` is {','.join(optimizers)}; add one (adam, evol-q), or choose `plane` pca"
        )


class CommonPlane(NamedTuple):
    """One plane for all paths.

    Attributes:
        plane: through their start.
        words: what it is.
        x: what its first axis is.
        y: what its second axis is.
    """

    plane: Plane
    words: str
    x: str
    y: str


def common_plane(
    name: str,
    start: Point,
    runs: Mapping[str, Sequence[Run]],
    names: Collection[str],
    generator: torch.Generator,
) -> CommonPlane:
    """Return one plane for all paths, through their start.

    Args:
        name: `ends` for the plane through start, end of the first gradient method (along x) and end
            of the first other one, seed 0; `pca` for the principal plane of all paths; `random`.
        start: a complete Point.
        runs: from `run_optimizers`.
        names: the scales that moved.
        generator: of a random plane, which is also what there is if the others do not exist, since
            paths went nowhere or along one line.
    """
    try:
        if name == "ends":
            first = next(each for each in runs if choose_optimizer(each).gradient)
            second = next(each for each in runs if not choose_optimizer(each).gradient)
            ends = [runs[each][0].path[-1].point for each in (first, second)]
            return CommonPlane(
                plane_through(start, ends[0], ends[1], names),
                f"plane through the start and the ends of {first} and {second}",
                f"Towards the end of {first}",
                f"Towards the end of {second}, at right angles",
            )
        if name == "pca":
            every = [run.path for many in runs.values() for run in many]
            paths = [[iterate.point for iterate in path] for path in every]
            return CommonPlane(
                pca_plane(start, paths, names),
                "principal plane of all paths",
                "First principal direction",
                "Second principal direction",
            )
    except InputError:  # the work is done, and a map can still be drawn
        pass
    return CommonPlane(
        Plane(start, *orthogonal_pair({name: start[name] for name in names}, generator)),
        "random plane through the start",
        "First random direction",
        "Second random direction",
    )


def measure_runs(
    runs: Mapping[str, Sequence[Run]],
    plane: Plane,
    test: TestEvaluation,
    names: Collection[str],
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Return what the runs cost, gained and where they went.

    Args:
        runs: from `run_optimizers`.
        plane: of the map; its origin is the start of all runs.
        test: on test images.
        names: the scales that moved.
        ledger: keeps what was measured along each run.
        executor: measures runs side by side; see `landscape.sample_plane`.

    Returns:
        A Dataset over `optimizer`, `seed` and `iterate` (NaN after the last one): `cost`, `loss`,
        `test_loss`, `test_accuracy` (NaN where not measured, see `measure_path`), `path_x`,
        `path_y`, `distance`, `distance_from_start` (see `project_path`); over `optimizer` and
        `seed`: `learning_rate`, `sweep_cost`; over `image` too: `final_test_loss_per_image`,
        `final_test_correct_per_image`; and over `image` alone, of the start:
        `start_test_loss_per_image`, `start_test_correct_per_image`.
    """
    # what draws nothing has one path for all seeds
    distinct = {
        id(run.path): (f"test {name} {seed}", run.path)
        for name, many in runs.items()
        for seed, run in reversed(list(enumerate(many)))
    }
    shared = Shared((test, plane.origin), folder_of(ledger))
    pieces = [
        Piece(key, _measured, (shared, _as_arrays(path, plane.origin, names)))
        for key, path in distinct.values()
    ]
    measured = _finished(pieces, ledger, executor)
    found = {}
    for which, (key, path) in distinct.items():
        where = project_path(path, plane).rename(x="path_x", y="path_y")
        along = xr.Dataset(
            {
                name: ("image" if name.endswith("_per_image") else "iterate", values)
                for name, values in measured[key].items()
            }
        )
        found[which] = along.merge(where).assign_coords(iterate=np.arange(len(path)))
    by_optimizer = [
        xr.concat(
            [
                found[id(run.path)].assign(
                    learning_rate=run.learning_rate, sweep_cost=run.sweep_cost
                )
                for run in many
            ],
            "seed",
            join="outer",
        )
        for many in runs.values()
    ]
    dataset = xr.concat(by_optimizer, "optimizer", join="outer")
    of_start = {n: dataset[n].isel(optimizer=0, seed=0) for n in dataset if "start_" in n}
    return dataset.assign(of_start).assign_coords(
        optimizer=list(runs), seed=np.arange(dataset.sizes["seed"])
    )


def _measured(shared: Shared[tuple[TestEvaluation, Point]] | Received, path: Arrays) -> Arrays:
    """Measure along a path, wherever this is called."""
    test, start = shared.get()
    found = measure_path(_from_arrays(path, start), test)
    return {str(name): variable.values for name, variable in found.items()}


def sample_surface(
    dataset: xr.Dataset,
    plane: Plane,
    objective: Objective,
    test: TestEvaluation,
    points: int,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Return the losses on the plane around all paths, over `y` and `x`, as `sample_plane` does."""
    extents = _extent(dataset.path_x.values), _extent(dataset.path_y.values)
    width = max(high - low for low, high in extents)
    x, y = (np.linspace(*_widened(ends, NARROWEST * width), points) for ends in extents)
    return sample_plane(plane, x, y, objective, test, on_point, None, ledger, executor)


def with_surface(dataset: xr.Dataset, surface: xr.Dataset, common: CommonPlane) -> xr.Dataset:
    """Return a comparison with the surface below its paths, and what its plane is.

    Adds the attributes `plane`, `x_name` and `y_name`, and over `y` and `x` the variables
    `surface_loss`, `surface_test_loss`, `surface_test_accuracy` and `surface_status`; the values of
    single images are left out.
    """
    kept = surface[["loss", "test_loss", "test_accuracy", "status"]]
    kept = kept.drop_vars([name for name in kept.coords if name not in ("x", "y")])
    kept = kept.rename({name: f"surface_{name}" for name in kept.data_vars})
    words = {"plane": common.words, "x_name": common.x, "y_name": common.y}
    return dataset.merge(kept).assign_attrs(surface.attrs, **words)


class Outcome(NamedTuple):
    """What an optimizer reached, on average over its seeds.

    Attributes:
        optimizer: its name.
        loss: on the calibration images.
        test_loss: cross entropy, nats.
        test_accuracy: a fraction.
        test_loss_change: from the start, over seeds and images.
        test_accuracy_change: likewise.
        against_first: accuracy against the first optimizer's, likewise; None for itself.
        cost: forward-pass equivalents of a run.
        sweep_cost: of the sweep of learning rates, the run included; 0 without.
    """

    optimizer: str
    loss: float
    test_loss: float
    test_accuracy: float
    test_loss_change: Difference
    test_accuracy_change: Difference
    against_first: Difference | None
    cost: float
    sweep_cost: float


def outcomes(dataset: xr.Dataset) -> list[Outcome]:
    """Return what each optimizer of a comparison reached.

    Intervals are over seeds and test images, crossed (`statistics.intervals.crossed_interval`);
    with one seed they are over images alone, and speak of that run only.
    """
    rows = []
    losses, right = (
        dataset[name].transpose("optimizer", "seed", "image").values.astype(np.float64)
        for name in ("final_test_loss_per_image", "final_test_correct_per_image")
    )
    start_losses = dataset.start_test_loss_per_image.values.astype(np.float64)
    start_right = dataset.start_test_correct_per_image.values.astype(np.float64)
    for index, name in enumerate(dataset.optimizer.values):
        part = dataset.sel(optimizer=name)
        rows.append(
            Outcome(
                optimizer=str(name),
                loss=float(part.loss.min("iterate").mean()),
                test_loss=float(losses[index].mean()),
                test_accuracy=float(right[index].mean()),
                test_loss_change=_crossed(losses[index] - start_losses),
                test_accuracy_change=_crossed(right[index] - start_right),
                against_first=_crossed(right[index] - right[0]) if index else None,
                cost=float(part.cost.max("iterate").mean()),
                sweep_cost=float(part.sweep_cost.mean()),
            )
        )
    return rows


def _crossed(differences: np.ndarray) -> Difference:
    found = crossed_interval(differences)
    return Difference(found.estimate, found.low, found.high)


def _extent(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def _widened(ends: tuple[float, float], width: float) -> tuple[float, float]:
    """Return ends at least `width` apart, and never equal, around the same middle."""
    low, high = ends
    half = max(high - low, width, 1e-3) / 2
    middle = (low + high) / 2
    return middle - half, middle + half
