"""Comparisons of optimizers, declared as values: `Comparison(budget=30).sample(problem)`.

Command lines read these fields for their options, so nothing here imports torch before it samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from evolq.declared import MAX_IMAGES, check_fields
from evolq.errors import InputError
from evolq.settings import CriterionName, Settings, configuration
from landscape.scans import check_size

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from evolq.network.quantized import QuantizedNetwork
    from evolq.problem import Problem
    from landscape.ledger import OpenLedger

    OnRun = Callable[[str], None]
    OnPoint = Callable[[xr.Dataset, int, int], None]

# More takes years, or moves scales by more than float32 holds.
LARGEST_BUDGET, MOST_SEEDS, LARGEST_RATE = 1e6, 1000, 100.0

PlaneName = Literal["ends", "pca", "random"]
OptimizerName = Literal[
    "evol-q",
    "sgd",
    "adam",
    "adamw",
    "spsa",
    "one-plus-one-es",
    "random-search",
    "cma",
    "coordinate-descent",
    "powell",
]


@dataclass(frozen=True)
class Comparison:
    """Optimizers of scales from the same start, at equal cost.

    With several `criteria`: how far each one's gain on calibration images carries over to test
    images, by the number of calibration images.

    Attributes:
        optimizers: Which ones; the first is what the others are compared with.
        budget: Of each run, in forward passes of the calibration set.
        seeds: Runs of each optimizer that draws anything.
        learning_rates: Swept for each gradient method, judged by the calibration loss.
        within: Only the names of scales that match this glob, such as 'blocks.3.*'.
        plane: Of the map: ends (through start, gradient's end and evolution's end), pca or random.
        points: Points of the map along each axis.
        criteria: Instead of a map, compare these criteria by what they are worth on test images.
        sizes: Numbers of calibration images, with `criteria`.

    Raises:
        InputError: for values of other types, numbers out of range, or a value given twice.
    """

    optimizers: tuple[OptimizerName, ...] = ("evol-q", "adam", "cma")
    budget: float = 60.0
    seeds: int = 3
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    within: str | None = None
    plane: PlaneName = "ends"
    points: int = 13
    criteria: tuple[CriterionName, ...] = ()
    sizes: tuple[int, ...] = (32, 100, 300, 1000)

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(
            self,
            budget=(2, LARGEST_BUDGET),
            seeds=(1, MOST_SEEDS),
            learning_rates=(0, LARGEST_RATE),
            points=(2, MAX_IMAGES),
            sizes=(1, MAX_IMAGES),
        )
        for name in ("optimizers", "learning_rates", "criteria", "sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (not values and name != "criteria"):
                raise InputError(f"`{name}` is {', '.join(map(str, values))}; give each once")
        if 0 in self.learning_rates:
            raise InputError(f"`learning_rates` is {self.learning_rates}; give positive numbers")

    def check(self, settings: Settings) -> None:
        """Check that a problem can be compared on, before anything is loaded.

        Raises:
            InputError: for unknown names, or settings that leave nothing to compare.
        """
        from evolq.losses.criteria import choose_criterion
        from evolq.optimizers.registry import choose_optimizer
        from landscape.paths.comparison import check_plane

        if settings.quantization.scheme == "none":
            raise InputError("`scheme` none has no scales to search")
        if settings.test_images < 2:
            raise InputError(
                f"`test_images` is {settings.test_images}; an interval needs 2 or more"
            )
        for name in self.optimizers:
            choose_optimizer(name)
        for criterion in map(choose_criterion, self.criteria):
            for size in self.sizes:
                criterion.check(size)
        if not self.criteria:
            check_size(self.points**2, settings)
            check_plane(self.plane, self.optimizers)

    def check_network(self, network: QuantizedNetwork, model: nn.Module) -> None:
        """Refuse a network without a scale to search, before it is calibrated.

        Raises:
            InputError: if no name matches.
        """
        from evolq.points import select

        select(network.names, {"scale"}, self.within)

    @property
    def _search(self) -> dict[str, Any]:
        return {
            "optimizers": self.optimizers,
            "budget": self.budget,
            "seeds": list(range(self.seeds)),
            "learning_rates": self.learning_rates,
        }

    def sample(
        self,
        problem: Problem,
        on_run: OnRun | None = None,
        on_point: OnPoint | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Run the optimizers, and measure the loss surface around their paths.

        Args:
            problem: from `evolq.prepare`.
            on_run: called with words before each part of the work.
            on_point: called with the map, the points done and their number, after each point.
            open_ledger: given all that the work depends on, returns the ledger that keeps each
                search and each point of the map; called before the first search.
            executor: runs searches and measures points side by side; see `landscape.sample_plane`.

        Returns:
            The Dataset of `landscape.paths.comparison.measure_runs` with its map, the line between
            two ends (`landscape.paths.barrier`) and provenance.
        """
        import torch

        from evolq.points import select
        from landscape.ledger import begin
        from landscape.paths.barrier import choose_ends, sample_between, with_barrier
        from landscape.paths.comparison import (
            common_plane,
            measure_runs,
            run_optimizers,
            sample_surface,
            with_surface,
        )

        self.check(problem.settings)
        say = on_run or (lambda words: None)
        names = list(select(problem.start, {"scale"}, self.within))
        ledger = begin(open_ledger, problem, configuration(self))
        runs = run_optimizers(
            problem.objective,
            problem.start,
            names=names,
            **self._search,
            on_run=lambda name, seed: say(f"Searching: {name}, seed {seed}"),
            ledger=ledger,
            executor=executor,
        )
        say("Measuring the paths on test images")
        generator = torch.Generator().manual_seed(problem.settings.seed)
        common = common_plane(self.plane, problem.start, runs, names, generator)
        dataset = measure_runs(runs, common.plane, problem.test, names, ledger, executor)
        measured = problem.objective, problem.test
        ends = choose_ends(runs)
        if ends:
            say(f"Measuring between the ends of {ends[0].optimizer} and {ends[1].optimizer}")
            between = sample_between(
                ends, names, problem.start, *measured, ledger=ledger, executor=executor
            )
            if between:
                seed = problem.settings.seed
                dataset = with_barrier(dataset, between, ends[0].point, *measured, seed, ledger)
        surface = sample_surface(
            dataset,
            common.plane,
            *measured,
            self.points,
            on_point,
            ledger,
            executor,
        )
        dataset = with_surface(dataset, surface, common)
        dataset.attrs["provenance"] = self._provenance(problem)
        return dataset

    def sample_transfer(
        self,
        settings: Settings,
        on_run: OnRun | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Search with each criterion on each number of calibration images.

        Args:
            settings: of the problems, one for each of `sizes`.
            on_run: called with words before each run.
            open_ledger: see `sample`.
            executor: likewise.

        Returns:
            The Dataset of `landscape.paths.transfer.transfer` along `size`, with provenance.
        """
        import xarray as xr

        from evolq.points import select
        from evolq.problem import prepare
        from landscape.ledger import begin
        from landscape.paths.transfer import transfer

        self.check(settings)
        say = on_run or (lambda words: None)
        parts: list[xr.Dataset] = []
        for size in sorted(self.sizes, reverse=True):  # too many images are found out at once
            problem = prepare(
                replace(settings, calibration_images=size), check_network=self.check_network
            )
            if not parts:
                provenance = self._provenance(problem)
                ledger = begin(open_ledger, problem, configuration(self))

            def tell(criterion: str, optimizer: str, seed: int, size: int = size) -> None:
                say(f"Searching on {size:,} calibration images: {criterion}, {optimizer}, {seed}")

            parts.append(
                transfer(
                    problem.objective,
                    problem.start,
                    problem.test,
                    names=list(select(problem.start, {"scale"}, self.within)),
                    criteria=self.criteria,
                    **self._search,
                    on_run=tell,
                    ledger=ledger,
                    executor=executor,
                )
            )
        dataset = xr.concat(parts[::-1], "size", join="exact").sortby("size")
        dataset.attrs["provenance"] = provenance
        return dataset

    def _provenance(self, problem: Problem) -> str:
        own = configuration(self)
        content = problem.provenance | {"configuration": problem.provenance["configuration"] | own}
        if "options" in content:
            content["options"] = content["options"] | own
        return json.dumps(content)
