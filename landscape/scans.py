"""What can be scanned around a problem's start, as values: `PlaneScan(points=21).sample(problem)`.

Command lines read these classes for their options, so nothing here imports torch before it samples.
Every choice is a Literal that a test compares with the registry behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from evolq.declared import MAX_IMAGES, check_fields
from evolq.errors import InputError
from evolq.quantization import MAX_BITS, MIN_BITS
from evolq.settings import configuration

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from evolq.network.quantized import QuantizedNetwork
    from evolq.optimizers.mixed_precision import Table
    from evolq.points import Point
    from evolq.problem import Problem, Settings
    from landscape.ledger import Ledger, OpenLedger
    from landscape.probes.sampling import OnPoint
    from landscape.probes.slices import Line, Plane, Slice

    Sampler = Callable[..., xr.Dataset]

Over = Literal["scales", "zero_points", "weights"]
Directions = Literal["gaussian", "uniform", "rademacher", "towards", "pca", "hessian"]
Normalization = Literal["none", "layer", "filter"]

# Bytes of a point in the Dataset, beside 4 for each calibration image and 5 for each test image;
# and what a scan may need.
POINT_BYTES, LARGEST_FILE = 25, 75e9
# Bounds of numbers. Directions of less than the smallest radius vanish in float32; exp of the
# largest is the largest factor that it holds.
NUMBERS = {
    "radius": (1e-9, 80.0),
    "repeats": (0, 10_000),
    "descents": (0, 10_000),
    "points": (2, MAX_IMAGES),
    "rows": (2, MAX_IMAGES),
    "length": (1e-9, 80.0),
    **dict.fromkeys(("rays", "walks", "steps", "cliffs", "intervals"), (1, MAX_IMAGES)),
}

# What moves -> the role of its entries in a Point.
ROLES: dict[Over, str] = {"scales": "scale", "zero_points": "zero_point", "weights": "weight"}
# Directions that something leads have lengths of their own; these are led by checkpoints.
BY_CHECKPOINTS = ("towards", "pca")
LED = (*BY_CHECKPOINTS, "hessian")
# Led by checkpoints, an automatic radius goes so many times as far as they are. Towards them, 11
# points then hit the start and each checkpoint.
BEYOND_CHECKPOINTS = 1.25


@dataclass(frozen=True)
class _MovingScan:
    """What all scans have in common that move through the space of Points.

    Attributes:
        over: What moves: scales, zero_points, or weights.
        within: Only the Point's names that match this glob, such as 'blocks.3.*'.
        exclude: Not the Point's names that match this glob.
        repeats: How often the start is measured with pixels and scales of activations changed by
            1e-6 of their value, which means nothing: the scatter is the numerical noise of each
            point. 0 leaves it out.
    """

    over: Over = "scales"
    within: str | None = None
    exclude: str | None = None
    repeats: int = 8

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, **NUMBERS)
        _check_choice("over", self.over, Over)
        if self.repeats == 1:
            raise InputError("`repeats` is 1; give 2 or more, or 0 to leave numerical noise out")

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, before it is prepared.

        Raises:
            InputError: if it cannot.
        """
        if settings.quantization.scheme == "none" and self.over != "weights":
            raise InputError(f"`scheme` none has no {self.over}; give `over` weights")

    def check_network(self, network: QuantizedNetwork, model: nn.Module) -> None:
        """Refuse a network that has nothing to scan, before it is calibrated.

        Raises:
            InputError: if no name matches.
        """
        from evolq.points import select

        select(network.names, {ROLES[self.over]}, self.within, self.exclude)


