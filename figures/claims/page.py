"""docs/claims.md and its figures, from what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from figures.claims.claims import CLAIMS, Claim, Key, Values
from figures.claims.verdicts import Verdict, decide
from landscape.plots.style import STYLE, save_figure

DOCS = Path(__file__).parents[2] / "docs"
# By shape and filling, so that gray printers show it, too.
LOOKS: dict[str, dict[str, Any]] = {
    "supported": {"color": "tab:blue", "marker": "o"},
    "contradicted": {"color": "tab:orange", "marker": "X", "markersize": 8},
    "undecided": {"color": "0.55", "marker": "s", "markerfacecolor": "white"},
}
# So few seeds say nothing about their own scatter.
FEWEST = 3
# Effects are drawn up to so many times what could have been seen; longer ones end at the edge.
WIDEST = 2.5

Row = Mapping[str, Any]
Verdicts = Mapping[tuple[Claim, str], Verdict]


def verdicts_of(rows: Sequence[Row]) -> dict[tuple[Claim, str], Verdict]:
    """Return the verdict on each claim and cell that has enough seeds.

    The primary claims are one family of Holm's, the others a second one.
    """
    found: dict[tuple[Key, int], Values] = {
        ((row["measure"], row["network"], row["bits"]), row["seed"]): row["values"] for row in rows
    }
    seeds = sorted({row["seed"] for row in rows})
    verdicts: dict[tuple[Claim, str], Verdict] = {}
    for primary in (True, False):
        places: dict[str, tuple[Claim, str]] = {}
        effects: dict[str, list[float]] = {}
        for claim in (each for each in CLAIMS if each.primary is primary):
            for cell in claim.cells:
                complete = [s for s in seeds if all((key, s) in found for key in cell.keys)]
                if len(complete) >= FEWEST:
                    name = f"{claim.says} {cell.name}"
                    places[name] = claim, cell.name
                    effects[name] = [
                        cell.effect(*(found[key, seed] for key in cell.keys)) for seed in complete
                    ]
        verdicts |= {places[name]: verdict for name, verdict in decide(effects).items()}
    return verdicts


def of_claim(verdicts: Verdicts, claim: Claim) -> dict[str, Verdict]:
    """Return the verdicts on one claim, by cell."""
    return {cell: verdict for (each, cell), verdict in verdicts.items() if each is claim}


def summary(verdicts: Verdicts, claim: Claim) -> str:
    """Return a claim's verdicts in a few words: how many cells have which."""
    own = of_claim(verdicts, claim).values()
    counts = {word: sum(verdict.word == word for verdict in own) for word in LOOKS}
    return ", ".join(f"{word} in {n} of {len(own)}" for word, n in counts.items() if n)


def render(verdicts: Verdicts, minutes: float) -> str:
    """Return the page as Markdown."""
    lines = [
        "# The paper's claims, tested\n",
        "Written by `python -m figures.claims --page` from `figures/claims/runs.jsonl`, which "
        "`python -m figures.claims` measures. No verdict is written by hand.\n",
        "- **Networks.** The bundled vision transformer and residual network (Fashion-MNIST), from "
        "the start that every command has: scheme `linear`, 8-bit activations, MSE scales, matched "
        "moments. They are two small networks: a verdict holds for them, not for all. "
        "[Real networks](claims_real.md) have a page of their own.",
        "- **Intervals** (95 %, Student's t) are over seeds. A seed draws calibration images, test "
        "images, directions and searches anew, so that they cover all of these. What is compared "
        "is paired: the same seed, images and directions.",
        "- **Verdicts.** Holm's correction over all primary rows: the chance that any of them is "
        "called supported or contradicted wrongly is at most 5 %. Exploratory rows are a family of "
        "their own.",
        "- **Trials.** The measures were settled on other seeds, which count here for nothing. "
        "Claims that are listed in the code and lack runs are not shown.",
        "- **Could be seen.** An effect of this size is decided in 80 % of repetitions, after a "
        "correction for all rows of the family.",
        "- **Roughness** is the root mean square of fourth differences of the test loss along "
        "random rays over all scales (steps of 1 % of a typical scale, 10 % to either side), over "
        "root 70: the height of what no cubic explains. It has no sampling noise in the mean, "
        "since only products of different images count; where there is none it scatters around "
        "0.\n",
        f"Processor time: {minutes:.0f} minutes.\n",
        "![Effect of each primary claim in units of what could have been seen](claims.png)\n",
    ]
    for primary, title in ((True, "Primary claims"), (False, "Exploratory claims")):
        claims = [c for c in CLAIMS if c.primary is primary and of_claim(verdicts, c)]
        if claims:
            lines += [f"## {title}\n", *sections(claims, verdicts, "claims", "seeds")]
    return "\n".join(lines)


