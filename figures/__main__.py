"""Draw the figures of this project from stored runs; measure those that are not there yet.

    python -m figures [NAME ...]

writes NAME.pdf, NAME.png and NAME.txt, the caption with the numbers in it, beside the scripts. Runs
are in figures/runs; one that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from evolq import command_line
from evolq.errors import InputError
from figures import bit_lines, cliffs, default_scan, egg_carton, jagged, trajectories

# Each has RUNS, by name the command and its options; draw(runs); and caption(runs).
FIGURES = {
    "egg_carton": egg_carton,
    "jagged": jagged,
    "trajectories": trajectories,
    "cliffs": cliffs,
    "bit_lines": bit_lines,
    "default_scan": default_scan,
}
FOLDER = Path(__file__).parent


def main(names: Sequence[str], folder: Path = FOLDER) -> None:
    """Draw figures into a folder, all by default, and print their captions.

    Raises:
        InputError: for a figure that there is not.
    """
    for name in names:
        if name not in FIGURES:
            raise InputError(f"there is no figure {name!r}; choose from {', '.join(FIGURES)}")

    from figures.writing import write_figure
    from landscape.runs import load_run

    for name in names or FIGURES:
        script = FIGURES[name]
        runs = {}
        for part, (module, *options) in script.RUNS.items():
            place = folder / "runs" / f"{name}-{part}"
            if not any(place.glob("*.nc")):
                import_module(module).COMMAND([*options, "--out", str(place)])
            runs[part] = load_run(place).content
        caption = script.caption(runs)
        write_figure(folder, name, script.draw(runs), caption)
        print(f"{name}: {caption}")


if __name__ == "__main__":
    command_line.run(main)
