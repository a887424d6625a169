"""Where the time of an evaluation goes, for docs/speed.md; run by speed.py."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import xarray as xr
from engines import engines, engines_section
from timing import moved, seconds
from torch.profiler import ProfilerActivity, profile, record_function

from evolq.data.images import LabeledImages
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Objective, predict
from evolq.network.lowering import differing_codes
from evolq.network.quantized import BATCH_SIZE, quantize
from evolq.points import Point, select
from evolq.problem import Problem
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate
from landscape.statistics.minima import find_minima
from landscape.statistics.roughness import split_half_reliability, total_variation

Result = dict[str, Any]

# What runs outside of PyTorch's operators is the evaluation's own time.
EVALUATION = "evaluation"

# Where time is spent, by the beginning of the profiler's names.
PARTS = {
    "integer products (`_int_mm`)": ("aten::_int_mm",),
    "layers, LayerNorms and attention (`kernels.cpp`)": (EVALUATION,),
    "compiled regions": ("Torch-Compiled Region", "## Call CompiledFxGraph"),
}
REST = "all else (copies, weights, dispatch)"


def time_shares(problem: Problem) -> Result:
    """Measure one full evaluation and profile another: seconds, and the share of each part."""
    scales = tuple(select(problem.start, {"scale"}))
    varied = problem.objective.vary(scales, problem.start)
    varied(moved(problem.start, scales, 0))
    point = moved(problem.start, scales, 1)
    total = seconds(lambda: varied(point))
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(EVALUATION):
        varied(moved(problem.start, scales, 2))
    spent = dict.fromkeys([*PARTS, REST], 0.0)
    for event in profiler.key_averages():
        part = next((part for part, names in PARTS.items() if event.key.startswith(names)), REST)
        spent[part] += event.self_cpu_time_total
    whole = sum(spent.values())
    with torch.no_grad():
        prepared = seconds(lambda: varied.forward.function.prepare(point))
    return {
        "seconds": total,
        "prepare_seconds": prepared,
        "images": len(problem.split.calibration),
        "operations": 2 * problem.network.operations,
        "shares": {part: value / whole for part, value in spent.items()},
    }


def peaks(problem: Problem) -> Result:
    """Measure products: GOP/s by shape (rows, terms, columns), of int8 and fp32, and of attention.

    The shapes are those of DeiT-Tiny's layers for a batch, and two large ones.
    """
    rows = BATCH_SIZE * 197
    shapes = [(2048, 2048, 2048), (4096, 4096, 4096)]
    shapes += [(rows, 192, 576), (rows, 192, 192), (rows, 192, 768), (rows, 768, 192)]
    generator = torch.Generator().manual_seed(0)
    found = []
    for n, k, m in shapes:
        left = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
        right = torch.randint(-128, 128, (k, m), generator=generator, dtype=torch.int8)
        a, b = left.float(), right.float()
        operations = 2 * n * k * m
        integer = rate(operations, lambda x=left, y=right: torch._int_mm(x, y))
        found.append([[n, k, m], integer, rate(operations, lambda x=a, y=b: x @ y)])
    heads = torch.randn(3 * BATCH_SIZE, 197, 64, generator=generator)
    scores = torch.randn(3 * BATCH_SIZE, 197, 197, generator=generator)
    operations = 2 * heads.numel() * 197
    attention = {
        "queries with keys": rate(operations, lambda: heads @ heads.transpose(1, 2)),
        "probabilities with values": rate(operations, lambda: scores @ heads),
    }
    return {"products": found, "attention": attention}


def rate(operations: int, function: Callable[[], object], repeats: int = 7) -> float:
    """Return GOP/s: the median of a few calls after one that is not timed."""
    function()
    return operations / statistics.median(seconds(function) for _ in range(repeats)) / 1e9


def codes(problem: Problem) -> Result:
    """Compare integer with simulated execution: codes of one batch, losses of all images."""
    network, start = problem.network, problem.start
    counts: dict[str, tuple[int, int]] = {}
    for images in problem.split.calibration.images[:BATCH_SIZE].split(10):
        for name, (differing, count) in differing_codes(network.graph, start, images).items():
            before = counts.get(name, (0, 0))
            counts[name] = before[0] + differing, before[1] + count
    worst = max(counts, key=lambda name: counts[name][0] / counts[name][1])
    logits, per_image = {}, {}
    for execution in ("simulated", "compiled", "integer"):
        objective = Objective.of(
            network.executed(execution),
            problem.split.calibration,
            problem.objective.criterion,
            problem.objective.teacher,
        )
        logits[execution] = objective.forward.logits(start)
        per_image[execution] = objective.criterion.per_image(
            logits[execution], objective.teacher, objective.labels
        )
    best = {name: values.argmax(1) for name, values in logits.items()}
    return {
        "differing": sum(differing for differing, _ in counts.values()),
        "count": sum(count for _, count in counts.values()),
        "worst": [worst, *counts[worst]],
        "images": BATCH_SIZE,
        "criterion": problem.objective.criterion.name,
        "loss_images": len(problem.split.calibration),
        "executions": {
            name: {
                "loss": float(values.double().mean()),
                "difference": float((values - per_image["simulated"]).abs().mean()),
                "same_top1": int((best[name] == best["simulated"]).sum()),
            }
            for name, values in per_image.items()
        },
    }


# Growth -------------------------------------------------------------------------------------------

BASE = {"points": 1, "images": 200, "depth": 4, "width": 128}
AXES: dict[str, Sequence[int]] = {
    "points": (1, 2, 4, 8, 16),
    "images": (50, 100, 200, 400, 800),
    "depth": (1, 2, 4, 8, 16),
    "width": (64, 128, 256, 512),
}


def growth(problem: Problem) -> Result:
    """Measure seconds along each of `AXES`; small vision transformers with random weights.

    64 x 64 images in patches of 8 x 8, heads of 32; full evaluations with integer execution.
    """
    return {
        axis: [[value, cost(**{**BASE, axis: value})] for value in values]
        for axis, values in AXES.items()
    }


def cost(points: int, images: int, depth: int, width: int) -> float:
    """Return the seconds in which a network is evaluated: the median of three."""
    objective, start = small_problem(images, depth, width)
    scales = tuple(select(start, {"scale"}))
    varied = objective.vary(scales, start)
    varied(moved(start, scales, 0))

    def evaluate(seed: int) -> None:
        for index in range(points):
            varied(moved(start, scales, seed + index))

    return statistics.median(seconds(lambda s=seed: evaluate(s)) for seed in (1, 101, 201))


def small_problem(images: int, depth: int, width: int) -> tuple[Objective, Point]:
    """Return an objective on random images, and its start."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_dim=width,
        depth=depth,
        num_heads=width // 32,
        num_classes=10,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(images, 3, 64, 64, generator=generator)
    network = quantize(model, values[:2], Quantization("full", weight_observer="minmax"))
    start = calibrate(network, values[:16])
    labels = torch.zeros(images, dtype=torch.int64)
    data = LabeledImages(values, labels, tuple(map(str, range(images))))
    teacher = predict(model, values)
    objective = Objective.of(network.executed("integer"), data, CRITERIA["kl"], teacher)
    return objective, start


