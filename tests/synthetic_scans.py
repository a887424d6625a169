"""Small scans with known values, in the shape that a real scan has."""

from __future__ import annotations

import json

import numpy as np
import xarray

from landscape.probes.sampling import STEP_UNIT, TEST_LOSS
from landscape.words import name_scan

CONFIGURATION = {
    "model": "fashion_vit",
    "weight_bits": 4,
    "activation_bits": 8,
    "scheme": "linear",
    "over": "scales",
    "directions": "gaussian",
    "normalize": "none",
    "criterion": "info_nce",
}
HASHES = {"test_images": "of 40", "directions": "x and y"}


def plane(columns: int = 5, rows: int = 3, images: int = 40, noise: float = 0.05) -> xarray.Dataset:
    """Return a bowl around the start, higher along x than along y, with noise in every image."""
    x, y = np.linspace(-0.1, 0.1, columns), np.linspace(-0.05, 0.05, rows)
    height = 20 * x[None, :] ** 2 + 30 * (y[:, None] - 0.02) ** 2
    coordinates = {
        "x": ("x", x, {"long_name": "Step along x", "units": STEP_UNIT}),
        "y": ("y", y, {"long_name": "Step along y", "units": STEP_UNIT}),
    }
    return _scan(height, ("y", "x"), coordinates, images, noise)


def rays(count: int = 4, points: int = 7, images: int = 40, noise: float = 0.05) -> xarray.Dataset:
    """Return parabolas of different steepness through the start, with noise in every image."""
    distance = np.linspace(-0.1, 0.1, points)
    height = np.linspace(5, 20, count)[:, None] * distance**2
    words = {"long_name": "Signed distance along a ray", "units": STEP_UNIT}
    coordinates = {"ray": ("ray", np.arange(count)), "distance": ("distance", distance, words)}
    return _scan(height, ("ray", "distance"), coordinates, images, noise)


def walks(count: int = 3, steps: int = 8, images: int = 40, noise: float = 0.05) -> xarray.Dataset:
    """Return walks along as many axes that climb evenly, each faster, with noise in every image."""
    height = np.linspace(1, 2, count)[:, None] * np.arange(steps + 1)
    words = {"long_name": "Step of a walk"}
    along = ("step", np.arange(steps + 1), words)
    coordinates = {"walk": ("walk", np.arange(count)), "step": along}
    scan = _scan(height, ("walk", "step"), coordinates, images, noise, {"length": 0.1})
    position = np.zeros((count, steps + 1, steps))
    position[:, :, 0] = 0.1 * np.arange(steps + 1)
    return scan.assign(position=(("walk", "step", "component"), position))


def layers(images: int = 40) -> xarray.Dataset:
    """Return rises of three layers at 2, 3 and 4 bits: a none, b early, c only at 2 bits."""
    height = np.array([[0.0, 0, 0], [4, 1, 0], [0.5, 0, 0]])
    words = {"long_name": "Bits of this layer's weights"}
    coordinates = {"layer": ("layer", ["a", "b", "c"]), "bits": ("bits", [2, 3, 4], words)}
    return _scan(height, ("layer", "bits"), coordinates, images, noise=0.05)


def bits(images: int = 40) -> xarray.Dataset:
    """Return rises at 2, 3 and 4 bits, of which each has its best multiplier."""
    height = np.array([[1.0, 2, 3], [2, 0.5, 1], [0.2, 0, 0.1]])
    multipliers = ("multiplier", [0.5, 1.0, 2.0])
    coordinates = {"bits": ("bits", [2, 3, 4]), "multiplier": multipliers}
    return _scan(height, ("bits", "multiplier"), coordinates, images, noise=0.05)


def with_checkpoints(scan: xarray.Dataset, **places: tuple[float, float, float]) -> xarray.Dataset:
    """Return a plane with checkpoints: x, y and distance off the plane, all 1 from the start."""
    x, y, distance = (("checkpoint", list(values)) for values in zip(*places.values(), strict=True))
    return scan.assign(
        checkpoint_x=x,
        checkpoint_y=y,
        checkpoint_distance=distance,
        checkpoint_distance_from_start=("checkpoint", np.ones(len(places))),
    ).assign_coords(checkpoint=list(places))


def with_repeats(scan: xarray.Dataset, noise: float = 0.01, count: int = 8) -> xarray.Dataset:
    """Return a scan whose start was measured again, with normal noise in each image."""
    generator = np.random.default_rng(1)
    again = {}
    for name, image in (("loss", "calibration_image"), ("test_loss", "image")):
        start = scan[f"start_{name}_per_image"].values
        values = start + noise * generator.standard_normal((count, len(start)))
        again[f"repeat_{name}_per_image"] = (("repeat", image), values)
    return scan.assign(again)


def spoil(scan: xarray.Dataset, value: float = np.nan, **point: int) -> None:
    """Make losses not finite, in place, as a network that overflows would."""
    for name in ("loss", "test_loss", "test_loss_per_image", "loss_per_image"):
        scan[name][point] = value
    scan["status"][point] = 2


def forget(scan: xarray.Dataset, **point: int) -> None:
    """Make one point not computed, in place, its values left at whatever memory held."""
    for name in ("loss", "test_loss", "test_accuracy"):
        scan[name][point] = -1.0
    scan["status"][point] = 0


def _scan(height, dimensions, coordinates, images, noise, more=None) -> xarray.Dataset:
    generator = np.random.default_rng(0)
    start_test_loss = generator.gamma(0.5, 1.0, images)
    start_loss = generator.gamma(2.0, 0.1, images)
    bump = noise * generator.standard_normal((*height.shape, images))
    moved = (height != 0)[..., None]
    test_loss = start_test_loss + (height[..., None] + bump) * moved
    loss = start_loss + height[..., None]
    correct = test_loss < 0.9
    dataset = xarray.Dataset(
        {
            "loss": (dimensions, loss.mean(-1)),
            "test_loss": (dimensions, test_loss.mean(-1), TEST_LOSS),
            "test_accuracy": (dimensions, correct.mean(-1)),
            "test_loss_per_image": ((*dimensions, "image"), test_loss),
            "test_correct_per_image": ((*dimensions, "image"), correct),
            "loss_per_image": ((*dimensions, "calibration_image"), loss),
            "status": (dimensions, np.ones(height.shape, dtype=np.int8)),
            "start_loss_per_image": ("calibration_image", start_loss),
            "start_test_loss_per_image": ("image", start_test_loss),
            "start_test_correct_per_image": ("image", start_test_loss < 0.9),
        },
        coordinates,
        {"provenance": json.dumps({"configuration": CONFIGURATION, "hashes": HASHES})},
    )
    name_scan(dataset, CONFIGURATION | (more or {}))
    return dataset
