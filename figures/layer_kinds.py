"""Roughness of the test loss by kind of layer: whose scales move."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from figures.rows import CLAIMS, MEASURE_CLAIMS, Row, by_seed
from landscape.plots.palette import LOOKS
from landscape.plots.style import STYLE
from landscape.statistics.intervals import mean_interval

STORED, COMMAND = CLAIMS, MEASURE_CLAIMS
NETWORK, BITS = "fashion_vit", 3
KINDS = {
    "rays": "all scales",
    "attention": "weights of\nqkv and proj",
    "mlp": "weights of\nfc1 and fc2",
}


def draw(rows: Sequence[Row]) -> Figure:
    """Draw each seed, and the mean with its interval, for each kind of layer."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for place, (measure, look) in enumerate(zip(KINDS, LOOKS, strict=False)):
            values = _roughness(rows, measure)
            found = mean_interval(values)
            axes.plot([place - 0.12] * len(values), values, "o", color="0.6", markersize=4)
            error = [[found.estimate - found.low], [found.high - found.estimate]]
            axes.errorbar(place + 0.12, found.estimate, error, marker=look.marker, color=look.color)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xticks(range(len(KINDS)), KINDS.values())
        axes.set_xlim(-0.5, len(KINDS) - 0.5)
        axes.set_ylabel("Roughness of the test loss (nats)")
        axes.set_title(f"Whose scales move: vision transformer, {BITS}-bit weights")
        axes.set_xlabel("gray: each seed; mark: their mean, 95 % interval")
    return figure


def _roughness(rows: Sequence[Row], measure: str) -> list[float]:
    return [values["roughness"] for values in by_seed(rows, measure, NETWORK, BITS).values()]


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for measure, kind in KINDS.items():
        values = _roughness(rows, measure)
        found = mean_interval(values)
        words.append(
            f"{kind.replace(chr(10), ' ')} {found.estimate:.4f} "
            f"({found.low:.4f} to {found.high:.4f}, {len(values)} seeds)"
        )
    return (
        "Roughness (root mean square of fourth differences over root 70, nats, without sampling "
        f"noise in the mean) of the test loss of the bundled vision transformer with {BITS}-bit "
        "weights along random rays that move the scales of some layers alone, by equal relative "
        f"steps; means over seeds with 95 % intervals: {'; '.join(words)}. It scatters around 0 "
        "where there is none."
    )
