"""How fast: a quantized DeiT-Tiny in units of timm's own fp32 forward pass, and docs/speed.md.

    EVOLQ_DATA=FOLDER python benchmarks/speed.py --json FILE      measure, print the table
    python benchmarks/speed.py --json FILE --page docs/speed.md   also profile, write the page

DeiT-Tiny, scheme full, W4A8, integer execution where it says nothing else, 2 threads, batches of
50. A time is divided by that of timm's forward pass of the same images (fp32, eager, fused
attention, inference_mode, batches of 50), measured right before it: A B A B. Each repeat gives one
ratio; compiling is done in a first evaluation that is not timed. Every evaluation gets a Point that
was not evaluated before, whose varying scales are all moved by about 1 %, so that weights are
quantized anew.

    full_evaluation        the loss as a function of all scales
    fitness_evaluation     the same of the scales in one attention block, mean over all of them;
                           what is computed once for a block (`Objective.vary`) is not counted
    last_block_evaluation  the same of the scales in the last transformer block
    linear_evaluation      full_evaluation of scheme linear, W8A8
    simulated_evaluation   full_evaluation with compiled instead of integer execution
    scale_gradient         loss and gradient of all scales (`Objective.gradient`), compiled
    calibration            `calibrate` with MSE observers on 100 images
    weight_point           a point where all weights move, scheme none, over the plain model's pass:
                           the larger ratio of DeiT-Tiny and fashion_resnet
    against_openvino, against_onnxruntime
                           scheme linear, W8A8, over the same network exported to that engine in
                           int8 (`benchmarks/engines.py`)
    default_scan, default_search, default_compare
                           a whole command without options over that of an earlier version, whose
                           checkout `--baseline` names; in new processes, A B A B
    peak_memory            see `memory_beyond_images`
    import_seconds         seconds, not a ratio: the larger of `import landscape` and
                           `python -m landscape.scan --help` in new processes

Results are added to the JSON file, which holds the medians by key; what a run does not measure
stays there. So the parts (`--only`) may be measured one after the other.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from engines import of_torch
from memory import HEADING
from speed_profile import PROFILES, draw_growth, sections
from timing import machine, moved, seconds
from torch import Tensor, nn

from evolq.data.images import LabeledImages, bundled_split
from evolq.data.models import load_model
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Objective, predict
from evolq.network.blocks import attention_modules
from evolq.network.quantized import BATCH_SIZE, quantize
from evolq.optimizers.evolve import visits
from evolq.optimizers.recipes import choose_recipe
from evolq.points import Point, select
from evolq.problem import Problem, prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.starts.calibration import calibrate

MODEL = "deit_tiny_patch16_224"
THREADS = 2
SCHEME, WEIGHT_BITS, ACTIVATION_BITS = "full", 4, 8
QUANTIZATION = Quantization(SCHEME, WEIGHT_BITS, ACTIVATION_BITS)
# Criteria cost next to nothing; this one couples no images, so that gradients need one batch.
CRITERION = "kl"
CALIBRATION_IMAGES, MEMORY_IMAGES = 100, 1000


class Target(NamedTuple):
    """What is measured, in words, and the most that it may be."""

    what: str
    at_most: float


TARGETS = {
    "full_evaluation": Target("one point over all scales", 0.36),
    "fitness_evaluation": Target("one fitness evaluation, mean of all attention blocks", 0.20),
    "last_block_evaluation": Target("one evaluation where the last block varies", 0.035),
    "linear_evaluation": Target("one point over all scales, scheme linear, W8A8", 0.36),
    "simulated_evaluation": Target("one point, simulated and compiled", 1.0),
    "scale_gradient": Target("loss and gradient of all scales", 3.0),
    "calibration": Target("calibration, per image", 4.0),
    "weight_point": Target("one point over all weights, scheme none, over the plain model", 1.0),
    "against_openvino": Target("one point, linear W8A8, over OpenVINO int8", 1.0),
    "against_onnxruntime": Target("one point, linear W8A8, over ONNX Runtime int8", 0.5),
    "default_scan": Target("`python -m landscape.scan`, over the baseline", 0.45),
    "default_search": Target("`python -m evolq`, over the baseline", 0.5),
    "default_compare": Target("`python -m landscape.compare`, over the baseline", 0.4),
    "peak_memory": Target("peak memory of evaluating 1,000 images", 3.0),
    "import_seconds": Target("import and --help, seconds", 1.0),
}


@dataclass(frozen=True)
class Subject:
    """What is measured: a problem, and how often.

    Attributes:
        problem: DeiT-Tiny on real images, with integer execution.
        repeats: ratios to measure of each kind.
    """

    problem: Problem
    repeats: int

    @property
    def scales(self) -> tuple[str, ...]:
        """The names of all scales."""
        return tuple(select(self.problem.start, {"scale"}))

    def full_precision(self, count: int) -> None:
        """Run timm's model on the first `count` images."""
        of_torch(self.problem.model, self.problem.split.calibration.images[:count])(0)

    def objective(self, execution: str) -> Objective:
        """Return the problem's objective, run another way."""
        given = self.problem.objective
        return Objective.of(
            self.problem.network.executed(execution),
            self.problem.split.calibration,
            given.criterion,
            given.teacher,
        )


