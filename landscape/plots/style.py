"""How static figures look, and how they are saved, with matplotlib.

No global state: a `Figure` is made directly and `pyplot` never imported.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from evolq.atomic import write_whole

DOTS_PER_INCH = 200
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "figure.titlesize": 13,
    "axes.formatter.limits": (-3, 5),  # small steps as multiples of a power of ten
    "axes.formatter.use_mathtext": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # text stays text in a paper
    "svg.hashsalt": "landscape",
}
# Dark is low on every map, in color and in gray alike, and to a color-blind eye.
LOSS_COLORS = matplotlib.colormaps["viridis"]
MARK_STYLE: dict[str, Any] = {"linestyle": "", "color": "white", "markeredgecolor": "black"}
START_STYLE = MARK_STYLE | {"marker": "*", "markersize": 13}
NOT_FINITE_STYLE: dict[str, Any] = {"facecolor": "0.75", "edgecolor": "black", "hatch": "xxxx"}
NOT_COMPUTED_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "...."}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix, the same bytes for the same figure.

    Raises:
        InputError: if the file cannot be written.
    """
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context(STYLE):
        content = BytesIO()
        metadata = undated.get(path.suffix)
        figure.savefig(content, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
    write_whole(path, content.getbuffer())
