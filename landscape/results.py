"""A scan's folder: measured with a progress bar, saved on the way, and concluded with pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from landscape.analysis import analyze, with_analysis
from landscape.plots import draw, interactive, save_figure, write_html
from landscape.report import describe, describe_radius, table
from landscape.store import save

if TYPE_CHECKING:
    from xarray import Dataset

    from evolq.problem import Problem
    from landscape.scans import Scan

RESULTS = ("scan.nc", "scan.png", "scan.html")

# Seconds between saves of an unfinished scan: what a killed process can lose.
SAVE_SECONDS = 15.0


def measure(scan: Scan, problem: Problem, claim: Callable[[], Path]) -> tuple[Dataset, Path]:
    """Sample with a progress bar; an unfinished scan is saved now and then.

    Args:
        scan: what is measured.
        problem: around whose start.
        claim: makes the folder for `scan.nc`, once the scan is known to be possible.

    Returns:
        The scan and its folder.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("Measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("points,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )
    task = progress.add_task("points")
    folder, saved = Path(), time.monotonic()

    def on_point(dataset: Dataset, done: int, total: int) -> None:
        nonlocal saved, folder
        if done == 0:
            folder = claim()
            status.stop()
            for row in describe_radius(dataset):
                console.print(f"{row.name}: {row.value}: {row.meaning}", highlight=False)
            shown.enter_context(progress)
        progress.update(task, completed=done, total=total)
        if done == total or time.monotonic() - saved > SAVE_SECONDS:
            save(dataset, folder / "scan.nc")
            saved = time.monotonic()

    with ExitStack() as shown, console.status("Choosing directions and radius") as status:
        return scan.sample(problem, on_point), folder


def write(dataset: Dataset, folder: Path) -> None:
    """Analyze a scan, print the table, and write file and pictures into a folder.

    Raises:
        InputError: if a file cannot be written; those before it are then there.
    """
    console = Console()
    analysis = analyze(dataset)
    console.print(table(describe(dataset, analysis)))  # first, should the disk be full
    save(with_analysis(dataset, analysis), folder / "scan.nc")
    save_figure(draw(dataset, analysis), folder / "scan.png")
    write_html(interactive(dataset, analysis), folder / "scan.html")
    console.print(f"Written to {folder}: {', '.join(RESULTS)}", highlight=False)
