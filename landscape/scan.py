"""Command line: map the loss surface around a quantized network.

`python -m landscape.scan` scans the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evolq import command_line as options
from evolq.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

    from evolq.points import Point
    from evolq.problem import Problem
    from landscape.probes.sampling import OnPoint
    from landscape.probes.slices import Line

    Sample = Callable[[OnPoint], xr.Dataset]

# Seconds between saves of an unfinished scan: what a killed process can lose.
SAVE_SECONDS = 15.0

# What --over names: a role of a Point's entries, and how directions are normalized by default.
OVER = {
    "scales": ("scale", "none"),
    "zero_points": ("zero_point", "none"),
    "weights": ("weight", "filter"),
    "bits": ("bits", "none"),
}
PROBES = ("plane", "rays", "layers")
RESULTS = ("scan.nc", "scan.png", "scan.html")
# Without --weight-bits; a scan over bits starts where nothing is lost yet.
WEIGHT_BITS, WEIGHT_BITS_OVER_BITS = 4, 8
# Over bits, --radius auto: a factor of 2 each way spans what a calibration could have got wrong.
BITS_RADIUS = math.log(2)
# Led by checkpoints, --radius auto: so many times as far as they are. Towards them, 11 points then
# hit the start and each checkpoint.
BEYOND_CHECKPOINTS = 1.25


def scan(
    context: typer.Context,
    model: options.Model = "fashion_vit",
    weights: options.Weights = None,
    images: options.Images = None,
    calibration_dir: options.CalibrationDir = None,
    test_dir: options.TestDir = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Scan around this saved quantized model; it brings its own scheme, bits and "
            "scales."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(help="Bits of a weight, 2 to 8; 4 by default, 8 with --over bits."),
    ] = None,
    activation_bits: options.ActivationBits = 8,
    scheme: options.Scheme = "linear",
    execution: options.Execution = "simulated",
    observer: options.Observer = "mse",
    over: Annotated[
        str, typer.Option(help="What moves: scales, zero_points, weights, or bits of weights.")
    ] = "scales",
    within: options.Within = None,
    exclude: Annotated[
        str | None, typer.Option(help="Not the Point's names that match this glob.")
    ] = None,
    probe: Annotated[
        str,
        typer.Option(
            help="plane or rays. Over bits, plane: 2 to 8 bits of all weights against a factor on "
            "their scales; layers: one layer at a time at 2 to 8 bits."
        ),
    ] = "plane",
    directions: Annotated[
        str,
        typer.Option(
            help="Drawn: gaussian, uniform or rademacher. Led: towards (to --checkpoints), pca (of "
            "--checkpoints), hessian (eigenvectors; --scheme none)."
        ),
    ] = "gaussian",
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where towards and pca lead, given once per FILE: weights of the model with "
            "--scheme none, saved quantized networks otherwise."
        ),
    ] = None,
    radius: Annotated[
        str,
        typer.Option(
            help="How far to go, in lengths of the directions: for scales 0.1 changes a typical "
            "scale by 10 %. auto: double it until the test loss has moved by 4 standard errors; a "
            "factor of 2 over bits, somewhat past the checkpoints with towards and pca."
        ),
    ] = "auto",
    points: Annotated[
        str, typer.Option(help="Grid points: 41, or 41x21 for 41 along x and 21 along y.")
    ] = "11",
    rays: Annotated[int, typer.Option(help="Number of rays.")] = 8,
    normalize: Annotated[
        str | None,
        typer.Option(help="Of weight directions: none, layer or filter (the default)."),
    ] = None,
    criterion: options.CriterionName = "info_nce",
    temperature: options.Temperature = None,
    calibration_images: options.CalibrationImages = 100,
    selection_images: options.SelectionImages = 100,
    test_images: options.TestImages = 200,
    batch_size: options.BatchSize = 50,
    threads: options.Threads = None,
    skip_unreadable: options.SkipUnreadable = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Map the loss surface around a quantized network, and say how far its bumps can be believed.

    Writes scan.nc (all numbers), scan.png and scan.html (interactive).
    """
    columns, rows = _grid(points, probe)
    chosen_radius = _radius(radius)
    if over not in OVER:
        raise InputError(f"unknown --over {over!r}; choose from {', '.join(OVER)}")
    if scheme == "none" and over != "weights":
        raise InputError(f"scheme none has no {over}; give --over weights")
    if probe not in (("plane", "layers") if over == "bits" else ("plane", "rays")):
        raise InputError(f"--probe {probe} does not go with --over {over}; give another --probe")
    if over == "bits" and "x" in points.lower():
        raise InputError(f"--points is {points!r}, but bits have 7 rows anyway; give one number")
    if (directions in ("towards", "pca")) != bool(checkpoints):
        raise InputError("--directions towards and pca go with --checkpoints FILE, and only they")
    if directions in ("towards", "pca", "hessian") and normalize is not None:
        raise InputError(f"--directions {directions} has its own length; leave out --normalize")
    if directions == "hessian" and scheme != "none":
        raise InputError(
            "--directions hessian needs a loss that can be differentiated twice: --scheme none"
        )
    if directions == "hessian" and execution != "simulated":
        raise InputError(
            "--directions hessian differentiates twice, which compiled code cannot: "
            "--execution simulated"
        )
    if over == "bits" and (directions != "gaussian" or checkpoints):
        raise InputError(
            "--over bits has axes of its own; leave out --directions and --checkpoints"
        )
    if rays < 1:
        raise InputError(f"--rays is {rays}; give 1 or more")
    if chosen_radius is None and test_images == 1:
        raise InputError("--radius auto needs 2 test images or more; give --radius or more images")
    options.check_start(context, start)
    if weight_bits is None:
        weight_bits = WEIGHT_BITS_OVER_BITS if over == "bits" else WEIGHT_BITS
    options.check_output_folder(out, overwrite)

    from rich.console import Console

    from evolq.points import select
    from evolq.problem import Settings
    from landscape.probes.directions import DIRECTIONS, NORMALIZATIONS
    from landscape.probes.guided import GUIDED

    for option, value, known in (
        ("directions", directions, [*DIRECTIONS, *GUIDED]),
        ("normalize", normalize or OVER[over][1], NORMALIZATIONS),
    ):
        if value not in known:
            raise InputError(f"unknown --{option} {value!r}; choose from {', '.join(known)}")
    console = Console(stderr=True)
    settings = Settings(
        model=model,
        weights=weights,
        images=images,
        calibration_dir=calibration_dir,
        test_dir=test_dir,
        start=start,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        scheme=scheme,
        execution=execution,
        observer=observer,
        criterion=criterion,
        temperature=temperature,
        calibration_images=calibration_images,
        selection_images=selection_images,
        test_images=test_images,
        batch_size=batch_size,
        threads=threads,
        skip_unreadable=skip_unreadable,
        seed=seed,
        device=device,
    )
    problem = options.prepare(settings, console)
    moving = select(problem.start, {OVER[over][0]}, within, exclude)
    reached = None  # whether an automatic radius moves the loss by 4 standard errors
    configuration = {
        "over": over,
        "within": within,
        "exclude": exclude,
        "probe": probe,
        "points": points,
        "rays": rays if probe == "rays" else None,
    }
    if over == "bits":
        chosen_radius = chosen_radius or BITS_RADIUS
        sample = _over_bits(problem, moving, probe, chosen_radius, columns)
    else:
        how = normalize or ("none" if directions in GUIDED else OVER[over][1])
        configuration |= {"directions": directions, "normalize": how}
        count = 2 if probe == "plane" else rays
        ends = _load(problem, checkpoints or [])
        if directions in GUIDED:
            lines = _guided_lines(problem, moving, count, directions, ends, probe)
        else:
            lines = _lines(problem, moving, None if probe == "plane" else rays, directions, how)
        if chosen_radius is None and ends:
            chosen_radius = BEYOND_CHECKPOINTS * _reach(lines, ends, directions)
        if chosen_radius is None:
            with console.status("Choosing the radius"):
                chosen_radius, reached = _auto(problem, lines, console)
        sample = _over_slice(problem, lines, probe, chosen_radius, columns, rows, ends)
    provenance = problem.provenance
    provenance["configuration"] |= configuration | {
        "radius": chosen_radius,
        "radius_is_auto": radius == "auto",
        "radius_reached": reached,
        "checkpoints": [str(path) for path in checkpoints or []],
    }
    folder = options.make_output_folder(out, overwrite, f"scan-{model}", RESULTS)
    dataset = _measure(sample, provenance, folder)
    _conclude(dataset, folder)


