"""What a problem depends on, declared once: the options of every command, by the same names.

Nothing here imports torch, so that command lines can read the fields before they need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from evolq.declared import MAX_BATCH, MAX_IMAGES, MAX_SEED, check_fields
from evolq.quantization import Quantization

# More than any machine has cores; torch takes more without a word, until it runs out of memory.
MAX_THREADS = 1024

ExecutionName = Literal["simulated", "compiled", "integer"]
CriterionName = Literal["info_nce", "kl", "mse", "cosine", "cross_entropy", "fisher"]


@dataclass(frozen=True)
class Settings:
    """Model, images, quantization, loss: everything that a problem depends on.

    Attributes:
        model: fashion_vit, fashion_resnet, any timm name, or hf-hub:OWNER/MODEL.
        weights: Weights as a file; without it bundled, or downloaded by timm.
        images: Folder of class folders, or of images with a labels.csv (file,label); calibration,
            selection and test images are drawn from it, disjoint. The bundled networks bring their
            own images.
        calibration_dir: Like `images`, for calibration and selection images only.
        test_dir: Like `images`, for test images only.
        start: Start at this saved quantized model; it brings its own scheme, bits and scales.
        quantization: How the network is quantized.
        execution: How the network runs: simulated; compiled (the same in fewer passes); integer
            (products on integer codes, several times faster; gradients are simulated). By default
            integer where nothing has to be compiled for it, which can take a minute, else
            simulated.
        criterion: Calibration loss; by default info_nce, with scheme none cross_entropy.
        temperature: Temperature of info_nce; by default 3.
        calibration_images: Number of calibration images.
        selection_images: Number of images set apart to choose among results.
        test_images: Number of test images.
        batch_size: Images per forward pass; part of what a result depends on.
        threads: Threads of one evaluation; sums of floats depend on it in their last bits. All
            cores where no default stands here.
        skip_unreadable: Leave out images that cannot be read.
        seed: Seed of everything that is drawn.
        device: cpu, cuda, ...

    Raises:
        InputError: for values of other types, or numbers out of range.
    """

    model: str = "fashion_vit"
    weights: Path | None = None
    images: Path | None = None
    calibration_dir: Path | None = None
    test_dir: Path | None = None
    start: Path | None = None
    quantization: Quantization = field(default=Quantization())
    execution: ExecutionName | None = None
    criterion: CriterionName | None = None
    temperature: float | None = None
    calibration_images: int = 100
    selection_images: int = 100
    test_images: int = 200
    batch_size: int = 50
    threads: int | None = None
    skip_unreadable: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(
            self,
            calibration_images=(1, MAX_IMAGES),
            selection_images=(0, MAX_IMAGES),
            test_images=(1, MAX_IMAGES),
            batch_size=(1, MAX_BATCH),
            threads=(1, MAX_THREADS),
            seed=(0, MAX_SEED),
        )

    @property
    def criterion_name(self) -> CriterionName:
        """The criterion, or the one that is best for the scheme.

        infoNCE of a network against itself is not the loss that classic pictures show.
        """
        if self.criterion is not None:
            return self.criterion
        return "cross_entropy" if self.quantization.scheme == "none" else "info_nce"


def configuration(*declared: Any) -> dict[str, Any]:
    """Return the fields of frozen dataclasses as one flat dict, ready for JSON and YAML.

    Nested dataclasses are flattened; paths become strings, tuples lists.
    """
    found: dict[str, Any] = {}
    for part in declared:
        for entry in fields(part):
            value = getattr(part, entry.name)
            found |= configuration(value) if is_dataclass(value) else {entry.name: plain(value)}
    return found


def plain(value: Any) -> Any:
    """Return `value` as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
