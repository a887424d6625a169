"""Command line: one self-contained HTML file of stored runs.

`python -m landscape.report RUN [RUN ...]` measures nothing; `--help` lists the options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evolq import command_line
from evolq.command_line import Command
from evolq.errors import InputError


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
    check_free(report.out, report.overwrite)

    from landscape.plots import sections_of, write_html
    from landscape.runs import load_run

    runs = [load_run(path) for path in report.runs]
    write_html(sections_of(runs), report.out)
    print(f"Written to {report.out}")


def check_free(out: Path, overwrite: bool) -> None:
    """Check that a file can be written.

    Raises:
        InputError: if it is there and may not be replaced, or its folder is not there.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"`out` {out} exists; choose another file or give `overwrite`")
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write to `out` {out}: there is no such folder")


COMMAND = Command("landscape report", report, {}, positional=("runs",))

if __name__ == "__main__":
    command_line.run(COMMAND)
