"""Command line: map the loss surface around a quantized network.

`python -m landscape.scan` scans the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from evolq import command_line as options
from evolq.errors import InputError
from landscape.scans import BitScan, LayerScan, PlaneScan, RayScan, Scan

# What --over and --probe name together.
SCANS: dict[tuple[bool, str], type[Scan]] = {
    (False, "plane"): PlaneScan,
    (False, "rays"): RayScan,
    (True, "plane"): BitScan,
    (True, "layers"): LayerScan,
}
# Without --weight-bits; a scan over bits starts where nothing is lost yet.
WEIGHT_BITS, WEIGHT_BITS_OVER_BITS = 4, 8


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
    far = _radius(radius)
    chosen = _scan(
        over, probe, points, far, rays, directions, checkpoints, normalize, within, exclude
    )
    options.check_start(context, start)
    if weight_bits is None:
        weight_bits = WEIGHT_BITS_OVER_BITS if over == "bits" else WEIGHT_BITS
    options.check_output_folder(out, overwrite)

    from rich.console import Console

    from evolq.problem import Settings

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
    chosen.check(settings)
    problem = options.prepare(settings, Console(stderr=True))

    from landscape.results import RESULTS, measure, write

    claim = partial(options.make_output_folder, out, overwrite, f"scan-{model}", RESULTS)
    write(*measure(chosen, problem, claim))


def _scan(
    over: str,
    probe: str,
    points: str,
    radius: float | None,
    rays: int,
    directions: str,
    checkpoints: list[Path] | None,
    normalize: str | None,
    within: str | None,
    exclude: str | None,
) -> Scan:
    """Return what the options name."""
    kind = SCANS.get((over == "bits", probe))
    if kind is None:
        known = [name for bits, name in SCANS if bits == (over == "bits")]
        raise InputError(f"--probe {probe} does not go with --over {over}: give {', '.join(known)}")
    given: dict[str, Any] = {"within": within, "exclude": exclude}
    grid = _grid(points)
    if kind is not PlaneScan and len(grid) > 1:
        raise InputError(f"--points is {points!r}, but only planes have two axes; give one number")
    if kind is not LayerScan:
        given["points"] = grid[0]
    if kind is PlaneScan:
        given["rows"] = grid[1] if len(grid) > 1 else None
    if kind is RayScan:
        given["rays"] = rays
    if over == "bits":
        if directions != "gaussian" or checkpoints:
            raise InputError(
                "--over bits has axes of its own; leave out --directions and --checkpoints"
            )
        if kind is BitScan and radius is not None:
            given["radius"] = radius
    else:
        given |= {
            "over": over,
            "directions": directions,
            "checkpoints": tuple(checkpoints or ()),
            "normalize": normalize,
            "radius": radius,
        }
    return kind(**given)


def _grid(points: str) -> list[int]:
    """Parse `--points`: 41 or 41x21."""
    parts = points.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--points is {points!r}; give a number such as 41, or 41x21")
    return [int(part) for part in parts]


def _radius(radius: str) -> float | None:
    """Parse `--radius`: a number, or auto (None)."""
    if radius == "auto":
        return None
    try:
        return float(radius)
    except ValueError:
        raise InputError(f"--radius is {radius!r}; give a positive number or auto") from None


if __name__ == "__main__":
    options.run(scan)
