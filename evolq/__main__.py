"""Command line: quantize a network by evolution, and say what it gained on test images.

`python -m evolq` searches the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evolq import command_line
from evolq.command_line import Command, Output
from evolq.declared import check_fields
from evolq.errors import InputError, require
from evolq.quantization import MAX_BITS, MIN_BITS, Quantization
from evolq.settings import Settings

if TYPE_CHECKING:
    from evolq.files.onnx_report import ExportReport
    from evolq.network.quantized import QuantizedNetwork
    from evolq.optimizers.evolve import Iterate
    from evolq.optimizers.recipes import Recipe
    from evolq.points import Point
    from evolq.problem import Problem
    from evolq.progress import Progress

RecipeName = Literal["default", "published", "memetic"]
TargetName = Literal["onnxruntime", "openvino", "tensorrt", "compact"]

# Times that the start is measured with changes that mean nothing: a standard deviation of 8 has an
# error of 27 %.
REPEATS = 8

# What only an unfinished search has.
STATE = "search_state.safetensors"
CURVE = "curve.json"
# Years of work on the smallest network.
MOST_PASSES = 1_000_000
RESULTS = ("model.safetensors", "model.onnx", "report.json", CURVE)


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        recipe: How to search: default; published (the published Evol-Q code's search, of its own
            network: scheme published, unless another is given); memetic (with gradients).
        average_bits: Instead of `weight_bits`: search the bits of each layer, at most so many on
            average.
        passes: P, passes over all blocks; by default the recipe's.
        population: K, candidates in a block; by default the recipe's.
        cycles: C, children in a visit of a block; by default the recipe's.
        within: Only the names of scales that match this glob: 'blocks.3.*'.
        onnx: Write model.onnx, too, and say how it runs in ONNX Runtime.
        onnx_target: What model.onnx is for: onnxruntime, openvino, tensorrt (for networks with
            symmetric weights and activations), or compact (the smallest file).
    """

    recipe: RecipeName = "default"
    average_bits: float | None = None
    passes: int | None = None
    population: int | None = None
    cycles: int | None = None
    within: str | None = None
    onnx: bool = False
    onnx_target: TargetName = "onnxruntime"

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, average_bits=(MIN_BITS, MAX_BITS), passes=(0, MOST_PASSES))


def main(settings: Settings, search: Search, output: Output, given: frozenset[str]) -> None:
    """Quantize a network, search its scales by evolution, and test it once at the end.

    Writes model.safetensors and report.json; the search itself sees no test image.
    """
    settings = command_line.with_start(settings, given)
    if settings.test_images < 2:
        raise InputError(f"`test_images` is {settings.test_images}; an interval needs 2 or more")
    if settings.quantization.scheme == "none":
        raise InputError("`scheme` none has no scales to search; choose weights, linear or full")
    if "onnx_target" in given and not search.onnx:
        raise InputError("`onnx_target` is of the file that `onnx` writes; give that, too")
    if search.average_bits is not None and "weight_bits" in given:
        raise InputError("`average_bits` is instead of `weight_bits`; leave out one of the two")
    for package in ("onnx", "onnxruntime") if search.onnx else ():
        require(package, "onnx", "`onnx`")  # now, not after the search
    command_line.check_output_folder(output, STATE)

    from evolq.optimizers.evolve import visits
    from evolq.optimizers.recipes import choose_recipe
    from evolq.progress import Progress

    recipe = choose_recipe(
        search.recipe, passes=search.passes, population=search.population, cycles=search.cycles
    )
    settings = replace(settings, quantization=_quantization(settings, search, given))
    progress = Progress(output.quiet)
    began = time.monotonic()

    def check_network(network: QuantizedNetwork, _: Any) -> None:
        visits(network, recipe, _names(network.names, search))

    problem = command_line.prepare(settings, given, progress, check_network)
    if search.onnx:  # what cannot be exported is found out before the search
        with tempfile.TemporaryDirectory() as scratch:
            _export(problem, problem.start, Path(scratch) / "model.onnx", search)
    options = command_line.options_of(problem.settings, search)
    name = f"evolq-{Path(settings.model).name}"
    with command_line.output_folder(output, name, RESULTS, STATE) as folder:
        command_line.write_configuration(folder, options)
        curve = _Curve(folder)
        result = _search(problem, recipe, search, curve, progress)
        report = (
            _test(problem, result)
            | _gain(problem, result)
            | {
                "fitness_evaluations": result.evaluations,
                "forward_passes": result.cost,
                "start_forward_passes": problem.start_cost,
                "seconds": time.monotonic() - began,
                "curve": curve.columns,
                **problem.provenance,
                "options": options,
            }
        )
        found = _write(problem, result, report, folder, search)
        for unfinished in (STATE, CURVE):
            (folder / unfinished).unlink(missing_ok=True)
        _print(report, folder, found, output.json)


def _quantization(settings: Settings, search: Search, given: frozenset[str]) -> Quantization:
    """Return how the network is quantized: as given, but for what recipe or budget of bits say."""
    chosen = settings.quantization
    if search.average_bits is not None:
        chosen = replace(chosen, weight_bits=int(search.average_bits))
    if search.recipe == "published" and settings.start is None and "scheme" not in given:
        chosen = replace(chosen, scheme="published")  # the published search, of its own network
    return chosen