class Measured(NamedTuple):
    """Ratios, one for each repeat, and what else there is to say."""

    values: list[float]
    note: str


# Times --------------------------------------------------------------------------------------------


def interleaved(
    subject: Subject,
    parts: Sequence[tuple[Callable[[Point], object], Collection[str]]],
    images: int | None = None,
) -> Measured:
    """Return the mean time of `parts` over that of a pass in full precision, for each repeat.

    A part is a function of a Point and the names that move; there is a pass before every call.
    """
    count = images or len(subject.problem.split.calibration)
    start = subject.problem.start
    subject.full_precision(count)
    for function, names in parts:
        function(moved(start, names, 0))
    print("compiled, measuring", file=sys.stderr, flush=True)
    ratios, passes = [], []
    for repeat in range(1, subject.repeats + 1):
        ours = 0.0
        for function, names in parts:
            point = moved(start, names, repeat)
            passes.append(seconds(lambda: subject.full_precision(count)))
            ours += seconds(lambda f=function, p=point: f(p))  # type: ignore[misc]
        ratios.append(ours / sum(passes[-len(parts) :]))
    per_image = 1000 * statistics.median(passes) / count
    return Measured(ratios, f"{count} images, fp32 {per_image:.1f} ms per image")


def full_evaluation(subject: Subject) -> Measured:
    """Measure a point of the landscape over all scales."""
    varied = subject.problem.objective.vary(subject.scales, subject.problem.start)
    return interleaved(subject, [(varied, subject.scales)])


def fitness_evaluation(subject: Subject) -> Measured:
    """Measure what evaluates a candidate in each attention block."""
    problem = subject.problem
    attention = attention_modules(problem.network)
    moving = [
        names
        for block, names in visits(problem.network, choose_recipe("default")).items()
        if block in attention
    ]
    began = time.perf_counter()
    parts = [(problem.objective.vary(names, problem.start), names) for names in moving]
    varying = (time.perf_counter() - began) / len(parts)
    measured = interleaved(subject, parts)
    one_pass = seconds(lambda: subject.full_precision(len(problem.split.calibration)))
    share = statistics.mean(part.forward.function.share for part, _ in parts)
    return Measured(
        measured.values,
        f"{measured.note}; {len(parts)} blocks, behind which lie {share:.2f} of all products; what "
        f"is computed once for a block costs {varying / one_pass:.2f} passes",
    )


def last_block_evaluation(subject: Subject) -> Measured:
    """Measure an evaluation that runs the last block only."""
    start = subject.problem.start
    last = max(int(name.split(".")[1]) for name in start if name.startswith("blocks."))
    names = tuple(select(start, {"scale"}, within=f"blocks.{last}.*"))
    varied = subject.problem.objective.vary(names, start)
    measured = interleaved(subject, [(varied, names)])
    share = varied.forward.function.share
    return Measured(measured.values, f"{measured.note}; {share:.3f} of all products")


def linear_evaluation(subject: Subject) -> Measured:
    """Measure a point of the landscape where only what products read is quantized."""
    problem = subject.problem
    images = problem.split.calibration.images
    network = quantize(problem.model, images[:2], Quantization("linear", 8, 8))
    start = calibrate(network, images[:BATCH_SIZE])
    given = problem.objective
    objective = Objective.of(
        network.executed("integer"), problem.split.calibration, given.criterion, given.teacher
    )
    linear = replace(subject, problem=replace(problem, network=network, start=start))
    scales = linear.scales
    return interleaved(linear, [(objective.vary(scales, start), scales)])


