"""The list of claims: what the paper says, and what number decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from figures.claims import measures

NETWORKS = {"fashion_vit": "transformer", "fashion_resnet": "CNN"}
# Forward passes of 100 images that a search may take.
BUDGET = 30.0

Values = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """A claim on one network at some bits.

    Attributes:
        name: network and bits, in words.
        measure: from a seed to named numbers.
    """

    name: str
    measure: Callable[[int], Values]


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is decided.

    Attributes:
        number: in the list of claims.
        says: the claim.
        measured: the effect, in words; positive speaks for the claim.
        units: of the effect.
        effect: from a cell's numbers to it.
        cells: where it is tested.
    """

    number: int
    says: str
    measured: str
    units: str
    effect: Callable[[Values], float]
    cells: tuple[Cell, ...]


def difference(more: str, less: str) -> Callable[[Values], float]:
    """Return the effect by which one of a cell's numbers exceeds another."""
    return lambda values: values[more] - values[less]


def _two_networks(one: tuple[str, int], other: tuple[str, int], seed: int) -> Values:
    return {
        "more": measures.of_network(*one, seed),
        "less": measures.of_network(*other, seed),
    }


def _codes(model: str, bits: int, seed: int) -> Values:
    return {
        "free": measures.of_network(model, bits, seed),
        "held": measures.with_held_codes(model, bits, seed),
    }


def _searches(model: str, bits: int, seed: int) -> Values:
    return {
        name: measures.after_search(name, model, bits, BUDGET, seed) for name in ("adam", "evol-q")
    }


CLAIMS = (
    Claim(
        2,
        "The surface is rougher at fewer bits.",
        "jaggedness at fewer bits minus that at more bits",
        "nats",
        difference("more", "less"),
        tuple(
            Cell(
                f"{words}, W{few} against W{many}",
                partial(_two_networks, (network, few), (network, many)),
            )
            for network, words in NETWORKS.items()
            for few, many in ((3, 4), (2, 3))
        ),
    ),
    Claim(
        3,
        "Transformers are rougher than CNNs.",
        "jaggedness of the transformer minus that of the CNN",
        "nats",
        difference("more", "less"),
        tuple(
            Cell(
                f"W{bits}", partial(_two_networks, ("fashion_vit", bits), ("fashion_resnet", bits))
            )
            for bits in (4, 3, 2)
        ),
    ),
    Claim(
        5,
        "The roughness comes from code flips of weights.",
        "jaggedness minus that with the weights' codes held",
        "nats",
        difference("free", "held"),
        tuple(
            Cell(f"{words}, W{bits}", partial(_codes, network, bits))
            for network, words in NETWORKS.items()
            for bits in (3, 2)
        ),
    ),
    Claim(
        7,
        "Gradients stall where evolution goes on.",
        f"test loss after Adam minus that after Evol-Q, {BUDGET:.0f} passes each",
        "nats",
        difference("adam", "evol-q"),
        tuple(
            Cell(f"{words}, W{bits}", partial(_searches, network, bits))
            for network, words in NETWORKS.items()
            for bits in (3, 2)
        ),
    ),
    Claim(
        8,
        "infoNCE makes the surface easier.",
        "minima of KL minus those of infoNCE on the same plane",
        "minima",
        difference("kl", "info_nce"),
        tuple(
            Cell(f"{words}, W{bits}", partial(measures.of_criteria, network, bits))
            for network, words in NETWORKS.items()
            for bits in (3, 2)
        ),
    ),
)
