"""The paper's claims, put to the test on the bundled networks: docs/claims.md.

    python -m figures.claims RUNS [--seeds 10] [--claim N ...]    measure what RUNS lacks
    python -m figures.claims RUNS --page                          write the page and its figure

RUNS is a file of JSON lines, one for each claim, network and seed, by default
figures/claims/runs.jsonl, from which the page is written. What is there is not measured again, so
that an interrupted run goes on where it stopped. A seed draws calibration images, test images,
directions and whatever a search draws.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from figures.claims.claims import CLAIMS, Cell, Claim
from figures.claims.page import write_page

FOLDER = Path(__file__).parent


def missing(rows: list[dict], claim: Claim, cell: Cell, seeds: int) -> list[int]:
    """Return the seeds of a claim's cell that are not in `rows`."""
    known = {
        row["seed"] for row in rows if row["claim"] == claim.number and row["cell"] == cell.name
    }
    return [seed for seed in range(seeds) if seed not in known]


def main(
    runs: Annotated[Path, typer.Argument(metavar="RUNS")] = FOLDER / "runs.jsonl",
    seeds: Annotated[int, typer.Option(min=3, help="Seeds of each claim and network.")] = 10,
    claim: Annotated[list[int] | None, typer.Option(help="Only these claims.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Only write the page.")] = False,
) -> None:
    """Measure what is missing, seed by seed, or write the page."""
    rows = [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []
    if page:
        write_page(rows)
        return
    for seed in range(seeds):
        for each in CLAIMS:
            for cell in each.cells if not claim or each.number in claim else ():
                if seed not in missing(rows, each, cell, seeds):
                    continue
                began = time.process_time()
                values = cell.measure(seed)
                row = {"claim": each.number, "cell": cell.name, "seed": seed, "values": values}
                row["seconds"] = round(time.process_time() - began, 1)
                rows.append(row)
                with runs.open("a") as file:
                    file.write(json.dumps(row) + "\n")


typer.run(main)
