"""A line in scale space with its cliffs: where jaggedness comes from, as one Dataset.

The line is sampled like a ray. Besides, `cliffs` and `cliff_losses` say: how many codes of weights
change along it, by layer and bits; which part of each step is made by these changes; how high the
jump of the loss at single changes is; and, for the layer with the fewest, every value that the loss
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from evolq.errors import InputError
from evolq.network.quantized import QuantizedNetwork
from evolq.optimizers.mixed_precision import Table
from evolq.points import Point
from landscape.ledger import Ledger, remember
from landscape.probes.cliff_losses import held_losses, loss_jumps, scan_intervals
from landscape.probes.cliffs import Cliffs, expected_cliffs, find_cliffs
from landscape.probes.evaluation import CalibrationLoss, HeldOutLoss
from landscape.probes.sampling import OnPoint, sample_rays
from landscape.probes.slices import Line


def sample_cliffs(
    network: QuantizedNetwork,
    line: Line,
    distances: np.ndarray,
    table: Table,
    objective: CalibrationLoss,
    test: HeldOutLoss,
    cliffs: int,
    intervals: int,
    on_point: OnPoint | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure the losses along a line, and what codes of weights do to the test loss there.

    Args:
        network: from `quantize`.
        line: over scales; those of at least one weight move.
        distances: (n,) ascending.
        table: entries of the weights at other bits, for their numbers of cliffs alone.
        objective: on calibration images.
        test: on test images.
        cliffs: of each weight, at which the jump is measured, evenly among those between the first
            and the last distance; along a line over the scales of that weight alone.
        intervals: of the weight with the fewest cliffs, so many around the start are measured, or
            all there are.
        on_point: see `sample_plane`.
        ledger: keeps each evaluation; with a `part`, of the line alone.
        executor: measures the line, see `sample_plane`.

    Returns:
        A Dataset as `sample_rays` makes it of one ray. Besides:

        - `held_test_loss_per_image` (ray, distance, image): with the codes that weights have at the
          distance before; NaN at the first;
        - `cliff_rate` (weight, width): expected cliffs per unit of distance (`expected_cliffs`), by
          bits, and `start_cliff_rate` (weight), at the start's own;
        - `cliff_weight`, `cliff_distance`, `cliff_flips` (codes that change there, more than one
          where float32 cannot tell them apart), `cliff_jump_per_image` (cliff, image): the test
          loss just after less just before;
        - `interval_low`, `interval_high` (interval), `interval_test_loss_per_image` (interval,
          image): one evaluation between each two cliffs of the weight `interval_weight`, the start
          elsewhere; attribute `interval_constant`: 1 if that is all the loss there is in between.

    Raises:
        InputError: as `find_cliffs` and `frozen`, before anything is measured.
    """
    radius = float(np.abs(distances).max())
    rates = _rates(network, line, table)
    own = {name: Line(line.origin, part) for name, part in _parts(line, rates.weight.values)}
    found = {name: find_cliffs(network, each, radius) for name, each in own.items()}
    fewest = str(rates.weight.values[rates.start_cliff_rate.values.argmin()])
    if not any(map(len, found.values())):
        raise InputError(f"no code of a weight changes within {radius:g}; choose a larger `radius`")
    reach = _reach(found[fewest], radius, intervals)
    chosen = {name: _spread(len(each), cliffs) for name, each in found.items()}
    total = len(distances) - 1 + 2 * sum(map(len, chosen.values())) + intervals

    dataset = sample_rays([line], distances, objective, test, on_point, ledger, executor)
    if ledger is not None and ledger.part is not None:
        return dataset  # whoever merges the parts measures the rest
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        if on_point:
            on_point(dataset, min(done, total), total)

    losses = _TestLoss(test, ledger, told, "held")
    held = held_losses(network, losses, line, distances)
    before = np.full((1, 1, held.shape[1]), np.nan)
    dataset["held_test_loss_per_image"] = (
        ("ray", "distance", "image"),
        np.concatenate([before, held[None]], axis=1),
    )
    jumps = {
        name: loss_jumps(losses.of(f"jump {name}"), own[name], found[name], indices)
        for name, indices in chosen.items()
        if len(indices)
    }
    weight = [name for name, each in jumps.items() for _ in each.low]
    parts = list(jumps.values())
    exact = scan_intervals(network, losses.of("interval"), own[fewest], reach, most=intervals)
    return (
        dataset.merge(rates)
        .assign(
            cliff_weight=("cliff", np.array(weight, dtype=object)),
            cliff_distance=(
                "cliff",
                np.concatenate([(each.low + each.high) / 2 for each in parts]),
            ),
            cliff_flips=("cliff", np.concatenate([each.cliffs for each in parts])),
            cliff_jump_per_image=(
                ("cliff", "image"),
                np.concatenate([each.after - each.before for each in parts]),
            ),
            interval_low=("interval", exact.low),
            interval_high=("interval", exact.high),
            interval_test_loss_per_image=(("interval", "image"), exact.losses),
        )
        .assign_attrs(interval_weight=fewest, interval_constant=int(exact.constant))
    )


