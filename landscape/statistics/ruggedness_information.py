"""Ruggedness as a sequence of ups, downs and flats along lines.

Each step of a line is a symbol: 1 or -1 for a slope up or down whose size is at least epsilon, else
0 (Vassilev, Fogarty & Miller 2000, "Information characteristics and the structure of landscapes",
Evolutionary Computation 8; with slopes in place of differences, Munoz, Kirley & Halgamuge 2015,
"Exploratory landscape analysis of continuous space optimization problems using information
content", IEEE Transactions on Evolutionary Computation 19). Changes within the numerical floor of
the surface are 0 at any epsilon. Symbols of all lines are counted together; no pair of symbols
reaches from one line into another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.statistics.surface import Surface

# Munoz et al. 2015, section V.A: information below this is none.
_SETTLED = 0.05

# Relative size of differences between slopes that count as none.
_ROUNDING = 1e-9

# Epsilons at which the information is computed: quantiles of the slopes' sizes, between which it
# changes little.
_EPSILONS = 200


@dataclass(frozen=True)
class Information:
    """The information content of slopes.

    Attributes:
        most: the largest H(epsilon), 0 to 1: the entropy of pairs of unequal symbols, to
            the base 6.
        settling: the smallest epsilon from which on H stays below 0.05, loss per unit of distance;
            0 if it always is, as on a line that is smooth at this step.
        partial: M(0), the number of changes of direction over that of neighboring pairs of steps.
    """

    most: float
    settling: float
    partial: float


def slopes(surface: Surface) -> list[np.ndarray]:
    """Return for each axis the slopes (lines, steps), 0 within the floor, NaN where unknown."""
    found = []
    for axis in surface.axes:
        changes = np.diff(surface.losses[axis], axis=1)
        found.append(np.where(np.abs(changes) <= surface.floor, 0.0, changes) / surface.step)
    return found


def information(surface: Surface, epsilons: np.ndarray | None = None) -> Information:
    """Return the information content, its settling epsilon and the partial information.

    H(epsilon) = - sum over pairs p, q of unequal neighboring symbols of P(p, q) log_6 P(p, q), and
    M(epsilon) the number of changes left when 0 and repeated symbols are removed, over that of
    pairs. On one line all three are those of pflacco (`ic.h_max`, `ic.eps_s` as a power of 10,
    `ic.m0`), whose settling epsilon is that of the first fall below 0.05, though H can rise again.

    All depend on the step: of a smooth surface M(0) shrinks as the step, of white noise it is 2/3
    at any; H(0) is log_6(2) = 0.39 for a line that turns at each step. On white noise
    of n steps the standard errors are 0.25 / sqrt(n) of `most`, which is 0.88 there, and
    0.45 / sqrt(n) of M(0).

    Args:
        surface: of lines with 3 points or more; NaN otherwise.
        epsilons: to compute H at, ascending; by default quantiles of the slopes.
    """
    of_axes = slopes(surface)
    sizes = np.abs(np.concatenate([part.ravel() for part in of_axes]))
    sizes = sizes[np.isfinite(sizes)]
    pairs = sum(int(np.isfinite(part[:, 1:] + part[:, :-1]).sum()) for part in of_axes)
    if pairs == 0:
        return Information(np.nan, np.nan, np.nan)
    if epsilons is None:
        quantiles = np.quantile(sizes, np.linspace(0, 1, _EPSILONS), method="lower")
        # just below, so that slopes which differ by rounding are all at least epsilon
        epsilons = np.unique([0.0, *quantiles * (1 - _ROUNDING), sizes.max() * (1 + _ROUNDING)])
    entropies = _entropies(of_axes, epsilons, pairs)
    unsettled = np.flatnonzero(entropies >= _SETTLED)
    settled = epsilons[unsettled[-1] + 1 if len(unsettled) else 0 :]
    return Information(
        most=float(entropies.max()),
        settling=float(settled.min()) if len(settled) else np.nan,
        partial=sum(_changes(part) for part in of_axes) / pairs,
    )


def max_information(surface: Surface) -> float:
    """Return `most` of `information`."""
    return information(surface).most


def settling_slope(surface: Surface) -> float:
    """Return `settling` of `information`."""
    return information(surface).settling


def partial_information(surface: Surface) -> float:
    """Return `partial` of `information`."""
    return information(surface).partial


def sign_changes(surface: Surface) -> float:
    """Return how often the slope changes its sign per unit of distance.

    Steps within the floor are passed over. `partial_information` over the step, which makes it
    comparable between steps: of a smooth surface it does not depend on the step, of white noise it
    is 2 / (3 step), of fractional Brownian motion arccos(2^(2 H - 1) - 1) / pi over the step.
    """
    return partial_information(surface) / surface.step


def neutrality(surface: Surface) -> float:
    """Return the share of steps that change the loss by no more than the floor.

    After Reidys & Stadler 2002, "Neutrality in fitness landscapes", Applied Mathematics and
    Computation 117, with neighbors one step apart. With a floor of 0 it counts steps in which
    nothing at all changes: those smaller than the distance between cliffs. It grows as the step
    shrinks; its standard error is at most 1 / sqrt(4 steps).
    """
    parts = np.concatenate([part.ravel() for part in slopes(surface)])
    parts = parts[np.isfinite(parts)]
    return float((parts == 0).mean()) if len(parts) else np.nan


def _entropies(of_axes: list[np.ndarray], epsilons: np.ndarray, pairs: int) -> np.ndarray:
    """Return H at each epsilon: a pair of neighbors changes when a size of the two is passed.

    Counted at each epsilon anew, this was more than half of the time to analyze a scan.
    """
    changes = np.zeros((9, len(epsilons) + 1))  # of the number of pairs of each kind
    for part in of_axes:
        signs = np.where(np.isfinite(part), np.sign(part), 0).astype(int)
        # at so many epsilons a step is no 0
        lasting = np.where(signs == 0, 0, np.searchsorted(epsilons, np.abs(part), side="right"))
        known = np.isfinite(part[:, 1:] + part[:, :-1])
        first, second = signs[:, :-1][known], signs[:, 1:][known]
        of_first, of_second = lasting[:, :-1][known], lasting[:, 1:][known]
        one, both = np.maximum(of_first, of_second), np.minimum(of_first, of_second)
        left = 3 * first * (of_first > of_second) + second * (of_second > of_first)
        for kind, begin, end in ((3 * first + second, 0, both), (left, both, one)):
            np.add.at(changes, (kind + 4, begin), 1)
            np.add.at(changes, (kind + 4, end), -1)
    counts = changes.cumsum(axis=1)[:, :-1]
    shares = counts[[1, 2, 3, 5, 6, 7]].T / pairs  # 0, 4 and 8 are pairs of equal symbols
    logarithms = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return -(shares * logarithms).sum(axis=1) / np.log(6)


def _changes(part: np.ndarray) -> int:
    """Count the changes of sign along each line, passing over 0 and what is unknown."""
    total = 0
    for line in part:
        signs = np.sign(line[np.isfinite(line) & (line != 0)])
        total += int((signs[1:] != signs[:-1]).sum())
    return total
