"""Command line: make one scan of its parts.

python -m landscape.scan --part 1/2 --out a ...
python -m landscape.scan --part 2/2 --out b ...
python -m landscape.merge whole a b
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evolq import command_line
from evolq.command_line import Command, Output
from landscape.scan import COMMAND as SCAN
from landscape.scan import UNFINISHED


@dataclass(frozen=True)
class Merging:
    """What is merged.

    Attributes:
        out: Folder of the scan to be.
        parts: Folders of all parts.
        quiet: Show no progress.
        json: Print the table's content as JSON.
    """

    out: Path
    parts: tuple[Path, ...]
    quiet: bool = False
    json: bool = False


def merge(merging: Merging) -> None:
    """Make one scan of parts that `landscape.scan --part` measured, wherever they ran.

    The scan's files are those of one process, bit for bit. Missing points are named, with the parts
    that measure them.
    """
    from landscape.ledger import Ledger
    from landscape.results import RESULTS
    from landscape.work import parts

    found = parts.open_parts(merging.parts, UNFINISHED)
    output = Output(out=merging.out)
    command_line.check_output_folder(output, UNFINISHED)
    with command_line.output_folder(output, "scan", RESULTS, UNFINISHED) as folder:
        options = command_line.read_configuration(merging.parts[0])
        command_line.write_configuration(folder, options)
        whole = Ledger(folder / UNFINISHED, found[0].identity)
        parts.merge(found, whole)
        whole.close()
    flags = [f"--{name}" for name in ("quiet", "json") if getattr(merging, name)]
    SCAN(["--resume", "--out", str(merging.out), *flags])


COMMAND = Command("landscape merge", merge, {}, positional=("out", "parts"))

if __name__ == "__main__":
    command_line.run(COMMAND)
