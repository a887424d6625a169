"""Command line: figures for print, of a stored run.

`python -m landscape.plot RUN --panel surface map --width 3.25in` measures nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evolq import command_line
from evolq.command_line import Command
from evolq.errors import InputError

FormatName = Literal["pdf", "svg", "png"]
PanelName = Literal[
    "surface",
    "map",
    "confidence",
    "calibration-surface",
    "calibration-map",
    "minima",
    "counts",
    "noise",
    "nulls",
    "curves",
    "calibration-curves",
    "correlogram",
    "line",
    "jumps",
    "rates",
    "exact",
    "bits",
    "losses",
    "paths",
    "calibration-losses",
    "calibration-paths",
    "distances",
    "barrier",
]
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}
NARROWEST, WIDEST = 2.0, 40.0


@dataclass(frozen=True)
class Plot:
    """What is drawn.

    Attributes:
        run: Folder of a scan or of a comparison.
        panel: What to draw, in reading order; by default the first ones of the run's kind.
        format: Formats to write.
        width: Of the whole figure, with its unit: 3.25in is one column of two, 6.75in both, and
            cm and mm are known, too.
        out: The files to write, without their suffix.
        overwrite: Replace files that are there.
    """

    run: Path
    panel: tuple[PanelName, ...] = ()
    format: tuple[FormatName, ...] = ("pdf", "png")
    width: str = "3.25in"
    out: Path = Path("figure")
    overwrite: bool = False

    @property
    def inches(self) -> float:
        """The width in inches.

        Raises:
            InputError: for no number, another unit, or a width no figure has.
        """
        found = re.fullmatch(r"\s*([0-9.]+)\s*(in|cm|mm)\s*", self.width)
        try:
            width = float(found[1]) * INCHES[found[2]] if found else 0.0
        except ValueError:
            width = 0.0
        if not NARROWEST <= width <= WIDEST:
            raise InputError(
                f"`width` is {self.width!r}; give a number and its unit, as 3.25in or 8cm, from "
                f"{NARROWEST:g}in to {WIDEST:g}in"
            )
        return width


def plot(plot: Plot) -> None:
    """Draw a stored run for print, at the width of a column. Nothing is measured."""
    width = plot.inches
    files = [plot.out.with_name(f"{plot.out.name}.{suffix}") for suffix in plot.format]
    for file in files:
        command_line.check_output_file(file, plot.overwrite)

    from landscape.plots.panels import draw_panels
    from landscape.plots.style import save_figure
    from landscape.runs import load_run

    figure = draw_panels(load_run(plot.run), plot.panel, width)
    for file in files:
        save_figure(figure, file)
    print(f"Written to {', '.join(map(str, files))}")


COMMAND = Command("landscape plot", plot, {}, positional=("run",))

if __name__ == "__main__":
    command_line.run(COMMAND)