def exponent(values: Sequence[Sequence[float]]) -> float:
    """Return the slope of a straight line through (value, seconds) in logarithms."""
    x, y = np.log(np.array(values, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def draw_growth(found: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Draw seconds against points, images, depth and width, with fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(11, 2.9), sharey=True)
    for subplot, (axis, values) in zip(axes, found.items(), strict=True):
        x, y = np.array(values, dtype=float).T
        slope = exponent(values)
        level = math.exp(np.mean(np.log(y)) - slope * np.mean(np.log(x)))
        subplot.loglog(x, level * x**slope, color="#999999", label=f"exponent {slope:.2f}")
        subplot.loglog(x, y, "o", color="#0072b2")
        subplot.set_xlabel(axis)
        subplot.set_xticks(x, [f"{value:g}" for value in x])
        subplot.minorticks_off()
        subplot.legend(frameon=False, loc="upper left")
    axes[0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# Whole scans and large analyses -------------------------------------------------------------------


# A scan without what a slice is compared with, as in the first version.
SURFACE_ALONE = ("--no-frozen-codes", "--descents", "0", "--repeats", "0")


def scan_executions(_: Problem) -> Result:
    """Measure `python -m landscape.scan` as a whole process, in seconds, by how it executes.

    The functions of `kernels.cpp` are kept on disk, and all commands use them: one run has an empty
    folder for them, the others find them there.
    """
    with tempfile.TemporaryDirectory() as folder:

        def run(execution: str, *options: str, cache: str = "cache") -> float:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, cache))}
            command = [sys.executable, "-m", "landscape.scan", "--execution", execution]
            command += ["--out", str(Path(folder, "scan")), "--overwrite", *options]
            return seconds(
                lambda: subprocess.run(command, check=True, capture_output=True, env=environment)
            )

        run("simulated")  # byte code, and files in the system's cache
        return {
            "simulated": run("simulated"),
            "integer, functions built anew": run("integer", cache="empty"),
            "integer, functions from disk": run("integer"),
            "the same, the surface alone": run("integer", *SURFACE_ALONE),
        }


def analyses(_: Problem) -> Result:
    """Measure analyses of a surface of pure noise, 1001 x 1001 points, in seconds of CPU time."""
    size, images = 1001, 20
    generator = np.random.default_rng(0)
    axis = np.arange(size, dtype=float)
    per_image = xr.DataArray(
        generator.standard_normal((size, size, images), dtype=np.float32),
        dims=("y", "x", "image"),
        coords={"y": axis, "x": axis},
    )
    surface = per_image.mean("image")
    parts: dict[str, Callable[[], object]] = {
        "minima by persistence": lambda: find_minima(surface, float(surface.std()) * 4),
        "total variation": lambda: total_variation(surface),
        f"split-half reliability, {images} images": lambda: split_half_reliability(per_image),
    }
    found = {}
    for name, function in parts.items():
        began = time.process_time()
        function()
        found[name] = time.process_time() - began
    return found


