"""What each choice of the default recipe is worth, and what the recipes reach: docs/evolq.md.

    python benchmarks/ablation.py choices RUNS   one choice changed at a time, at equal cost
    python benchmarks/ablation.py bits RUNS      searched against uniform bit-widths, at equal size
    python benchmarks/ablation.py results RUNS   starts and recipes on test images, at equal numbers
                                                 of fitness evaluations
    python benchmarks/ablation.py tables RUNS    the tables of everything in RUNS, as Markdown

RUNS is a file of JSON lines. Each finished run is added to it and not repeated, so an interrupted
benchmark goes on where it stopped. Seeds decide on calibration images, too; runs of one seed are
paired. Only `bits` and `results` look at test images, and nothing is chosen by them.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from torch import Tensor

from evolq.losses.objective import Objective, predict, score
from evolq.losses.paired import paired_difference
from evolq.optimizers.evolve import search_scales, visits
from evolq.optimizers.mixed_precision import search_bits
from evolq.optimizers.recipes import RECIPES, Absolute, Recipe, Relative
from evolq.points import Point
from evolq.problem import Problem, prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from landscape.statistics.intervals import mean_interval

NETWORKS = ("fashion_vit", "fashion_resnet")
DEIT = "deit_tiny_patch16_224"  # only on demand: on the real images and weights in EVOLQ_DATA

# Fewer say too little about their own scatter.
FEWEST_SEEDS = 5

DEFAULT = RECIPES["default"]


class Choice(NamedTuple):
    """A search, and what is different about its start: fields of `Quantization`."""

    recipe: Recipe
    start: Mapping[str, Any] = MappingProxyType({})


PUBLISHED_START = {
    "weight_observer": "minmax",
    "activation_observer": "omse",
    "moment_matching": True,
}

# One choice changed at a time; the name says what is different from the default.
CHOICES: dict[str, Choice] = {
    "default": Choice(DEFAULT),
    "memetic": Choice(RECIPES["memetic"]),
    "published": Choice(RECIPES["published"], PUBLISHED_START),
    "published search from the default start": Choice(RECIPES["published"]),
    "no search": Choice(replace(DEFAULT, passes=0)),
    "min-max weights": Choice(DEFAULT, {"weight_observer": "minmax"}),
    "no moment matching": Choice(DEFAULT, {"moment_matching": False}),
    "absolute perturbation": Choice(replace(DEFAULT, perturbation=Absolute())),
    "steps of 2 %": Choice(replace(DEFAULT, perturbation=Relative(0.02))),
    "steps of 30 %": Choice(replace(DEFAULT, perturbation=Relative(0.3))),
    "no step adaptation": Choice(replace(DEFAULT, adaptation=1.0)),
    "weights only": Choice(replace(DEFAULT, weights_only=True)),
    "attention only": Choice(replace(DEFAULT, attention_only=True)),
    "12 children a visit": Choice(replace(DEFAULT, cycles=12)),
    "population of 15, sample of 10": Choice(replace(DEFAULT, population=15, sample=10)),
}
# Forward-pass equivalents of the calibration set that each choice may spend: about what 6 passes of
# the published recipe spend on fashion_vit (6 blocks, 4 evaluations of 0.4 passes each).
BUDGET = 60.0

# Fitness evaluations of the results: those of the published recipe's 10 passes over 6 blocks with
# 4 evaluations each, and of the start.  For DeiT-Tiny: of 2 passes over 12 blocks.
EVALUATIONS = {"fashion_vit": 241, "fashion_resnet": 241, DEIT: 97}
# Calibration and test images of the results: what two processor cores can do.
IMAGES = {"fashion_vit": (200, 2000), "fashion_resnet": (200, 2000), DEIT: (100, 500)}

# As the command line searches: selection images choose among the ends of passes.
SELECTED = {"default, 200 selection images": CHOICES["default"]}

# Not searched, to tell what the start is worth.
STARTS = {
    "min-max start": Choice(
        DEFAULT,
        {"weight_observer": "minmax", "activation_observer": "minmax", "moment_matching": False},
    ),
    "MSE start": Choice(DEFAULT, {"moment_matching": False}),
}
RESULTS = {name: CHOICES[name] for name in RECIPES} | SELECTED | STARTS

Run = dict[str, Any]


# Runs ---------------------------------------------------------------------------------------------


def problem_for(choice: Choice, network: str, bits: int, seed: int, **counts: int) -> Problem:
    """Return the problem as the choice starts it."""
    settings = Settings(
        model=network,
        quantization=Quantization(weight_bits=bits, **choice.start),
        seed=seed,
        **counts,  # type: ignore[arg-type]
    )
    if network == DEIT:
        data = Path(os.environ["EVOLQ_DATA"])
        settings = replace(
            settings, weights=data / f"{DEIT}.safetensors", images=data / "imagenet_cc"
        )
    return prepared(settings)


@lru_cache(maxsize=2)
def prepared(settings: Settings) -> Problem:
    """Return `prepare(settings)`; choices that start alike follow one another."""
    return prepare(settings)


def on_selection(problem: Problem, point: Point) -> dict[str, float]:
    """Return criterion, cross entropy (nats) and top-1 on the selection images."""
    selection = problem.selection
    assert isinstance(selection, Objective)
    logits = selection.forward.logits(point)
    losses, right = score(logits, selection.labels)
    values = selection.criterion.per_image(logits, selection.teacher, selection.labels)
    return {
        "selection_fitness": float(values.mean()),
        "selection_loss": float(losses.mean()),
        "selection_accuracy": float(right.double().mean()),
    }


def run_choice(network: str, bits: int, name: str, seed: int) -> Run:
    """Search with one choice changed until the budget is spent; all selection images judge."""
    choice = CHOICES[name]
    recipe = choice.recipe
    if recipe.passes:
        recipe = replace(recipe, passes=10**6)
    problem = problem_for(
        choice, network, bits, seed, calibration_images=200, selection_images=1000, test_images=2
    )
    for iterate in search_scales(problem.objective, problem.start, recipe, seed=seed):
        if iterate.cost > BUDGET:
            break
        last = iterate
    return {"evaluations": last.evaluations, "fitness": last.loss} | on_selection(
        problem, last.point
    )


def run_bits(network: str, bits: int, name: str, seed: int) -> Run:
    """Search bit-widths of `bits` on average; the start has `bits` everywhere."""
    calibration, test = IMAGES[network]
    problem = problem_for(
        CHOICES["default"],
        network,
        bits,
        seed,
        calibration_images=calibration,
        selection_images=0,
        test_images=test,
    )
    for iterate in search_bits(problem.objective, problem.start, bits, seed=seed):
        last = iterate
    return {"evaluations": last.evaluations} | on_test(problem, problem.start, last.point)


def run_result(network: str, bits: int, name: str, seed: int) -> Run:
    """Search with the recipe `name` for as many evaluations as the published one makes."""
    choice = RESULTS[name]
    recipe = choice.recipe
    calibration, test = IMAGES[network]
    problem = problem_for(
        choice,
        network,
        bits,
        seed,
        calibration_images=calibration,
        selection_images=200 if name in SELECTED else 0,
        test_images=test,
    )
    evaluations = 1 if name in STARTS else EVALUATIONS[network]
    passes = 10**6
    if name in SELECTED:  # whole passes
        passes = evaluations // (recipe.cycles * len(visits(problem.network, recipe)))
    for iterate in search_scales(
        problem.objective,
        problem.start,
        replace(recipe, passes=passes),
        seed=seed,
        selection=problem.selection,
    ):
        if iterate.evaluations > evaluations:
            break
        last = iterate
    return {"evaluations": last.evaluations, "cost": last.cost} | on_test(
        problem, problem.start, last.point
    )


def on_test(problem: Problem, start: Point, final: Point) -> Run:
    """Return what the command line reports, for the test images."""
    data = problem.split.test
    teacher = score(predict(problem.model, data.images), data.labels)
    measured = teacher, problem.test.per_image(start), problem.test.per_image(final)
    run: Run = {}
    for name, (losses, right) in zip(("fp32", "start", "final"), measured, strict=True):
        run |= {f"{name}_accuracy": mean(right), f"{name}_loss": mean(losses)}
    run["difference"] = paired_difference(measured[1][1], measured[2][1])
    run["loss_difference"] = paired_difference(measured[1][0], measured[2][0])
    return run


def mean(values: Tensor) -> float:
    """Return the mean in float64."""
    return float(values.double().mean())


# Tables -------------------------------------------------------------------------------------------


def over_seeds(values: Iterable[float], digits: int) -> str:
    """Return mean and 95 % confidence interval (Student's t) over seeds; the mean alone of few."""
    listed = list(values)
    if len(listed) < FEWEST_SEEDS:
        seeds = f"{len(listed)} seed{'s' if len(listed) > 1 else ''}"
        return f"{statistics.mean(listed):+.{digits}f} ({seeds})"
    found = mean_interval(listed)
    return f"{found.estimate:+.{digits}f} ± {found.high - found.estimate:.{digits}f}"


def choices_table(runs: list[Run]) -> list[str]:
    """Compare each choice with the default, paired by seed, on selection images."""
    by_choice: dict[tuple[str, int, str], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_choice[run["network"], run["bits"], run["name"]][run["seed"]] = run
    lines = [
        "| network | weight bits | what is different | selection loss | infoNCE | top-1, points |",
        "|---|---|---|---|---|---|",
    ]
    for (network, bits, name), seeds in by_choice.items():
        default = by_choice[network, bits, "default"]
        cells = []
        for key, factor, digits in (
            ("selection_loss", 1, 4),
            ("selection_fitness", 1, 4),
            ("selection_accuracy", 100, 2),
        ):
            origin = {seed: 0.0 if name == "default" else default[seed][key] for seed in seeds}
            cells.append(over_seeds((factor * (seeds[s][key] - origin[s]) for s in seeds), digits))
        lines.append(f"| {network} | {bits} | {name} | {' | '.join(cells)} |")
    return lines


def test_table(runs: list[Run]) -> list[str]:
    """Average what test images said over the seeds."""
    groups: dict[tuple[str, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["network"], run["bits"], run["name"]].append(run)
    lines = [
        "| network | weight bits | search | fp32 | start | final | gain, points | test loss | "
        "evaluations | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, bits, name), group in groups.items():
        accuracies = [
            f"{100 * statistics.mean(run[f'{which}_accuracy'] for run in group):.2f}"
            for which in ("fp32", "start", "final")
        ]
        gain = over_seeds((100 * run["difference"][0] for run in group), 2)
        loss = over_seeds((run["loss_difference"][0] for run in group), 4)
        seconds = statistics.mean(run["seconds"] for run in group)
        lines.append(
            f"| {network} | {bits} | {name} | {' | '.join(accuracies)} | {gain} | {loss} | "
            f"{group[0]['evaluations']} | {seconds:.0f} |"
        )
    return lines


def gains_table(runs: list[Run]) -> list[str]:
    """Compare final test accuracy of `default` with that of `published`, paired by seed."""
    found: dict[tuple[str, int], dict[int, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for run in runs:
        found[run["network"], run["bits"]][run["seed"]][run["name"]] = run["final_accuracy"]
    lines = ["| network | weight bits | default - published, points |", "|---|---|---|"]
    for (network, bits), seeds in found.items():
        gains = [
            100 * final["default"] - 100 * final["published"]
            for final in seeds.values()
            if final.keys() >= {"default", "published"}
        ]
        if gains:
            lines.append(f"| {network} | {bits} | {over_seeds(gains, 2)} |")
    return lines


def results_tables(runs: list[Run]) -> list[str]:
    """Both tables of the results."""
    return [*test_table(runs), "", *gains_table(runs)]


# Commands -----------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[..., Run], Iterable[str], tuple[int, ...], Callable]] = {
    "choices": (run_choice, CHOICES, (2,), choices_table),
    "bits": (run_bits, ("searched",), (3,), test_table),
    "results": (run_result, RESULTS, (4, 3, 2), results_tables),
}


def main(
    what: Annotated[str, typer.Argument(help="choices, bits, results or tables.")],
    path: Annotated[Path, typer.Argument(metavar="RUNS")],
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only these choices or recipes.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Only these weight bits.")] = None,
) -> None:
    """Add the missing runs to RUNS, or print its tables."""
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if what == "tables":
        for kind, (*_, table) in KINDS.items():
            print(f"\n## {kind}\n", *table([r for r in runs if r["kind"] == kind]), sep="\n")
        return
    function, names, widths, _ = KINDS[what]
    done = {(run["kind"], run["network"], run["bits"], run["name"], run["seed"]) for run in runs}
    for seed in range(seeds):  # all choices of a seed first, so that early tables are balanced
        for chosen in network or NETWORKS:
            for width in bits or widths:
                for name in only or names:
                    if (what, chosen, width, name, seed) in done:
                        continue
                    began = time.perf_counter()
                    run = {"kind": what, "network": chosen, "bits": width, "name": name}
                    run |= {"seed": seed, **function(chosen, width, name, seed)}
                    run["seconds"] = round(time.perf_counter() - began, 1)
                    with path.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                    print(json.dumps(run), flush=True)


if __name__ == "__main__":
    typer.run(main)
