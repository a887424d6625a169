"""Draw the figures of this project from what is stored; measure the runs that are not there yet.

    python -m figures [NAME ...]
    python -m figures --full [NAME ...]

writes NAME.pdf, NAME.png and NAME.txt, the caption with the numbers in it, beside the scripts. Runs
are in figures/runs; one that was stopped goes on. Rows of benchmarks are measured by these.

With `--full` runs have half the step, all test images and more seeds (hours here, for real
hardware); they and their figures are in figures/full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from evolq import command_line
from evolq.errors import InputError
from figures import (
    bit_lines,
    choices,
    cliffs,
    composed,
    criteria,
    default_scan,
    deploy,
    divergence,
    egg_carton,
    jagged,
    layer_kinds,
    minima_counts,
    real_networks,
    speed,
    starts,
    trajectories,
)

# Each has draw(content), caption(content), and where the content comes from: RUNS, by name the
# command and its options; or STORED, a file of JSON, and COMMAND, which measures it.
FIGURES: dict[str, Any] = {
    "egg_carton": egg_carton,
    "jagged": jagged,
    "starts": starts,
    "bit_lines": bit_lines,
    "cliffs": cliffs,
    "trajectories": trajectories,
    "choices": choices,
    "layer_kinds": layer_kinds,
    "criteria": criteria,
    "real_networks": real_networks,
    "default_scan": default_scan,
    "composed": composed,
    "minima_counts": minima_counts,
    "divergence": divergence,
    "speed": speed,
    "deploy": deploy,
}
FOLDER = Path(__file__).parent
FULL = "--full"
# From an option's value to that at full size. There are 10,000 test images of bundled networks.
FULL_SIZE: dict[str, Callable[[str], str]] = {
    "--points": lambda count: str(2 * int(count) - 1),
    "--test-images": lambda _: "10000",
    "--seeds": lambda _: "10",
}
# Figures that show the same run share it, under the name of the first.
PLACES = {
    command: f"{name}-{part}"
    for name, script in reversed(FIGURES.items())
    for part, command in getattr(script, "RUNS", {}).items()
}


def main(names: Sequence[str], folder: Path = FOLDER) -> None:
    """Draw figures into a folder, all by default, and print their captions.

    With `--full` among the names, those of runs, measured at full size, into its folder `full`.

    Raises:
        InputError: for a figure that there is not, or one whose file has not been measured.
    """
    full = FULL in names
    names = [name for name in names if name != FULL]
    for name in names:
        if name not in FIGURES:
            raise InputError(f"there is no figure {name!r}; choose from {', '.join(FIGURES)}")

    from figures.writing import write_figure

    if full:
        folder = folder / "full"
        folder.mkdir(exist_ok=True)
        names = [name for name in names or FIGURES if hasattr(FIGURES[name], "RUNS")]

    for name in names or FIGURES:
        script = FIGURES[name]
        stored = getattr(script, "STORED", None)
        if stored is not None and not stored.exists():
            words = f"{name}: there is no {stored}; measure it with `{script.COMMAND}`"
            if names:
                raise InputError(words)
            print(words)
            continue
        content = _runs(script, folder, full) if stored is None else read(stored)
        caption = script.caption(content)
        write_figure(folder, name, script.draw(content), caption)
        print(f"{name}: {caption}")


def enlarged(options: Sequence[str]) -> list[str]:
    """Return a command's options at full size: half the step, all test images, more seeds."""
    given = [
        FULL_SIZE[before](value) if before in FULL_SIZE else value
        for before, value in pairwise(["", *options])
    ]
    name = "--test-images"
    return given if name in given else [*given, name, FULL_SIZE[name]("")]


def _runs(script: Any, folder: Path, full: bool) -> dict[str, Any]:
    """Return the runs of a figure, measured if they are not stored."""
    from landscape.runs import load_run

    found = {}
    for part, command in script.RUNS.items():
        place = folder / "runs" / PLACES[command]
        if not any(place.glob("*.nc")):
            module, *options = command
            options = enlarged(options) if full else options
            import_module(module).COMMAND([*options, "--out", str(place)])
        found[part] = load_run(place).content
    return found


def read(path: Path) -> Any:
    """Return the rows of a file of JSON lines, or the content of one of JSON."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


if __name__ == "__main__":
    command_line.run(main)
