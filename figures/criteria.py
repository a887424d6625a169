"""Criteria: how many minima their surfaces have, and what a search under each is worth."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evolq.losses.criteria import CRITERIA
from figures.egg_carton import NETWORKS
from figures.rows import CLAIMS, MEASURE_CLAIMS, Row, by_seed
from landscape.plots.palette import looks
from landscape.plots.style import STYLE
from landscape.statistics.intervals import Interval, mean_interval

STORED, COMMAND = CLAIMS, MEASURE_CLAIMS
BITS = 3
NAMES = [name for name, criterion in CRITERIA.items() if not criterion.uses_labels]
REFERENCE = "info_nce"
SIZES = {"transfer 50": 50, "transfer 200": 200}


def draw(rows: Sequence[Row]) -> Figure:
    """Draw minima on the left and what searches are worth on the right, a row for each network."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 6.4), layout="constrained")
        panels = figure.subplots(len(NETWORKS), 2, sharex="col", sharey=True)
        for (left, right), (network, name) in zip(panels, NETWORKS.items(), strict=True):
            _draw(left, {criterion: minima(rows, network, criterion) for criterion in NAMES})
            for filled, (measure, size) in zip((True, False), SIZES.items(), strict=True):
                changes = {
                    criterion: transfer(rows, measure, network, criterion)
                    for criterion in NAMES
                    if criterion != REFERENCE
                }
                _draw(right, changes, filled, f"{size} calibration images")
            right.axvline(0, color="0.3", linewidth=0.8)
            left.set_ylabel(name)
            left.set_yticks(range(len(NAMES)), NAMES)
            left.set_ylim(len(NAMES) - 0.5, -0.5)
            left.set_xlim(0, None)
        panels[0][0].set_title("Its surface: local minima on one plane")
        panels[0][1].set_title(f"Its worth: test loss after a search, less that of {REFERENCE}")
        panels[0][1].legend(loc="upper right", fontsize="small")
        left.set_xlabel("Local minima (mean over seeds, 95 %)")
        right.set_xlabel("Change of the test loss (nats; mean over seeds, 95 %)")
    return figure


def minima(rows: Sequence[Row], network: str, criterion: str) -> Interval:
    """Return the mean number of local minima of a criterion over seeds."""
    found = by_seed(rows, "plane", network, BITS)
    return mean_interval([values[criterion] for values in found.values()])


def transfer(rows: Sequence[Row], measure: str, network: str, criterion: str) -> Interval:
    """Return the mean test loss after a search, less that of the reference, paired by seed."""
    found = by_seed(rows, measure, network, BITS)
    return mean_interval([values[criterion] - values[REFERENCE] for values in found.values()])


def _draw(axes: Axes, found: dict[str, Interval], filled: bool = True, label: str = "") -> None:
    look = looks(NAMES, CRITERIA)
    for criterion, one in found.items():
        axes.errorbar(
            one.estimate,
            NAMES.index(criterion) + (-0.12 if filled else 0.12) * bool(label),
            xerr=[[one.estimate - one.low], [one.high - one.estimate]],
            marker=look[criterion].marker,
            color=look[criterion].color,
            fillstyle="full" if filled else "none",
        )
    if label:
        style = {"marker": "o", "color": "0.3", "linestyle": ""}
        axes.plot([], [], fillstyle="full" if filled else "none", label=label, **style)


def caption(rows: Sequence[Row]) -> str:
    """Return what the figure shows, with its numbers."""
    words = []
    for network, name in NETWORKS.items():
        counts = {criterion: minima(rows, network, criterion) for criterion in NAMES}
        named = ", ".join(
            f"{criterion} {one.estimate:.1f} ({one.low:.1f} to {one.high:.1f})"
            for criterion, one in counts.items()
        )
        gains = {
            (criterion, size): transfer(rows, measure, network, criterion)
            for measure, size in SIZES.items()
            for criterion in NAMES
            if criterion != REFERENCE
        }
        apart = [
            f"{criterion} with {size} images "
            f"{one.estimate:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
            for (criterion, size), one in gains.items()
            if one.low > 0 or one.high < 0
        ]
        words.append(
            f"{name}: minima {named}; of {len(gains)} changes of the test loss against {REFERENCE} "
            f"{len(apart)} have an interval without 0" + (f": {', '.join(apart)}" if apart else "")
        )
    seeds = len(by_seed(rows, "plane", next(iter(NETWORKS)), BITS))
    searched = len(by_seed(rows, next(iter(SIZES)), next(iter(NETWORKS)), BITS))
    return (
        f"Criteria without labels at {BITS}-bit weights. Left: local minima, however shallow, on "
        f"one plane, the same images for all ({seeds} seeds). Right: the test loss after Evol-Q "
        f"under a criterion less that under {REFERENCE}, paired by seed ({searched} seeds; each "
        f"interval 95 % by itself). {'. '.join(word[0].upper() + word[1:] for word in words)}."
    )
