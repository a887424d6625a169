"""Command line: gradient against evolution, from the same start and at equal cost.

`python -m landscape.compare` compares three optimizers on the bundled vision transformer; `--help`
lists the options.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evolq import command_line
from evolq.command_line import Command, Output
from evolq.errors import InputError
from evolq.settings import Settings, configuration
from landscape.comparisons import Comparison
from landscape.work.resources import Resources

if TYPE_CHECKING:
    import xarray as xr

# What only an unfinished comparison has: the ledger of its searches and its map.
UNFINISHED = "compare.sqlite"
RESULTS = (
    "compare.nc",
    "compare.png",
    "compare.html",
    "transfer.nc",
    "transfer.png",
    "transfer.html",
)


def compare(
    settings: Settings,
    comparison: Comparison,
    resources: Resources,
    output: Output,
    given: frozenset[str],
) -> None:
    """Compare optimizers of scales from the same start, at equal cost, on one map.

    Writes compare.nc (all numbers), compare.png and compare.html (animated); with several criteria
    transfer.nc, transfer.png and transfer.html. No optimizer sees a test image.
    """
    from evolq.losses.criteria import choose_criterion
    from evolq.progress import Progress

    progress = Progress(output.quiet)
    settings = replace(settings, selection_images=0)
    settings = command_line.with_start(settings, given)
    command_line.check_output_folder(output, UNFINISHED)
    comparison.check(settings)
    unused = ("plane", "points") if comparison.criteria else ("sizes",)
    for name in unused:
        # a repeated configuration names all options, those at their defaults too
        if name in given and getattr(comparison, name) != getattr(Comparison(), name):
            raise InputError(
                f"`{name}` has no effect {'with' if comparison.criteria else 'without'} "
                f"`criteria`; leave out one of the two"
            )
    for criterion in comparison.criteria or (settings.criterion_name,):
        if choose_criterion(criterion).uses_labels:
            progress.say(f"Criterion {criterion} reads the labels of calibration images.")

    from landscape.run_folder import RunFolder

    name = f"compare-{Path(settings.model).name}"
    options = configuration(settings, comparison)
    with (
        resources.executor(settings, progress.say) as executor,
        RunFolder(output, name, RESULTS, UNFINISHED, options) as folder,
    ):
        problem = (
            None
            if comparison.criteria
            else command_line.prepare(settings, given, progress, comparison.check_network)
        )
        with progress.task("Searching") as task:

            def on_run(words: str) -> None:
                task.update(0, None, words)

            def on_point(_: xr.Dataset, done: int, total: int) -> None:
                task.update(done, total, "Measuring the map")

            if problem is None:
                dataset = comparison.sample_transfer(settings, on_run, folder.open_ledger, executor)
            else:
                dataset = comparison.sample(problem, on_run, on_point, folder.open_ledger, executor)
        if problem is None:
            _write(dataset, folder.path, "transfer")
            _print_transfer(dataset, folder.path, output.json)
        else:
            _write(dataset, folder.path, "compare")
            _print_outcomes(dataset, folder.path, output.json)
        folder.finish(dataset)


def _write(dataset: xr.Dataset, folder: Path, kind: Literal["compare", "transfer"]) -> None:
    """Write what a comparison or a transfer measured, its picture and its page."""
    from landscape.plots import (
        draw_comparison,
        draw_transfer,
        save_figure,
        sections_of,
        write_html,
    )
    from landscape.runs import Run
    from landscape.store import save

    draw = draw_comparison if kind == "compare" else draw_transfer
    save(dataset, folder / f"{kind}.nc", kind)
    save_figure(draw(dataset), folder / f"{kind}.png")
    run = Run(folder.name, kind, "landscape.compare", f"{kind}.nc", dataset)
    write_html(sections_of([run]), folder / f"{kind}.html")


def _print_outcomes(dataset: xr.Dataset, folder: Path, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from landscape.paths.barrier import barrier
    from landscape.paths.comparison import outcomes
    from landscape.plots.comparison_info import (
        against_words,
        barrier_words,
        cost_words,
        interval_words,
        seeds_words,
    )

    found = outcomes(dataset)
    between = barrier(dataset)
    table = Table(
        "Optimizer", "Calibration\nloss", "Test\naccuracy", "Change, points\n95 % interval"
    )
    table.add_column(f"Against {found[0].optimizer}")
    table.add_column("Cost\n(sweep)")
    accuracy = float(dataset.start_test_correct_per_image.mean())
    loss = float(dataset.loss.isel(optimizer=0, seed=0, iterate=0))
    if as_json:
        start = {"loss": loss, "test_accuracy": accuracy}
        rows = [row._asdict() for row in found]
        content: dict[str, object] = {"start": start, "optimizers": rows, "folder": str(folder)}
        if between:
            height = between.height
            content["barrier"] = {
                "ends": between.ends,
                "height": (height.estimate, height.low, height.high),
                "at": between.at,
                "numerical_noise": between.floor,
            }
        command_line.print_json(content)
        return
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
    console.print(f"95 %: {seeds_words(dataset.sizes['seed'])}.", highlight=False)
    if between:
        words = f"Barrier between the ends of {' and '.join(between.ends)}"
        console.print(f"{words}: {barrier_words(between)}.", highlight=False)
    console.print(f"Written to {folder}: compare.nc, compare.png, compare.html", highlight=False)


def _print_transfer(dataset: xr.Dataset, folder: Path, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from landscape.paths.transfer import transfer_rows
    from landscape.plots.comparison_info import interval_words

    if as_json:
        rows = [row._asdict() for row in transfer_rows(dataset)]
        command_line.print_json({"criteria": rows, "folder": str(folder)})
        return
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
    console.print(f"Written to {folder}: transfer.nc, transfer.png, transfer.html", highlight=False)


COMMAND = Command(
    "landscape compare",
    compare,
    {"weight_bits": 3, "test_images": 500, "threads": 1},
    left_out=("selection_images", "part"),
)

if __name__ == "__main__":
    command_line.run(COMMAND)