def _grid(points: str, probe: str) -> tuple[int, int]:
    """Parse `--points`: 41 or 41x21."""
    if probe not in PROBES:
        raise InputError(f"unknown --probe {probe!r}; choose from {', '.join(PROBES)}")
    parts = points.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--points is {points!r}; give a number such as 41, or 41x21")
    if probe == "rays" and len(parts) == 2:
        raise InputError(f"--points is {points!r}, but rays have one axis; give one number")
    columns, rows = int(parts[0]), int(parts[-1])
    if min(columns, rows) < 2:
        raise InputError(f"--points is {points!r}; an axis needs 2 points or more")
    return columns, rows


def _radius(radius: str) -> float | None:
    """Parse `--radius`: a positive number, or auto (None)."""
    if radius == "auto":
        return None
    try:
        value = float(radius)
    except ValueError:
        raise InputError(f"--radius is {radius!r}; give a positive number or auto") from None
    if not 0 < value < float("inf"):
        raise InputError(f"--radius is {radius}; give a positive number or auto")
    return value


def _lines(problem: Problem, moving: Point, rays: int | None, kind: str, how: str) -> list[Line]:
    """Draw the directions: an orthogonal pair for a plane, independent ones for `rays` rays."""
    import torch

    from landscape.probes.directions import DIRECTIONS, normalize, orthogonal_pair
    from landscape.probes.slices import Line

    generator = torch.Generator().manual_seed(problem.settings.seed)
    drawn = (
        orthogonal_pair(moving, generator, kind, how)
        if rays is None
        else [normalize(DIRECTIONS[kind](moving, generator), moving, how) for _ in range(rays)]
    )
    return [Line(problem.start, direction) for direction in drawn]


