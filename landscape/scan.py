"""Command line: map the loss surface around a quantized network.

`python -m landscape.scan` scans the bundled vision transformer; `--help` lists the options.
"""

from __future__ import annotations

from pathlib import Path

from evolq import command_line
from evolq.command_line import Command, Output
from evolq.settings import Settings, configuration
from landscape.scans import SCANS, Scan, scan_options
from landscape.work.resources import Resources

# What only an unfinished scan has: the ledger of its points.
UNFINISHED = "scan.sqlite"


def scan(
    settings: Settings,
    probe: Scan,
    resources: Resources,
    output: Output,
    given: frozenset[str],
) -> None:
    """Map the loss surface around a quantized network, and say how far its bumps can be believed.

    Writes scan.nc (all numbers), scan.png and scan.html (interactive).
    """
    settings = command_line.with_start(settings, given)
    command_line.check_output_folder(output, UNFINISHED)
    probe.check(settings)

    from evolq.progress import Progress

    progress = Progress(output.quiet)
    with resources.executor(settings, progress.say) as executor:
        from landscape.results import RESULTS, measure, write
        from landscape.run_folder import RunFolder

        name = f"scan-{Path(settings.model).name}"
        options = configuration(settings) | scan_options(probe)
        with RunFolder(output, name, RESULTS, UNFINISHED, options, resources.own_part) as folder:
            problem = command_line.prepare(settings, given, progress, probe.check_network)
            dataset = measure(probe, problem, folder.open_ledger, progress, executor)
            if resources.part is None:
                write(dataset, folder.path, output.json)
            folder.finish(dataset)
            if resources.part is not None:
                words = f"Part {resources.part} is in {folder.path}"
                merge = "python -m landscape.merge OUT PART... makes one scan of all"
                progress.say(f"{words}; {merge}")


COMMAND = Command("landscape scan", scan, {"threads": 1}, choices={"probe": SCANS})

if __name__ == "__main__":
    command_line.run(COMMAND)
