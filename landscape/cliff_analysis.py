"""What a scan of cliffs found: where the jaggedness of a line comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from xarray import Dataset

from evolq.losses.paired import paired_standard_error
from landscape.probes.cliff_losses import Variation
from landscape.probes.cliffs import resolving_step
from landscape.statistics.intervals import IMAGES, Interval
from landscape.statistics.resampling import FEWEST_IMAGES
from landscape.statistics.simultaneous import simultaneous_bands

# Resamples of the images for the interval of a share: the 2.5 % quantile is the tenth smallest.
RESAMPLES = 399


@dataclass(frozen=True)
class KindOfLayer:
    """Weights of one kind: those whose names differ in numbers alone (`blocks.*.mlp.fc1.weight`).

    Attributes:
        rate: expected cliffs per unit of distance, of all these weights, at the start.
        jumps: sizes of the measured jumps of the mean test loss, ascending.
        above: how many of these are larger than the numerical noise of a difference.
    """

    rate: float
    jumps: tuple[float, ...]
    above: int

    @property
    def median(self) -> float:
        """The median size of a jump; NaN if none was measured."""
        return float(np.median(self.jumps)) if self.jumps else np.nan


@dataclass(frozen=True)
class ExactLine:
    """A line over the scales of one weight, measured between each two of its cliffs.

    Attributes:
        weight: its name.
        low: where the line begins.
        high: and ends.
        intervals: their number.
        constant: whether these are all values that the loss takes, as with matched moments.
        lowest: where the mean test loss is lowest, the middle of that interval.
        change: of the test loss there, from the interval that holds the start.
        error: its paired standard error.
        critical: paired standard errors that noise alone exceeds in some interval of 5 % of such
            lines; infinite below 10 images.
    """

    weight: str
    low: float
    high: float
    intervals: int
    constant: bool
    lowest: float
    change: float
    error: float
    critical: float


@dataclass(frozen=True)
class CliffAnalysis:
    """What changes of the weights' codes do along a line.

    Attributes:
        rate: expected cliffs per unit of distance at the start, over all weights that move.
        rates: the same with all weights at these bits.
        resolving_step: below it, 95 % of the changes are alone in their step of a scan.
        per_step: expected changes in one step of this line.
        kinds: by their names.
        floor: the numerical noise of a difference of two mean test losses, 0 if it is not known.
        share: of the total variation that is made when codes change, the rest by what moves while
            they are held; changes up to the floor count as none. Its interval is over images.
        exact: the line of the weight with the fewest cliffs.
    """

    rate: float
    rates: Mapping[int, float]
    resolving_step: float
    per_step: float
    kinds: Mapping[str, KindOfLayer]
    floor: float
    share: Interval
    exact: ExactLine


def analyze_cliffs(dataset: Dataset, floor: float) -> CliffAnalysis:
    """Compute what a scan of cliffs found.

    Args:
        dataset: the result of `landscape.probes.cliff_scan.sample_cliffs`.
        floor: standard deviation of the mean test loss by numerical noise; 0 if it is not known.
    """
    rate = float(dataset.start_cliff_rate.sum())
    noise = float(np.sqrt(2) * floor)
    step = float(np.diff(dataset.distance.values).mean())
    totals = dataset.cliff_rate.sum("weight")
    return CliffAnalysis(
        rate=rate,
        rates={int(bits): float(totals.sel(width=bits)) for bits in dataset.width.values},
        resolving_step=resolving_step(rate),
        per_step=rate * step,
        kinds=_kinds(dataset, noise),
        floor=noise,
        share=_share(variation_of(dataset), noise),
        exact=_exact(dataset),
    )


def variation_of(dataset: Dataset) -> Variation:
    """Return the line of a scan of cliffs, split into drift and jump; all its losses."""
    order = ("distance", "image")
    following, held = (
        dataset[name].isel(ray=0).transpose(*order).values.astype(np.float64)
        for name in ("test_loss_per_image", "held_test_loss_per_image")
    )
    return Variation(following, held[1:])


def kind_of(weight: str) -> str:
    """Return the name of a weight with its numbers replaced by *."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", weight)


def _kinds(dataset: Dataset, noise: float) -> dict[str, KindOfLayer]:
    jumps: dict[str, list[float]] = {kind_of(str(name)): [] for name in dataset.weight.values}
    rates = dict.fromkeys(jumps, 0.0)
    for name, own in zip(dataset.weight.values, dataset.start_cliff_rate.values, strict=True):
        rates[kind_of(str(name))] += float(own)
    sizes = np.abs(dataset.cliff_jump_per_image.transpose("cliff", "image").values.mean(axis=1))
    for name, size in zip(dataset.cliff_weight.values, sizes, strict=True):
        if np.isfinite(size):
            jumps[kind_of(str(name))].append(float(size))
    return {
        kind: KindOfLayer(rates[kind], tuple(sorted(found)), sum(size > noise for size in found))
        for kind, found in jumps.items()
    }


def _share(variation: Variation, noise: float) -> Interval:
    """Return the share of jumps with its basic bootstrap interval over images, 0 to 1."""
    images = variation.following.shape[1]
    estimate = variation.share_of_jumps(noise)
    generator = np.random.default_rng(0)
    drawn = generator.integers(images, size=(RESAMPLES, images))
    resampled = np.array([variation.of_images(each).share_of_jumps(noise) for each in drawn])
    if images < 2 or not np.isfinite(resampled).all():
        return Interval(estimate, np.nan, np.nan, 0.95, IMAGES)
    low, high = (2 * estimate - np.quantile(resampled, [0.975, 0.025])).clip(0, 1)
    return Interval(estimate, float(low), float(high), 0.95, IMAGES)


def _exact(dataset: Dataset) -> ExactLine:
    low, high = dataset.interval_low.values, dataset.interval_high.values
    losses = dataset.interval_test_loss_per_image.transpose("interval", "image").values
    home = int(np.flatnonzero(low <= 0).max())  # a start on a cliff belongs to what follows
    changes = losses.astype(np.float64) - losses[home]
    mean = changes.mean(axis=1)
    lowest = int(np.argmin(np.where(np.isfinite(mean), mean, np.inf)))
    critical = np.inf
    others = np.arange(len(low)) != home
    if losses.shape[1] >= FEWEST_IMAGES and others.any():
        critical = simultaneous_bands(changes[others], np.random.default_rng(0)).critical
    return ExactLine(
        weight=str(dataset.attrs["interval_weight"]),
        low=float(low[0]),
        high=float(high[-1]),
        intervals=len(low),
        constant=bool(dataset.attrs["interval_constant"]),
        lowest=float((low[lowest] + high[lowest]) / 2),
        change=float(mean[lowest]),
        error=float(paired_standard_error(changes[lowest])),
        critical=float(critical),
    )
