"""The paper's claims, put to the test: docs/claims.md and docs/claims_real.md.

    python -m figures.claims [RUNS] [--seeds N] [--primary] [--network NAME]
    EVOLQ_DATA=FOLDER python -m figures.claims [RUNS] --real [--network NAME]
    python -m figures.claims --page

The first measures on the bundled networks what RUNS lacks, the second on real ones (hours), and the
third writes the pages and their figures.

RUNS is a file of JSON lines, one for each measure, network, bits and seed, by default
figures/claims/runs.jsonl or real.jsonl, from which the pages are written. What is there is not
measured again, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from figures.claims.claims import CLAIMS, Key
from figures.claims.measures import ALL, MEASURES
from figures.claims.page import write_page
from figures.claims.real import left_out, real_keys
from figures.claims.real_page import write_real_page

FOLDER = Path(__file__).parent
BUNDLED_RUNS, REAL_RUNS = FOLDER / "runs.jsonl", FOLDER / "real.jsonl"
# Those below were for trials: measures were settled on them.
FIRST_SEED = 10


def read_rows(runs: Path) -> list[dict[str, Any]]:
    """Return what was measured, nothing if there is no such file."""
    return [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []


def main(
    runs: Annotated[Path | None, typer.Argument(metavar="RUNS")] = None,
    seeds: Annotated[int, typer.Option(min=3, help="Seeds of each claim.")] = 10,
    primary: Annotated[bool, typer.Option("--primary", help="Only the primary claims.")] = False,
    network: Annotated[str | None, typer.Option(help="Only this network.")] = None,
    real: Annotated[bool, typer.Option("--real", help="Real networks, one seed.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Only write the pages.")] = False,
) -> None:
    """Measure what is missing, seed by seed, or write the pages."""
    if page:
        write_page(read_rows(BUNDLED_RUNS))
        write_real_page(read_rows(REAL_RUNS))
        return
    claims = [claim for claim in CLAIMS if claim.primary or not primary]
    keys: Iterable[Key] = (
        real_keys()
        if real
        else (key for claim in claims for cell in claim.cells for key in cell.keys)
    )
    runs = runs or (REAL_RUNS if real else BUNDLED_RUNS)
    wanted = [key for key in dict.fromkeys(keys) if network in (key[1], None)]
    for seed in range(FIRST_SEED, FIRST_SEED + (1 if real else seeds)):
        for key in wanted:
            measure_missing(runs, key, seed, real)


def measure_missing(runs: Path, key: Key, seed: int, real: bool) -> None:
    """Add a row to `runs`, unless it is there."""
    measure, model, bits = key
    place = {"measure": measure, "network": model, "bits": bits, "seed": seed}
    if any(place.items() <= row.items() for row in read_rows(runs)):
        return
    began = time.process_time()
    summary = MEASURES[measure](model, bits, seed)
    row = place | {"values": summary(ALL)} | ({"left_out": left_out(summary)} if real else {})
    row["seconds"] = round(time.process_time() - began, 1)
    with runs.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    typer.run(main)
