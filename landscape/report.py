"""What a scan found, in words: a short table that someone new to it can read.

Readings follow fixed thresholds, stated here once; figures use the same words.

- A difference of two test losses on the same images within 2 paired standard errors is not told
  apart from nothing; beyond 4 it is clear even as one of hundreds of points.
- Reliability is the share of the variance of the steps between neighboring points that belongs to
  the network and not to the sample of test images. Below 1/3 the steps are mostly sampling noise,
  above 2/3 mostly the network's own.
- Total variation is relative to the range: 1 where each line across the scan only rises or only
  falls, 2 where it crosses one valley or hill. Up to 2.5 is called smooth, from 4 on jagged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from xarray import DataArray, Dataset

from landscape.probes.sampling import FINITE, NOT_COMPUTED, NOT_FINITE
from landscape.statistics.minima import Minima
from landscape.statistics.roughness import Reliability, paired_standard_error

BAND_EDGES = (-4.0, -2.0, 2.0, 4.0)
NOT_TOLD_APART = "not told apart"
BAND_WORDS = (
    "clearly lower",
    "perhaps lower",
    NOT_TOLD_APART,
    "perhaps higher",
    "clearly higher",
)
MOSTLY_NOISE, MOSTLY_NETWORK = 1 / 3, 2 / 3
SMOOTH, JAGGED = 2.5, 4.0


class Row(NamedTuple):
    """One line of the table: what was measured, its value, and what that means."""

    name: str
    value: str
    meaning: str


def describe(
    dataset: Dataset, minima: Minima, variation: float, reliability: Reliability
) -> list[Row]:
    """Say in words what a scan found.

    Args:
        dataset: the result of a scan, with either probe.
        minima: of its test loss, above the noise (`landscape.significant_minima`).
        variation: of its test loss (`landscape.total_variation`).
        reliability: of its test loss per image (`landscape.split_half_reliability`).
    """
    return [
        _points(dataset),
        *_start(dataset),
        *_lowest(dataset),
        *_minima(dataset, minima),
        Row("Total variation / range", f"{variation:.2f}", _read_variation(variation)),
        Row(
            "Split-half reliability",
            f"{reliability.half:.2f}",
            _read_reliability(reliability),
        ),
    ]


def describe_bits(dataset: Dataset) -> list[Row]:
    """Say in words what a scan over bit-widths found.

    Args:
        dataset: the result of `sample_layers` or `sample_bits`.
    """
    describe_width = _layers_at if "layer" in dataset.dims else _scales_at
    return [
        _points(dataset),
        *_start(dataset),
        *(describe_width(dataset.sel(bits=width)) for width in sorted(dataset.bits.values)[::-1]),
    ]


def _layers_at(one_width: Dataset) -> Row:
    """Describe which layers suffer at one number of bits."""
    differences = one_width.test_loss_per_image - one_width.start_test_loss_per_image
    found = [(str(layer), *_mean(differences.sel(layer=layer))) for layer in one_width.layer.values]
    worse = [
        (change, layer)
        for layer, change, error in found
        if in_words(change, error) in BAND_WORDS[-2:] or not np.isfinite(change)
    ]
    name = f"Layers worse at {int(one_width.bits)} bits"
    value = f"{len(worse)} of {len(found)}"
    if not worse:
        return Row(name, value, "no layer alone is told apart from the start")
    worst = ", ".join(f"{layer} {change:+.3f}" for change, layer in sorted(worse)[:-4:-1])
    return Row(name, value, f"the test loss rises most with {worst}")


def _scales_at(one_width: Dataset) -> Row:
    """Describe the accuracy of one number of bits, at the calibrated scales and the best factor."""
    best = one_width.isel(multiplier=one_width.loss.fillna(np.inf).argmin("multiplier"))
    nearest = one_width.sel(multiplier=1.0, method="nearest")
    return Row(
        f"Test accuracy at {int(one_width.bits)} bits",
        f"{float(nearest.test_accuracy):.1%}",
        f"with the calibrated scales; times {float(best.multiplier):.2g}, the best for the "
        f"calibration loss: {float(best.test_accuracy):.1%}",
    )


def table(rows: Iterable[Row]) -> Table:
    """Lay rows out for a terminal."""
    result = Table("What", "Value", "In words", box=SIMPLE_HEAD, pad_edge=False)
    for column in result.columns[:2]:
        column.no_wrap = True
    for row in rows:
        result.add_row(*row)
    return result


def bands(changes: ArrayLike, standard_errors: ArrayLike) -> NDArray[np.float64]:
    """Return for each change the index of its words in BAND_WORDS, NaN if it is not finite."""
    change, error = np.asarray(changes), np.asarray(standard_errors)
    with np.errstate(divide="ignore", invalid="ignore"):  # the start: 0 with a standard error of 0
        in_standard_errors = np.where(change == 0, 0.0, change / error)
    comparable = np.isfinite(change) & ~np.isnan(in_standard_errors)
    return np.where(comparable, np.digitize(in_standard_errors, BAND_EDGES), np.nan)


def in_words(change: float, standard_error: float) -> str:
    """Return the words for one change."""
    band = float(bands(change, standard_error))
    return "not comparable with it" if np.isnan(band) else BAND_WORDS[int(band)]


def _points(dataset: Dataset) -> Row:
    finite, not_finite, not_computed = (
        int((dataset.status == status).sum()) for status in (FINITE, NOT_FINITE, NOT_COMPUTED)
    )
    holes = []
    if not_finite:
        holes.append(f"{not_finite:,} with a loss that is not finite")
    if not_computed:
        holes.append(f"{not_computed:,} not computed")
    return Row(
        "Points measured",
        f"{finite:,} of {dataset.status.size:,}",
        f"without {' and '.join(holes)}" if holes else "every loss is finite",
    )


def _start(dataset: Dataset) -> list[Row]:
    loss = float(dataset.start_loss_per_image.mean(dtype=np.float64))
    images = dataset.sizes["image"]
    test_loss, test_loss_error = _mean(dataset.start_test_loss_per_image)
    accuracy, accuracy_error = _mean(dataset.start_test_correct_per_image)
    return [
        Row("Calibration loss at the start", f"{loss:.4f}", "what a search would lower"),
        Row(
            "Test loss at the start",
            f"{test_loss:.4f} ± {test_loss_error:.4f}",
            f"± 1 standard error over {images:,} test images",
        ),
        Row(
            "Test accuracy at the start",
            f"{accuracy:.1%} ± {accuracy_error:.1%}",
            f"of {images:,} test images",
        ),
    ]


def _lowest(dataset: Dataset) -> list[Row]:
    """Describe the lowest test loss; nothing if no point is finite."""
    finite = dataset.test_loss.where(dataset.status == FINITE)
    if not finite.notnull().any():
        return []
    point = dataset.isel(finite.argmin(...))
    change, error = _mean(point.test_loss_per_image - dataset.start_test_loss_per_image)
    place = ", ".join(f"{name} = {float(point[name]):.3g}" for name in sorted(finite.dims))
    words = f"at {place}: {change:+.4f} ± {error:.4f} from the start, {in_words(change, error)}"
    if change < 0:
        words += f"; picked as the best of {int(finite.count()):,}: expect less on other images"
    return [Row("Lowest test loss", f"{float(point.test_loss):.4f}", words)]


def _minima(dataset: Dataset, minima: Minima) -> list[Row]:
    found = minima.minima
    if not found:
        return [Row("Local minima above the noise", "0", "no point is finite")]
    others = sum(bool(np.isfinite(minimum.persistence)) for minimum in found)
    on_edge = sum(minimum.boundary for minimum in found)
    words = "the lowest point" + (" of each ray" if "ray" in dataset.dims else "")
    words += ", which always counts, and "
    words += f"{others:,} deeper than {minima.sigmas:g} standard errors" if others else "no other"
    if on_edge:
        words += f"; {on_edge:,} on the edge of the scan: the loss may fall further outside"
    return [
        Row("Local minima above the noise", f"{len(found):,}", words),
        Row(
            "Local minima, noise ignored",
            f"{len(found) + minima.below:,}",
            f"{minima.below:,} of them could be made by sampling noise alone",
        ),
    ]


def _read_variation(variation: float) -> str:
    """Read the total variation relative to the range; 1 is the least."""
    if np.isnan(variation):
        return "too few finite points to tell"
    if variation <= SMOOTH:
        words = "smooth: about one slope or one valley along each line"
    elif variation < JAGGED:
        words = "uneven: lines turn more often than one valley would"
    else:
        words = "jagged: lines go up and down again and again"
    return f"{words} (sampling noise included)"


def _read_reliability(reliability: Reliability) -> str:
    share = reliability.full
    if np.isnan(share):
        return "not known: nothing varies between neighboring points, or fewer than 4 images"
    if share < MOSTLY_NOISE:
        words = "mostly sampling noise"
    elif share < MOSTLY_NETWORK:
        words = "partly the network, partly sampling noise"
    else:
        words = "mostly the network's own"
    return (
        f"{words}: about {max(share, 0):.0%} of the variance of the steps between neighboring "
        f"points would show again on another {reliability.images:,} test images "
        f"(halves agree at {reliability.low:.2f} to {reliability.high:.2f}, 95 %)"
    )


def _mean(per_image: DataArray) -> tuple[float, float]:
    """Return the mean over images and its standard error."""
    values = per_image.values.astype(np.float64)
    return float(values.mean()), float(paired_standard_error(values))