# The page -----------------------------------------------------------------------------------------

PROFILES: dict[str, Callable[[Problem], Result]] = {
    function.__name__: function
    for function in (engines, time_shares, peaks, codes, growth, scan_executions, analyses)
}


def sections(found: Result) -> list[str]:
    """Render what follows the table in docs/speed.md."""
    parts = found["profile"]
    return [
        engines_section(parts["engines"]),
        time_section(parts["time_shares"]),
        peak_section(parts["peaks"], parts["time_shares"]),
        growth_section(parts["growth"]),
        whole_section(parts["scan_executions"], parts["analyses"]),
        codes_section(parts["codes"]),
    ]


def time_section(found: Result) -> str:
    """Render where the time goes."""
    rows = "\n".join(f"| {part} | {100 * share:.0f} % |" for part, share in found["shares"].items())
    return f"""## Where the time goes

One full evaluation of {found["images"]} images, {found["seconds"]:.2f} s, by torch's profiler:

| part | share |
|---|---|
{rows}

Quantizing all weights anew takes {1000 * found["prepare_seconds"]:.0f} ms for each Point, however
many images there are.
"""


def peak_section(found: Result, times: Result) -> str:
    """Render the distance from what the machine can do."""
    rows = "\n".join(
        f"| {n} x {k} by {k} x {m} | {integer:.0f} | {fp32:.0f} |"
        for (n, k, m), integer, fp32 in found["products"]
    )
    attention = ", ".join(f"{name} {rate:.0f} GOP/s" for name, rate in found["attention"].items())
    peak = max(integer for _, integer, _ in found["products"])
    peak_fp32 = max(fp32 for *_, fp32 in found["products"])
    own = times["operations"] * times["images"] / times["seconds"] / 1e9
    return f"""## Distance from the machine's peak

GOP/s (a multiplication and an addition are two operations), measured in one run:

| product | int8 (`_int_mm`) | fp32 (`@`) |
|---|---|---|
{rows}

The lower ones are those of DeiT-Tiny's layers for a batch of {BATCH_SIZE}. Attention in fp32:
{attention}. A full evaluation does {own:.0f} GOP/s in all: {100 * own / peak:.0f} % of the highest
int8 rate here, {100 * own / peak_fp32:.0f} % of the highest fp32 rate.
"""


def growth_section(found: Result) -> str:
    """Render how cost grows."""
    base = ", ".join(f"{axis} {value}" for axis, value in BASE.items())
    exponents = ", ".join(f"{axis} {exponent(values):.2f}" for axis, values in found.items())
    return f"""## How cost grows

![Seconds against points, images, depth and width, both logarithmic](speed_growth.png)

Small vision transformers with random weights, 65 tokens, integer execution; along each axis the
others stay at {base}. Exponents of fitted powers: {exponents}.
"""


def whole_section(scan: Mapping[str, float], analyzed: Mapping[str, float]) -> str:
    """Render how long a user waits."""

    def rows(found: Mapping[str, float]) -> str:
        return "\n".join(f"| {name} | {value:.1f} |" for name, value in found.items())

    return f"""## The default scan, and large analyses

The baseline of whole commands, the first version, measured each point of a scan on calibration and
on test images, and no more. Since then a scan also measures each point with frozen codes, the
start with changes that mean nothing, and descents off the plane: about as many test images again.
A comparison measures numerical noise and the way between two ends, too.

`python -m landscape.scan` measures a small network. It runs on integers by default, as nothing is
compiled for it but the functions of `kernels.cpp`, once, in two seconds. The surface alone, as in
the first version, takes `{" ".join(SURFACE_ALONE)}`:

| execution | seconds |
|---|---|
{rows(scan)}

Analyses of 1001 x 1001 points, pure noise:

| analysis | CPU seconds |
|---|---|
{rows(analyzed)}
"""


def codes_section(found: Result) -> str:
    """Render how far integer execution is from the simulated path."""
    worst, differing, count = found["worst"]
    rows = "\n".join(
        f"| {name} | {values['loss']:.4f} | {values['difference']:.4f} | {values['same_top1']} |"
        for name, values in found["executions"].items()
    )
    return f"""## Integer against simulated

{found["differing"]} of {found["count"]} codes of activations differ from the simulated path's
({found["images"]} images; a share of {found["differing"] / found["count"]:.1e}), each compared
with all codes before it equal, so that only float32 rounding sets them apart. The largest share is
that of `{worst}`, {differing / count:.1e}.

In a network such a code goes on to others, and these to more. How far that leads, on
{found["loss_images"]} images ({found["criterion"]}; differences are taken image by image); the
compiled path computes what the simulated one does, only rounded in another order:

| execution | loss | mean absolute difference | images with the same top-1 |
|---|---|---|---|
{rows}
"""
