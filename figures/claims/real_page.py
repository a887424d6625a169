"""docs/claims_real.md and its figures, from what was measured on real networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.claims.claims import Claim, Key
from figures.claims.measures import COSTS, CURVES
from figures.claims.networks import NETWORKS, REAL_IMAGES
from figures.claims.page import DOCS, of_claim, sections, write_figures
from figures.claims.real import GROUPS, PLACES, REAL_CLAIMS, after, pseudo_values
from figures.claims.verdicts import Verdict, decide
from landscape.plots.style import STYLE, save_figure

# By dashes and marks, too, so that gray printers tell them apart.
LOOKS: dict[tuple[str, str], dict[str, Any]] = {
    ("default", "nearest"): {"color": "#0072b2", "marker": "o"},  # Okabe and Ito's
    ("default", "gptq"): {"color": "#009e73", "marker": "s", "linestyle": "--"},
    ("published", "nearest"): {"color": "#d55e00", "marker": "^", "linestyle": ":"},
    ("memetic", "nearest"): {"color": "#cc79a7", "marker": "D"},
    ("memetic", "gptq"): {"color": "#000000", "marker": "v", "linestyle": "--"},
}
START_WORDS = {"nearest": "matched moments", "gptq": "GPTQ"}

Row = Mapping[str, Any]
Rows = Mapping[Key, Row]


def by_key(rows: Sequence[Row]) -> Rows:
    """Return rows by measure, network and bits; there is one seed."""
    return {(row["measure"], row["network"], row["bits"]): row for row in rows}


def real_verdicts(rows: Sequence[Row]) -> dict[tuple[Claim, str], Verdict]:
    """Return the verdict on each claim and cell that is measured: one family of Holm's."""
    found = by_key(rows)
    places: dict[str, tuple[Claim, str]] = {}
    effects: dict[str, np.ndarray] = {}
    for claim in REAL_CLAIMS:
        for cell in claim.cells:
            if all(key in found for key in cell.keys):
                own = [found[key] for key in cell.keys]
                whole = cell.effect(*(row["values"] for row in own))
                without = [
                    cell.effect(*(row["left_out"][group] for row in own)) for group in range(GROUPS)
                ]
                name = f"{claim.says} {cell.name}"
                places[name] = claim, cell.name
                effects[name] = pseudo_values(whole, np.array(without))
    return {places[name]: verdict for name, verdict in decide(effects).items()}