def simulated_evaluation(subject: Subject) -> Measured:
    """Measure a point of the landscape on the differentiable path, without a gradient."""
    varied = subject.objective("compiled").vary(subject.scales, subject.problem.start)
    return interleaved(subject, [(varied, subject.scales)])


def scale_gradient(subject: Subject) -> Measured:
    """Measure a loss together with its gradient."""
    varied = subject.objective("compiled").vary(subject.scales, subject.problem.start)
    measured = interleaved(subject, [(varied.gradient, subject.scales)])
    return Measured(measured.values, f"{measured.note}; criterion {CRITERION}")


def calibration(subject: Subject) -> Measured:
    """Measure how calibration finds a start."""
    network, images = subject.problem.network, subject.problem.split.calibration.images
    images = images[:CALIBRATION_IMAGES]
    return interleaved(subject, [(lambda _: calibrate(network, images), ())], len(images))


def weight_point(subject: Subject) -> Measured:
    """Measure a point of a plane of weights, in units of the plain model's own pass."""
    bundled = load_model("fashion_resnet")
    small = bundled_split(200, 0, 1).calibration
    ratios = {
        MODEL: _weight_ratios(subject.problem.model, subject.problem.split.calibration, subject),
        "fashion_resnet": _weight_ratios(bundled, small, subject),
    }
    worst = max(ratios, key=lambda name: statistics.median(ratios[name]))
    medians = [f"{name} {statistics.median(values):.3f}" for name, values in ratios.items()]
    return Measured(ratios[worst], ", ".join(medians))


def _weight_ratios(model: nn.Module, data: LabeledImages, subject: Subject) -> list[float]:
    network = quantize(model, data.images[:2], Quantization("none"))
    teacher = predict(model, data.images, BATCH_SIZE)
    objective = Objective.of(network, data, CRITERIA[CRITERION], teacher)
    varied = objective.vary(tuple(network.weights), network.weights)
    plain = of_torch(model, data.images[:])

    plain(0)
    varied(network.weights)
    # small networks take milliseconds: as many passes as take about a second
    passes = max(1, round(1 / seconds(lambda: plain(0))))
    ratios = []
    for repeat in range(1, subject.repeats + 1):
        points = [moved_weights(network.weights, passes * repeat + one) for one in range(passes)]
        theirs = seconds(lambda: [plain(one) for one in range(passes)])
        ours = seconds(lambda p=points: [varied(point) for point in p])  # type: ignore[misc]
        ratios.append(ours / theirs)
    return ratios


