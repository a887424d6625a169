"""Two planes beside each other: what differs between the runs, and where their losses do.

Losses of two networks on the same test images are compared image by image: what one image adds to
both cancels, and the difference of their means has an error of its own, as between two points of
one scan (`landscape.analysis`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from landscape.analysis import ALONE, bands
from landscape.probes.sampling import FINITE
from landscape.statistics.intervals import IMAGES, Interval, mean_interval
from landscape.statistics.resampling import FEWEST_IMAGES
from landscape.statistics.simultaneous import simultaneous_bands

# Parts of a provenance that say where a run comes from.
PARTS = ("configuration", "hashes", "versions")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two planes, the second against the first.

    Attributes:
        settings: what differs between their provenances: name, first, second.
        same_directions: whether both planes are spanned by the same directions; None where a run
            does not say.
        same_points: whether both grids have the same coordinates.
        same_images: whether both were tested on the same images; None where a run does not say.
        start: difference of the test losses at the two starts, with its interval; None for other
            images.
        differences: over the points, second minus first: `difference`, its paired standard error
            `error` and its `band` (see `landscape.analysis.bands`); None where directions, points
            or images differ.
        critical: paired standard errors that noise exceeds at any point in 5 % of such pairs;
            infinite below 10 images.
    """

    settings: tuple[tuple[str, str, str], ...]
    same_directions: bool | None
    same_points: bool
    same_images: bool | None
    start: Interval | None
    differences: xr.Dataset | None
    critical: float


def pair_planes(first: xr.Dataset, second: xr.Dataset) -> Pair:
    """Compare two planes.

    Args:
        first: the result of a scan of a plane.
        second: of another.
    """
    ours, theirs = (json.loads(one.attrs.get("provenance", "{}")) for one in (first, second))
    same_directions = _same(ours, theirs, "directions")
    same_images = _same(ours, theirs, "test_images")
    same_points = all(
        first.sizes[axis] == second.sizes[axis]
        and np.allclose(first[axis].values, second[axis].values, rtol=1e-6, atol=0)
        for axis in ("y", "x")
    )
    start = differences = None
    critical = np.inf
    if same_images:
        change = _start(second) - _start(first)
        if len(change) > 1:
            start = mean_interval(change)
        else:
            start = Interval(float(change.mean()), np.nan, np.nan, 0.95, IMAGES)
        if same_directions and same_points:
            differences, critical = _differences(first, second)
    settings = tuple(_differing(ours, theirs))
    return Pair(settings, same_directions, same_points, same_images, start, differences, critical)


def _same(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> bool | None:
    """Return whether a hash is the same in both provenances, None where it is not in both."""
    hashes = [one.get("hashes", {}).get(name) for one in (ours, theirs)]
    return None if None in hashes else hashes[0] == hashes[1]


def _start(dataset: xr.Dataset) -> np.ndarray:
    return dataset.start_test_loss_per_image.values.astype(np.float64)


def _differences(first: xr.Dataset, second: xr.Dataset) -> tuple[xr.Dataset, float]:
    """Return the differences of all points, and the critical value of all together."""
    losses = []
    for dataset in (first, second):
        known = dataset.test_loss_per_image.where(dataset.status == FINITE)
        losses.append(known.transpose("y", "x", "image").values.astype(np.float64))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        values = losses[1] - losses[0]
    values[~np.isfinite(values)] = np.nan
    images = values.shape[-1]
    change = values.mean(-1)
    error = values.std(-1, ddof=1) / np.sqrt(images) if images > 1 else np.full_like(change, np.nan)
    critical = np.inf
    if images >= FEWEST_IMAGES:
        drawn = simultaneous_bands(values, np.random.default_rng(0), side="both")
        critical = max(drawn.critical, ALONE)
    over = ("y", "x")
    found = xr.Dataset(
        {
            "difference": (over, change),
            "error": (over, error),
            "band": (over, bands(change, error, critical)),
        },
        {axis: first[axis] for axis in over},
    )
    return found, critical


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name and values of what two provenances do not have in common."""
    found = []
    for part in PARTS:
        one, other = ours.get(part, {}), theirs.get(part, {})
        for name in [*one, *(name for name in other if name not in one)]:
            if one.get(name) != other.get(name):
                label = {"hashes": f"hash of {name}", "versions": f"version of {name}"}.get(part)
                found.append((label or name, _words(one.get(name)), _words(other.get(name))))
    return found


def _words(value: Any) -> str:
    if value is None:
        return "not given"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) < 40 else f"{text[:12]}…"
