"""The networks that claims are tested on, and the images that each seed draws."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from evolq.data.models import BUNDLED
from evolq.settings import Settings

VIT, CNN = "fashion_vit", "fashion_resnet"
DEIT, VIT_TINY, LITE = "deit_tiny_patch16_224", "vit_tiny_patch16_224", "tf_efficientnet_lite0"
BUNDLED_NETWORKS = {VIT: "transformer", CNN: "CNN"}
REAL_NETWORKS = {DEIT: "DeiT-Tiny", VIT_TINY: "ViT-Tiny", LITE: "EfficientNet-Lite0"}
NETWORKS = BUNDLED_NETWORKS | REAL_NETWORKS

# With 200 test images half of what a trial saw as roughness was noise of the sample.
CALIBRATION_IMAGES, TEST_IMAGES = 100, 1000
# Of real networks: the folder has 1,000 images.
REAL_IMAGES = 500


def settings_of(model: str, seed: int) -> Settings:
    """Return where a network, its weights and its images come from.

    Real networks run on integers, and read the folder in EVOLQ_DATA.

    Raises:
        KeyError: for a real network without EVOLQ_DATA.
    """
    if model in BUNDLED:
        return Settings(
            model,
            calibration_images=CALIBRATION_IMAGES,
            selection_images=0,
            test_images=TEST_IMAGES,
            threads=1,
            seed=seed,
        )
    data = Path(os.environ["EVOLQ_DATA"])
    weights = Path(_converted().name) if model == LITE else data
    return Settings(
        model,
        weights=weights / f"{model}.safetensors",
        images=data / "imagenet_cc",
        execution="integer",
        calibration_images=REAL_IMAGES,
        selection_images=0,
        test_images=REAL_IMAGES,
        threads=1,
        seed=seed,
    )


@lru_cache(maxsize=1)
def _converted() -> TemporaryDirectory:
    """Return a folder with EfficientNet-Lite0's weights under timm's names; it goes at the end."""
    from benchmarks.convert_efficientnet_lite0 import convert  # needs a package of its own

    folder = TemporaryDirectory()
    save_file(convert(), Path(folder.name) / f"{LITE}.safetensors")
    return folder
