"""The list of claims: what the paper says, and what number decides it.

Primary claims are tested together, Holm's family being all their cells. The others are exploratory,
a family of their own: cheap looks at what the primary runs measure anyhow, or nearly so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from figures.claims.measures import BUDGET, FEW_AND_MANY, LONG_BUDGET, RADIUS
from figures.claims.networks import (
    BUNDLED_NETWORKS,
    CALIBRATION_IMAGES,
    CNN,
    NETWORKS,
    TEST_IMAGES,
    VIT,
)

# The paper's smallest change of accuracy by a perturbation at 4 bits, in points.
NOTICEABLE = 0.5

Values = Mapping[str, float]
Key = tuple[str, str, int]
"""A measure, a network and the bits of its weights."""


@dataclass(frozen=True)
class Cell:
    """A claim in one place, such as one network at some bits.

    Attributes:
        name: of the place, in words.
        keys: what is measured there.
        effect: from the numbers of each key, of one seed, to the effect; positive speaks for the
            claim.
    """

    name: str
    keys: tuple[Key, ...]
    effect: Callable[..., float]


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is decided.

    Attributes:
        number: in the list of claims; several may share it.
        says: the claim.
        measured: the effect, in words.
        units: of the effect.
        images: which and how many each seed draws.
        cells: where it is tested.
        primary: whether it belongs to the family of the primary claims.
    """

    number: int
    says: str
    measured: str
    units: str
    images: str
    cells: tuple[Cell, ...]
    primary: bool = True


def everywhere(
    measures: Collection[str],
    bits: Collection[int],
    effect: Callable[..., float],
    networks: Collection[str] = tuple(BUNDLED_NETWORKS),
) -> tuple[Cell, ...]:
    """Return a cell for each network at each bits; the effect gets the numbers of each measure."""
    return tuple(
        Cell(f"{NETWORKS[network]}, W{few}", tuple((m, network, few) for m in measures), effect)
        for network in networks
        for few in bits
    )


def more(name: str) -> Callable[[Values, Values], float]:
    """Return the effect by which a number is larger in the first place than in the second."""
    return lambda one, other: one[name] - other[name]


def fewer(
    measure: str,
    name: str,
    pairs: Collection[tuple[int, int]] = ((3, 4), (2, 3)),
    networks: Collection[str] = tuple(BUNDLED_NETWORKS),
) -> tuple[Cell, ...]:
    """Return cells whose effect is by how much a number is larger at fewer bits."""
    return tuple(
        Cell(
            f"{NETWORKS[network]}, W{few} against W{many}",
            ((measure, network, few), (measure, network, many)),
            more(name),
        )
        for network in networks
        for few, many in pairs
    )


def stalls(method: str, measures: Collection[str], bits: Collection[int]) -> tuple[Cell, ...]:
    """Return cells whose effect is by how much better Evol-Q's test loss is than a gradient's.

    Args:
        method: the gradient's name.
        measures: that hold its test loss and that of Evol-Q, in this order; one may hold both.
        bits: of weights.
    """
    return everywhere(measures, bits, lambda *v: v[0][method] - v[-1]["evolq"])


def less(one: str, other: str) -> Callable[[Values], float]:
    """Return the effect by which a number exceeds another of the same place."""
    return lambda values: values[one] - values[other]


def later(name: str) -> Callable[[Values, Values], float]:
    """Return the effect by which a number of the second place exceeds Evol-Q's of the first."""
    return lambda one, other: other[name] - one["evolq"]


def _gain(values: Values) -> float:
    """Return how far Evol-Q lowers the test loss, nats."""
    return values["start"] - values["evolq"]


def mostly_flips(free: Values, held: Values) -> float:
    # root 2 of a size is twice its square: positive if less than half of the square is left
    return free["roughness"] - float(np.sqrt(2)) * held["roughness"]


def _at_equal_flips(one: Values, other: Values) -> float:
    # so many independent jumps add up to their root
    return one["roughness"] * float(np.sqrt(other["flips"] / one["flips"])) - other["roughness"]


def _least(values: Values) -> float:
    """Return by how much infoNCE's number is below the mean of the other criteria's."""
    return float(np.mean([n for k, n in values.items() if k != "info_nce"])) - values["info_nce"]


TESTED = f"{TEST_IMAGES} test images"
CALIBRATED = f"{CALIBRATION_IMAGES} calibration images"
BOTH = f"{CALIBRATED}, {TESTED}"

