"""The paper's claims, put to the test on the bundled networks: docs/claims.md.

    python -m figures.claims [RUNS] [--seeds N] [--primary] [--network NAME]
    python -m figures.claims [RUNS] --page

The first measures what RUNS lacks, the second writes the page and its figure.

RUNS is a file of JSON lines, one for each measure, network, bits and seed, by default
figures/claims/runs.jsonl, from which the page is written. What is there is not measured again, so
that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from figures.claims.claims import CLAIMS
from figures.claims.measures import MEASURES
from figures.claims.page import write_page

FOLDER = Path(__file__).parent
# Those below were for trials: measures were settled on them.
FIRST_SEED = 10


def main(
    runs: Annotated[Path, typer.Argument(metavar="RUNS")] = FOLDER / "runs.jsonl",
    seeds: Annotated[int, typer.Option(min=3, help="Seeds of each claim.")] = 10,
    primary: Annotated[bool, typer.Option("--primary", help="Only the primary claims.")] = False,
    network: Annotated[str | None, typer.Option(help="Only this network.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Only write the page.")] = False,
) -> None:
    """Measure what is missing, seed by seed, or write the page."""
    rows = [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []
    if page:
        write_page(rows)
        return
    known = {(row["measure"], row["network"], row["bits"], row["seed"]) for row in rows}
    claims = [claim for claim in CLAIMS if claim.primary or not primary]
    keys = dict.fromkeys(key for claim in claims for cell in claim.cells for key in cell.keys)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for measure, model, bits in keys:
            if (measure, model, bits, seed) in known or network not in (model, None):
                continue
            began = time.process_time()
            values = MEASURES[measure](model, bits, seed)
            row = {"measure": measure, "network": model, "bits": bits, "seed": seed}
            row |= {"values": values, "seconds": round(time.process_time() - began, 1)}
            with runs.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    typer.run(main)
