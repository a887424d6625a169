"""DeiT-Tiny in the engines that a user may choose from, side by side, for docs/speed.md.

    EVOLQ_DATA=FOLDER python benchmarks/speed.py --only engines

Every engine runs the same real images in batches of 50, in front of each the model in fp32, eager,
which its time is divided by; compiling and loading are not timed. Our own engines get a Point whose
scales all moved by about 1 % each time. Engines that are not installed are named and left out
(`pip install 'evolq[openvino]'`).
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timing import moved, seconds
from torch import Tensor, nn

from evolq.files.onnx import export_onnx
from evolq.files.onnx_report import logits_of
from evolq.network.quantized import BATCH_SIZE, quantize
from evolq.points import Point, select
from evolq.problem import Problem
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate

# What runs one batch after the other, at an evaluation that has this number.
Run = Callable[[int], object]

IMAGES, REPEATS = 100, 5

SCHEMES = {"linear W8A8": Quantization("linear", 8, 8), "full W4A8": Quantization("full", 4, 8)}


def of_torch(model: Callable[[Tensor], Tensor], images: Tensor) -> Run:
    """Run a PyTorch model."""

    def run(_: int) -> None:
        with torch.inference_mode():
            for batch in images.split(BATCH_SIZE):
                model(batch)

    return run


def of_points(function: Callable[[Point], object], start: Point, names: tuple[str, ...]) -> Run:
    """Run our own network at another Point each time."""

    def run(number: int) -> None:
        with torch.no_grad():
            function(moved(start, names, number))

    return run


def of_onnxruntime(path: Path, images: Tensor) -> Run:
    """Run an ONNX file."""
    logits = logits_of(path)
    parts = [batch.numpy() for batch in images.split(BATCH_SIZE)]
    return lambda _: [logits(batch) for batch in parts]


def of_openvino(path: Path, images: Tensor, threads: int, precision: str) -> Run:
    """Run an ONNX file; what is not int8 is computed in `precision`."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    model = core.read_model(path)
    model.reshape([BATCH_SIZE, *images.shape[1:]])
    compiled = core.compile_model(model, "CPU", options)
    parts = [batch.numpy() for batch in images.split(BATCH_SIZE)]
    return lambda _: [compiled([batch]) for batch in parts]


def built(
    model: nn.Module, images: Tensor, threads: int, folder: Path
) -> Iterator[tuple[str, Run]]:
    """Make the engines, by name."""
    yield "torch.compile, fp32", of_torch(torch.compile(model), images)
    low = copy.deepcopy(model).to(torch.bfloat16)
    yield "eager, bf16", of_torch(low, images.to(torch.bfloat16))
    for name, quantization in SCHEMES.items():
        network = quantize(model, images[:2], quantization)
        start = calibrate(network, images[:BATCH_SIZE])
        scales = tuple(select(start, {"scale"}))
        varied = network.executed("integer").vary(scales, start, images, BATCH_SIZE)

        yield f"ours, {name}, integer", of_points(varied, start, scales)
        if name != "linear W8A8":
            continue
        if find_spec("onnxruntime") and find_spec("onnx"):
            export_onnx(network, start, folder / "ort.onnx", images[:2], "onnxruntime")
            yield "ONNX Runtime, int8", of_onnxruntime(folder / "ort.onnx", images)
        if find_spec("openvino") and find_spec("onnx"):
            export_onnx(network, start, folder / "int8.onnx", images[:2], "openvino")
            plain = network.full_precision()
            export_onnx(plain, plain.weights, folder / "fp32.onnx", images[:2])
            for precision in ("f32", "bf16"):
                made = of_openvino(folder / "int8.onnx", images, threads, precision)
                yield f"OpenVINO, int8 and {precision}", made
                made = of_openvino(folder / "fp32.onnx", images, threads, precision)
                yield f"OpenVINO, {precision}", made


def engines(problem: Problem) -> dict[str, Any]:
    """Measure all engines: ratios by name, and what was left out."""
    threads, pixels = torch.get_num_threads(), problem.split.calibration.images[:IMAGES]
    eager = of_torch(problem.model, pixels)
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = dict(built(problem.model, pixels, threads, Path(folder)))
        for run in (eager, *found.values()):
            run(0)
        for number in range(1, REPEATS + 1):
            for name, run in found.items():
                before = seconds(lambda: eager(0))
                ratio = seconds(lambda r=run, n=number: r(n)) / before  # type: ignore[misc]
                ratios.setdefault(name, []).append(ratio)
    missing = [package for package in ("onnxruntime", "openvino") if not find_spec(package)]
    return {"ratios": ratios, "missing": missing, "images": len(pixels), "threads": threads}


def engines_section(found: dict[str, Any]) -> str:
    """Render the table."""
    rows = []
    for name, values in sorted(found["ratios"].items(), key=lambda i: statistics.median(i[1])):
        numbers = (min(values), statistics.median(values), max(values))
        rows.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in numbers)} |")
    table = "\n".join(rows)
    missing = "".join(f" Not installed: {package}." for package in found["missing"])
    return f"""## Beside other engines

Ratios to timm's eager fp32, measured as above ({found["images"]} images,
{found["threads"]} threads; `benchmarks/engines.py`). Ours move all scales and quantize all weights
anew each time; the others hold one Point, and would be exported and compiled anew for the next.
Int8 of ONNX Runtime and OpenVINO is our export of the same network (scheme linear, W8A8); bf16 is
what OpenVINO chooses for the rest on a processor that has it.{missing}

| engine | minimum | median | maximum |
|---|---|---|---|
{table}
"""