def render_real(rows: Sequence[Row]) -> str:
    """Return the page as Markdown."""
    verdicts = real_verdicts(rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    lines = [
        "# The paper's claims on real networks\n",
        "Written by `python -m figures.claims --page` from `figures/claims/real.jsonl`, which "
        "`EVOLQ_DATA=FOLDER python -m figures.claims --real` measures: hours, it goes on where it "
        "stopped. No verdict is written by hand.\n",
        "- **Networks.** DeiT-Tiny, ViT-Tiny and EfficientNet-Lite0 with 3- and 4-bit weights and "
        "8-bit activations, scheme `linear`, run on integers. Starts have MSE scales and matched "
        "moments; codes are the nearest ones, or GPTQ's.",
        f"- **Images.** {REAL_IMAGES} calibration and {REAL_IMAGES} test images, the 1,000 of the "
        "folder in `EVOLQ_DATA`. Nothing is chosen by test images.",
        "- **Intervals** (95 %) are over test images only: there is one seed, so that one draw of "
        f"calibration images, directions and searches stands for all. {GROUPS} groups of images "
        "are left out in turn; the jackknife's pseudo-values of these groups are what the t test "
        "sees, and what figures show. Another seed may say another thing.",
        "- **Verdicts.** Holm's correction over all rows of this page: the chance that any of them "
        "is called supported or contradicted wrongly, for this seed, is at most 5 %.",
        "- Claims that are listed in the code and are not measured yet are not shown: "
        f"{_missing(rows)}.",
        "- **Could be seen** and **roughness**: as on the [page of the bundled networks](claims.md)"
        ".\n",
        f"Processor time: {minutes:.0f} minutes.\n",
    ]
    curves = list(_curves(rows))
    costs = ", ".join(map(str, COSTS))
    if curves:
        lines += [
            "## Searches\n",
            f"Cost is in forward passes of the calibration images, up to {costs}, about the end of "
            "the default recipe; 1 is the start. The calibration loss is infoNCE; `memetic`, "
            "which needs gradients, searches compiled, not on integers, and has it from there.\n",
        ]
        if _paths(rows):
            lines.append(
                "![Change of the test loss from the start that a user has, against cost]"
                "(claims_real.png)\n"
            )
        lines += [
            "| network | recipe | from | cost | calibration loss | test loss | top-1, % |",
            "|---|---|---|---|---|---|---|",
        ]
        for (network, bits, recipe, rounding), stops in curves:
            lines += [
                f"| {NETWORKS[network]}, W{bits} | {recipe} | {START_WORDS[rounding]} "
                f"| {v['cost']:.0f} | {v['evolq_calibration']:.3f} | {v['evolq']:.3f} "
                f"| {v['evolq_accuracy']:.1f} |"
                for v in (row["values"] for row in stops.values())
            ]
        lines.append("")
    claims = [claim for claim in REAL_CLAIMS if of_claim(verdicts, claim)]
    if claims:
        lines += ["## Claims\n", *sections(claims, verdicts, "claims_real", "groups")]
    return "\n".join(lines)


def _missing(rows: Sequence[Row]) -> str:
    """Return how many cells of claims wait for runs, in words."""
    found = by_key(rows)
    cells = [cell for claim in REAL_CLAIMS for cell in claim.cells]
    missing = sum(any(key not in found for key in cell.keys) for cell in cells)
    return f"{missing} of {len(cells)} cells"


def _curves(
    rows: Sequence[Row],
) -> Iterator[tuple[tuple[str, int, str, str], dict[int, Row]]]:
    """Yield each search, (network, bits, recipe, rounding), with the rows of its costs."""
    found = by_key(rows)
    for network, bits in PLACES:
        for recipe, rounding in CURVES:
            stops = {
                cost: found[key]
                for cost in COSTS
                if (key := (after(recipe, rounding, cost), network, bits)) in found
            }
            if stops:
                yield (network, bits, recipe, rounding), stops


def _paths(rows: Sequence[Row]) -> list[tuple[tuple[str, int, str, str], list[Row]]]:
    """Return the searches that went on from their start, each with the rows on its way.

    Every recipe starts where the default one does.
    """
    found = by_key(rows)
    paths = []
    for (network, bits, recipe, rounding), stops in _curves(rows):
        start = found.get((after("default", rounding, COSTS[0]), network, bits))
        path = list((({COSTS[0]: start} if start else {}) | stops).values())
        if len(path) > 1:
            paths.append(((network, bits, recipe, rounding), path))
    return paths


def draw_curves(rows: Sequence[Row]) -> Figure:
    """Draw the change of the test loss against cost, a panel for each network and bits.

    Changes are from nearest codes with matched moments, with 95 % intervals over images.
    """
    found = by_key(rows)
    searches = _paths(rows)
    panels = list(dict.fromkeys((network, bits) for (network, bits, *_), _ in searches))
    lines = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.8, 0.8 + 3.2 * lines), layout="constrained")
        for place, panel in enumerate(panels, 1):
            axes = figure.add_subplot(lines, min(2, len(panels)), place)
            first = found[(after("default", "nearest", COSTS[0]), *panel)]
            for (network, bits, recipe, rounding), path in searches:
                if (network, bits) != panel:
                    continue
                changes = [_change(first, row) for row in path]
                axes.errorbar(
                    [row["values"]["cost"] for row in path],
                    [verdict.effect for verdict in changes],
                    np.array([[v.effect - v.low, v.high - v.effect] for v in changes]).T,
                    capsize=2,
                    **LOOKS[recipe, rounding],
                )
            axes.axhline(0, color="0.3", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xticks(COSTS, [str(cost) for cost in COSTS])
            axes.minorticks_off()
            axes.set_title(f"{NETWORKS[panel[0]]}, W{panel[1]}")
        figure.supxlabel("cost (forward passes of the calibration images)")
        figure.supylabel("change of the test loss (nats)")
        drawn = dict.fromkeys((recipe, rounding) for (*_, recipe, rounding), _ in searches)
        handles = [
            Line2D([], [], label=f"{recipe}, from {START_WORDS[rounding]}", **look)
            for recipe, rounding in drawn
            for look in [LOOKS[recipe, rounding]]
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _change(before: Row, after_it: Row) -> Verdict:
    """Return the change of the test loss between two rows, over groups of images."""
    whole = after_it["values"]["evolq"] - before["values"]["evolq"]
    pairs = zip(before["left_out"], after_it["left_out"], strict=True)
    without = np.array([end["evolq"] - start["evolq"] for start, end in pairs])
    return decide({"": pseudo_values(whole, without)})[""]


def write_real_page(rows: Sequence[Row], folder: Path = DOCS) -> None:
    """Write claims_real.md, claims_real.png and a figure of each claim into a folder."""
    (folder / "claims_real.md").write_text(render_real(rows))
    if _paths(rows):
        save_figure(draw_curves(rows), folder / "claims_real.png")
    write_figures(real_verdicts(rows), folder / "claims_real", "each group of images")