@dataclass(frozen=True)
class _SliceScan(_MovingScan):
    """What a plane and rays have in common.

    Attributes:
        directions: Drawn: gaussian, uniform or rademacher. Led: towards (to `checkpoints`), pca
            (of `checkpoints`), hessian (eigenvectors; of a network without quantizers).
        checkpoints: Where towards and pca lead, once per file: weights of the model if it is not
            quantized, saved quantized networks otherwise.
        normalize: Of weight directions: none, layer, or filter (the default). Those that are led
            have lengths of their own.
        radius: How far to go, in lengths of the directions: for scales 0.1 changes a typical scale
            by 10 %. By default the test loss has just moved by 4 standard errors there (to 19 %);
            with towards and pca it reaches somewhat past the checkpoints.
        frozen_codes: Measure the test loss of each point once more with the codes that weights
            have at the start: what is left of the ruggedness does not come from their rounding. Of
            scales only.
        descents: How many from each minimum that counts, in directions off the slice: whether it is
            one there, too. 0 leaves them out.
    """

    directions: Directions = "gaussian"
    checkpoints: tuple[Path, ...] = ()
    normalize: Normalization | None = None
    radius: float | None = None
    frozen_codes: bool = True
    descents: int = 6

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        super().__post_init__()
        if self.normalize is not None:
            _check_choice("normalize", self.normalize, Normalization)
        if len({*map(str, self.checkpoints)}) < len(self.checkpoints):
            raise InputError("`checkpoints` has a file twice; give each once")
        if (self.directions in BY_CHECKPOINTS) != bool(self.checkpoints):
            raise InputError("`directions` towards and pca go with `checkpoints`, and only they")
        if self.directions in LED and self.normalize is not None:
            raise InputError(
                f"`directions` {self.directions} has its own length; leave out `normalize`"
            )

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, before it is prepared.

        Raises:
            InputError: if it cannot.
        """
        from landscape.probes.directions import DIRECTIONS
        from landscape.probes.guided import GUIDED

        if self.directions not in {**DIRECTIONS, **GUIDED}:
            raise InputError(
                f"unknown `directions` {self.directions!r}; choose from "
                f"{', '.join([*DIRECTIONS, *GUIDED])}"
            )
        super().check(settings)
        if self.directions == "hessian" and settings.quantization.scheme != "none":
            raise InputError(
                "`directions` hessian needs a loss that can be differentiated twice: `scheme` none"
            )
        if self.directions == "hessian" and settings.execution not in (None, "simulated"):
            raise InputError(
                "`directions` hessian differentiates twice, which compiled code cannot: "
                "`execution` simulated"
            )
        if self.radius is None and not self.checkpoints and settings.test_images == 1:
            raise InputError(
                "an automatic `radius` needs 2 test images or more; give one, or more `test_images`"
            )
        if self.checkpoints:
            from evolq.data.models import load_model
            from evolq.files.saved import read

            for path in self.checkpoints:
                if settings.quantization.scheme == "none":
                    load_model(settings.model, path, settings.device)
                    continue
                header, _ = read(path)
                own = settings.quantization.scheme
                if header.quantization.scheme != own or header.model not in (settings.model, None):
                    raise InputError(
                        f"`checkpoints` {path} has scheme {header.quantization.scheme} of "
                        f"{header.model}, and the start {own} of {settings.model}; give one of the "
                        "same scheme and model"
                    )

    def check_network(self, network: QuantizedNetwork, model: nn.Module) -> None:
        """Refuse a network that cannot be scanned like this, before it is calibrated.

        Raises:
            InputError: if no name matches, or a checkpoint belongs to another network.
        """
        from evolq.files.saved import load_point

        super().check_network(network, model)
        if network.quantization.scheme != "none":
            for path in self.checkpoints:
                load_point(path, network, model)

    def sample(
        self,
        problem: Problem,
        on_point: OnPoint | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Measure the losses around a problem's start.

        Args:
            problem: from `evolq.prepare`; its seed draws the directions.
            on_point: see `landscape.sample_plane`.
            open_ledger: given all that the points depend on, returns the ledger that keeps them;
                called before the first evaluation.
            executor: see `landscape.sample_plane`.

        Returns:
            What `landscape.sample_plane` or `landscape.sample_rays` returns, with title, names,
            units and provenance.

        Raises:
            InputError: before any work, if the problem cannot be scanned like this.
        """
        self.check(problem.settings)
        from landscape.ledger import begin, hash_of

        moving, ends = _moving(self, problem), _load(problem, self.checkpoints)
        lines = _lines(self, problem, moving, ends)
        leads = [*(line.direction for line in lines), *ends.values()]
        ledger = begin(open_ledger, problem, scan_options(self), leads)
        radius, chosen = _choose_radius(self, problem, lines, ends, ledger, executor)
        measured = {**scan_options(self), "normalize": _normalization(self), **chosen}
        where = self._slice(lines)
        sampler = self._sampler(problem, where, radius, ends)
        hashes = {"directions": hash_of(line.direction for line in lines)}
        dataset = _complete(sampler, problem, self, measured, on_point, ledger, executor, hashes)
        return _compared(self, problem, where, moving, dataset, on_point, ledger, executor)

    def _slice(self, lines: list[Line]) -> Slice:
        """Return what lines from the start span."""
        raise NotImplementedError

    def _sampler(
        self, problem: Problem, where: Any, radius: float, ends: Mapping[str, Point]
    ) -> Sampler:
        """Return what samples the slice, given what is told and a ledger."""
        raise NotImplementedError


