"""Ruggedness of a surface: the statistics of the field under their own names, with intervals.

`STATISTICS` is the table of them. Each takes a `Surface`, losses at points of which it is known
where they lie, and returns one number; its words say what it is, in which unit, and how to read it.
A new statistic is a function and a line of that table.

`estimate` adds what finitely many images, and finitely many directions, leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from evolq.errors import InputError
from landscape.statistics import ruggedness_correlation as correlation
from landscape.statistics import ruggedness_distance as distance
from landscape.statistics import ruggedness_information as information
from landscape.statistics.surface import Surface

# The 2.5 % quantile of so many resamples is the tenth smallest.
_RESAMPLES = 400


@dataclass(frozen=True)
class Statistic:
    """A number that says how rugged a surface is.

    Attributes:
        function: of a surface; NaN where it is not defined.
        what: what it measures.
        unit: of the number.
        reading: which values mean what.
    """

    function: Callable[[Surface], float]
    what: str
    unit: str
    reading: str


@dataclass(frozen=True)
class Estimate:
    """A statistic of a measured surface, and what it would be without noise.

    Attributes:
        value: of the mean over all images, as measured.
        corrected: less the bias that resampling shows: noise makes a surface look rougher.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    corrected: float
    low: float
    high: float


def estimate(
    statistic: Callable[[Surface], float],
    surface: Surface,
    generator: np.random.Generator,
    over: Collection[str] = ("images",),
    resamples: int = _RESAMPLES,
) -> Estimate:
    """Return a statistic with its bootstrap interval over images, lines, or both.

    Images, lines or both are drawn with replacement. Each resample of images carries the noise of
    the images twice, the sample's and its own, so that statistics which noise raises are raised
    again: the interval is the basic one, 2 t - q for the quantiles q of the resampled statistic
    (Davison & Hinkley 1997, "Bootstrap Methods and their Application", eq. 5.6), and `corrected`
    is 2 t less their mean. Both ends can lie outside the statistic's range. Counts that jump with
    the smallest change, such as `max_information`, are covered worse than smooth ones.

    It speaks of the expectation over images of this kind, at these points, and with `lines` over
    directions drawn in the same way; both together are somewhat wide (Owen 2007, "The pigeonhole
    bootstrap"). Not of a finer step or of a larger region: statistics depend on both, as their
    docstrings say.

    Raises:
        InputError: for anything but `images` and `lines`, for images that the surface does not
            have, for fewer than 2 of what is resampled, or for lines that cross (a plane's).
    """
    unknown = sorted(set(over) - {"images", "lines"})
    if unknown or not over:
        raise InputError(f"resample over images, lines or both, not {', '.join(unknown) or 'none'}")
    for what, count in (("images", surface.images), ("lines", surface.lines)):
        if what in over and count < 2:
            raise InputError(f"an interval over {what} needs 2 or more, the surface has {count}")
    value = statistic(surface)
    surfaces = _resampled(surface, generator, over, resamples)
    values = np.array([statistic(drawn) for drawn in surfaces])
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or len(values) < 0.9 * resamples:
        return Estimate(value, np.nan, np.nan, np.nan)
    low, high = 2 * value - np.quantile(values, [0.975, 0.025])
    return Estimate(value, float(2 * value - values.mean()), float(low), float(high))


def _resampled(
    surface: Surface, generator: np.random.Generator, over: Collection[str], resamples: int
) -> Iterator[Surface]:
    """Yield surfaces of images, lines or both that are drawn with replacement."""
    at_once = resamples if surface.per_image is None else surface.per_image.sums_at_once
    for first in range(0, resamples, at_once):
        images, lines = [], []
        for _ in range(min(at_once, resamples - first)):
            if "images" in over:
                images.append(generator.integers(surface.images, size=surface.images))
            if "lines" in over:
                lines.append(generator.integers(surface.lines, size=surface.lines))
        drawn = surface.resampled(images) if images else repeat(surface, len(lines))
        yield from map(Surface.with_lines, drawn, lines) if lines else drawn


# A statistic of another kind is a function of its file and a line here.
STATISTICS: dict[str, Statistic] = {
    "autocorrelation": Statistic(
        correlation.autocorrelation,
        "correlation between the losses of neighbors",
        "none, -1 to 1",
        "1 is smooth at this step, 0 says that a neighbor tells nothing",
    ),
    "correlation_length": Statistic(
        correlation.correlation_length,
        "distance over which losses are alike",
        "units of distance",
        "against the radius: longer is one slope, shorter many hills",
    ),
    "hurst_exponent": Statistic(
        correlation.hurst_exponent,
        "H where differences grow as distance to the power H",
        "none, 0 to 1",
        "1 is smooth, 1/2 a random walk, near 0 jagged at every distance",
    ),
    "nugget": Statistic(
        correlation.nugget,
        "half the squared difference left between points at no distance",
        "loss squared",
        "noise and structure finer than the step; compare with that of the images",
    ),
    "total_variation": Statistic(
        correlation.variation,
        "ups and downs along a line over its range",
        "none, 1 or more",
        "1 is monotone, 2 one valley, more is jagged",
    ),
    "max_information": Statistic(
        information.max_information,
        "entropy of the sequence of ups, downs and flats",
        "none, 0 to 1",
        "0 is one slope, more is more varied",
    ),
    "settling_slope": Statistic(
        information.settling_slope,
        "slope that only the steepest steps exceed",
        "loss per unit of distance",
        "how steep the roughest steps are, 0 on a line smooth at this step",
    ),
    "partial_information": Statistic(
        information.partial_information,
        "share of steps at which the direction turns",
        "none, 0 to 1",
        "0 is monotone, 2/3 white noise",
    ),
    "sign_changes": Statistic(
        information.sign_changes,
        "turns of the slope per distance",
        "per unit of distance",
        "twice the number of minima along one unit",
    ),
    "neutrality": Statistic(
        information.neutrality,
        "share of steps that change nothing above the floor",
        "none, 0 to 1",
        "1 is flat, 0 moves at every step",
    ),
    "dispersion": Statistic(
        distance.dispersion,
        "distance among the best 5 % of points over that among all",
        "none",
        "below 1 one funnel, near 1 the best are scattered",
    ),
    "fitness_distance_correlation": Statistic(
        distance.fitness_distance_correlation,
        "correlation of the loss with the distance from the lowest point",
        "none, -1 to 1",
        "1 leads to the lowest point, 0 does not",
    ),
    "length_scale": Statistic(
        distance.length_scale,
        "median difference of losses over distance, of all pairs",
        "loss per unit of distance",
        "the typical slope between any two points",
    ),
    "length_scale_entropy": Statistic(
        distance.length_scale_entropy,
        "how widely slopes between pairs are spread",
        "nats",
        "less is more uniform, minus infinity an inclined plane",
    ),
}