def _load(problem: Problem, paths: list[Path]) -> dict[str, Point]:
    """Return checkpoints by the names of their files, without folders if that tells them apart."""
    from landscape.probes.guided import load_checkpoints

    short = len({path.stem for path in paths}) == len(set(paths))
    names = [path.stem if short else str(path) for path in paths]
    return dict(zip(names, load_checkpoints(problem, paths), strict=True))


def _guided_lines(
    problem: Problem, moving: Point, count: int, kind: str, ends: dict[str, Point], probe: str
) -> list[Line]:
    """Return lines along at most `count` directions that checkpoints or curvature lead."""
    from landscape.probes.guided import GUIDED, Guide
    from landscape.probes.slices import Line

    guide = Guide(list(ends.values()), problem.objective)
    found = GUIDED[kind](moving, problem.start, count, guide)
    if probe == "plane" and len(found) < 2:
        raise InputError(
            f"--directions {kind} found {len(found)} with {len(ends)} checkpoints, and a plane "
            "needs 2; give more different --checkpoints, or --probe rays"
        )
    return [Line(problem.start, direction) for direction in found]


def _reach(lines: list[Line], ends: dict[str, Point], kind: str) -> float:
    """Return how far the checkpoints are along the lines, in lengths of the directions."""
    if kind == "towards":  # each at 1 on its own line
        return 1.0
    return max(abs(line.project(end)[0]) for line in lines for end in ends.values())


