"""docs/claims.md and its figure, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from figures.claims.claims import CLAIMS, Claim
from figures.claims.verdicts import Verdict, decide

DOCS = Path(__file__).parents[2] / "docs"
LOOKS = {"supported": ("tab:blue", "o"), "contradicted": ("tab:orange", "X")}
UNDECIDED = ("0.5", "s")
# So few seeds say nothing about their own scatter.
FEWEST = 3

Row = Mapping[str, Any]


def verdicts_of(rows: Sequence[Row]) -> dict[tuple[Claim, str], Verdict]:
    """Return the verdict on each claim and cell that has enough seeds; Holm's family is all."""
    effects: dict[str, list[float]] = {}
    keys = {}
    for claim in CLAIMS:
        for cell in claim.cells:
            found = [
                claim.effect(row["values"])
                for row in rows
                if row["claim"] == claim.number and row["cell"] == cell.name
            ]
            if len(found) >= FEWEST:
                name = f"{claim.number} {cell.name}"
                keys[name] = claim, cell.name
                effects[name] = found
    return {keys[name]: verdict for name, verdict in decide(effects).items()}


def render(verdicts: Mapping[tuple[Claim, str], Verdict], minutes: float) -> str:
    """Return the page as Markdown."""
    lines = [
        "# The paper's claims, tested\n",
        "Written by `python -m figures.claims`, on the bundled networks; verdicts follow from "
        "numbers, none is written by hand. Each seed draws calibration images, test images, "
        "directions and searches anew, so that intervals (95 %, Student's t over seeds) cover all "
        "of them. p values are corrected by Holm over all rows: the probability that any row is "
        "called supported or contradicted wrongly is at most 5 %. An undecided row would have "
        "been seen in four of five repetitions if its effect were as large as the last column "
        f"but one. Processor time of all: {minutes:.0f} minutes.\n",
        "![Effects and intervals of each claim](claims.png)\n",
    ]
    for claim in CLAIMS:
        own = {cell: verdict for (each, cell), verdict in verdicts.items() if each is claim}
        if not own:
            continue
        lines += [
            f"## {claim.number}. {claim.says}\n",
            f"Effect: {claim.measured} ({claim.units}); positive speaks for the claim.\n",
            "| where | seeds | effect (95 %) | p, corrected | could be seen | verdict |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {cell} | {v.seeds} | {v.effect:+.3g} ({v.low:+.3g} to {v.high:+.3g}) "
            f"| {v.p:.2g} | {v.seen:.2g} | {v.word} |"
            for cell, v in own.items()
        ]
        lines.append("")
    return "\n".join(lines)


def draw(verdicts: Mapping[tuple[Claim, str], Verdict]) -> Figure:
    """Draw effects with their intervals, a panel for each claim."""
    claims = [claim for claim in CLAIMS if any(each is claim for each, _ in verdicts)]
    counts = [sum(each is claim for each, _ in verdicts) for claim in claims]
    height = 1.0 + 0.75 * len(claims) + 0.25 * sum(counts)
    figure = Figure(figsize=(7, height), layout="constrained")
    panels = figure.subplots(len(claims), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axes, claim in zip(panels, claims, strict=True):
        own = {cell: verdict for (each, cell), verdict in verdicts.items() if each is claim}
        for place, verdict in enumerate(own.values()):
            color, marker = LOOKS.get(verdict.word, UNDECIDED)
            axes.plot([verdict.low, verdict.high], [place] * 2, color=color)
            axes.plot(verdict.effect, place, marker, color=color)
        axes.axvline(0, color="0.7", linewidth=0.8)
        axes.set_yticks(range(len(own)), list(own))
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_title(f"{claim.number}. {claim.says}", loc="left", fontsize="medium")
        axes.set_xlabel(f"{claim.measured} ({claim.units})", fontsize="small")
        axes.tick_params(labelsize="small")
    words = "circle: supported; cross: contradicted; square: undecided"
    figure.supxlabel(words, fontsize="small")
    return figure


def write_page(rows: Sequence[Row]) -> None:
    """Write docs/claims.md and docs/claims.png."""
    verdicts = verdicts_of(rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    (DOCS / "claims.md").write_text(render(verdicts, minutes))
    draw(verdicts).savefig(DOCS / "claims.png", dpi=150)
