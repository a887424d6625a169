"""Rebuild everything in ``evolq/bundled``: the images, the two trained networks and their cards.

The images come from the Debian package ``dataset-fashion-mnist``; one command rebuilds all:

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    python benchmarks/build_bundled.py all fashion/usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from evolq.data.fashion import CLASSES, MEAN, STD, fashion_resnet, fashion_vit
from evolq.data.images import LabeledImages, bundled_split
from evolq.data.models import load_model, weights_hash
from evolq.network.quantized import BATCH_SIZE, quantize
from evolq.quantization import Quantization
from evolq.starts.calibration import calibrate

BUNDLED = Path(__file__).resolve().parent.parent / "evolq" / "bundled"
SEED = 0
PER_CLASS = 100  # calibration images per class, and selection images per class


@dataclass(frozen=True)
class Phase:
    """A stretch of training: linear warm-up, then cosine decay of the learning rate to zero."""

    epochs: int
    peak_learning_rate: float
    augmented: bool
    """Whether images are shifted and mirrored at random."""
    weight_decay: float = 0.05
    """On weights of two or more dimensions only."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: with AdamW, which starts afresh in each phase."""

    phases: tuple[Phase, ...]
    batch_size: int
    warmup_fraction: float = 0.05
    """Share of a phase's steps in which the learning rate rises."""
    max_shift: int = 1
    """Pixels by which a training image is shifted at most, along each axis."""
    channel_spread: float = 0.0
    """Standard deviation of the logarithm by which the channels of a LayerNorm differ afterwards;
    see `spread_channels`."""
    seed: int = SEED
    threads: int = 1
    """Part of the recipe, since the order of summation depends on it.  For networks this small, one
    thread also costs the least processor time."""


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    # The channels' spread is that of the first LayerNorms of DeiT-Tiny (0.4 to 0.9). It gives the
    # transformer the sensitivity to coarse weights that long training gives to large ones.
    "fashion_vit": (
        fashion_vit,
        Recipe(
            (
                Phase(16, 1.5e-3, augmented=True),
                Phase(4, 5e-4, augmented=False, weight_decay=0.0),
            ),
            batch_size=32,
            channel_spread=0.5,
        ),
    ),
    "fashion_resnet": (fashion_resnet, Recipe((Phase(10, 2e-3, augmented=True),), 128)),
}


# Images -------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped file of unsigned bytes in the IDX format of MNIST (big-endian header)."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both uint8, of the split ``train`` or ``t10k``."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz")


def draw_subsets(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the calibration and of the selection images: disjoint, PER_CLASS of each class.

    The classes take turns (0, 1, ..., 9, 0, 1, ...), so that the first images are balanced too.
    """
    generator = np.random.default_rng(SEED)
    drawn = np.stack(
        [
            generator.choice(np.flatnonzero(labels == label), 2 * PER_CLASS, replace=False)
            for label in range(len(CLASSES))
        ]
    )
    calibration, selection = np.split(drawn, 2, axis=1)  # each (classes, PER_CLASS)
    return calibration.T.ravel(), selection.T.ravel()


# Training -----------------------------------------------------------------------------------------


def normalize(images: Tensor) -> Tensor:
    """Bytes (N, 28, 28) to the networks' input, floats (N, 1, 28, 28)."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def augment(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Shift each image (N, 28, 28) by up to ``max_shift`` pixels and mirror every second one."""
    count, height, width = images.shape
    windows = functional.pad(images, [max_shift] * 4).unfold(1, height, 1).unfold(2, width, 1)
    down, right = torch.randint(2 * max_shift + 1, (2, count), generator=generator)
    shifted = windows[torch.arange(count), down, right]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None], shifted.flip(-1), shifted)


def learning_rate(peak: float, warmup_fraction: float, progress: float) -> float:
    """Learning rate when the share ``progress`` of a phase's steps is done."""
    if progress < warmup_fraction:
        return peak * progress / warmup_fraction
    return peak * (1 + math.cos(math.pi * (progress - warmup_fraction) / (1 - warmup_fraction))) / 2


