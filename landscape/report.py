"""What a scan found, in words: a short table that someone new to it can read.

Readings follow fixed thresholds, stated here once; figures use the same words.

- Differences of two test losses are read by the bands of `landscape.analysis`.
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
from rich.box import SIMPLE_HEAD
from rich.table import Table
from xarray import Dataset

from landscape.analysis import PERHAPS_HIGHER, Analysis, bands
from landscape.statistics.roughness import Reliability
from landscape.words import configuration_of

# Of the bands in landscape.analysis.
BAND_WORDS = (
    "clearly lower",
    "perhaps lower",
    "not told apart",
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


def describe(dataset: Dataset, analysis: Analysis) -> list[Row]:
    """Say in words what a scan found.

    Args:
        dataset: the result of a scan of any kind.
        analysis: of it.
    """
    rows = [_points(analysis), *describe_radius(dataset), *_start(dataset, analysis)]
    if "bits" in dataset.dims:
        describe_width = _layers_at if "layer" in dataset.dims else _factors_at
        widths = sorted((int(bits) for bits in dataset.bits), reverse=True)
        return [*rows, *(describe_width(dataset, analysis, width) for width in widths)]
    assert analysis.variation is not None  # a plane or rays have one
    assert analysis.reliability is not None
    return [
        *rows,
        *_lowest(analysis),
        *_minima(dataset, analysis),
        Row(
            "Total variation / range",
            f"{analysis.variation:.2f}",
            _read_variation(analysis.variation),
        ),
        Row(
            "Split-half reliability",
            f"{analysis.reliability.half:.2f}",
            _read_reliability(analysis.reliability),
        ),
    ]


def _layers_at(dataset: Dataset, analysis: Analysis, bits: int) -> Row:
    """Describe which layers suffer at one number of bits."""
    found = analysis.changes.sel(bits=bits)
    worse = found.where(~(found.test_loss_band < PERHAPS_HIGHER), drop=True)
    worst = worse.sortby(worse.test_loss_change.fillna(np.inf), ascending=False)
    name = f"Layers worse at {bits} bits"
    value = f"{worse.sizes['layer']} of {found.sizes['layer']}"
    if not worse.sizes["layer"]:
        return Row(name, value, "no layer alone is told apart from the start")
    changes = zip(worst.layer.values, worst.test_loss_change.values, strict=True)
    words = [
        f"{layer} {change:+.3f}" if np.isfinite(change) else f"{layer} (not finite)"
        for layer, change in changes
    ]
    return Row(name, value, f"the test loss rises most with {', '.join(words[:3])}")


def _factors_at(dataset: Dataset, analysis: Analysis, bits: int) -> Row:
    """Describe the accuracy of one number of bits, at the calibrated scales and the best factor."""
    accuracy = dataset.test_accuracy.sel(bits=bits)
    calibrated = float(accuracy.sel(multiplier=1.0, method="nearest"))
    words = "with the calibrated scales"
    if bits in analysis.best_factors:
        best = analysis.best_factors[bits]
        words += f"; times {best:.2g}, the best for the calibration loss: "
        words += f"{float(accuracy.sel(multiplier=best)):.1%}"
    return Row(f"Test accuracy at {bits} bits", f"{calibrated:.1%}", words)


def table(rows: Iterable[Row]) -> Table:
    """Lay rows out for a terminal."""
    result = Table("What", "Value", "In words", box=SIMPLE_HEAD, pad_edge=False)
    for column in result.columns[:2]:
        column.no_wrap = True
    for row in rows:
        result.add_row(*row)
    return result


def in_words(change: float, standard_error: float) -> str:
    """Return the words for one change."""
    band = float(bands(change, standard_error))
    return "not comparable with it" if np.isnan(band) else BAND_WORDS[int(band)]


def _points(analysis: Analysis) -> Row:
    holes = []
    if analysis.not_finite:
        holes.append(f"{analysis.not_finite:,} with a loss that is not finite")
    if analysis.not_computed:
        holes.append(f"{analysis.not_computed:,} not computed")
    total = analysis.finite + analysis.not_finite + analysis.not_computed
    return Row(
        "Points measured",
        f"{analysis.finite:,} of {total:,}",
        f"without {' and '.join(holes)}" if holes else "every loss is finite",
    )


def describe_radius(dataset: Dataset) -> list[Row]:
    """Describe a radius that was chosen by the test loss; nothing of one that was given."""
    configuration = configuration_of(dataset)
    if "radius_reached" not in configuration:
        return []
    change, errors = (configuration[f"radius_{key}"] for key in ("change", "standard_errors"))
    if change is None:
        words = "the test loss is not finite there"
    else:
        words = f"the test loss has moved by {change:+.4f} there, "
        words += f"{errors:.1f} paired standard errors" if errors is not None else "on every image"
    if not configuration["radius_reached"]:
        words += "; less than 4: the surface is flat as far as these images can tell"
    return [Row("Radius, chosen", f"{configuration['radius']:g}", words)]


def _start(dataset: Dataset, analysis: Analysis) -> list[Row]:
    images = dataset.sizes["image"]
    loss, accuracy = analysis.start_test_loss, analysis.start_test_accuracy
    return [
        Row(
            "Calibration loss at the start",
            f"{analysis.start_loss:.4f}",
            "what a search would lower",
        ),
        Row(
            "Test loss at the start",
            f"{loss.value:.4f} ± {loss.error:.4f}",
            f"± 1 standard error over {images:,} test images",
        ),
        Row(
            "Test accuracy at the start",
            f"{accuracy.value:.1%} ± {accuracy.error:.1%}",
            f"of {images:,} test images",
        ),
    ]


def _lowest(analysis: Analysis) -> list[Row]:
    """Describe the lowest test loss; nothing if no point is finite."""
    lowest = analysis.lowest
    if lowest is None:
        return []
    place = ", ".join(f"{name} = {value:.3g}" for name, value in lowest.coordinates.items())
    change, error = lowest.change.value, lowest.change.error
    words = f"at {place}: {change:+.4f} ± {error:.4f} from the start, {in_words(change, error)}"
    if change < 0:
        words += f"; picked as the best of {analysis.finite:,}: expect less on other images"
    return [Row("Lowest test loss", f"{lowest.test_loss:.4f}", words)]


def _minima(dataset: Dataset, analysis: Analysis) -> list[Row]:
    minima = analysis.minima
    assert minima is not None  # a plane or rays have them
    found = minima.minima
    if not found:
        return [Row("Local minima above the noise", "0", "no point is finite")]
    others = sum(bool(np.isfinite(minimum.persistence)) for minimum in found)
    on_edge = sum(minimum.boundary for minimum in found)
    words = "the lowest point" + (" of each ray" if "ray" in dataset.dims else "")
    words += ", which always counts, and "
    words += f"{others:,} deeper than {minima.sigmas:.3g} standard errors" if others else "no other"
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