@dataclass(frozen=True)
class PlaneScan(_SliceScan):
    """The plane through the start along two directions, orthogonal unless something leads them.

    Raises:
        InputError: if the values do not go together.

    Attributes:
        points: Grid points along each axis.
        rows: Grid points along y, if not as many as along x.
    """

    points: int = 11
    rows: int | None = None

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, see `_SliceScan.check`."""
        check_size(self.points * (self.rows or self.points), settings)
        super().check(settings)

    def _slice(self, lines: list[Line]) -> Plane:
        from landscape.probes.slices import Plane

        x, y = lines
        return Plane(x.origin, x.direction, y.direction)

    def _sampler(
        self, problem: Problem, where: Plane, radius: float, ends: Mapping[str, Point]
    ) -> Sampler:
        from landscape.probes.sampling import axis, sample_plane

        columns, rows = axis(radius, self.points), axis(radius, self.rows or self.points)
        return partial(
            sample_plane, where, columns, rows, problem.objective, problem.test, checkpoints=ends
        )


@dataclass(frozen=True)
class RayScan(_SliceScan):
    """Rays through the start, in both senses, along independent directions.

    Raises:
        InputError: if the values do not go together.

    Attributes:
        rays: Number of rays.
        points: Points along each ray.
    """

    rays: int = 8
    points: int = 11

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, see `_SliceScan.check`."""
        check_size(self.rays * self.points, settings)
        super().check(settings)

    def _slice(self, lines: list[Line]) -> tuple[Line, ...]:
        return tuple(lines)

    def _sampler(
        self, problem: Problem, where: tuple[Line, ...], radius: float, ends: Mapping[str, Point]
    ) -> Sampler:
        from landscape.probes.sampling import axis, sample_rays

        distances = axis(radius, self.points)
        return partial(sample_rays, where, distances, problem.objective, problem.test)


@dataclass(frozen=True)
class WalkScan(_MovingScan):
    """Random walks from the start, by steps of one length in directions drawn anew for each.

    Raises:
        InputError: if a value is out of range.

    Attributes:
        walks: Number of walks.
        steps: Steps of each walk.
        length: Of a step, as the root mean square change: of scales 0.1 changes a typical one by
            10 %.
    """

    walks: int = 4
    steps: int = 15
    length: float = 0.1

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, see `_MovingScan.check`."""
        check_size(self.walks * self.steps, settings)
        super().check(settings)

    def sample(
        self,
        problem: Problem,
        on_point: OnPoint | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Measure the losses along the walks; see `PlaneScan.sample`."""
        self.check(problem.settings)
        import torch

        from landscape.ledger import begin
        from landscape.probes.walks import random_walk, sample_walks

        names = list(_moving(self, problem))
        generator = torch.Generator().manual_seed(problem.settings.seed)
        walks = [
            random_walk(problem.start, names, self.length, self.steps, generator)
            for _ in range(self.walks)
        ]
        ends = ({name: walk[-1][name] for name in names} for walk in walks)
        ledger = begin(open_ledger, problem, scan_options(self), ends)
        sampler = partial(sample_walks, walks, problem.objective, problem.test)
        return _complete(sampler, problem, self, scan_options(self), on_point, ledger, executor)


