"""Looks: a color, a line and a marker for each member of a registry, the same in every figure.

The colors are those of Okabe and Ito, told apart by color-blind eyes and, for the first ones, by
their grays; lines and markers tell all of them apart without color.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Look(NamedTuple):
    """A color, a matplotlib line style and marker, and plotly's names of the same."""

    color: str
    dashes: str | tuple[int, tuple[int, ...]]
    marker: str
    dash: str
    symbol: str


LOOKS = (
    Look("#d55e00", "-", "o", "solid", "circle"),
    Look("#0072b2", "--", "s", "dash", "square"),
    Look("#009e73", "-.", "^", "dashdot", "triangle-up"),
    Look("#56b4e9", ":", "D", "dot", "diamond"),
    Look("#000000", (0, (6, 1, 1, 1)), "P", "longdash", "cross"),
    Look("#cc79a7", (0, (1, 1)), "v", "dot", "triangle-down"),
    Look("#e69f00", (0, (8, 2)), "X", "longdash", "x"),
    Look("#999999", (0, (3, 3)), "*", "dot", "star"),
    Look("#8b4513", (0, (5, 1)), "<", "longdashdot", "triangle-left"),
    Look("#4b0082", (0, (2, 2, 6, 2)), ">", "longdashdot", "triangle-right"),
)


def looks(names: Sequence[str], registry: Iterable[str]) -> dict[str, Look]:
    """Return how each of `names` looks: by its place in the registry, unknown ones after that.

    From the eleventh place on the colors come again with the lines and markers of others; a hundred
    places look different, with and without color up to the tenth.
    """
    order = list(dict.fromkeys([*registry, *names]))
    return {name: _look(order.index(name)) for name in names}


def _look(place: int) -> Look:
    turn, index = divmod(place, len(LOOKS))
    return LOOKS[(index + turn) % len(LOOKS)]._replace(color=LOOKS[index].color)
