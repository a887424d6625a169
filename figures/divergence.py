"""How codes diverge, block by block, after a change that means nothing.

    EVOLQ_DATA=FOLDER python -m figures.divergence    measure what figures/divergence.jsonl lacks

Pixels and scales of activations change by 1e-6 of their value, as in the repeats of a scan; each
code of each activation is compared with what it was. (Pixels alone change no code at all: 8-bit
values lie where the first quantizer takes them back.) The images do not calibrate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evolq.atomic import write_whole
from evolq.losses.jitter import jittered
from evolq.network.graph import interpret
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.problem import prepare
from evolq.quantization import Quantization
from evolq.settings import Settings
from evolq.tensor.quantizers import Quantizer
from landscape.plots.style import drawing
from landscape.statistics.intervals import mean_interval

STORED = Path(__file__).parent / "divergence.jsonl"
COMMAND = "EVOLQ_DATA=FOLDER python -m figures.divergence"
MODEL, SCHEMES, IMAGES = "deit_tiny_patch16_224", ("full", "linear"), 20
LOOKS = {"full": ("#d55e00", "o"), "linear": ("#0072b2", "s")}  # Okabe and Ito's, as elsewhere

Row = dict[str, Any]


def differing(
    network: QuantizedNetwork, before: tuple[Point, Tensor], after: tuple[Point, Tensor]
) -> dict[str, float]:
    """Return the share of an image's activation codes that differ, by block, in running order.

    Args:
        network: simulated.
        before: a complete Point and one image, (1, channels, height, width).
        after: the same, with changes that mean nothing.
    """
    values: dict[str, Tensor] = {}
    counts: dict[str, tuple[int, int]] = {}

    def quantizer_of(node: Any) -> str | None:
        module = network.module.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(module, Quantizer):
            return None
        name = str(network.graph.name_of(node.args[1])).rpartition(".")[0]
        return None if network.sites[name].kind == "weight" else name

    def keep(node: Any, value: Tensor) -> None:
        if name := quantizer_of(node):
            values[name] = value

    def compare(node: Any, value: Tensor) -> None:
        if name := quantizer_of(node):
            block = block_of(name)
            differ, count = counts.get(block, (0, 0))
            # scales differ by 1e-6 of their value, multiples of them by 1/255 or more
            same = torch.isclose(value, values.pop(name), rtol=1e-3, atol=0)
            differ += int((~same).sum())
            counts[block] = differ, count + value.numel()

    for (point, image), read in ((before, keep), (after, compare)):
        interpret(network.module, [*(point[name] for name in network.names), image], read)
    return {block: differ / count for block, (differ, count) in counts.items()}


def block_of(name: str) -> str:
    """Return the block that a quantizer belongs to: `blocks.3`, or `head` if it is in none."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if second.isdigit() else first


def measure(data: Path, scheme: str) -> list[Row]:
    """Return a row for each block of DeiT-Tiny, W4A8: the share of codes of each image."""
    problem = prepare(
        Settings(
            MODEL,
            weights=data / f"{MODEL}.safetensors",
            images=data / "imagenet_cc",
            quantization=Quantization(scheme, weight_bits=4),
            selection_images=0,
            test_images=IMAGES,
        )
    )
    network, images = problem.test.forward.network, problem.test.forward.images
    changed, moved = jittered(problem.test, problem.start, torch.Generator().manual_seed(0))
    shares: dict[str, list[float]] = {}
    for number in range(IMAGES):
        part = slice(number, number + 1)
        before, after = (problem.start, images[part]), (moved, changed.forward.images[part])
        found = differing(network, before, after)
        for block, share in found.items():
            shares.setdefault(block, []).append(share)
    return [{"scheme": scheme, "block": block, "shares": found} for block, found in shares.items()]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the share of codes that differ against the block, with 95 % intervals over images."""
    with drawing(None) as (figure, axes):
        for scheme in dict.fromkeys(row["scheme"] for row in rows):
            own = [row for row in rows if row["scheme"] == scheme]
            found = [mean_interval(row["shares"]) for row in own]
            blocks = [row["block"].removeprefix("blocks.") for row in own]
            color, marker = LOOKS[scheme]
            shares = [100 * each.estimate for each in found]
            axes.plot(blocks, shares, color=color, marker=marker, label=f"scheme {scheme}")
            bounds = [[100 * getattr(each, end) for each in found] for end in ("low", "high")]
            axes.fill_between(blocks, *bounds, color=color, alpha=0.2, linewidth=0)
        axes.set_yscale("log", nonpositive="mask")  # the first codes do not differ at all
        axes.set_ylim(1e-3, 100)
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_xlabel("block, in running order")
        axes.set_ylabel("activation codes that differ (%)")
        axes.set_title("Pixels and scales changed by 1e-6: DeiT-Tiny, W4A8")
        axes.legend()
    return figure


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        shares = {
            row["block"]: sum(row["shares"]) / len(row["shares"])
            for row in rows
            if row["scheme"] == scheme
        }
        named = ", ".join(f"{block} {share:.2g}" for block, share in shares.items())
        words.append(f"scheme {scheme}: {named}")
    return (
        "Share of activation codes that differ after pixels and scales changed by 1e-6 of their "
        f"value, DeiT-Tiny, W4A8, mean of {len(rows[0]['shares'])} images with 95 % intervals; "
        f"{'; '.join(words)}."
    )


def main() -> None:
    """Measure the schemes that are missing."""
    rows = [json.loads(line) for line in STORED.read_text().splitlines()] if STORED.exists() else []
    for scheme in SCHEMES:
        if not any(row["scheme"] == scheme for row in rows):
            rows += measure(Path(os.environ["EVOLQ_DATA"]), scheme)
            write_whole(STORED, "".join(f"{json.dumps(row)}\n" for row in rows).encode())


if __name__ == "__main__":
    main()
