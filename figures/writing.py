"""A figure and its caption, as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from evolq.atomic import write_whole
from landscape.plots import save_figure


def write_figure(folder: Path, name: str, figure: Figure, caption: str) -> None:
    """Write NAME.pdf, NAME.png and NAME.txt, the caption, into a folder."""
    for suffix in (".pdf", ".png"):
        save_figure(figure, folder / f"{name}{suffix}")
    write_whole(folder / f"{name}.txt", f"{caption}\n".encode())
