"""How static figures look, and how they are saved, with matplotlib.

No global state: a `Figure` is made directly and `pyplot` never imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evolq.atomic import write_whole

DOTS_PER_INCH = 200
# Style files: `matplotlib.style.use([STYLE_FILE, PRINT_STYLE_FILE])` makes own figures look alike.
STYLE_FILE, PRINT_STYLE_FILE = (
    Path(__file__).with_name(f"{name}.mplstyle") for name in ("landscape", "print")
)
STYLE: Any = matplotlib.rc_params_from_file(STYLE_FILE, use_default_template=False)
PRINT_STYLE: Any = STYLE | matplotlib.rc_params_from_file(
    PRINT_STYLE_FILE, use_default_template=False
)
LOSS_COLORS = matplotlib.colormaps["viridis"]
ACCENT = "#0072b2"  # Okabe and Ito's blue
QUIET: dict[str, Any] = {"color": "0.45"}
SHADE: dict[str, Any] = {"color": "0.85", "linewidth": 0}
MARK_STYLE: dict[str, Any] = {"linestyle": "", "color": "white", "markeredgecolor": "black"}
START_STYLE = MARK_STYLE | {"marker": "*", "markersize": 13}
NOT_FINITE_STYLE: dict[str, Any] = {"facecolor": "0.75", "edgecolor": "black", "hatch": "xxxx"}
NOT_COMPUTED_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.6", "hatch": "...."}


def sized(style: dict[str, Any]) -> dict[str, Any]:
    """Return the style of a mark, as large as the present lines and letters."""
    size = style["markersize"] * matplotlib.rcParams["lines.markersize"] / 6  # of screens
    return style | {"markersize": size}


@contextmanager
def drawing(axes: Axes | None, **kind: Any) -> Iterator[tuple[Figure, Any]]:
    """Give the figure and the axes to draw on: those given, in the caller's style, or new ones.

    Args:
        axes: where to draw; None for a figure of its own, in this project's style.
        kind: of new axes, such as projection="3d".
    """
    if axes is not None:
        yield axes.get_figure(root=True), axes  # type: ignore[misc]  # axes belong to a figure
        return
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        yield figure, figure.add_subplot(**kind)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's suffix, the same bytes for the same figure.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with matplotlib.rc_context(STYLE):
        content = BytesIO()
        metadata = undated.get(path.suffix)
        figure.savefig(content, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
    write_whole(path, content.getbuffer())