@dataclass(frozen=True)
class CliffScan(_MovingScan):
    """A line in scale space, and what changes of the weights' codes do to the test loss along it.

    Raises:
        InputError: if a value is out of range.

    Attributes:
        radius: How far the line goes in both senses, as the root mean square log change.
        points: Points along it.
        cliffs: Of each weight, changes of a code at which the loss is measured on both sides.
        intervals: Of the weight whose codes change least often, so many intervals between changes
            are measured around the start, or all there are.
    """

    radius: float = 0.02
    points: int = 17
    cliffs: int = 2
    intervals: int = 40

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.over != "scales":
            raise InputError(
                f"`over` is {self.over}; where codes change is known in closed form along lines "
                "over scales alone"
            )

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, see `_MovingScan.check`."""
        check_size(self.points + self.cliffs + self.intervals, settings)
        super().check(settings)

    def sample(
        self,
        problem: Problem,
        on_point: OnPoint | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Measure the line and its cliffs; see `PlaneScan.sample`."""
        self.check(problem.settings)
        import torch

        from evolq.optimizers.mixed_precision import calibration_table, weight_values
        from landscape.ledger import begin
        from landscape.probes.cliff_scan import sample_cliffs
        from landscape.probes.directions import gaussian, normalize
        from landscape.probes.sampling import axis
        from landscape.probes.slices import Line

        moving = _moving(self, problem)
        generator = torch.Generator().manual_seed(problem.settings.seed)
        line = Line(problem.start, normalize(gaussian(moving, generator), moving))
        values = weight_values(problem.network, problem.start)
        moved = {name: value for name, value in values.items() if f"{name}.scale" in moving}
        table = calibration_table(problem.network, moved)
        ledger = begin(open_ledger, problem, scan_options(self), [line.direction])
        sampler = partial(
            sample_cliffs,
            problem.network,
            line,
            axis(self.radius, self.points),
            table,
            problem.objective,
            problem.test,
            self.cliffs,
            self.intervals,
        )
        measured = {**scan_options(self), "directions": "gaussian", "normalize": "none"}
        return _complete(sampler, problem, self, measured, on_point, ledger, executor)


