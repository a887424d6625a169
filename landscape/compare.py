"""Command line: gradient against evolution, from the same start and at equal cost.

`python -m landscape.compare` compares three optimizers on the bundled vision transformer; `--help`
lists the options.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evolq import command_line as options
from evolq.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from rich.status import Status

    from evolq.problem import Settings

# Sizes of calibration sets when loss functions are compared.
CALIBRATION_SIZES = (32, 100, 300, 1000)

RESULTS = ("compare.nc", "compare.png", "compare.html", "transfer.nc", "transfer.png")


def compare(
    context: typer.Context,
    model: options.Model = "fashion_vit",
    weights: options.Weights = None,
    images: options.Images = None,
    calibration_dir: options.CalibrationDir = None,
    test_dir: options.TestDir = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Start from this saved quantized model, with its scheme and bits."),
    ] = None,
    weight_bits: options.WeightBits = 3,
    activation_bits: options.ActivationBits = 8,
    scheme: options.Scheme = "linear",
    execution: options.Execution = "simulated",
    observer: options.Observer = "mse",
    optimizers: Annotated[
        str,
        typer.Option(
            help="Of evol-q, sgd, adam, adamw, spsa, one-plus-one-es, random-search, cma, "
            "coordinate-descent, powell; the first is what the others are compared with."
        ),
    ] = "evol-q,adam,cma",
    budget: Annotated[
        float, typer.Option(help="Of each run, in forward passes of the calibration set.")
    ] = 60,
    seeds: Annotated[int, typer.Option(help="Runs of each optimizer that draws anything.")] = 3,
    learning_rates: Annotated[
        str,
        typer.Option(help="Swept for each gradient method, judged by the calibration loss."),
    ] = "0.003,0.01,0.03",
    within: options.Within = None,
    plane: Annotated[
        str,
        typer.Option(
            help="Of the map: ends (through start, gradient's end and evolution's end), pca or "
            "random."
        ),
    ] = "ends",
    points: Annotated[int, typer.Option(help="Points of the map along each axis.")] = 13,
    criterion: Annotated[
        str,
        typer.Option(
            help="Calibration loss: info_nce, kl, mse, cosine, cross_entropy or fisher. Several, "
            "with commas: how each one's gain carries over to test images, by calibration set."
        ),
    ] = "info_nce",
    temperature: options.Temperature = None,
    calibration_images: Annotated[
        str | None,
        typer.Option(
            help="Number of calibration images, 100 by default; with several criteria several "
            "numbers, 32,100,300,1000 by default."
        ),
    ] = None,
    test_images: options.TestImages = 500,
    batch_size: options.BatchSize = 50,
    threads: options.Threads = None,
    skip_unreadable: options.SkipUnreadable = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare optimizers of scales from the same start, at equal cost, on one map.

    Writes compare.nc (all numbers), compare.png and compare.html (animated); with several criteria
    transfer.nc and transfer.png. No optimizer sees a test image.
    """
    criteria = _listed("criterion", criterion, str)
    sizes = _listed("calibration-images", calibration_images or _sizes(len(criteria)), int)
    rates = _listed("learning-rates", learning_rates, float)
    chosen = _listed("optimizers", optimizers, str)
    if not all(0 < rate < float("inf") for rate in rates):
        raise InputError(f"--learning-rates is {learning_rates}; give positive numbers")
    if len(criteria) == 1 and len(sizes) > 1:
        raise InputError("several numbers of --calibration-images need several criteria")
    for option, value, least in (("seeds", seeds, 1), ("points", points, 2)):
        if value < least:
            raise InputError(f"--{option} is {value}; give {least} or more")
    if not 2 <= budget < float("inf"):
        raise InputError(f"--budget is {budget:g} forward passes; give 2 or more")
    if test_images < 2:
        raise InputError(f"--test-images is {test_images}; an interval needs 2 or more")
    options.check_start(context, start)
    options.check_output_folder(out, overwrite)

    from rich.console import Console

    from evolq.losses.criteria import choose_criterion
    from evolq.optimizers.registry import choose_optimizer
    from evolq.problem import Settings
    from landscape.paths.comparison import check_plane

    for name in chosen:
        if choose_optimizer(name).gradient and execution == "integer":
            raise InputError(
                f"{name} needs gradients, which --execution integer has not; compiled has"
            )
    for name in criteria:
        if choose_criterion(name).uses_labels:
            Console(stderr=True).print(f"Criterion {name} reads the labels of calibration images.")
    if len(criteria) == 1:
        check_plane(plane, chosen)
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
        criterion=criteria[0],
        temperature=temperature if len(criteria) == 1 else None,
        calibration_images=max(sizes),
        selection_images=0,
        test_images=test_images,
        batch_size=batch_size,
        threads=threads,
        skip_unreadable=skip_unreadable,
        seed=seed,
        device=device,
    )
    search = {
        "optimizers": chosen,
        "budget": budget,
        "seeds": list(range(seeds)),
        "learning_rates": rates,
    }
    recorded = {**search, "within": within}
    claim = partial(options.make_output_folder, out, overwrite, f"compare-{model}", RESULTS)
    if len(criteria) == 1:
        _compare(settings, search, within, plane, points, recorded | {"plane": plane}, claim)
    else:
        recorded |= {"criteria": criteria, "sizes": sizes}
        _transfer(settings, search, within, criteria, sizes, recorded, claim)


def _sizes(criteria: int) -> str:
    return "100" if criteria == 1 else ",".join(map(str, CALIBRATION_SIZES))