@dataclass(frozen=True)
class _TestLoss:
    """The test loss as a loss alone; each evaluation is kept in a ledger, by its number."""

    test: HeldOutLoss
    ledger: Ledger | None
    told: Callable[[], None]
    key: str
    names: tuple[str, ...] | None = None
    origin: Point | None = None
    number: Iterator[int] = field(default_factory=count)

    def of(self, key: str) -> _TestLoss:
        """Return the same loss, its evaluations under another name."""
        return replace(self, key=key, number=count())

    def vary(self, names: tuple[str, ...], at: Point) -> _TestLoss:
        """Return the loss as a function of some names."""
        return replace(self, names=names, origin=at)

    @cached_property
    def varied(self) -> HeldOutLoss:
        """What measures; prepared when the first Point is, since all may be in the ledger."""
        assert self.names is not None
        assert self.origin is not None
        return self.test.vary(self.names, at=self.origin)

    def per_image(self, point: Point) -> Tensor:
        """Return the test loss of each image, (image,)."""
        found = remember(
            self.ledger,
            f"{self.key} {next(self.number)}",
            lambda: {"test_loss": self.varied.per_image(point)[0].detach().cpu().numpy()},
        )
        self.told()
        return torch.from_numpy(found["test_loss"])


def _rates(network: QuantizedNetwork, line: Line, table: Table) -> xr.Dataset:
    """Return the expected cliffs per unit of distance, over `weight` and `width`."""
    start = expected_cliffs(network, line)
    if not start:
        raise InputError(
            "no scale of a quantized weight moves along this line; choose scales of weights"
        )
    widths = sorted({bits for name in start for bits in table[name]})
    columns = []
    for bits in widths:
        entries = {key: value for name in start for key, value in table[name][bits].items()}
        rates = expected_cliffs(network, Line({**line.origin, **entries}, line.direction))
        columns.append([rates[name] for name in start])
    return xr.Dataset(
        {
            "cliff_rate": (("weight", "width"), np.array(columns).T),
            "start_cliff_rate": ("weight", np.array(list(start.values()))),
        },
        {"weight": np.array(list(start), dtype=object), "width": widths},
    )


def _parts(line: Line, weights: np.ndarray) -> Iterator[tuple[str, Point]]:
    """Yield each weight and the part of the direction that moves its scales."""
    for name in weights:
        yield str(name), {f"{name}.scale": line.direction[f"{name}.scale"]}


def _spread(number: int, wanted: int) -> list[int]:
    """Return indices of so many of `number` items, evenly among them."""
    even = np.linspace(0, number - 1, wanted + 2)[1:-1].round().astype(int)
    return np.unique(even)[:number].tolist()


def _reach(cliffs: Cliffs, radius: float, intervals: int) -> float:
    """Return the radius within which a line has at most so many intervals between cliffs."""
    away = np.sort(np.abs(cliffs.distance))
    if len(away) < intervals:
        return radius
    return float((away[intervals - 1] + (away[intervals - 2] if intervals > 1 else 0)) / 2)