@dataclass(frozen=True)
class _WidthScan:
    """Weights at other bits than the start's.

    Attributes:
        within: Only the Point's names that match this glob, such as 'blocks.3.*'.
        exclude: Not the Point's names that match this glob.
    """

    within: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_fields(self, **NUMBERS)

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, before it is prepared.

        Raises:
            InputError: if it cannot.
        """
        if settings.quantization.scheme == "none":
            raise InputError("`scheme` none has no bits; choose another")

    def check_network(self, network: QuantizedNetwork, model: nn.Module) -> None:
        """Refuse a network that has nothing to scan, before it is calibrated.

        Raises:
            InputError: if no name matches.
        """
        from evolq.points import select

        select(network.names, {"bits"}, self.within, self.exclude)

    def sample(
        self,
        problem: Problem,
        on_point: OnPoint | None = None,
        open_ledger: OpenLedger | None = None,
        executor: Executor | None = None,
    ) -> xr.Dataset:
        """Measure the losses of other bits; see `PlaneScan.sample`."""
        self.check(problem.settings)
        from landscape.ledger import begin

        table = _calibrated(problem, self.within, self.exclude)
        leads = (entries for widths in table.values() for entries in widths.values())
        ledger = begin(open_ledger, problem, scan_options(self), leads)
        sampler = self._sampler(problem, table)
        measured = scan_options(self)
        return _complete(sampler, problem, self, measured, on_point, ledger, executor)

    def _sampler(self, problem: Problem, table: Table) -> Sampler:
        """Return what samples the entries of a table, given what is told and a ledger."""
        raise NotImplementedError


@dataclass(frozen=True)
class BitScan(_WidthScan):
    """All weights at 2 to 8 bits, against a factor on their calibrated scales.

    Raises:
        InputError: if a value is out of range.

    Attributes:
        radius: Logarithm of the largest factor on the scales, and of one over the smallest; a
            factor of 2 by default, which spans what a calibration could have got wrong.
        points: Number of factors.
    """

    radius: float = math.log(2)
    points: int = 11

    def check(self, settings: Settings) -> None:
        """Refuse a problem that cannot be scanned like this, see `_WidthScan.check`."""
        check_size((MAX_BITS - MIN_BITS + 1) * self.points, settings)
        super().check(settings)

    def _sampler(self, problem: Problem, table: Table) -> Sampler:
        import numpy as np

        from landscape.probes.bit_widths import sample_bits
        from landscape.probes.sampling import axis

        factors = np.exp(axis(self.radius, self.points))
        return partial(sample_bits, problem.start, table, factors, problem.objective, problem.test)


@dataclass(frozen=True)
class LayerScan(_WidthScan):
    """One layer at a time at 2 to 8 bits, all others as in the start."""

    def _sampler(self, problem: Problem, table: Table) -> Sampler:
        from landscape.probes.bit_widths import sample_layers

        return partial(sample_layers, problem.start, table, problem.objective, problem.test)


Scan = PlaneScan | RayScan | WalkScan | CliffScan | BitScan | LayerScan
SCANS: dict[str, type[Scan]] = {
    "plane": PlaneScan,
    "rays": RayScan,
    "walks": WalkScan,
    "cliffs": CliffScan,
    "bits": BitScan,
    "layers": LayerScan,
}


def scan_options(scan: _MovingScan | _WidthScan) -> dict[str, Any]:
    """Return the options that declare a scan, its kind as `probe`."""
    (kind,) = (name for name, kind in SCANS.items() if kind is type(scan))
    return {"probe": kind, **configuration(scan)}


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"unknown `{name}` {value!r}; choose from {', '.join(get_args(choices))}")


def check_size(points: int, settings: Settings) -> None:
    """Refuse points whose losses would fill `LARGEST_FILE`.

    Raises:
        InputError: with the estimate.
    """
    needed = points * (POINT_BYTES + 4 * settings.calibration_images + 5 * settings.test_images)
    if needed > LARGEST_FILE:
        raise InputError(
            f"{points:,} `points` with {settings.calibration_images:,} calibration and "
            f"{settings.test_images:,} test images need {needed / 1e9:,.0f} GB; ask for less than "
            f"{LARGEST_FILE / 1e9:,.0f} GB: fewer points or images"
        )


def _normalization(scan: _SliceScan) -> Normalization:
    """Return how directions are normalized; only those of weights that are drawn have a choice."""
    drawn_weights = scan.over == "weights" and scan.directions not in LED
    return scan.normalize or ("filter" if drawn_weights else "none")


def _moving(scan: _MovingScan, problem: Problem) -> Point:
    from evolq.points import select

    return select(problem.start, {ROLES[scan.over]}, scan.within, scan.exclude)


def _load(problem: Problem, paths: tuple[Path, ...]) -> dict[str, Point]:
    """Return checkpoints by the names of their files, without folders if that tells them apart."""
    from landscape.probes.guided import load_checkpoints

    short = len({path.stem for path in paths}) == len(set(paths))
    names = [path.stem if short else str(path) for path in paths]
    return dict(zip(names, load_checkpoints(problem, paths), strict=True))


def _lines(
    scan: _SliceScan,
    problem: Problem,
    moving: Point,
    ends: Mapping[str, Point],
) -> list[Line]:
    """Return the lines of a scan: two orthogonal ones for a plane, or its number of rays."""
    import torch

    from landscape.probes.directions import DIRECTIONS, normalize, orthogonal_pair
    from landscape.probes.guided import GUIDED, Guide
    from landscape.probes.slices import Line

    kind, how = scan.directions, _normalization(scan)
    rays = scan.rays if isinstance(scan, RayScan) else None
    generator = torch.Generator().manual_seed(problem.settings.seed)
    if kind in LED:
        guide = Guide(list(ends.values()), problem.objective)
        found = GUIDED[kind](moving, problem.start, rays or 2, guide)
        if rays is None and len(found) < 2:
            raise InputError(
                f"`directions` {kind} found {len(found)} with {len(ends)} checkpoints, and a plane "
                "needs 2; give more different checkpoints, or scan rays"
            )
    elif rays is None:
        found = list(orthogonal_pair(moving, generator, kind, how))
    else:
        draws = (DIRECTIONS[kind](moving, generator) for _ in range(rays))
        found = [normalize(drawn, moving, how) for drawn in draws]
    return [Line(problem.start, direction) for direction in found]


def _choose_radius(
    scan: _SliceScan,
    problem: Problem,
    lines: list[Line],
    ends: Mapping[str, Point],
    ledger: Ledger | None,
    executor: Executor | None,
) -> tuple[float, dict[str, Any]]:
    """Return the radius, and how it was chosen, for the provenance."""
    import numpy as np

    from landscape.ledger import Arrays, folder_of, remember
    from landscape.probes.sampling import auto_radius

    def measure() -> Arrays:
        folder = folder_of(ledger)
        found = auto_radius(lines, problem.test, executor=executor, folder=folder)
        values = (found.radius, found.reached, found.chosen.change, found.chosen.standard_errors)
        names = ("radius", "reached", "change", "standard_errors")
        return {name: np.array(value) for name, value in zip(names, values, strict=True)}

    chosen: dict[str, Any] = {"radius_is_auto": scan.radius is None}
    if scan.radius is not None:
        radius = scan.radius
    elif ends:
        radius = BEYOND_CHECKPOINTS * _reach(lines, ends, scan.directions)
    else:
        found = remember(ledger, "radius", measure)
        radius = float(found["radius"])
        chosen |= {
            "radius_reached": bool(found["reached"]),
            "radius_change": _number(float(found["change"])),
            "radius_standard_errors": _number(float(found["standard_errors"])),
        }
    return radius, {"radius": radius, **chosen}


def _reach(lines: list[Line], ends: Mapping[str, Point], directions: Directions) -> float:
    """Return how far the checkpoints are along the lines, in lengths of the directions."""
    if directions == "towards":  # each at 1 on its own line
        return 1.0
    return max(abs(line.project(end)[0]) for line in lines for end in ends.values())


def _number(value: float) -> float | None:
    """Return what JSON can hold."""
    return value if math.isfinite(value) else None


def _calibrated(problem: Problem, within: str | None, exclude: str | None) -> Table:
    """Return scale and zero point at each number of bits, of the weights that change."""
    from evolq.optimizers.mixed_precision import calibration_table, weight_values
    from evolq.points import select

    moving = select(problem.start, {"bits"}, within, exclude)
    values = weight_values(problem.network, problem.start)
    return calibration_table(
        problem.network,
        {name: value for name, value in values.items() if f"{name}.bits" in moving},
    )


def _compared(
    scan: _SliceScan,
    problem: Problem,
    where: Slice,
    moving: Point,
    dataset: xr.Dataset,
    on_point: OnPoint | None,
    ledger: Ledger | None,
    executor: Executor | None,
) -> xr.Dataset:
    """Measure the null of frozen codes, and ways out of the minima off the slice."""
    import torch

    from landscape.probes.escapes import add_escapes
    from landscape.probes.frozen_null import add_frozen, can_freeze

    if scan.frozen_codes and scan.over == "scales" and can_freeze(problem.network, where):
        add_frozen(dataset, where, problem.network, problem.test, on_point, ledger, executor)
    if "failed" in dataset.attrs or (ledger is not None and ledger.part is not None):
        return dataset  # its minima are known when all points are
    if not scan.descents:
        return dataset
    # another stream than that of the directions of the slice
    generator = torch.Generator().manual_seed(problem.settings.seed + 1)
    return add_escapes(
        dataset,
        where,
        moving,
        _normalization(scan),
        problem.objective,
        problem.test,
        scan.descents,
        generator,
        ledger,
        executor,
    )


def _complete(
    sample: Sampler,
    problem: Problem,
    scan: _MovingScan | _WidthScan,
    measured: Mapping[str, Any],
    on_point: OnPoint | None,
    ledger: Ledger | None,
    executor: Executor | None,
    hashes: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """Sample; names, units and provenance are in the Dataset before the first point is measured.

    Args:
        sample: what measures, given `on_point`, called after each point, `ledger` and `executor`.
        problem: what is measured.
        scan: as it was declared.
        measured: the same with what became of it, such as its radius.
        on_point: of the user.
        ledger: keeps the points, and the repeats of the start.
        executor: measures the points.
        hashes: of what the slice is spanned by, for the provenance.
    """
    import torch

    from landscape.probes.jitter import add_repeats
    from landscape.words import name_scan

    generator = torch.Generator().manual_seed(problem.settings.seed)
    own = problem.provenance["configuration"]
    provenance = problem.provenance | {
        "configuration": own | measured,
        "hashes": problem.provenance["hashes"] | (hashes or {}),
    }
    if "options" in provenance:
        provenance["options"] = provenance["options"] | scan_options(scan)

    def told(dataset: xr.Dataset, done: int, total: int) -> None:
        if done == 0:
            if isinstance(scan, _MovingScan) and scan.repeats:
                add_repeats(
                    dataset,
                    problem.objective,
                    problem.test,
                    problem.start,
                    scan.repeats,
                    generator,
                    ledger,
                )
            dataset.attrs["provenance"] = json.dumps(provenance)
            name_scan(dataset, own | measured)
        if on_point:
            on_point(dataset, done, total)

    return sample(on_point=told, ledger=ledger, executor=executor)