def sections(claims: Sequence[Claim], verdicts: Verdicts, folder: str, over: str) -> list[str]:
    """Return a table of claims, and a section for each, as lines of Markdown.

    Args:
        claims: with a verdict or more.
        verdicts: on them.
        folder: of their figures, as links have it.
        over: what effects are of, and how many there are, in one word.
    """
    lines = ["| claim | verdict | decided most clearly: effect (95 %) |", "|---|---|---|"]
    lines += [
        f"| {c.number}. {c.says} | {summary(verdicts, c)} | {clearest(verdicts, c)} |"
        for c in claims
    ]
    lines.append("")
    for claim in claims:
        lines += [
            f"### {claim.number}. {claim.says}\n",
            f"Effect: {claim.measured} ({claim.units}); positive speaks for the claim. "
            f"Measured on {claim.images}.\n",
            f"![Effects of each of the {over}, their mean and its interval]"
            f"({folder}/{slug(claim)}.png)\n",
            f"| where | verdict | effect (95 %) | p, corrected | could be seen | {over} |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {cell} | {v.word} | {v.effect:+.3g} ({v.low:+.3g} to {v.high:+.3g}) "
            f"| {v.p:.2g} | {v.seen:.2g} | {len(v.effects)} |"
            for cell, v in of_claim(verdicts, claim).items()
        ]
        lines.append("")
    return lines


def clearest(verdicts: Verdicts, claim: Claim) -> str:
    """Return where a claim is decided with the least p, and the effect there, '' if nowhere."""
    cell, verdict = min(of_claim(verdicts, claim).items(), key=lambda item: item[1].p)
    if verdict.word == "undecided":
        return ""
    low, high = (f"{value:+.2g}" for value in (verdict.low, verdict.high))
    return f"{cell}: {verdict.effect:+.2g} {claim.units} ({low} to {high})"


def slug(claim: Claim) -> str:
    """Return the name of a claim's figure."""
    words = re.findall(r"[a-z0-9]+", claim.says.lower())
    return "-".join([str(claim.number), *words])


def draw_claim(claim: Claim, verdicts: Verdicts, each: str = "each seed") -> Figure:
    """Draw one claim: each effect, and the mean with its interval, in each cell.

    Args:
        claim: with a verdict or more.
        verdicts: on it.
        each: what an effect is of.
    """
    own = of_claim(verdicts, claim)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.1 + 0.42 * len(own)), layout="constrained")
        axes = figure.add_subplot()
        for place, verdict in enumerate(own.values()):
            look = LOOKS[verdict.word]
            above = [place + 0.22] * len(verdict.effects)
            axes.plot(verdict.effects, above, "|", color="0.3", markersize=8, markeredgewidth=1)
            axes.plot([verdict.low, verdict.high], [place - 0.12] * 2, color=look["color"])
            axes.plot(verdict.effect, place - 0.12, linestyle="", **look)
        axes.axvline(0, color="0.3", linewidth=0.8)
        labels = [f"{cell}\n{verdict.word}" for cell, verdict in own.items()]
        axes.set_yticks(range(len(own)), labels, fontsize="small")
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            f"← against the claim       for the claim →\n"
            f"effect ({claim.units}): {each}, mean with 95 % interval"
        )
    return figure


def draw(verdicts: Verdicts) -> Figure:
    """Draw effects with their intervals in units of what could have been seen."""
    claims = list(dict.fromkeys(claim for claim, _ in verdicts))
    with matplotlib.rc_context(STYLE):
        height = 1.4 + 0.24 * (len(verdicts) + len(claims))
        figure = Figure(figsize=(7.5, height), layout="constrained")
        axes = figure.add_subplot()
        place, ticks, cells = 0, [], []
        for claim in claims:
            title = f"{claim.number}. {claim.says}"
            axes.text(-WIDEST, place, title, va="center", fontweight="bold", fontsize="small")
            for cell, verdict in of_claim(verdicts, claim).items():
                place += 1
                ticks.append(place)
                cells.append(cell)
                unit = verdict.seen or 1.0
                low, effect, high = (
                    max(-WIDEST, min(WIDEST, value / unit))
                    for value in (verdict.low, verdict.effect, verdict.high)
                )
                look = LOOKS[verdict.word]
                axes.plot([low, high], [place] * 2, color=look["color"])
                axes.plot(effect, place, linestyle="", **look)
            place += 1
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_yticks(ticks, cells, fontsize="small")
        axes.set_xlim(-WIDEST - 0.1, WIDEST + 0.1)
        axes.set_ylim(place - 0.3, -0.7)
        axes.grid(visible=False)
        axes.set_xlabel(
            "← against the claim       for the claim →\n"
            "effect with 95 % interval, in units of the effect that could be seen"
        )
        handles = [
            axes.plot([], [], label=word, linestyle="", **look)[0] for word, look in LOOKS.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def write_page(rows: Sequence[Row], folder: Path = DOCS) -> None:
    """Write claims.md, claims.png and a figure of each claim into a folder."""
    verdicts = verdicts_of(rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    (folder / "claims.md").write_text(render(verdicts, minutes))
    primary = {key: verdict for key, verdict in verdicts.items() if key[0].primary}
    save_figure(draw(primary), folder / "claims.png")
    write_figures(verdicts, folder / "claims")


def write_figures(verdicts: Verdicts, folder: Path, each: str = "each seed") -> None:
    """Write a figure of each claim into a folder."""
    folder.mkdir(exist_ok=True)
    for claim in dict.fromkeys(claim for claim, _ in verdicts):
        save_figure(draw_claim(claim, verdicts, each), folder / f"{slug(claim)}.png")
