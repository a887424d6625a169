"""The embedded benchmark is what its README and its cards say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evolq.data import fashion

BUNDLED = Path(fashion.__file__).parents[1] / "bundled"
NETWORKS = {"fashion_vit": fashion.fashion_vit, "fashion_resnet": fashion.fashion_resnet}
LEAST_ACCURACY = {"fashion_vit": 0.905, "fashion_resnet": 0.925}

# SHA-256 of the decompressed bytes: they change only if another set of images is drawn.
DIGESTS = {
    "calibration_images": "031aa22541a310060c43d71e351d8ecd937a10ea44cc350e24929cc3cffd8596",
    "selection_images": "18465da285e16720a10d470826188c84c1ae66be2b6f46d52b44d9ce36c3b764",
    "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(BUNDLED / "fashion_mnist.npz", allow_pickle=False) as archive:
        return dict(archive)


def card(name: str) -> dict[str, Any]:
    return json.loads((BUNDLED / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("split", "count"), [("calibration", 1000), ("selection", 1000), ("test", 10000)]
)
def test_sizes_and_classes(arrays: dict[str, np.ndarray], split: str, count: int) -> None:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    assert images.shape == (count, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels, minlength=10).tolist() == [count // 10] * 10


@pytest.mark.parametrize("split", ["calibration", "selection"])
def test_classes_take_turns(arrays: dict[str, np.ndarray], split: str) -> None:
    assert arrays[f"{split}_labels"].tolist() == list(range(10)) * 100


def test_splits_are_disjoint(arrays: dict[str, np.ndarray]) -> None:
    indices = np.concatenate([arrays["calibration_indices"], arrays["selection_indices"]])
    assert len(np.unique(indices)) == 2000
    assert indices.min() >= 0
    assert indices.max() < 60000
    splits = ("calibration", "selection", "test")
    images = [image.tobytes() for split in splits for image in arrays[f"{split}_images"]]
    assert len(set(images)) == 12000


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_images_are_the_published_ones(arrays: dict[str, np.ndarray], name: str) -> None:
    assert hashlib.sha256(arrays[name].tobytes()).hexdigest() == DIGESTS[name]


def test_files_are_small() -> None:
    for path in BUNDLED.glob("*.safetensors"):
        assert path.stat().st_size <= 4e6
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 9e6
    assert {path.suffix for path in BUNDLED.iterdir()} == {
        ".npz",
        ".safetensors",
        ".json",
        ".md",
        ".txt",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_accuracy_is_as_the_card_says(arrays: dict[str, np.ndarray], name: str) -> None:
    model = NETWORKS[name]().eval()
    model.load_state_dict(load_file(BUNDLED / f"{name}.safetensors"))
    pixels = torch.from_numpy(arrays["test_images"]).unsqueeze(1)
    images = (pixels / 255 - fashion.MEAN) / fashion.STD
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in images.split(500)]).numpy()
    accuracy = float((predicted == arrays["test_labels"]).mean())
    # Another processor may round the logits of an undecided image the other way.
    assert accuracy == pytest.approx(card(name)["accuracy"]["fp32"], abs=3e-4)
    assert accuracy >= LEAST_ACCURACY[name]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_are_sensitive_to_three_bits(name: str) -> None:
    accuracy = card(name)["accuracy"]
    assert accuracy["W3A8"] <= accuracy["fp32"] - 0.02
