"""Command line: one self-contained HTML file of stored runs.

`python -m landscape.report RUN [RUN ...]` measures nothing; `--help` lists the options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evolq import command_line
from evolq.command_line import Command


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        runs: Folders of scans, comparisons and searches, or the files with all their numbers; of
            several planes, the first is what the others are compared with.
        out: The HTML file to write.
        overwrite: Replace `out` if it is there.
    """

    runs: tuple[Path, ...]
    out: Path = Path("report.html")
    overwrite: bool = False


def report(report: Report) -> None:
    """Report stored runs in one self-contained HTML file: words, figures, and where they come from.

    Nothing is measured. The commands write the same page of their one run.
    """
    command_line.check_output_file(report.out, report.overwrite)

    from landscape.plots import sections_of, write_html
    from landscape.runs import load_run

    runs = [load_run(path) for path in report.runs]
    write_html(sections_of(runs), report.out)
    print(f"Written to {report.out}")


COMMAND = Command("landscape report", report, {}, positional=("runs",))

if __name__ == "__main__":
    command_line.run(COMMAND)