def moved_weights(weights: Point, seed: int) -> dict[str, Tensor]:
    """Return weights moved by about 1 % of their size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value * (1 + 0.01 * torch.randn(value.shape, generator=generator))
        for name, value in weights.items()
    }


# Memory and imports -------------------------------------------------------------------------------


def memory_beyond_images(quantized: bool) -> int:
    """Return the bytes that a pass over 1,000 images needs beyond what is loaded before it.

    To be run in a new process. Loaded before are the image tensor, the model, and for `quantized`
    the network and its start Point; one batch has run, so that everything is compiled, and freed
    memory has gone back to the system. What counts from there to the highest resident size are the
    activations of a batch, quantized weights, what is kept of the images (`Objective.vary` of all
    scales is called here) and the logits. The kernel's high-water mark (VmHWM, which `getrusage`
    calls ru_maxrss) is set back before: loading and compiling go higher.
    """
    torch.set_num_threads(THREADS)
    images = torch.randn(MEMORY_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = load_model(MODEL, weights())

    def prepared(images: Tensor) -> Callable[[], object]:
        if not quantized:
            return lambda: _run(model, images)
        labels = torch.zeros(len(images), dtype=torch.int64)
        data = LabeledImages(images, labels, tuple(map(str, range(len(images)))))
        teacher = torch.zeros(len(images), 1000)
        objective = Objective.of(network, data, CRITERIA[CRITERION], teacher)
        scales = tuple(select(start, {"scale"}))
        return lambda: objective.vary(scales, start)(moved(start, scales, 1))

    if quantized:
        network = quantize(model, images[:2], QUANTIZATION)
        network = network.executed("integer")
        start = calibrate(network, images[:BATCH_SIZE])
    prepared(images[:BATCH_SIZE])()
    evaluate = prepared(images)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    evaluate()
    return resident("VmHWM") - before


def _run(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(BATCH_SIZE)])


def resident(field: str) -> int:
    """Return this process's resident memory (VmRSS), or the most it was (VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def in_new_process(function: Callable[..., int], *arguments: object) -> int:
    """Return what `function` returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(function, *arguments).result()


def peak_memory(repeats: int) -> Measured:
    """Measure the memory of a scan against that of a pass in full precision."""
    pairs = [
        (in_new_process(memory_beyond_images, False), in_new_process(memory_beyond_images, True))
        for _ in range(repeats)
    ]
    theirs, ours = (statistics.median(column) / 2**20 for column in zip(*pairs, strict=True))
    return Measured([b / a for a, b in pairs], f"{ours:.0f} MiB, fp32 {theirs:.0f} MiB")


def keeping_byte_code() -> dict[str, str]:
    """Return an environment in which Python keeps byte code, as it does where nobody forbids it.

    Without, each process compiled torch and timm anew, 10 s of the 52 of a default scan.
    """
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def import_seconds(repeats: int) -> Measured:
    """Measure what a user waits for before anything happens."""
    commands = {
        "import landscape": ["-c", "import landscape"],
        "--help": ["-m", "landscape.scan", "--help"],
    }

    def run(arguments: list[str]) -> float:
        command = [sys.executable, *arguments]
        out, environment = subprocess.DEVNULL, keeping_byte_code()
        return seconds(lambda: subprocess.run(command, check=True, stdout=out, env=environment))

    for arguments in commands.values():
        run(arguments)  # compiles byte code, fills the disk cache
    found = [{name: run(command) for name, command in commands.items()} for _ in range(repeats)]
    medians = [f"{name} {statistics.median(f[name] for f in found):.2f} s" for name in commands]
    return Measured([max(times.values()) for times in found], ", ".join(medians))


# Whole commands -----------------------------------------------------------------------------------

COMMANDS = {
    "default_scan": "landscape.scan",
    "default_search": "evolq",
    "default_compare": "landscape.compare",
}


def whole_command(key: str, baseline: Path, repeats: int) -> Measured:
    """Measure a command without options against an earlier checkout of this project."""
    here = Path(__file__).parents[1]

    def run(checkout: Path) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", COMMANDS[key], "--out", str(Path(folder, "run"))]
            environment = keeping_byte_code() | {"PYTHONPATH": str(checkout)}
            return seconds(
                lambda: subprocess.run(
                    command, check=True, capture_output=True, env=environment, cwd=folder
                )
            )

    for checkout in (baseline, here):
        run(checkout)  # byte code, compiled functions, the system's cache
    pairs = [(run(baseline), run(here)) for _ in range(repeats)]
    before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measured([b / a for a, b in pairs], f"{now:.0f} s, baseline {before:.0f} s")


# Put together -------------------------------------------------------------------------------------

ON_SUBJECT: dict[str, Callable[[Subject], Measured]] = {
    function.__name__: function
    for function in (
        full_evaluation,
        fitness_evaluation,
        last_block_evaluation,
        linear_evaluation,
        simulated_evaluation,
        scale_gradient,
        calibration,
        weight_point,
    )
}
IN_NEW_PROCESSES: dict[str, Callable[[int], Measured]] = {
    function.__name__: function for function in (peak_memory, import_seconds)
}


ENGINES = {"against_openvino": "OpenVINO, int8 and", "against_onnxruntime": "ONNX Runtime, int8"}


def against(found: dict[str, Any], engine: str) -> Measured | None:
    """Return our ratios over those of the fastest engine whose name begins so, in the same run."""
    ratios = found["ratios"]
    theirs = [values for name, values in ratios.items() if name.startswith(engine)]
    if not theirs:
        return None  # not installed
    fastest = min(theirs, key=statistics.median)
    ours = ratios["ours, linear W8A8, integer"]
    values = [a / b for a, b in zip(ours, fastest, strict=True)]
    medians = (statistics.median(one) for one in (ours, fastest))
    return Measured(values, "{:.3f} against {:.3f} of fp32".format(*medians))


def weights() -> Path:
    """Return the file of DeiT-Tiny's weights."""
    return Path(os.environ["EVOLQ_DATA"]) / f"{MODEL}.safetensors"


