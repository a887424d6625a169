"""Figures for print, measured with the renderer: nothing is cut, and no words lie on others."""

from itertools import combinations
from pathlib import Path
from typing import get_args

import matplotlib.style
import pytest
import synthetic_scans
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic_comparisons import comparison
from test_cliff_scan import scanned

from evolq.errors import InputError
from landscape import plot, store
from landscape.analysis import analyze, with_analysis
from landscape.plots import PRINT_STYLE_FILE, STYLE_FILE, draw_map, draw_surface
from landscape.plots.panels import PANELS, draw_panels
from landscape.runs import Run


def run_of(kind: str) -> Run:
    if kind == "compare":
        return Run("a", "compare", "landscape.compare", "compare.nc", comparison())
    make = {
        "x": lambda: synthetic_scans.with_repeats(
            synthetic_scans.plane(columns=9, rows=9, noise=0.5)
        ),
        "ray": lambda: synthetic_scans.with_repeats(synthetic_scans.rays()),
        "walk": lambda: synthetic_scans.with_repeats(synthetic_scans.walks()),
        "bits": synthetic_scans.layers,
        "cliff": lambda: scanned()[-1],
    }[kind]
    scan = make()
    whole = with_analysis(scan, analyze(scan))
    return Run("a", "scan", "landscape.scan", "scan.nc", whole)


def boxes(figure: Figure) -> tuple[dict[str, list], object]:
    """Return the boxes of tick labels along each axis, and of all words, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks, words = {}, []
    for number, axes in enumerate(figure.axes):
        for name in ("x", "y"):
            axis = getattr(axes, f"{name}axis")
            if not axis.get_visible():
                continue
            low, high = sorted(axis.get_view_interval())
            shown = [
                label
                for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                if label.get_text() and low <= place <= high
            ]
            ticks[f"{number} {name}"] = [label.get_window_extent(renderer) for label in shown]
        words += [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
        if axes.get_legend():
            words += axes.get_legend().get_texts()
    found = [text.get_window_extent(renderer) for text in words if text.get_text()]
    return ticks, found


@pytest.mark.slow
@pytest.mark.parametrize("width", [3.25, 6.75])
@pytest.mark.parametrize("kind", PANELS)
def test_nothing_is_cut_and_ticks_do_not_collide(kind, width) -> None:
    run = run_of(kind)
    for name in PANELS[kind]:
        figure = draw_panels(run, [name], width)
        ticks, words = boxes(figure)
        right, top = figure.bbox.width, figure.bbox.height
        for box in [*words, *(box for row in ticks.values() for box in row)]:
            assert box.x0 >= -1, (name, box)
            assert box.y0 >= -1, (name, box)
            assert box.x1 <= right + 1, (name, box)
            assert box.y1 <= top + 1, (name, box)
        for axis, row in ticks.items():
            for one, other in combinations(row, 2):
                assert not one.overlaps(other), (name, axis)


def test_the_names_of_panels_are_those_that_can_be_drawn() -> None:
    assert {*get_args(plot.PanelName)} == {name for panels in PANELS.values() for name in panels}


def test_a_run_is_redrawn_in_each_format(command_line_of, tmp_path) -> None:
    store.save(run_of("ray").content, tmp_path / "scan.nc")
    run = command_line_of(plot.COMMAND)
    arguments = (".", "--panel", "curves", "--format", "pdf", "png", "--width", "8cm")
    code, out, err = run(*arguments, "--out", "mine")
    assert (code, out, err) == (0, "Written to mine.pdf, mine.png\n", "")
    assert Path("mine.pdf").read_bytes().startswith(b"%PDF")
    first = Path("mine.png").read_bytes()
    code, _, err = run(*arguments, "--out", "mine")
    assert (code, err.partition(";")[0]) == (2, "error: --out mine.pdf exists")
    assert run(*arguments, "--out", "mine", "--overwrite")[0] == 0
    assert Path("mine.png").read_bytes() == first
    assert "has no --panel 'map'; choose from curves" in run(".", "--panel", "map")[2]
    for width in ("3.25", "wide", "1in", "1.2.3in"):
        assert f"--width is '{width}'; give a number and its unit" in run(".", "--width", width)[2]


def test_a_run_without_panels_says_so() -> None:
    search = Run("a", "search", "evolq", "report.json", {})
    with pytest.raises(InputError, match="a search has no panels"):
        draw_panels(search, [], 3.25)


def test_a_panel_is_drawn_on_the_axes_that_are_given() -> None:
    scan = synthetic_scans.plane()
    found = analyze(scan)
    with matplotlib.style.context([STYLE_FILE, PRINT_STYLE_FILE]):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert draw_map(scan, found, axes=left) is figure
        assert draw_map(scan, found, loss="loss", axes=right) is figure
    assert left.get_title() == "Test loss"
    assert right.get_title() == "Calibration loss"
    assert left.title.get_fontsize() == 8, "in the caller's style"
    assert draw_map(scan, found).axes[0].title.get_fontsize() == 11


def test_marks_do_not_show_through_walls() -> None:
    def stars(dataset) -> int:
        (axes,) = draw_surface(dataset).axes
        return sum(line.get_marker() == "*" for line in axes.lines)

    scan = synthetic_scans.plane(columns=21, rows=21, noise=0.0)
    assert stars(scan) == 1, "a bowl hides nothing that lies in it"
    inside = (abs(scan.x) < 0.015) & (abs(scan.y) < 0.015)

    def with_heights(height):
        changed = scan.copy(deep=True)
        losses = height + 0 * changed.test_loss_per_image + 0.01
        changed["test_loss_per_image"] = losses.transpose("y", "x", "image")
        changed["test_loss"] = changed.test_loss_per_image.mean("image")
        changed["start_test_loss_per_image"] = 0 * changed.start_test_loss_per_image + 0.01
        return changed

    assert stars(with_heights(1.0 * ~inside)) == 0, "a pit, hidden from all sides"
    assert stars(with_heights(1.0 * ((scan.x < -0.015) + 0 * scan.y))) == 1, "a wall behind it"
    turned = with_heights(1.0 * ((abs(scan.x) > 0.015) + 0 * scan.y) * (scan.y < 0.004))
    assert stars(turned) == 1, "a valley that is open to one side"
