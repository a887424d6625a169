"""Command line: map the loss surface around a quantized network.

`python -m landscape.scan` scans the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

import json
import time
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
    from landscape.slices import Line

# Seconds between saves of an unfinished scan: what a killed process can lose.
SAVE_SECONDS = 15.0

# What --over names: a role of a Point's entries, and how directions are normalised by default.
OVER = {
    "scales": ("scale", "none"),
    "zero_points": ("zero_point", "none"),
    "weights": ("weight", "filter"),
}
PROBES = ("plane", "rays")
RESULTS = ("scan.nc", "scan.png", "scan.html")
# What a saved network brings with it.
OF_THE_START = ("scheme", "weight_bits", "activation_bits", "observer")


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
    weight_bits: options.WeightBits = 4,
    activation_bits: options.ActivationBits = 8,
    scheme: options.Scheme = "linear",
    observer: options.Observer = "mse",
    over: Annotated[
        str, typer.Option(help="What moves: scales, zero_points or weights.")
    ] = "scales",
    within: options.Within = None,
    exclude: Annotated[
        str | None, typer.Option(help="Not the Point's names that match this glob.")
    ] = None,
    probe: Annotated[str, typer.Option(help="plane or rays.")] = "plane",
    directions: Annotated[
        str, typer.Option(help="How directions are drawn: gaussian, uniform or rademacher.")
    ] = "gaussian",
    radius: Annotated[
        str,
        typer.Option(
            help="How far to go, in lengths of the directions: for scales 0.1 changes a typical "
            "scale by 10 %. auto: double it until the test loss has moved by 4 standard errors."
        ),
    ] = "auto",
    points: Annotated[
        str, typer.Option(help="Grid points: 41, or 41x21 for 41 along x and 21 along y.")
    ] = "11",
    rays: Annotated[int, typer.Option(help="Number of rays.")] = 8,
    normalise: Annotated[
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
    if rays < 1:
        raise InputError(f"--rays is {rays}; give 1 or more")
    if chosen_radius is None and test_images == 1:
        raise InputError("--radius auto needs 2 test images or more; give --radius or more images")
    for name in OF_THE_START if start is not None else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise InputError(f"--start brings its own {option}; leave out --{option}")
    options.check_output_folder(out, overwrite)

    from rich.console import Console

    from evolq.points import select
    from evolq.problem import Settings, prepare
    from landscape.directions import DIRECTIONS, NORMALISATIONS

    for option, value, known in (
        ("directions", directions, DIRECTIONS),
        ("normalise", normalise or OVER[over][1], NORMALISATIONS),
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
    with console.status("Loading, quantizing and calibrating") as status:

        def on_image(done: int, total: int) -> None:
            status.update(f"Reading images: {done} of {total}")

        problem = prepare(settings, on_image)
    moving = select(problem.start, {OVER[over][0]}, within, exclude)
    how = normalise or OVER[over][1]
    lines = _lines(problem, moving, None if probe == "plane" else rays, directions, how)
    reached = None
    if chosen_radius is None:
        with console.status("Choosing the radius"):
            chosen_radius, reached = _auto(problem, lines, console)
    provenance = problem.provenance
    provenance["configuration"] |= {
        "over": over,
        "within": within,
        "exclude": exclude,
        "probe": probe,
        "directions": directions,
        "normalise": how,
        "radius": chosen_radius,
        "radius_is_auto": reached is not None,
        "radius_reached": reached,  # its 4 standard errors; None if the radius was given
        "points": points,
        "rays": rays if probe == "rays" else None,
    }
    folder = options.make_output_folder(out, overwrite, f"scan-{model}", RESULTS)
    dataset = _measure(problem, lines, probe, chosen_radius, columns, rows, provenance, folder)
    _conclude(dataset, probe, folder)


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

    from landscape.directions import DIRECTIONS, normalise, orthogonal_pair
    from landscape.slices import Line

    generator = torch.Generator().manual_seed(problem.settings.seed)
    drawn = (
        orthogonal_pair(moving, generator, kind, how)
        if rays is None
        else [normalise(DIRECTIONS[kind](moving, generator), moving, how) for _ in range(rays)]
    )
    return [Line(problem.start, direction) for direction in drawn]


def _auto(problem: Problem, lines: list[Line], console: Console) -> tuple[float, bool]:
    """Choose the radius, say what was chosen, and return whether it moves the test loss enough."""
    from landscape.sampling import auto_radius

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


def _measure(
    problem: Problem,
    lines: list[Line],
    probe: str,
    radius: float,
    columns: int,
    rows: int,
    provenance: dict[str, Any],
    folder: Path,
) -> xr.Dataset:
    """Sample the slice with a progress bar; an unfinished scan is saved now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from landscape.sampling import axis, sample_plane, sample_rays
    from landscape.slices import Plane
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
        if probe == "plane":
            plane = Plane(problem.start, lines[0].direction, lines[1].direction)
            return sample_plane(
                plane,
                axis(radius, columns),
                axis(radius, rows),
                problem.objective,
                problem.test,
                on_point,
            )
        return sample_rays(lines, axis(radius, columns), problem.objective, problem.test, on_point)


def _conclude(dataset: xr.Dataset, probe: str, folder: Path) -> None:
    """Analyse, print, draw."""
    from rich.console import Console

    from landscape.minima import significant_minima
    from landscape.plots import draw_plane, draw_rays, interactive, save_figure, write_html
    from landscape.report import describe, table
    from landscape.roughness import split_half_reliability, total_variation

    minima = significant_minima(dataset)
    rows = describe(
        dataset,
        minima,
        total_variation(dataset["test_loss"]),
        split_half_reliability(dataset["test_loss_per_image"]),
    )
    console = Console()
    console.print(table(rows))  # before the figures, should the disk be full
    figure = draw_plane(dataset, minima.minima) if probe == "plane" else draw_rays(dataset)
    save_figure(figure, folder / "scan.png")
    write_html(interactive(dataset, minima.minima), folder / "scan.html")
    console.print(f"Written to {folder}: {', '.join(RESULTS)}", highlight=False)


if __name__ == "__main__":
    options.run(scan)
