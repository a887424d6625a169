"""Pages in a real browser: what a reader sees and does, on a wide screen and on a phone."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
from test_comparison_plots import comparison

from landscape.analysis import analyze
from landscape.findings import describe
from landscape.plots import (
    comparison_info,
    interactive,
    interactive_comparison,
    outcome_rows,
    write_html,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1400, 390)
# No screen and no graphics card; and a closed network is not asked for updates.
SWITCHES = [
    *("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser) -> Callable:
    """Return what opens a file and waits for its figures; errors and requests fail the test."""
    troubles: list[str] = []

    def open_page(path: Path, width: int = WIDTHS[0]):
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else troubles.append(r.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        return page

    yield open_page
    assert troubles == []


PAGES = {
    "plane": synthetic_scans.plane,
    "rays": synthetic_scans.rays,
    "layers": synthetic_scans.layers,
    "comparison": comparison,
}


def written(folder: Path, kind: str) -> Path:
    dataset, path = PAGES[kind](), folder / "page.html"
    if kind == "comparison":
        rows = outcome_rows(comparison_info(dataset))
        write_html(interactive_comparison(dataset), path, rows)
    else:
        found = analyze(dataset)
        rows = describe(dataset, found)
        write_html(interactive(dataset, found), path, rows, dataset.attrs["provenance"])
    return path


OVERLAPS = """
() => {
  const boxes = [...document.querySelectorAll("h1, h2, p, tr, fieldset label, .player, .figure")]
    .filter(e => e.offsetParent).map(e => [e.tagName + e.className, e.getBoundingClientRect()]);
  const found = [];
  for (const [i, [a, p]] of boxes.entries())
    for (const [b, q] of boxes.slice(i + 1))
      if (p.left < q.right - 1 && q.left < p.right - 1 &&
          p.top < q.bottom - 1 && q.top < p.bottom - 1)
        found.push([a, b]);
  return found;
}
"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", PAGES)
def test_nothing_overlaps_or_sticks_out(opened, tmp_path, kind, width) -> None:
    page = opened(written(tmp_path, kind), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    for figure in page.query_selector_all(".figure"):
        box, drawn = figure.bounding_box(), figure.query_selector(".main-svg").bounding_box()
        assert drawn["width"] <= box["width"] + 1


@pytest.mark.parametrize("kind", PAGES)
def test_no_serious_fault_for_readers_with_other_means(opened, tmp_path, kind) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(opened(written(tmp_path, kind))).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


MAPS = """
() => [...document.querySelectorAll(".figure .heatmaplayer image")]
  .map(image => image.getAttribute("href") || image.getAttribute("xlink:href") || "")
  .filter(picture => picture.length > 50).length
"""
PATHS = """
() => document.querySelector(".figure")._fullData
  .filter(trace => trace.type === "scatter").map(trace => [...trace.x])
"""
VIEWS = """
() => [...document.querySelectorAll(".figure")].map(figure => figure.data
  .filter(trace => trace.visible === true).map(trace => trace.meta ?? null))
"""


def test_play_moves_the_paths_and_keeps_the_map(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "comparison"))
    assert page.evaluate(MAPS) == 1
    whole = page.evaluate(PATHS)
    page.fill("#step", "0")
    page.wait_for_function("document.getElementById('label').textContent === '1.0'")
    page.wait_for_timeout(300)
    assert page.evaluate(MAPS) == 1
    assert page.evaluate(PATHS) != whole
    page.click("#play")
    page.wait_for_function("document.getElementById('step').value > 3", timeout=60_000)
    assert page.inner_text("#play") == "Pause"
    assert page.evaluate(MAPS) == 1
    page.wait_for_function(
        "document.getElementById('play').textContent === 'Play'", timeout=120_000
    )
    assert page.evaluate(MAPS) == 1
    assert page.evaluate(PATHS) == whole, "the end is what stood still"


def test_keys_choose_the_view(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    flat, solid = page.evaluate(VIEWS)
    assert set(flat) == {1}
    assert set(solid) == {1, None}, "the pointer belongs to all views"
    page.focus("input[name=view]:checked")
    page.keyboard.press("ArrowLeft")
    flat, solid = page.evaluate(VIEWS)
    assert set(flat) == {0}
    title = page.evaluate("document.querySelectorAll('.figure')[1].layout.scene.zaxis.title.text")
    assert title.startswith("infoNCE")


def test_the_surface_marks_where_the_map_is_pointed_at(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    page.query_selector(".figure .nsewdrag").hover()
    page.wait_for_function(
        "document.querySelectorAll('.figure')[1].data.at(-1).z[0] !== null", timeout=20_000
    )
    x, y, z = page.evaluate(
        "['x', 'y', 'z'].map(a => document.querySelectorAll('.figure')[1].data.at(-1)[a][0])"
    )
    scan = synthetic_scans.plane()
    assert z == pytest.approx(float(scan.test_loss.sel(x=x, y=y, method="nearest")))


def test_a_large_scan_fits_into_five_megabytes(tmp_path) -> None:
    scan = synthetic_scans.plane(columns=101, rows=101)
    path = tmp_path / "large.html"
    write_html(interactive(scan), path)
    assert path.stat().st_size < 5e6


def test_the_mode_bar_offers_no_third_party(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    titles = page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title || '')"
    )
    assert titles
    assert not [t for t in titles if re.search("share|cloud|edit|chart studio", t, re.I)]
    assert np.all(
        [
            not a.startswith("http")
            for a in page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
        ]
    )
