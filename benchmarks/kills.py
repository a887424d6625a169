"""Kill a command again and again, give the same command each time, and compare with one run.

    python benchmarks/kills.py scan --kills 30 --workers 2

Kills come at random moments, every third one within the first write of a process. Fails if a
final file differs from that of a run that nobody disturbed, in a single byte, or if anything was
computed again that had been finished.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import typer

from evolq.__main__ import STATE
from landscape import compare, scan

COMMON = ("--threads", "1", "--calibration-images", "20", "--test-images", "50", "--quiet")
MODULES = {"scan": "landscape.scan", "compare": "landscape.compare", "search": "evolq"}
OPTIONS = {
    "scan": ("--points", "15", "--radius", "0.2"),
    "compare": (
        *("--optimizers", "evol-q", "adam", "cma", "--budget", "12", "--seeds", "2"),
        *("--learning-rates", "0.01", "--points", "5"),
    ),
    "search": ("--selection-images", "20", "--passes", "4"),
}
# What only an unfinished run has.
LEDGER = {"scan": scan.UNFINISHED, "compare": compare.UNFINISHED, "search": STATE}
# What stands in the folder while a piece is being written, and only then.
WRITING = {
    "scan": f"{scan.UNFINISHED}-journal",
    "compare": f"{compare.UNFINISHED}-journal",
    "search": f".{STATE}.partial",
}
# The last file that a run writes.
LAST = {"scan": "scan.html", "compare": "compare.html", "search": "report.json"}
# Runs the command; a line in KILLS_LOG says what has just become durable.
PROGRAM = """
import os, runpy, sys
from landscape.ledger import Ledger
from evolq.optimizers import evolve

def logged(keep, name):
    def told(*arguments):
        keep(*arguments)
        line = f"{name(*arguments)}\\n".encode()
        log = os.open(os.environ["KILLS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, line)
        os.close(log)
    return told

Ledger.keep = logged(Ledger.keep, lambda ledger, key, arrays: key)
evolve._save = logged(evolve._save, lambda path, state, *_: state.visited)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def start(command: str, out: Path, log: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start a command that writes to `out`, and to `log` what it has finished."""
    own = () if command == "search" else ("--workers", str(workers))
    arguments = (MODULES[command], *COMMON, *OPTIONS[command], *own, "--out", str(out))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "KILLS_LOG": str(log)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes], seconds: float, writing: Path | None) -> bool:
    """Kill a process after some time, or at the first write after it; return whether it lived."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        while writing is not None and process.poll() is None and not writing.exists():
            pass
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def results(folder: Path) -> dict[str, object]:
    """Return the content of each file of a run; without the seconds that it took."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "report.json" in found:
        report = json.loads((folder / "report.json").read_text())
        found["report.json"] = {name: v for name, v in report.items() if name != "seconds"}
    return found


def main(command: str, kills: int = 30, seed: int = 0, workers: int = 1) -> None:
    """Kill `command` (scan, compare, search) so many times; a search has no workers."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        began = time.monotonic()
        whole = start(command, root / "whole", root / "whole.log", workers)
        _, err = whole.communicate()
        if whole.returncode:
            raise SystemExit(err.decode())
        seconds = time.monotonic() - began
        done = within = finished = 0
        while done < kills:  # of several runs, if one is too short for all
            finished += 1
            out, log = root / f"killed-{finished}", root / f"killed-{finished}.log"
            process = start(command, out, log, workers)
            while done < kills:
                writing = out / WRITING[command] if done % 3 == 0 else None
                # a process that goes on may be near its end: the first write there is, then
                moment = moments.uniform(0, seconds) if writing is None else 0.0
                if not kill(process, moment, writing):
                    break
                done += 1
                within += writing is not None and writing.exists()
                if (out / LAST[command]).exists() and not (out / LEDGER[command]).exists():
                    break  # all was done, only the process was not over
                process = start(command, out, log, workers)
            _, err = process.communicate()
            if process.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(err.decode())
            twice = [k for k, n in Counter(log.read_text().splitlines()).items() if n > 1]
            if twice:
                raise SystemExit(f"computed again: {', '.join(twice)}")
            one, other = results(root / "whole"), results(out)
            if one != other:
                names = [n for n in one.keys() | other.keys() if one.get(n) != other.get(n)]
                raise SystemExit(f"other results: {', '.join(names)}")
        print(
            f"{command}: {done} kills, {within} of them within a write, in {finished} runs of "
            f"{seconds:.0f} s: all files equal, nothing computed again"
        )


if __name__ == "__main__":
    typer.run(main)
