"""How optimizers and criteria look in every figure: a color, a line and a marker of their own.

The colors are those of Okabe and Ito, told apart by color-blind eyes and, for the first ones, by
their grays; lines and markers tell all of them apart without color.
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """A color, a matplotlib line style and marker, and plotly's names of the same."""

    color: str
    dashes: str | tuple[int, tuple[int, ...]]
    marker: str
    dash: str
    symbol: str


LOOKS: dict[str, Look] = {
    "evol-q": Look("#d55e00", "-", "o", "solid", "circle"),
    "adam": Look("#0072b2", "--", "s", "dash", "square"),
    "cma": Look("#009e73", "-.", "^", "dashdot", "triangle-up"),
    "sgd": Look("#56b4e9", ":", "D", "dot", "diamond"),
    "adamw": Look("#000000", (0, (6, 1, 1, 1)), "P", "longdash", "cross"),
    "spsa": Look("#cc79a7", (0, (1, 1)), "v", "dot", "triangle-down"),
    "one-plus-one-es": Look("#e69f00", (0, (8, 2)), "X", "longdash", "x"),
    "random-search": Look("#999999", (0, (3, 3)), "*", "dot", "star"),
    "coordinate-descent": Look("#8b4513", (0, (5, 1)), "<", "longdashdot", "triangle-left"),
    "powell": Look("#4b0082", (0, (2, 2, 6, 2)), ">", "longdashdot", "triangle-right"),
}
# Criteria are told apart as optimizers are; no figure shows both.
CRITERION_LOOKS: dict[str, Look] = {
    "info_nce": LOOKS["evol-q"],
    "kl": LOOKS["adam"],
    "mse": LOOKS["cma"],
    "cosine": LOOKS["spsa"],
    "cross_entropy": LOOKS["adamw"],
    "fisher": LOOKS["one-plus-one-es"],
}
OTHER = Look("#444444", "-", "h", "solid", "hexagon")


def look(name: str) -> Look:
    """Return how the optimizer `name` looks."""
    return LOOKS.get(name, OTHER)


def look_of_criterion(name: str) -> Look:
    """Return how the criterion `name` looks."""
    return CRITERION_LOOKS.get(name, OTHER)
