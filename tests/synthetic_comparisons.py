"""A small comparison with known values, in the shape that a real one has."""

from __future__ import annotations

import json

import numpy as np
import xarray
from synthetic_scans import CONFIGURATION

OPTIMIZERS = ("evol-q", "adam")
IMAGES = 40


def comparison(seeds: int = 2, iterates: int = 6, points: int = 5) -> xarray.Dataset:
    """Return two optimizers: evol-q gains 0.1 each time and its seed, adam twice, in fewer."""
    generator = np.random.default_rng(0)
    shape = (len(OPTIMIZERS), seeds, iterates)
    cost, loss, test_loss = np.full((3, *shape), np.nan)
    final = np.zeros((len(OPTIMIZERS), seeds, IMAGES))
    start = generator.gamma(0.5, 1.0, IMAGES)
    for index, (length, gain) in enumerate(((iterates, 0.1), (iterates - 2, 0.2))):
        for seed in range(seeds):
            shift = 0.01 * seed if index == 0 else 0.0
            taken = np.arange(length)
            cost[index, seed, :length] = 1 + taken * (index + 1)
            loss[index, seed, :length] = 2 - (gain + shift) * taken
            test_loss[index, seed, [0, length - 1]] = [1, 1 - 0.5 * gain]
            final[index, seed] = (
                start - 0.1 * (index + 1) + 0.01 * generator.standard_normal(IMAGES)
            )
    path = np.where(np.isnan(cost), np.nan, 0.01 * (cost - 1))
    way = np.linspace(0, 1, 5)
    hill = 0.2 * np.sin(np.pi * way)[:, None]
    between = final[1, 0] + hill + way[:, None] * (final[0, 0] - final[1, 0])
    axis = np.linspace(-0.05, 0.1, points)
    surface = 2 + axis[None, :] ** 2 + 3 * axis[:, None]
    over = ("optimizer", "seed", "iterate")
    images = ("optimizer", "seed", "image")
    return xarray.Dataset(
        {
            "cost": (over, cost),
            "loss": (over, loss),
            "test_loss": (over, test_loss),
            "test_accuracy": (over, np.where(np.isnan(test_loss), np.nan, 0.8)),
            "path_x": (over, path * np.array([0.0, 1.0])[:, None, None]),
            "path_y": (over, path * np.array([1.0, 0.0])[:, None, None]),
            "distance": (over, 0.5 * path),
            "distance_from_start": (over, path),
            "learning_rate": (over[:2], np.array([[np.nan] * seeds, [0.01] * seeds])),
            "sweep_cost": (over[:2], np.array([[0.0] * seeds, [30.0] * seeds])),
            "final_test_loss_per_image": (images, final),
            "final_test_correct_per_image": (images, final < 0.5),
            "between_test_loss_per_image": (("between", "image"), between),
            "repeat_test_loss_per_image": (
                ("repeat", "image"),
                final[1, 0] + 0.001 * np.arange(8)[:, None],
            ),
            "start_test_loss_per_image": ("image", start),
            "start_test_correct_per_image": ("image", start < 0.5),
            "surface_loss": (("y", "x"), surface),
            "surface_test_loss": (("y", "x"), surface / 2),
            "surface_test_accuracy": (("y", "x"), np.full((points, points), 0.8)),
            "surface_status": (("y", "x"), np.ones((points, points), dtype=np.int8)),
        },
        {
            "optimizer": list(OPTIMIZERS),
            "seed": np.arange(seeds),
            "iterate": np.arange(iterates),
            "between": way,
            "x": axis,
            "y": axis,
        },
        {
            "provenance": json.dumps({"configuration": CONFIGURATION | {"calibration_images": 9}}),
            "plane": "plane of the test",
            "between_from": "adam, seed 0",
            "between_to": "evol-q, seed 0",
            "x_name": "Towards adam",
            "y_name": "Towards evol-q",
        },
    )
