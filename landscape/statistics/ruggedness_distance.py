"""Ruggedness as a relation between losses and distances, of any two points.

Of more than 2,000 points, 2,000 are looked at (`surface.Places`).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import differential_entropy

from landscape.statistics.surface import Surface

# The best 5 %, as in Lunacek & Whitley 2006 and in pflacco's `disp.ratio_mean_05`.
_BEST = 0.05


def dispersion(surface: Surface, best: float = _BEST) -> float:
    """Return the mean distance between the best points, over that between all points.

    Lunacek & Whitley 2006, "The dispersion metric and the CMA evolution strategy" (GECCO), as the
    ratio that pflacco gives. Below 1: the low losses lie together, one funnel. Near 1: they are
    scattered as any points. `best` is the share of points that count as best, those of equal loss
    included; points at the same place count no distance.

    It depends on the region, hardly on the step. With n best points its standard error under no
    structure is about 0.35 / sqrt(n) in a plane, so that 400 points are the least. NaN for fewer
    than two best points.
    """
    losses, distances = _finite(surface)
    if len(losses) < 2:
        return np.nan
    chosen = losses <= np.quantile(losses, best)
    among = distances[np.ix_(chosen, chosen)]
    if not (among > 0).any():
        return np.nan
    return float(among[among > 0].mean() / distances[distances > 0].mean())


def fitness_distance_correlation(surface: Surface) -> float:
    """Return the correlation between losses and distances to the lowest point.

    Jones & Forrest 1995, "Fitness distance correlation as a measure of problem difficulty for
    genetic algorithms" (ICGA). Near 1: the loss rises with the distance from the best point. Near
    0: it does not tell where that lies. The best point is the lowest measured, the first of
    several; with noise it is one of many that noise makes lowest, which lowers the correlation.

    It depends on the region, hardly on the step; standard error about (1 - r^2) / sqrt(n) for n
    independent points, neighbors on a smooth surface are fewer. NaN where losses are constant.
    """
    losses, distances = _finite(surface)
    if len(losses) < 3 or losses.std() == 0:
        return np.nan
    from_best = distances[np.argmin(losses)]
    return float(np.corrcoef(losses, from_best)[0, 1])


def length_scale(surface: Surface) -> float:
    """Return the median of |difference of losses| / distance over all pairs of points.

    Morgan & Gallagher 2012, "Length scale for characterising continuous optimization problems"
    (PPSN XII), whose length scale is this ratio: loss per unit of distance. Pairs of all distances
    count, so that it depends on the region, and on the step only where noise makes the ratio of the
    closest pairs large.
    """
    ratios = _ratios(surface)
    return float(np.median(ratios)) if len(ratios) else np.nan


def length_scale_entropy(surface: Surface) -> float:
    """Return the differential entropy of the length scales of all pairs, in nats.

    The summary of Morgan & Gallagher 2012, section 3: how widely slopes are spread over the pairs,
    minus infinity on an inclined plane. In place of their kernel density the spacings of the
    sorted values are used (Vasicek 1976, "A test for normality based on sample entropy"; scipy's
    `differential_entropy`). Multiplying the losses by c adds ln c. Biased low by about 0.05 for
    50 pairs.
    """
    ratios = _ratios(surface)
    if len(ratios) < 4:
        return np.nan
    with np.errstate(divide="ignore"):  # equal ratios have no spacing
        return float(differential_entropy(ratios))


def _finite(surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses that are finite, of the points looked at, and their distances."""
    losses = surface.losses[surface.places.sample]
    finite = np.isfinite(losses)
    return losses[finite], surface.places.distances[np.ix_(finite, finite)]


def _ratios(surface: Surface) -> np.ndarray:
    losses, distances = _finite(surface)
    first, second = np.triu_indices(len(losses), k=1)
    apart = distances[first, second]
    differences = np.abs(losses[first] - losses[second])
    return differences[apart > 0] / apart[apart > 0]
