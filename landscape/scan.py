"""Command line: map the loss surface around a quantized network.

`python -m landscape.scan` scans the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

from pathlib import Path

from evolq import command_line
from evolq.command_line import Command, Output
from evolq.settings import Settings
from landscape.scans import SCANS, Scan


def scan(settings: Settings, probe: Scan, output: Output, given: frozenset[str]) -> None:
    """Map the loss surface around a quantized network, and say how far its bumps can be believed.

    Writes scan.nc (all numbers), scan.png and scan.html (interactive).
    """
    command_line.check_start(settings, given)
    command_line.check_output_folder(output.out, output.overwrite)
    probe.check(settings)

    from evolq.progress import Progress
    from landscape.results import RESULTS, measure, write

    progress = Progress(output.quiet)
    problem = command_line.prepare(settings, given, progress)

    def claim() -> Path:
        name = f"scan-{Path(settings.model).name}"
        return command_line.make_output_folder(output.out, output.overwrite, name, RESULTS)

    write(*measure(probe, problem, claim, progress), output.json)


COMMAND = Command("landscape scan", scan, {}, choices={"probe": SCANS})

if __name__ == "__main__":
    command_line.run(COMMAND)