def fit(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> Iterator[float]:
    """Train ``model`` in place, yielding the mean training loss after each epoch.

    The weights of the last epoch are final: no image outside the training set plays a part.

    Args:
        model: From images (N, 1, 28, 28) to logits (N, 10).
        images: Bytes (N, 28, 28).
        labels: Integers (N,).
        recipe: What to do.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    steps = len(images) // recipe.batch_size  # a shuffled epoch drops its last, smaller batch
    for index, phase in enumerate(recipe.phases):
        generator = torch.Generator().manual_seed(recipe.seed + index)
        groups = [
            {"params": matrices, "weight_decay": phase.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        for epoch in range(phase.epochs):
            model.train()
            order = torch.randperm(len(images), generator=generator)
            total = 0.0
            for step, batch in enumerate(order[: steps * recipe.batch_size].view(steps, -1)):
                progress = (epoch + step / steps) / phase.epochs
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        phase.peak_learning_rate, recipe.warmup_fraction, progress
                    )
                pixels = images[batch]
                if phase.augmented:
                    pixels = augment(pixels, recipe.max_shift, generator)
                loss = functional.cross_entropy(model(normalize(pixels)), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            yield total / steps


def spread_channels(model: nn.Module, deviation: float, generator: torch.Generator) -> None:
    """Multiply LayerNorm channels by log-normal factors and divide the layer behind by them.

    In full precision the network's function stays the same. Quantized per row, the layer's columns
    now differ in size, as in large trained transformers (Lin et al. 2022, "FQ-ViT", section 3.2).

    Args:
        model: A VisionTransformer.
        deviation: Standard deviation of the factors' logarithm.
        generator: Draws them.
    """
    with torch.no_grad():
        for block in model.blocks:
            for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                noise = torch.randn(norm.weight.shape, generator=generator)
                factor = torch.exp(deviation * noise)
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
                layer.weight.div_(factor)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers, in the usual memory layout."""
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


# Cards --------------------------------------------------------------------------------------------


def accuracy(logits: Callable[[Tensor], Tensor], test: LabeledImages) -> float:
    """Share of the test images that are classified correctly."""
    with torch.inference_mode():
        predicted = torch.cat([logits(batch).argmax(1) for batch in test.images.split(BATCH_SIZE)])
    return float((predicted == test.labels).double().mean())


def accuracies(name: str) -> dict[str, float]:
    """Accuracy in full precision, and with 8-, 4-, 3- and 2-bit weights and 8-bit activations."""
    images = bundled_split(calibration=10 * PER_CLASS, selection=0, test=10_000)
    model = load_model(name)
    found = {"fp32": accuracy(model, images.test)}
    for bits in (8, 4, 3, 2):
        calibration = images.calibration.images
        network = quantize(
            model,
            calibration,
            Quantization(
                weight_bits=bits,
                weight_observer="minmax",
                activation_observer="minmax",
                moment_matching=False,
            ),
        )
        point = calibrate(network, calibration)
        found[f"W{bits}A8"] = accuracy(partial(network, point), images.test)
    return found


def write_card(name: str, facts: dict[str, object]) -> None:
    """Write what is known about a network beside its weights."""
    (BUNDLED / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


# Commands -----------------------------------------------------------------------------------------

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder of the four Debian files, *-ubyte.gz.")]
Name = Annotated[str, typer.Argument(help="fashion_vit or fashion_resnet.")]


@app.command()
def data(folder: Folder) -> None:
    """Write fashion_mnist.npz: the test set, and two subsets of the training set."""
    images, labels = read_split(folder, "train")
    test_images, test_labels = read_split(folder, "t10k")
    calibration, selection = draw_subsets(labels)
    np.savez_compressed(
        BUNDLED / "fashion_mnist.npz",
        calibration_images=images[calibration],
        calibration_labels=labels[calibration],
        calibration_indices=calibration.astype(np.int32),
        selection_images=images[selection],
        selection_labels=labels[selection],
        selection_indices=selection.astype(np.int32),
        test_images=test_images,
        test_labels=test_labels,
    )


@app.command()
def train(
    name: Name,
    folder: Folder,
    checkpoints: Annotated[Path | None, typer.Option(help="Keep weights of each epoch.")] = None,
) -> None:
    """Train one network on the 60,000 training images and write its weights and its card."""
    build, recipe = NETWORKS[name]
    images, labels = (torch.from_numpy(a.copy()) for a in read_split(folder, "train"))
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    timm.layers.set_fused_attn(False)  # the fused kernel is slower for 50 tokens on a processor
    model = build().to(memory_format=torch.channels_last)  # a quarter faster for the convolutions
    wall, processor = time.perf_counter(), time.process_time()
    for epoch, loss in enumerate(fit(model, images, labels.long(), recipe), start=1):
        minutes = (time.perf_counter() - wall) / 60
        typer.echo(f"{name} epoch {epoch} loss {loss:.4f} {minutes:.1f} min")
        if checkpoints is not None:
            checkpoints.mkdir(parents=True, exist_ok=True)
            save_weights(model, checkpoints / f"{name}.{epoch:02d}.safetensors")
    if recipe.channel_spread:
        generator = torch.Generator().manual_seed(recipe.seed)
        spread_channels(model, recipe.channel_spread, generator)
    save_weights(model, BUNDLED / f"{name}.safetensors")
    minutes = {
        "wall": round((time.perf_counter() - wall) / 60, 1),
        "processor": round((time.process_time() - processor) / 60, 1),
    }
    facts = {
        "name": name,
        "architecture": f"evolq.fashion.{name}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_images": len(images),
        "recipe": asdict(recipe),
        "final_training_loss": round(loss, 4),
        "training_minutes": minutes,
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    write_card(name, facts)


@app.command()
def card(name: Name) -> None:
    """Measure a network with the project's own quantizer and complete its card."""
    facts = json.loads((BUNDLED / f"{name}.json").read_text())
    facts["weights_hash"] = weights_hash(load_model(name))
    facts["accuracy"] = accuracies(name)
    typer.echo(facts["accuracy"])
    write_card(name, facts)


@app.command("all")
def everything(folder: Folder) -> None:
    """Rebuild the images, both networks and their cards."""
    data(folder)
    for name in NETWORKS:
        train(name, folder)
        card(name)


if __name__ == "__main__":
    app()