def load(images: int) -> Problem:
    """Return the problem that everything is measured on."""
    settings = Settings(
        model=MODEL,
        weights=weights(),
        images=Path(os.environ["EVOLQ_DATA"]) / "imagenet_cc",
        quantization=QUANTIZATION,
        execution="integer",
        criterion=CRITERION,
        calibration_images=images,
        selection_images=0,
        test_images=1,
        threads=THREADS,
    )
    problem = prepare(settings)
    # what timm's users get: no attention here is computed the slow way
    assert all(m.fused_attn for m in problem.model.modules() if hasattr(m, "fused_attn"))
    return problem


def table(found: dict[str, Any]) -> str:
    """Return what was measured, with its targets, as a markdown table."""
    lines = [
        "| what | key | minimum | median | maximum | at most | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, target in TARGETS.items():
        if key in found:
            values = found["details"][key]["values"]
            numbers = (min(values), found[key], max(values))
            met = "yes" if found[key] <= target.at_most else "**no**"
            lines.append(
                f"| {target.what} | `{key}` | {' | '.join(f'{n:.3f}' for n in numbers)} | "
                f"{target.at_most:g} | {met} |"
            )
    return "\n".join(lines)


def notes(found: dict[str, Any]) -> str:
    """Return what else there is to say about each number."""
    details = {key: found["details"][key] for key in TARGETS if key in found}
    return "\n".join(
        f"- `{key}`: {len(detail['values'])} repeats; {detail['note']}."
        for key, detail in details.items()
    )


def page(found: dict[str, Any], old: str) -> str:
    """Render docs/speed.md; what `benchmarks/memory.py` wrote at its end stays."""
    memory = HEADING + old.split(HEADING)[1] if HEADING in old else ""
    introduction = (
        "# Speed\n\n"
        "Written by `benchmarks/speed.py`, whose first lines say what each number means. "
        f"DeiT-Tiny, scheme {SCHEME}, W{WEIGHT_BITS}A{ACTIVATION_BITS}, in units of timm's own "
        "forward pass (fp32, eager, fused attention, `inference_mode`, batches of 50) of the same "
        f"images in the same run, the two interleaved.\n\nMachine: {found['machine']}.\n\n"
        "![Times of evaluations, and of other engines](../figures/speed.png)\n"
    )
    return "\n".join([introduction, table(found), "", notes(found), "", *sections(found), memory])


def main(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Keeps all results, medians by key.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images of one evaluation.")] = 200,
    repeats: Annotated[int, typer.Option(help="Ratios of each kind.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    page_path: Annotated[
        Path | None, typer.Option("--page", help="Write this page; measure what it lacks.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A checkout that whole commands are compared with.")
    ] = None,
) -> None:
    """Measure, print the table, write the page."""
    found: dict[str, Any] = {"details": {}, "profile": {}}
    if json_path is not None and json_path.exists():
        found = json.loads(json_path.read_text())
    found["machine"] = machine(THREADS)
    known = [*TARGETS, *PROFILES]
    missing = [key for key in known if key not in found and key not in found["profile"]]
    chosen = only or (missing if page_path else [*TARGETS, "engines"])
    if baseline is None:
        chosen = [key for key in chosen if key not in COMMANDS]
    chosen = [key for key in chosen if key not in ENGINES]  # they come with `engines`
    if unknown := sorted(set(chosen) - set(known)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint="only")

    # new processes first, while this one is small and idle
    problem: Problem | None = None
    for key in sorted(chosen, key=lambda key: key not in {**IN_NEW_PROCESSES, **COMMANDS}):
        began = time.perf_counter()
        measured: dict[str, Measured | None] = {}
        if key in IN_NEW_PROCESSES:
            measured = {key: IN_NEW_PROCESSES[key](repeats)}
        elif key in COMMANDS:
            assert baseline is not None
            measured = {key: whole_command(key, baseline, repeats)}
        else:
            problem = problem or load(images)
            if key in ON_SUBJECT:
                measured = {key: ON_SUBJECT[key](Subject(problem, repeats))}
            else:
                found["profile"][key] = PROFILES[key](problem)
        if key == "engines":
            measured = {one: against(found["profile"][key], ENGINES[one]) for one in ENGINES}
        for name, one in measured.items():
            if one is not None:
                found[name] = statistics.median(one.values)
                found["details"][name] = one._asdict()
        print(f"{key}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if json_path is not None:
            json_path.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), notes(found), sep="\n\n")
    if page_path is not None:
        old = page_path.read_text() if page_path.exists() else ""
        page_path.write_text(page(found, old))
        draw_growth(found["profile"]["growth"], page_path.with_name("speed_growth.png"))


if __name__ == "__main__":
    typer.run(main)
