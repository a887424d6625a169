"""Command line: quantize a network by evolution, and say what it gained on test images.

`python -m evolq` searches the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evolq import command_line as options
from evolq.errors import InputError, require

if TYPE_CHECKING:
    from evolq.optimizers.evolve import Iterate
    from evolq.optimizers.recipes import Recipe
    from evolq.problem import Problem

STATE = "search_state.safetensors"
RESULTS = ("model.safetensors", "model.onnx", "report.json", STATE)


def main(
    model: options.Model = "fashion_vit",
    weights: options.Weights = None,
    images: options.Images = None,
    calibration_dir: options.CalibrationDir = None,
    test_dir: options.TestDir = None,
    weight_bits: options.WeightBits = 3,
    activation_bits: options.ActivationBits = 8,
    average_bits: Annotated[
        float | None,
        typer.Option(
            help="Instead of --weight-bits: search the bits of each layer, at most so many on "
            "average."
        ),
    ] = None,
    scheme: options.Scheme = "linear",
    execution: options.Execution = "simulated",
    observer: Annotated[
        str | None,
        typer.Option(
            help="How scales start: minmax, ema, percentile, omse or mse; by default the recipe's."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="default, or published (the published Evol-Q code).")
    ] = "default",
    passes: Annotated[
        int | None, typer.Option(help="P, passes over all blocks; by default the recipe's.")
    ] = None,
    population: Annotated[
        int | None, typer.Option(help="K, candidates in a block; by default the recipe's.")
    ] = None,
    cycles: Annotated[
        int | None, typer.Option(help="C, children in a visit of a block; by default the recipe's.")
    ] = None,
    criterion: options.CriterionName = "info_nce",
    temperature: options.Temperature = None,
    within: options.Within = None,
    calibration_images: options.CalibrationImages = 200,
    selection_images: options.SelectionImages = 200,
    test_images: options.TestImages = 2000,
    batch_size: options.BatchSize = 50,
    threads: options.Threads = None,
    skip_unreadable: options.SkipUnreadable = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, too.")] = False,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that was stopped in --out.")
    ] = False,
) -> None:
    """Quantize a network, search its scales by evolution, and test it once at the end.

    Writes model.safetensors and report.json; the search itself sees no test image.
    """
    if test_images < 2:
        raise InputError(f"--test-images is {test_images}; an interval needs 2 or more")
    if average_bits is not None and not 2 <= average_bits <= 8:
        raise InputError(f"--average-bits is {average_bits:g}; give a number from 2 to 8")
    if resume and (out is None or not out.is_dir()):
        raise InputError(f"--resume goes on in an existing folder and --out is {out}; name it")
    for package in ("onnx", "onnxruntime") if onnx else ():
        require(package, "onnx", "--onnx")  # now, not after the search
    options.check_output_folder(out, overwrite or resume)

    from rich.console import Console

    from evolq.optimizers.recipes import choose_recipe
    from evolq.problem import Settings, prepare

    chosen = choose_recipe(recipe, passes=passes, population=population, cycles=cycles)
    settings = Settings(
        model=model,
        weights=weights,
        images=images,
        calibration_dir=calibration_dir,
        test_dir=test_dir,
        weight_bits=weight_bits if average_bits is None else int(average_bits),
        activation_bits=activation_bits,
        scheme=scheme,
        execution=execution,
        observer=observer or chosen.observer,
        weight_observer=observer or chosen.weight_observer,
        moment_matching=chosen.moment_matching,
        integers_in_layer_norm=chosen.integers_in_layer_norm,
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
    began = time.monotonic()
    with Console(stderr=True).status("Loading, quantizing and calibrating"):
        problem = prepare(settings)
    folder = options.make_output_folder(
        out, overwrite or resume, f"evolq-{model}", () if resume else RESULTS
    )
    result = _search(problem, chosen, average_bits, within, folder / STATE)
    report = _test(problem, result) | {
        "fitness_evaluations": result.evaluations,
        "forward_passes": result.cost,
        "seconds": time.monotonic() - began,
    }
    configuration = {
        **problem.provenance["configuration"],
        "recipe": recipe,
        "passes": chosen.passes,
        "population": chosen.population,
        "cycles": chosen.cycles,
        "average_bits": average_bits,
        "within": within,
    }
    report["configuration"] = configuration
    report |= {key: value for key, value in problem.provenance.items() if key != "configuration"}
    _write(problem, result, report, folder, onnx)
    (folder / STATE).unlink(missing_ok=True)
    _print(report, folder, onnx)


def _search(
    problem: Problem,
    recipe: Recipe,
    average_bits: float | None,
    within: str | None,
    state_file: Path,
) -> Iterate:
    """Search with a progress bar and return the last Iterate."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from evolq.points import select
    from evolq.workflow import improve, iterates_at_most

    names = None if within is None else select(problem.start, {"scale"}, within)
    total = iterates_at_most(problem.network, recipe, average_bits, names)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("fitness {task.fields[fitness]:.4f} ({task.fields[improvement]:+.4f}),"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("Searching", total=total, fitness=0.0, improvement=0.0)
        first: float | None = None
        for iterate in improve(
            problem.objective,
            problem.start,
            recipe,
            average_bits=average_bits,
            names=names,
            selection=problem.selection,
            seed=problem.settings.seed,
            state_file=state_file,
        ):
            first = iterate.loss if first is None else first
            progress.update(
                task,
                advance=1,
                description=iterate.label,
                fitness=iterate.loss,
                improvement=iterate.loss - first,
            )
    return iterate


def _test(problem: Problem, result: Iterate) -> dict[str, Any]:
    """Evaluate full precision, start and result on the test images, once."""
    from evolq.losses.objective import predict, score
    from evolq.losses.paired import paired_difference

    data = problem.split.test
    plain = predict(problem.model, data.images, problem.settings.batch_size)
    losses, right = zip(
        score(plain, data.labels),
        problem.test.per_image(problem.start),
        problem.test.per_image(result.point),
        strict=True,
    )
    report: dict[str, Any] = {}
    for index, name in enumerate(("fp32", "start", "final")):
        report[f"{name}_accuracy"] = float(right[index].double().mean())
        report[f"{name}_loss"] = float(losses[index].double().mean())
    for prefix, (_, start, final) in (("", right), ("loss_", losses)):
        mean, low, high = paired_difference(start, final)
        report[f"{prefix}difference"] = mean
        report[f"{prefix}difference_interval"] = [low, high]
    return report


def _write(
    problem: Problem, result: Iterate, report: dict[str, Any], folder: Path, onnx: bool
) -> None:
    """Write the model, as safetensors and ONNX, and the report."""
    from evolq.atomic import write_whole
    from evolq.files.saved import save

    save(
        problem.network,
        result.point,
        folder / "model.safetensors",
        problem.model,
        problem.split.calibration.images,
        problem.settings.model,
        problem.provenance,
    )
    if onnx:
        from evolq.files.onnx import export_onnx, top1_agreement

        export_onnx(
            problem.network,
            result.point,
            folder / "model.onnx",
            problem.split.calibration.images,
        )
        report["onnx_top1_agreement"] = top1_agreement(
            folder / "model.onnx",
            problem.network,
            result.point,
            problem.split.test.images,
            problem.settings.batch_size,
        )
    write_whole(folder / "report.json", json.dumps(report, indent=2).encode())


def _print(report: dict[str, Any], folder: Path, onnx: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "top-1", "cross entropy")
    for name, words in (("fp32", "full precision"), ("start", "start"), ("final", "final")):
        table.add_row(words, f"{report[f'{name}_accuracy']:.2%}", f"{report[f'{name}_loss']:.4f}")
    low, high = report["difference_interval"]
    loss_low, loss_high = report["loss_difference_interval"]
    table.add_row(
        "final - start\n95 % interval",
        f"{report['difference']:+.2%}\n{low:+.2%} to {high:+.2%}",
        f"{report['loss_difference']:+.4f}\n{loss_low:+.4f} to {loss_high:+.4f}",
    )
    console = Console()
    console.print(table)
    if onnx:
        console.print(f"ONNX Runtime agrees on {report['onnx_top1_agreement']:.2%} of test images.")
    files = "model.safetensors, report.json" + (", model.onnx" if onnx else "")
    console.print(f"Written to {folder}: {files}", highlight=False)


if __name__ == "__main__":
    options.run(main)