def _listed(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Parse a list with commas; doubles are refused."""
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{option} is {text!r}; give numbers with commas between") from None
    if len(set(values)) < len(values) or "" in values:
        raise InputError(f"--{option} is {text!r}; give each once, with commas between")
    return values


def _compare(
    settings: Settings,
    search: dict[str, Any],
    within: str | None,
    plane: str,
    points: int,
    recorded: dict[str, Any],
    claim: Callable[[], Path],
) -> None:
    """Run, measure, save, draw, print."""
    import torch
    from rich.console import Console

    from evolq.points import select
    from landscape.paths.comparison import (
        common_plane,
        measure_runs,
        run_optimizers,
        sample_surface,
        with_surface,
    )
    from landscape.plots import draw_comparison, interactive_comparison, save_figure, write_html
    from landscape.store import save

    console = Console(stderr=True)
    problem = options.prepare(settings, console)
    names = list(select(problem.start, {"scale"}, within))
    folder = claim()
    with console.status("Searching") as status:
        runs = run_optimizers(
            problem.objective,
            problem.start,
            names=names,
            **search,
            on_run=lambda name, seed: status.update(f"Searching: {name}, seed {seed}"),
        )
        status.update("Measuring the paths on test images")
        generator = torch.Generator().manual_seed(settings.seed)
        common = common_plane(plane, problem.start, runs, names, generator)
        dataset = measure_runs(runs, common.plane, problem.test)
        surface = sample_surface(
            dataset,
            common.plane,
            problem.objective,
            problem.test,
            points,
            lambda _, done, total: status.update(f"Measuring the map: {done} of {total} points"),
        )
    dataset = with_surface(dataset, surface, common)
    problem.provenance["configuration"] |= recorded
    dataset.attrs["provenance"] = json.dumps(problem.provenance)
    save(dataset, folder / "compare.nc", "compare")
    save_figure(draw_comparison(dataset), folder / "compare.png")
    write_html(interactive_comparison(dataset), folder / "compare.html")
    _print_outcomes(dataset, folder)


def _transfer(
    settings: Settings,
    search: dict[str, Any],
    within: str | None,
    criteria: list[str],
    sizes: list[int],
    recorded: dict[str, Any],
    claim: Callable[[], Path],
) -> None:
    """Run each criterion on each calibration set, save, draw, print."""
    import xarray as xr
    from rich.console import Console

    from evolq.points import select
    from landscape.paths.transfer import transfer
    from landscape.plots import draw_transfer, save_figure
    from landscape.store import save

    console = Console(stderr=True)
    parts: list[xr.Dataset] = []
    for size in sorted(sizes, reverse=True):  # too many images are found out at once
        problem = options.prepare(replace(settings, calibration_images=size), console)
        names = list(select(problem.start, {"scale"}, within))
        if not parts:
            folder = claim()
            provenance = problem.provenance
        with console.status("Searching") as status:
            parts.append(
                transfer(
                    problem.objective,
                    problem.start,
                    problem.test,
                    names=names,
                    criteria=criteria,
                    **search,
                    on_run=partial(_tell, status, size),
                )
            )
    dataset = xr.concat(parts[::-1], "size", join="exact").sortby("size")
    provenance["configuration"] |= recorded
    dataset.attrs["provenance"] = json.dumps(provenance)
    save(dataset, folder / "transfer.nc", "transfer")
    save_figure(draw_transfer(dataset), folder / "transfer.png")
    _print_transfer(dataset, folder)


def _tell(status: Status, size: int, criterion: str, optimizer: str, seed: int) -> None:
    status.update(f"Searching on {size:,} calibration images: {criterion}, {optimizer}, {seed}")


def _print_outcomes(dataset: xr.Dataset, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from landscape.paths.comparison import outcomes
    from landscape.plots.comparison_info import against_words, cost_words, interval_words

    found = outcomes(dataset)
    table = Table(
        "Optimizer", "Calibration\nloss", "Test\naccuracy", "Change, points\n95 % interval"
    )
    table.add_column(f"Against {found[0].optimizer}")
    table.add_column("Cost\n(sweep)")
    accuracy = float(dataset.start_test_correct_per_image.mean())
    loss = float(dataset.loss.isel(optimizer=0, seed=0, iterate=0))
    table.add_row("start", f"{loss:.4f}", f"{accuracy:.1%}")
    for row in found:
        table.add_row(
            row.optimizer,
            f"{row.loss:.4f}",
            f"{row.test_accuracy:.1%}",
            interval_words(*row.test_accuracy_change, percent=True),
            against_words(row),
            cost_words(row),
        )
    console = Console()
    console.print(table)
    console.print(f"Written to {folder}: compare.nc, compare.png, compare.html", highlight=False)


def _print_transfer(dataset: xr.Dataset, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from landscape.paths.transfer import transfer_rows
    from landscape.plots.comparison_info import interval_words

    table = Table(
        "Criterion", "Images", "Optimizer", "Calibration gap\nclosed", "Change of test loss, nats"
    )
    for row in transfer_rows(dataset):
        table.add_row(
            row.criterion,
            f"{row.size:,}",
            row.optimizer,
            f"{row.closed:.0%}",
            interval_words(*row.test_loss_change),
        )
    console = Console()
    console.print(table)
    console.print(f"Written to {folder}: transfer.nc, transfer.png", highlight=False)


if __name__ == "__main__":
    options.run(compare)
