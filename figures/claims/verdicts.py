"""From effects, one for each seed, to verdicts with a family-wise error of 5 %.

Where there is one seed, pseudo-values of groups of images stand for seeds (`real`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from evolq.errors import InputError

LEVEL = 0.95
# An effect "could have been seen" if the test finds it in so many repetitions.
POWER = 0.8

Word = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one effect.

    Attributes:
        effects: of each seed.
        effect: its mean; positive speaks for the claim.
        low: lower end of its 95 % interval.
        high: upper end. Each seed draws images, directions and searches anew, so that the interval
            covers all of them.
        p: of the two-sided t test that the effect is 0, corrected by Holm over the family.
        seen: the effect that is decided in 80 % of repetitions, given the scatter, even if it has
            the smallest p value that counts in the family (5 % over their number).
        word: what follows.
    """

    effects: tuple[float, ...]
    effect: float
    low: float
    high: float
    p: float
    seen: float
    word: Word


def decide(effects: Mapping[str, ArrayLike]) -> dict[str, Verdict]:
    """Return the verdict on each effect of a family, by its name.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the probability that any
    verdict but "undecided" has the wrong sign is at most 5 %, if seeds are independent and the
    effects about normal.

    Args:
        effects: of each name, one effect for each seed.

    Raises:
        InputError: for fewer than 3 seeds, or effects that are not finite.
    """
    values = {name: np.asarray(own, dtype=np.float64) for name, own in effects.items()}
    for name, own in values.items():
        if len(own) < 3 or not np.isfinite(own).all():
            raise InputError(f"{name}: 3 or more finite effects are needed, not {own.tolist()}")
    corrected = holm([_p(own) for own in values.values()])
    return {
        name: _verdict(own, float(p), len(values))
        for (name, own), p in zip(values.items(), corrected, strict=True)
    }


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p values corrected for their number (Holm 1979)."""
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _p(effects: NDArray[np.float64]) -> float:
    """Return the two-sided p value of Student's t test that the mean is 0."""
    error = effects.std(ddof=1) / np.sqrt(len(effects))
    if error == 0:
        return 0.0 if effects[0] else 1.0
    return float(2 * stats.t.sf(abs(effects.mean()) / error, len(effects) - 1))


def _verdict(effects: NDArray[np.float64], p: float, family: int) -> Verdict:
    count, mean = len(effects), float(effects.mean())
    error = float(effects.std(ddof=1)) / np.sqrt(count)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    word: Word = "undecided"
    if p <= 1 - LEVEL:
        word = "supported" if mean > 0 else "contradicted"
    strict = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / family, count - 1))
    seen = (strict + float(stats.t.ppf(POWER, count - 1))) * error
    return Verdict(
        tuple(map(float, effects)), mean, mean - reach * error, mean + reach * error, p, seen, word
    )
