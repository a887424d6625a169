"""Gradient against evolution on both bundled networks: the tables of docs/optimizers.md.

    python benchmarks/compare_optimizers.py run RUNS      every optimizer, network, bits and seed
    python benchmarks/compare_optimizers.py starts RUNS   strong starts, alone and searched from
    python benchmarks/compare_optimizers.py tables RUNS   write the tables into docs/optimizers.md

RUNS is a file of JSON lines. Each finished run is added to it and not repeated, so an interrupted
benchmark goes on where it stopped; `--networks`, `--bits`, `--seeds` and `--optimizers` cut it
down. A seed decides on the images of all sets and on all that is drawn; runs of one seed share
images and start, and are compared in pairs. Learning rates are swept on calibration images. Test
images are looked at after a run, at the costs in `COSTS`, and nothing is chosen by them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from evolq.optimizers.evolve import Iterate
from evolq.optimizers.registry import OPTIMIZERS
from evolq.points import Point, select
from evolq.problem import Problem, Settings, prepare
from evolq.starts.adaround import adaround
from evolq.starts.gptq import gptq
from landscape.paths.comparison import run_optimizers

NETWORKS = "fashion_vit,fashion_resnet"
PAGE = Path(__file__).parent.parent / "docs" / "optimizers.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

# Forward passes of the calibration set at which runs are looked at; the last is their budget.
COSTS = (10, 30, 100)

# 97.5 % quantile of Student's t by degrees of freedom, for means over few seeds.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}

# The other optimizers are compared with this one.
REFERENCE = "evol-q"

START_OPTIMIZERS = ("evol-q", "adam")

Run = dict[str, Any]
Networks = Annotated[str, typer.Option(help="Bundled networks, with commas.")]
Bits = Annotated[str, typer.Option(help="Bits of the weights, with commas.")]
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]
Images = Annotated[int, typer.Option(help="Calibration images.")]
TestImages = Annotated[int, typer.Option(help="Test images.")]

app = typer.Typer(add_completion=False)


# Runs ---------------------------------------------------------------------------------------------


def gptq_start(problem: Problem, seed: int) -> dict[str, torch.Tensor]:
    """Round the weights by GPTQ; nothing is drawn."""
    return gptq(problem.network, problem.start, problem.split.calibration.images)


def adaround_start(problem: Problem, seed: int) -> dict[str, torch.Tensor]:
    """Round the weights by AdaRound."""
    generator = torch.Generator().manual_seed(seed)
    images = problem.split.calibration.images
    return adaround(problem.network, problem.start, images, generator=generator)


# Name -> the observer of the weights, and what is done to its Point.
STARTS: dict[str, tuple[str, Callable[[Problem, int], Point]]] = {
    "min-max": ("minmax", lambda problem, seed: problem.start),
    "MSE": ("mse", lambda problem, seed: problem.start),
    "GPTQ": ("mse", gptq_start),
    "AdaRound": ("mse", adaround_start),
}


@app.command("run")
def run_all(
    runs: Path,
    networks: Networks = NETWORKS,
    bits: Bits = "4,3,2",
    seeds: Seeds = 5,
    optimizers: Annotated[str, typer.Option(help="With commas.")] = ",".join(OPTIMIZERS),
    images: Images = 100,
    test_images: TestImages = 1000,
) -> None:
    """Run every optimizer from the MSE start."""
    chosen = optimizers.split(",")
    for network, width, seed in cells(networks, bits, seeds):
        record(runs, network, width, seed, "MSE", chosen, images, test_images)


@app.command()
def starts(
    runs: Path,
    networks: Networks = NETWORKS,
    bits: Bits = "4,3,2",
    seeds: Seeds = 5,
    names: Annotated[str, typer.Option(help="Starts, with commas.")] = ",".join(STARTS),
    images: Images = 100,
    test_images: TestImages = 1000,
) -> None:
    """Run Evol-Q and Adam from every start."""
    for network, width, seed in cells(networks, bits, seeds):
        for start in names.split(","):
            record(runs, network, width, seed, start, START_OPTIMIZERS, images, test_images)


def cells(networks: str, bits: str, seeds: int) -> Iterator[tuple[str, int, int]]:
    """Yield all combinations, seed by seed: an unfinished benchmark has whole seeds."""
    for seed in range(seeds):
        for network in networks.split(","):
            for width in bits.split(","):
                yield network, int(width), seed


def record(
    runs: Path,
    network: str,
    bits: int,
    seed: int,
    start: str,
    optimizers: Sequence[str],
    images: int,
    test_images: int,
) -> None:
    """Add the runs that are still missing to the file."""
    key = {
        "network": network,
        "bits": bits,
        "seed": seed,
        "start": start,
        "images": images,
        "test_images": test_images,
    }
    done = {run["optimizer"] for run in load(runs) if all(run[k] == key[k] for k in key)}
    missing = [name for name in optimizers if name not in done]
    if not missing:
        return
    observer, make = STARTS[start]
    problem = prepare(
        Settings(
            model=network,
            weight_bits=bits,
            weight_observer=observer,
            calibration_images=images,
            selection_images=0,
            test_images=test_images,
            seed=seed,
        )
    )
    point = make(problem, seed)
    for name in missing:
        (run,) = run_optimizers(
            problem.objective,
            point,
            names=list(select(point, {"scale"})),
            optimizers=[name],
            budget=COSTS[-1],
            seeds=[seed],
        )[name]
        outcome = {
            "optimizer": name,
            "learning_rate": run.learning_rate if run.sweep_cost else None,
            "sweep_cost": run.sweep_cost,
            "values_at_start": measure(problem, run.path[0]),
            "at": {str(cost): measure(problem, reached(run.path, cost)) for cost in COSTS},
        }
        with runs.open("a") as file:
            file.write(json.dumps(key | outcome) + "\n")
        print(network, bits, seed, start, name, outcome["at"], flush=True)


def reached(path: Sequence[Iterate], cost: float) -> Iterate:
    """Return where a path stood when so much was spent."""
    return [iterate for iterate in path if iterate.cost <= cost + 1e-6][-1]


def measure(problem: Problem, iterate: Iterate) -> dict[str, float]:
    """Return the calibration loss and the test values of where a path stood."""
    cross_entropy, correct = problem.test.per_image(iterate.point)
    return {
        "loss": iterate.loss,
        "test_loss": float(cross_entropy.double().mean()),
        "test_accuracy": float(correct.double().mean()),
    }


def load(runs: Path) -> list[Run]:
    """Return the finished runs."""
    if not runs.exists():
        return []
    return [json.loads(line) for line in runs.read_text().splitlines() if line]


# Tables -------------------------------------------------------------------------------------------


@app.command()
def tables(runs: Path) -> None:
    """Write the tables of everything in RUNS into docs/optimizers.md."""
    finished = load(runs)
    parts = [optimizer_tables(finished), start_table(finished)]
    text = "\n\n".join(part for part in parts if part)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def optimizer_tables(runs: Iterable[Run]) -> str:
    """Return a table for each network and bits: every optimizer from the MSE start, by cost."""
    wanted = [run for run in runs if run["start"] == "MSE"]
    parts = []
    for network, bits in sorted({(run["network"], -run["bits"]) for run in wanted}):
        cell = [run for run in wanted if (run["network"], -run["bits"]) == (network, bits)]
        parts.append(f"### {network}, {-bits}-bit weights\n\n" + optimizer_table(cell))
    return "\n\n".join(parts)


def optimizer_table(cell: Sequence[Run]) -> str:
    """Return the table of the runs of one network at one number of bits."""
    last = str(COSTS[-1])
    head = [
        "optimizer",
        "seeds",
        *(f"calibration loss at {cost}" for cost in COSTS),
        f"test loss at {last}: change from the start",
        f"the same against {REFERENCE}",
        f"test accuracy at {last}: change from the start",
        "sweep",
    ]
    rows = []
    by_seed = {(run["optimizer"], run["seed"]): run for run in cell}
    seeds = sorted({run["seed"] for run in cell})
    for name in [n for n in OPTIMIZERS if any(run["optimizer"] == n for run in cell)]:
        mine = [by_seed[name, seed] for seed in seeds if (name, seed) in by_seed]
        pairs = [
            (run, by_seed[REFERENCE, run["seed"]])
            for run in mine
            if name != REFERENCE and (REFERENCE, run["seed"]) in by_seed
        ]
        rows.append(
            [
                name,
                str(len(mine)),
                *(mean([run["at"][str(cost)]["loss"] for run in mine]) for cost in COSTS),
                interval([change(run, "test_loss") for run in mine]),
                interval(
                    [a["at"][last]["test_loss"] - b["at"][last]["test_loss"] for a, b in pairs]
                ),
                interval([100 * change(run, "test_accuracy") for run in mine], digits=2),
                f"{statistics.fmean(run['sweep_cost'] for run in mine):.0f}",
            ]
        )
    start = statistics.fmean(run["values_at_start"]["loss"] for run in cell)
    count = f"mean over {len(seeds)} seeds, {cell[0]['images']} calibration images"
    return f"Start: calibration loss {start:.4f}; {count}.\n\n" + markdown(head, rows)


def start_table(runs: Iterable[Run]) -> str:
    """Return test accuracy and loss of every start, alone and after a search."""
    wanted = [run for run in runs if run["optimizer"] in START_OPTIMIZERS]
    if len({run["start"] for run in wanted}) < 2:
        return ""
    last = str(COSTS[-1])
    head = ["network, bits", "start", "seeds", "test loss", "test accuracy (%)"]
    for name in START_OPTIMIZERS:
        head += [f"change of test loss by {name}", f"of accuracy by {name} (points)"]
    rows = []
    for network, bits in sorted(
        {(run["network"], -run["bits"]) for run in wanted if run["start"] != "MSE"}
    ):
        for start in STARTS:
            cell = [
                run
                for run in wanted
                if (run["network"], -run["bits"], run["start"]) == (network, bits, start)
            ]
            if not cell:
                continue
            row = [f"{network}, {-bits}", start, str(len({run["seed"] for run in cell}))]
            for key, factor, digits in (("test_loss", 1, 4), ("test_accuracy", 100, 2)):
                values = {run["seed"]: factor * run["values_at_start"][key] for run in cell}
                row.append(f"{statistics.fmean(values.values()):.{digits}f}")
            for name in START_OPTIMIZERS:
                mine = [run for run in cell if run["optimizer"] == name and last in run["at"]]
                row.append(interval([change(run, "test_loss") for run in mine]))
                row.append(interval([100 * change(run, "test_accuracy") for run in mine], 2))
            rows.append(row)
    return "### Starts\n\n" + markdown(head, rows)


def change(run: Run, key: str) -> float:
    """Return the change of a test value from the start to the end of the budget."""
    return run["at"][str(COSTS[-1])][key] - run["values_at_start"][key]


def mean(values: Sequence[float]) -> str:
    """Return a mean over seeds."""
    return f"{statistics.fmean(values):.4f}"


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Return the mean over seeds and half the width of its 95 % interval."""
    if len(values) < 2:
        return "".join(f"{value:+.{digits}f}" for value in values)
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):+.{digits}f} ± {half:.{digits}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    app()
