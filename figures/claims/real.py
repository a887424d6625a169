"""Claims on real networks: one seed, so that intervals are over test images only.

The folder in EVOLQ_DATA has 1,000 images: 500 calibrate, 500 test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from figures.claims.claims import (
    NOTICEABLE,
    Cell,
    Claim,
    Key,
    Values,
    everywhere,
    fewer,
    later,
    less,
    more,
    mostly_flips,
)
from figures.claims.measures import BUDGET, COSTS, CURVES, Summary
from figures.claims.networks import DEIT, LITE, NETWORKS, REAL_IMAGES, REAL_NETWORKS, VIT_TINY


def after(recipe: str, rounding: str, cost: int) -> str:
    """Return the name of a measure of `CURVES`."""
    return f"{recipe} from {rounding}, cost {cost}"


# In the order in which they are measured.
PLACES = ((DEIT, 3), (VIT_TINY, 3), (DEIT, 4), (VIT_TINY, 4), (LITE, 4), (LITE, 3))
STARTS = (after("default", "nearest", 1), after("default", "gptq", 1))
# Of the memetic recipe, whose gradients are not computed on integers: forward passes.
FEW = COSTS[1:3]
# Likewise; each group in all places before the next, since some take hours.
MEASURED: tuple[tuple[str, ...], ...] = (
    (*STARTS, *(after("default", "gptq", cost) for cost in FEW)),
    ("rays", "held", after("default", "nearest", 30)),
    tuple(after("memetic", rounding, cost) for rounding in ("nearest", "gptq") for cost in FEW),
    ("searches",),
    tuple(
        after(recipe, rounding, cost)
        for recipe, rounding in CURVES
        if recipe != "memetic"
        for cost in COSTS
    ),
)
# Test images are left out one of so many groups at a time.
GROUPS = 20


def real_keys() -> Iterator[Key]:
    """Return what is measured, in order."""
    for measures in MEASURED:
        for network, bits in PLACES:
            for measure in measures:
                yield measure, network, bits


def left_out(summary: Summary) -> list[Values]:
    """Return what a measure says without each group of test images."""
    groups = np.arange(REAL_IMAGES) % GROUPS
    return [summary(groups != group) for group in range(GROUPS)]


def pseudo_values(whole: float, without: NDArray) -> NDArray:
    """Return an effect of each group of images: Tukey's pseudo-values of the jackknife.

    Their mean is the effect less its bias, and their scatter over the root of their number its
    standard error (Tukey 1958, "Bias and confidence in not-quite large samples"; Efron 1982, "The
    jackknife, the bootstrap and other resampling plans", section 3.3), also of statistics that are
    no means, such as a roughness.

    Args:
        whole: of all images.
        without: (groups,), without each group, all of one size.
    """
    return len(without) * whole - (len(without) - 1) * np.asarray(without)


def _adds(name: Literal["evolq", "evolq_accuracy"], *reached: Values) -> float:
    """Return by how much a search lowers a number of the better start: nearest, GPTQ, the end.

    Starts are compared by their calibration loss, never by test images; an accuracy is negative.
    """
    *starts, end = reached
    best = min(starts, key=lambda start: start["evolq_calibration"])
    return best[name] - end[name]


def _falls(before: Values, after: Values) -> float:
    return before["evolq"] - after["evolq"]


FROM_NEAREST = (STARTS[0], after("default", "nearest", 30))
FROM_GPTQ = (STARTS[1], after("default", "gptq", 30))
MEMETIC = after("memetic", "nearest", 30)
REAL = tuple(REAL_NETWORKS)
TESTED = f"{REAL_IMAGES} test images"
CALIBRATED = f"{REAL_IMAGES} calibration images, {TESTED}"


def _headline(name: Literal["evolq", "evolq_accuracy"], sign: int) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            f"{NETWORKS[network]}, W{bits}, {recipe}, cost {cost}",
            tuple((m, network, bits) for m in (*STARTS, after(recipe, "gptq", cost))),
            lambda *reached: sign * _adds(name, *reached),
        )
        for network, bits in PLACES
        for recipe, costs in (("default", COSTS[1:]), ("memetic", FEW))
        for cost in costs
    )


REAL_CLAIMS = (
    Claim(
        18,
        "Search adds to the best start without search.",
        "test loss at the better start (nearest with matched moments or GPTQ, by calibration loss) "
        "minus that after Evol-Q from GPTQ, by recipe and cost (forward passes of the calibration "
        "images)",
        "nats",
        CALIBRATED,
        _headline("evolq", 1),
    ),
    Claim(
        18,
        "Search adds accuracy to the best start without search.",
        "top-1 after Evol-Q from GPTQ minus that at the better start, as above; the paper: +0.78 "
        "points at W4, +10.30 at W3 over earlier methods, ViT-Base",
        "points",
        CALIBRATED,
        _headline("evolq_accuracy", -1),
    ),
    Claim(
        7,
        "Gradients stall where evolution goes on.",
        "test loss after Adam (the better of two learning rates) minus that after Evol-Q, "
        f"{BUDGET:.0f} forward passes each",
        "nats",
        CALIBRATED,
        everywhere(("searches",), (3, 4), less("adam", "evolq"), REAL),
    ),
    Claim(
        1,
        "Small changes of scales change accuracy noticeably.",
        "root mean square change of test accuracy within 10 % of the start, free of sampling "
        f"noise, minus the {NOTICEABLE} points of the paper; one ray",
        "points",
        TESTED,
        everywhere(("rays",), (4, 3), lambda v: v["accuracy_change"] - NOTICEABLE, REAL),
    ),
    Claim(
        2,
        "The surface is rougher at fewer bits.",
        "roughness at fewer bits minus that at more bits, equal relative steps, one ray",
        "nats",
        TESTED,
        fewer("rays", "roughness", ((3, 4),), REAL),
    ),
    Claim(
        3,
        "Transformers are rougher than CNNs.",
        "roughness of the transformer minus that of EfficientNet-Lite0, equal relative steps, one "
        "ray",
        "nats",
        TESTED,
        tuple(
            Cell(
                f"{NETWORKS[network]}, W{bits}",
                (("rays", network, bits), ("rays", LITE, bits)),
                more("roughness"),
            )
            for network in (DEIT, VIT_TINY)
            for bits in (3, 4)
        ),
    ),
    Claim(
        5,
        "The roughness comes from code flips of weights.",
        "roughness minus root 2 times that with codes of weights held, one ray: positive if flips "
        "of weights make more than half of the mean square",
        "nats",
        TESTED,
        everywhere(("rays", "held"), (3, 4), mostly_flips, REAL),
    ),
    Claim(
        10,
        "Gains grow as bits fall.",
        "fall of the test loss by Evol-Q (30 forward passes) from GPTQ at 3 bits minus that at 4 "
        "bits",
        "nats",
        CALIBRATED,
        tuple(
            Cell(
                f"{words}, W3 against W4",
                tuple((m, network, bits) for bits in (3, 4) for m in FROM_GPTQ),
                lambda a, b, c, d: _falls(a, b) - _falls(c, d),
            )
            for network, words in REAL_NETWORKS.items()
        ),
    ),
    Claim(
        12,
        "The published population beats (1+1) at equal cost.",
        "test loss after the default recipe minus that after the published one, by cost in "
        "forward passes of the calibration images",
        "nats",
        CALIBRATED,
        tuple(
            Cell(
                f"{NETWORKS[network]}, W{bits}, cost {cost}",
                tuple((after(r, "nearest", cost), network, bits) for r in ("default", "published")),
                more("evolq"),
            )
            for network, bits in PLACES
            for cost in COSTS[1:]
        ),
    ),
    *(
        Claim(
            12,
            f"A gradient step inside the evolution beats {words} at equal cost.",
            f"test loss after {words} minus that after recipe memetic, {BUDGET:.0f} forward passes",
            "nats",
            CALIBRATED,
            everywhere((MEMETIC, measure), (3, 4), later(name), REAL),
        )
        for words, measure, name in (
            ("the default recipe", FROM_NEAREST[1], "evolq"),
            ("Adam", "searches", "adam"),
        )
    ),
    Claim(
        14,
        "Stronger starts shrink the gain.",
        "fall of the test loss by Evol-Q (30 forward passes) from nearest with matched moments "
        "minus that from GPTQ",
        "nats",
        CALIBRATED,
        everywhere(
            (*FROM_NEAREST, *FROM_GPTQ),
            (3, 4),
            lambda a, b, c, d: _falls(a, b) - _falls(c, d),
            REAL,
        ),
    ),
    Claim(
        15,
        "It works on CNNs too.",
        "fall of the test loss by Evol-Q (30 forward passes) from GPTQ",
        "nats",
        CALIBRATED,
        everywhere(FROM_GPTQ, (3, 4), _falls, (LITE,)),
    ),
)
