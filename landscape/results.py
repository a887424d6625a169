"""A scan's folder: measured with a progress bar, kept in a ledger, and concluded with pictures."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from evolq.command_line import CONFIG, print_json
from landscape.analysis import analyze, with_analysis
from landscape.findings import describe, describe_radius, table
from landscape.plots import draw, save_figure, sections_of, write_html
from landscape.runs import Run
from landscape.store import save

if TYPE_CHECKING:
    from xarray import Dataset

    from evolq.problem import Problem
    from evolq.progress import Progress
    from landscape.ledger import OpenLedger
    from landscape.scans import Scan

RESULTS = ("scan.nc", "scan.png", "scan.html")


def measure(
    scan: Scan,
    problem: Problem,
    open_ledger: OpenLedger,
    progress: Progress,
    executor: Executor | None = None,
) -> Dataset:
    """Sample and say how it goes; each point is kept when it is finished.

    Args:
        scan: what is measured.
        problem: around whose start.
        open_ledger: called once the scan is known to be possible.
        progress: where to say it.
        executor: measures the points.
    """

    def on_point(dataset: Dataset, done: int, total: int) -> None:
        if done == 0:
            for row in describe_radius(dataset):
                progress.say(f"{row.name}: {row.value}: {row.meaning}")
        task.update(done, total, "Measuring")

    with progress.task("Choosing directions and radius") as task:
        return scan.sample(problem, on_point, open_ledger, executor)


def write(dataset: Dataset, folder: Path, as_json: bool = False) -> None:
    """Analyze a scan, print the table, and write file and pictures into a folder.

    Raises:
        InputError: if a file cannot be written; those before it are then there.
    """
    console = Console()
    analysis = analyze(dataset)
    rows = describe(dataset, analysis)
    if as_json:  # first, should the disk be full
        print_json({"rows": [row._asdict() for row in rows], "folder": str(folder)})
    else:
        console.print(table(rows))
    dataset = with_analysis(dataset, analysis)
    save(dataset, folder / "scan.nc")
    save_figure(draw(dataset, analysis), folder / "scan.png")
    run = Run(folder.name, "scan", "landscape.scan", "scan.nc", dataset)
    write_html(sections_of([run]), folder / "scan.html")
    if not as_json:
        files = ", ".join([*RESULTS, CONFIG])
        console.print(f"Written to {folder}: {files}", highlight=False)