class _Curve:
    """The way of a search, one row for each Iterate: kept beside its state, for when it goes on.

    A search that goes on begins with the Iterate of its state, and repeats what it keeps no state
    of; equal rows are one.
    """

    def __init__(self, folder: Path) -> None:
        self.state, self.path = folder / STATE, folder / CURVE
        self.rows: dict[tuple[float, float, float], None] = {}
        if self.state.exists() and self.path.exists():
            self.rows = {tuple(row): None for row in json.loads(self.path.read_text())}

    def add(self, iterate: Iterate) -> None:
        from evolq.atomic import write_whole

        self.rows[(iterate.cost, iterate.evaluations, iterate.loss)] = None
        if self.state.exists():
            write_whole(self.path, json.dumps([*self.rows]).encode())

    @property
    def columns(self) -> dict[str, list[float]]:
        """Cost, evaluations and loss of each Iterate, in the order of cost."""
        rows = sorted(self.rows, key=lambda row: row[:2])
        names = ("cost", "evaluations", "loss")
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def _names(names: Sequence[str], search: Search) -> Collection[str] | None:
    """Return the scales that may move, None for all."""
    from evolq.points import select

    return None if search.within is None else select(names, {"scale"}, search.within)


def _search(
    problem: Problem, recipe: Recipe, search: Search, curve: _Curve, progress: Progress
) -> Iterate:
    """Search, say how it goes, and return the last Iterate."""
    from evolq.workflow import improve, iterates_at_most

    names = _names(problem.network.names, search)
    total = iterates_at_most(problem.network, recipe, search.average_bits, names)
    first: float | None = None
    with progress.task("Searching", total) as task:
        for done, iterate in enumerate(
            improve(
                problem.objective,
                problem.start,
                recipe,
                average_bits=search.average_bits,
                names=names,
                selection=problem.selection,
                seed=problem.settings.seed,
                state_file=curve.state,
            )
        ):
            curve.add(iterate)
            first = iterate.loss if first is None else first
            fitness = f"fitness {iterate.loss:.4f} ({iterate.loss - first:+.4f})"
            task.update(done, label=f"{iterate.label}, {fitness}")
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


def _gain(problem: Problem, result: Iterate) -> dict[str, float]:
    """Return what the search gained of its fitness, and what drawing lots would have.

    The start is measured again with jitters that mean nothing; the best of as many of them as the
    search had evaluations is lower than their mean by `jitter_gain`.
    """
    import torch

    from evolq.losses.jitter import expected_maximum, jittered

    generator = torch.Generator().manual_seed(problem.settings.seed)
    losses = []
    for _ in range(REPEATS):
        objective, point = jittered(problem.objective, problem.start, generator)
        losses.append(objective(point).double().cpu())
    scatter = float(torch.stack(losses).std())
    return {
        "gain": float(problem.objective(problem.start)) - result.loss,
        "jitter_gain": scatter * expected_maximum(max(result.evaluations, 1)),
    }


def _write(
    problem: Problem, result: Iterate, report: dict[str, Any], folder: Path, search: Search
) -> ExportReport | None:
    """Write the model, as safetensors and ONNX, and the report; return what is said of the ONNX."""
    from evolq.atomic import write_whole
    from evolq.files.saved import save

    save(
        problem.network,
        result.point,
        folder / "model.safetensors",
        problem.model,
        problem.split.calibration.images[:2],
        problem.settings.model,
        problem.provenance,
    )
    found = None
    if search.onnx:
        from evolq.files.onnx_report import check_export

        _export(problem, result.point, folder / "model.onnx", search)
        found = check_export(
            folder / "model.onnx",
            problem.network,
            result.point,
            problem.split.test.images,
            batch_size=problem.settings.batch_size,
        )
        report["onnx"] = asdict(found)
    write_whole(folder / "report.json", json.dumps(report, indent=2).encode())
    return found


def _export(problem: Problem, point: Point, path: Path, search: Search) -> None:
    from evolq.data.models import preprocessing
    from evolq.files.onnx import export_onnx

    export_onnx(
        problem.network,
        point,
        path,
        problem.split.calibration.images[:2],
        search.onnx_target,
        preprocessing=preprocessing(problem.model),
    )


def _print(report: dict[str, Any], folder: Path, found: ExportReport | None, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        command_line.print_json(report | {"folder": str(folder)})
        return
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
    console.print(
        f"Fitness on the calibration images fell by {report['gain']:.4f}; as many jitters of 1e-6, "
        f"which mean nothing, would give {report['jitter_gain']:.4f}."
    )
    rounding = report["start_forward_passes"]
    also = f", after {rounding:.1f} to round the start's weights" if rounding else ""
    console.print(
        f"The search took {report['forward_passes']:.1f} forward passes of the calibration images"
        f"{also}."
    )
    if found is not None:
        console.print(str(found), highlight=False)
    files = "model.safetensors, report.json, config.yaml"
    files += "" if found is None else ", model.onnx"
    console.print(f"Written to {folder}: {files}", highlight=False)


COMMAND = Command(
    "evolq",
    main,
    {"weight_bits": 3, "calibration_images": 200, "selection_images": 200, "test_images": 2000},
)


def run() -> None:
    """Run the command line."""
    command_line.run(COMMAND)


if __name__ == "__main__":
    run()
