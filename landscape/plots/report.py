"""The report of stored runs: a section for each, and one for each pair of planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from landscape.analysis import analysis_of
from landscape.plots.comparison_html import interactive_comparison
from landscape.plots.kinds import interactive
from landscape.plots.page import Section
from landscape.plots.pair_html import pair_section
from landscape.plots.search import search_section
from landscape.plots.transfer import transfer_section
from landscape.runs import Run


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """Return the sections of a report; further planes are compared with the first.

    Args:
        runs: in the order in which they are read.
    """
    sections = [section_of(run) for run in runs]
    if len(runs) > 1:
        sections = [
            replace(section, title=f"{run.name}: {section.title}")
            for run, section in zip(runs, sections, strict=True)
        ]
    planes = [run for run in runs if run.kind == "scan" and "x" in run.content.dims]  # type: ignore[union-attr]
    pairs = [
        pair_section((planes[0].name, other.name), planes[0].content, other.content)  # type: ignore[arg-type]
        for other in planes[1:]
    ]
    return [*pairs, *sections]


def section_of(run: Run) -> Section:
    """Return what one run found."""
    content: Any = run.content
    if run.kind == "scan":
        section = interactive(content, analysis_of(content))
    else:
        section = SECTIONS[run.kind](content)
    return replace(section, command=run.command, file=run.file)


SECTIONS: dict[str, Callable[[Any], Section]] = {
    "compare": interactive_comparison,
    "transfer": transfer_section,
    "search": search_section,
}