def _auto(problem: Problem, lines: list[Line], console: Console) -> tuple[float, bool]:
    """Choose the radius, say what was chosen, and return whether it moves the test loss enough."""
    from landscape.probes.sampling import auto_radius

    found = auto_radius(lines, problem.test)
    last = found.tried[-1]
    words = (
        f"Radius {found.radius:g} (auto): the test loss has moved by {last.change:+.4f} there, "
        f"{last.standard_errors:.1f} paired standard errors."
    )
    if not found.reached:
        words += " That is less than 4: the surface is flat as far as these images can tell."
    console.print(words)
    return found.radius, found.reached


def _over_slice(
    problem: Problem,
    lines: list[Line],
    probe: str,
    radius: float,
    columns: int,
    rows: int,
    ends: dict[str, Point],
) -> Sample:
    """Return what measures a plane or rays, given what to call after each point."""
    from landscape.probes.sampling import axis, sample_plane, sample_rays
    from landscape.probes.slices import Plane

    losses = problem.objective, problem.test
    if probe == "rays":
        return lambda on_point: sample_rays(lines, axis(radius, columns), *losses, on_point)
    plane = Plane(problem.start, lines[0].direction, lines[1].direction)
    axes = axis(radius, columns), axis(radius, rows)
    return lambda on_point: sample_plane(plane, *axes, *losses, on_point, ends)


def _over_bits(problem: Problem, moving: Point, probe: str, radius: float, columns: int) -> Sample:
    """Return what measures bit-widths of those weights whose bits are in `moving`."""
    import numpy as np

    from evolq.optimizers.mixed_precision import calibration_table, weight_values
    from landscape.probes.bit_widths import sample_bits, sample_layers
    from landscape.probes.sampling import axis

    network, settings = problem.network, problem.settings
    weights = {
        name: value
        for name, value in weight_values(network, problem.split.calibration.images).items()
        if f"{name}.bits" in moving
    }
    table = calibration_table(network, weights, settings.weight_observer or settings.observer)
    losses = problem.objective, problem.test
    if probe == "layers":
        return lambda on_point: sample_layers(problem.start, table, *losses, on_point)
    multipliers = np.exp(axis(radius, columns))
    return lambda on_point: sample_bits(problem.start, table, multipliers, *losses, on_point)


def _measure(sample: Sample, provenance: dict[str, Any], folder: Path) -> xr.Dataset:
    """Sample with a progress bar; an unfinished scan is saved now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from landscape.store import save

    saved = time.monotonic()

    def on_point(dataset: xr.Dataset, done: int, total: int) -> None:
        nonlocal saved
        progress.update(task, completed=done, total=total)
        dataset.attrs["provenance"] = json.dumps(provenance)
        if done == total or time.monotonic() - saved > SAVE_SECONDS:
            save(dataset, folder / "scan.nc")
            saved = time.monotonic()

    with Progress(
        TextColumn("Measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("points,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("points")
        return sample(on_point)


def _conclude(dataset: xr.Dataset, folder: Path) -> None:
    """Analyze, print, draw."""
    from rich.console import Console

    from landscape.plots import (
        draw_bits,
        draw_plane,
        draw_rays,
        interactive,
        save_figure,
        write_html,
    )
    from landscape.report import describe, describe_bits, table
    from landscape.statistics.minima import significant_minima
    from landscape.statistics.roughness import split_half_reliability, total_variation

    console = Console()
    if "bits" in dataset.dims:
        console.print(table(describe_bits(dataset)))  # before the figures, should the disk be full
        figure, page = draw_bits(dataset), interactive(dataset)
    else:
        minima = significant_minima(dataset)
        rows = describe(
            dataset,
            minima,
            total_variation(dataset["test_loss"]),
            split_half_reliability(dataset["test_loss_per_image"]),
        )
        console.print(table(rows))
        plane = "x" in dataset.dims
        figure = draw_plane(dataset, minima.minima) if plane else draw_rays(dataset)
        page = interactive(dataset, minima.minima)
    save_figure(figure, folder / "scan.png")
    write_html(page, folder / "scan.html")
    console.print(f"Written to {folder}: {', '.join(RESULTS)}", highlight=False)


if __name__ == "__main__":
    options.run(scan)