CLAIMS = (
    Claim(
        2,
        "The surface is rougher at fewer bits.",
        "roughness at fewer bits minus that at more bits, equal relative steps",
        "nats",
        TESTED,
        fewer("rays", "roughness"),
    ),
    Claim(
        3,
        "Transformers are rougher than CNNs.",
        "roughness of the transformer minus that of the CNN, equal relative steps",
        "nats",
        TESTED,
        tuple(
            Cell(f"W{bits}", (("rays", VIT, bits), ("rays", CNN, bits)), more("roughness"))
            for bits in (4, 3, 2)
        ),
    ),
    Claim(
        5,
        "The roughness comes from code flips of weights.",
        "roughness minus root 2 times that with codes of weights held: positive if flips of "
        "weights make more than half of the mean square",
        "nats",
        TESTED,
        everywhere(("rays", "held"), (3, 2), mostly_flips),
    ),
    Claim(
        7,
        "Gradients stall where evolution goes on.",
        "test loss after Adam (the better of two learning rates) minus that after Evol-Q, "
        f"{BUDGET:.0f} forward passes each",
        "nats",
        BOTH,
        stalls("adam", ("searches",), (3, 2)),
    ),
    Claim(
        8,
        "infoNCE makes the surface easier.",
        "local minima of the other label-free criteria (mean) minus those of infoNCE, "
        "one plane, the same images",
        "minima",
        CALIBRATED,
        everywhere(("plane",), (3,), _least),
    ),
    Claim(
        1,
        "Small changes of scales change accuracy noticeably.",
        "root mean square change of test accuracy within 10 % of the start, free of sampling "
        f"noise, minus the {NOTICEABLE} points of the paper",
        "points",
        TESTED,
        everywhere(("rays",), (4,), lambda v: v["accuracy_change"] - NOTICEABLE),
        primary=False,
    ),
    Claim(
        1,
        "Small changes of scales change the test loss by more than the numerical floor.",
        "root mean square change of test loss within 10 % of the start, free of sampling noise, "
        "minus the floor of a difference",
        "nats",
        TESTED,
        everywhere(
            ("rays", "repeats"),
            (4,),
            lambda v, floor: v["loss_change"] - float(np.sqrt(2)) * floor["floor"],
        ),
        primary=False,
    ),
    Claim(
        3,
        "Transformers are rougher than CNNs at an equal share of flipped codes.",
        "roughness of the transformer minus that of the CNN, where roughness goes with the root "
        "of the share of codes that flip (assumed)",
        "nats",
        TESTED,
        tuple(
            Cell(f"W{bits}", (("rays", VIT, bits), ("rays", CNN, bits)), _at_equal_flips)
            for bits in (4, 3, 2)
        ),
        primary=False,
    ),
    Claim(
        4,
        "qkv and proj are rougher than fc1 and fc2.",
        "roughness where only scales of qkv and proj move minus that of fc1 and fc2",
        "nats",
        TESTED,
        everywhere(("attention", "mlp"), (3,), more("roughness"), (VIT,)),
        primary=False,
    ),
    Claim(
        6,
        f"The roughness that {TEST_IMAGES} images show is mostly the network's.",
        "share of the mean square that all images have in common, minus one half; "
        "the rest is the sample's",
        "share",
        TESTED,
        everywhere(("rays",), (3, 2), lambda v: v["structure"] / v["total"] - 0.5),
        primary=False,
    ),
    Claim(
        6,
        "Arithmetic is a smaller part of the roughness than the sample.",
        "share of the mean square that the sample makes minus that of the numerical floor",
        "share",
        TESTED,
        everywhere(
            ("rays", "repeats"),
            (3,),
            lambda v, r: (v["total"] - v["structure"] - r["floor"] ** 2) / v["total"],
        ),
        primary=False,
    ),
    Claim(
        7,
        "Gradients stall where evolution goes on: on calibration images.",
        "calibration loss after Adam minus that after Evol-Q, as above",
        "nats × 2τ",
        CALIBRATED,
        everywhere(("searches",), (3, 2), less("adam_calibration", "evolq_calibration")),
        primary=False,
    ),
    *(
        Claim(
            7,
            f"Gradients stall where evolution goes on: {words}.",
            f"test loss after {words} (the better of two learning rates) minus that after Evol-Q, "
            f"{BUDGET:.0f} forward passes each",
            "nats",
            BOTH,
            stalls(method, ("descents", "searches"), (3, 2)),
            primary=False,
        )
        for method, words in (("sgd", "SGD"), ("adamw", "AdamW"))
    ),
    *(
        Claim(
            7,
            f"Gradients stall where evolution goes on: {words} from the published start.",
            f"test loss after {words} minus that after Evol-Q, as above, from scheme published "
            "with LayerNorms in floating point",
            "nats",
            BOTH,
            stalls(method, ("published start",), (3,)),
            primary=False,
        )
        for method, words in (("adam", "Adam"), ("sgd", "SGD"), ("adamw", "AdamW"))
    ),
    Claim(
        9,
        "infoNCE overfits less.",
        "test loss after Evol-Q under each other label-free criterion (mean) minus that under "
        "infoNCE",
        "nats",
        f"{' or '.join(map(str, FEW_AND_MANY))} calibration images, {TESTED}",
        tuple(
            Cell(f"{words}, W3, {n} images", ((f"transfer {n}", network, 3),), _least)
            for network, words in BUNDLED_NETWORKS.items()
            for n in FEW_AND_MANY
        ),
        primary=False,
    ),
    Claim(
        10,
        "Gains grow as bits fall.",
        "fall of the test loss by Evol-Q at 2 bits minus that at 3 bits",
        "nats",
        BOTH,
        tuple(
            Cell(
                f"{words}, W2 against W3",
                (("searches", network, 2), ("searches", network, 3)),
                lambda two, three: _gain(two) - _gain(three),
            )
            for network, words in BUNDLED_NETWORKS.items()
        ),
        primary=False,
    ),
    Claim(
        11,
        "Block by block beats all scales at once at equal cost.",
        "test loss after a (1+1) evolution of all scales at once minus that after Evol-Q, "
        f"{BUDGET:.0f} forward passes each",
        "nats",
        BOTH,
        everywhere(("at once", "searches"), (3,), more("evolq")),
        primary=False,
    ),
    Claim(
        12,
        "The published population beats (1+1) at equal cost.",
        "test loss after the default recipe minus that after the published one",
        "nats",
        BOTH,
        everywhere(("searches", "published"), (3, 2), more("evolq")),
        primary=False,
    ),
    Claim(
        12,
        "The published population beats (1+1) in a long search.",
        "test loss after the default recipe minus that after the published one, "
        f"{LONG_BUDGET:.0f} forward passes each, about a thousand evaluations",
        "nats",
        BOTH,
        everywhere(("long searches",), (3,), less("evolq", "published")),
        primary=False,
    ),
    *(
        Claim(
            12,
            f"A gradient step inside the evolution beats {words} at equal cost.",
            f"test loss after {words} minus that after recipe memetic",
            "nats",
            BOTH,
            everywhere(("memetic", measure), (3, 2), later(name)),
            primary=False,
        )
        for words, measure, name in (
            ("the default recipe", "searches", "evolq"),
            ("Adam", "searches", "adam"),
            ("the published recipe", "published", "evolq"),
        )
    ),
    Claim(
        13,
        "Selecting on test images inflates the gain.",
        "gain of the point with the least test loss where it was picked minus that on other test "
        "images",
        "nats",
        f"halves of {TESTED}",
        everywhere(("rays",), (3,), less("gain_where_picked", "gain_elsewhere")),
        primary=False,
    ),
    Claim(
        14,
        "Stronger starts shrink the gain.",
        "fall of the test loss by Evol-Q from min-max without matched moments minus that from the "
        "start that a user has",
        "nats",
        BOTH,
        everywhere(
            ("plain start", "searches"), (3,), lambda plain, user: _gain(plain) - _gain(user)
        ),
        primary=False,
    ),
    Claim(
        15,
        "It works on CNNs too.",
        "fall of the test loss by Evol-Q from the start that a user has",
        "nats",
        BOTH,
        everywhere(("searches",), (3, 2), _gain, (CNN,)),
        primary=False,
    ),
    Claim(
        16,
        "Curvature rises as bits fall.",
        "curvature of the test loss along random rays at fewer bits minus that at more bits",
        "nats per squared relative change",
        TESTED,
        fewer("rays", "curvature"),
        primary=False,
    ),
    Claim(
        16,
        "Separability falls as bits fall.",
        f"what two halves of the scales do together beyond the sum of each alone, {RADIUS:.0%} "
        "from the start: at fewer bits minus at more bits",
        "nats",
        TESTED,
        fewer("together", "interaction"),
        primary=False,
    ),
    Claim(
        17,
        "It works at extreme bits: 2-bit weights, 4-bit activations.",
        "fall of the test loss by Evol-Q from the start that a user has",
        "nats",
        BOTH,
        everywhere(("extreme",), (2,), _gain),
        primary=False,
    ),
)
