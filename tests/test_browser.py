"""Pages in a real browser: what a reader sees and does, on a wide screen and on a phone."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
from test_comparison_plots import comparison

from landscape.plots import interactive, sections_of, write_html
from landscape.runs import Run

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


def other_plane():
    """Return the plane of another network: higher on the left, on every image."""
    scan = synthetic_scans.plane()
    scan["test_loss_per_image"] = scan.test_loss_per_image + 0.3 * (scan.x < 0)
    scan["test_loss"] = scan.test_loss_per_image.mean("image")
    scan.attrs["provenance"] = scan.attrs["provenance"].replace(
        '"weight_bits": 4', '"weight_bits": 3'
    )
    return scan


def rugged():
    """Return a plane with minima that noise makes."""
    return synthetic_scans.plane(columns=9, rows=9, noise=0.5)


def scan_run(name: str, dataset) -> Run:
    return Run(name, "scan", "landscape.scan", "scan.nc", dataset)


PAGES = {
    "plane": lambda: [scan_run("a", rugged())],
    "rays": lambda: [scan_run("a", synthetic_scans.rays())],
    "layers": lambda: [scan_run("a", synthetic_scans.layers())],
    "comparison": lambda: [Run("a", "compare", "landscape.compare", "compare.nc", comparison())],
    "pair": lambda: [scan_run("a", synthetic_scans.plane()), scan_run("b", other_plane())],
}


def written(folder: Path, kind: str) -> Path:
    write_html(sections_of(PAGES[kind]()), folder / "page.html")
    return folder / "page.html"


OVERLAPS = """
() => {
  const seen = "h1, h2, h3, p, tr, fieldset label, .controls, .figure, .svg";
  const boxes = [...document.querySelectorAll(seen)]
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
PICTURES = """
() => [...document.querySelectorAll(".figure .heatmaplayer image")]
  .map(image => image.getAttribute("href") || image.getAttribute("xlink:href") || "")
"""
PATHS = """
() => document.querySelector(".figure")._fullData
  .filter(trace => trace.type === "scatter").map(trace => [...trace.x])
"""
VIEWS = """
() => [...document.querySelectorAll(".figure")].slice(0, 2).map(figure => figure.data
  .filter(trace => trace.visible === true).map(trace => trace.meta?.view ?? null))
"""


def test_play_moves_the_paths_and_keeps_the_map(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "comparison"))
    assert page.evaluate(MAPS) == 1
    whole = page.evaluate(PATHS)
    page.fill(".step", "0")
    page.wait_for_function("document.querySelector('.label').textContent === '1.0'")
    page.wait_for_timeout(300)
    assert page.evaluate(MAPS) == 1
    assert page.evaluate(PATHS) != whole
    page.click(".play")
    page.wait_for_function("document.querySelector('.step').value > 3", timeout=60_000)
    assert page.inner_text(".play") == "Pause"
    assert page.evaluate(MAPS) == 1
    page.wait_for_function(
        "document.querySelector('.play').textContent === 'Play'", timeout=120_000
    )
    assert page.evaluate(MAPS) == 1
    assert page.evaluate(PATHS) == whole, "the end is what stood still"


def test_keys_choose_the_view(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    flat, solid = page.evaluate(VIEWS)
    assert set(flat) == {1}
    assert set(solid) == {1, None}, "the pointer belongs to all views"
    page.focus(".views input:checked")
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
    scan = rugged()
    assert z == pytest.approx(float(scan.test_loss.sel(x=x, y=y, method="nearest")))


@pytest.mark.parametrize(("planes", "megabytes"), [(1, 5), (2, 6)])
def test_a_large_scan_fits_into_five_megabytes(tmp_path, planes, megabytes) -> None:
    scans = [synthetic_scans.plane(columns=101, rows=101) for _ in range(planes)]
    path = tmp_path / "large.html"
    write_html([interactive(scan) for scan in scans], path)
    assert path.stat().st_size < megabytes * 1e6


COUNT = "document.querySelector('.count').textContent"
MARKS = """
() => [...document.querySelectorAll(".figure")].slice(0, 2).map(figure => figure.data
  .filter(trace => trace.meta?.mark && trace.visible)
  .reduce((sum, trace) => sum + trace.x.length / (trace.type === "scatter" ? 1 : 3), 0))
"""


def test_the_slider_changes_count_and_marks(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    found = page.evaluate(COUNT)
    counted, total = map(int, re.findall(r"\d+", found))
    assert counted < total, "noise makes minima that do not count"
    assert page.evaluate(MARKS) == [counted, counted]
    page.fill(".threshold", "0")
    page.wait_for_function(f"{COUNT} === '{total} of {total} local minima'")
    page.wait_for_timeout(500)
    assert page.evaluate(MARKS) == [total, total]
    line = "document.querySelectorAll('.figure')[2].layout.shapes[0].y0"
    assert page.evaluate(line) == 0
    page.click(".reset")
    page.wait_for_function(f"{COUNT} === '{found}'")
    page.wait_for_timeout(500)
    assert page.evaluate(MARKS) == [counted, counted]


SCALE = """
() => {
  const [flat, solid] = document.querySelectorAll(".figure");
  const kinds = ["heatmap", "surface"];
  const shown = figure => figure.data.find(t => t.visible && kinds.includes(t.type));
  return [shown(flat).zmin, shown(flat).zmax, shown(solid).cmin, shown(solid).cmax];
}
"""


def test_colors_follow_the_control_and_both_figures_agree(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    losses = PAGES["plane"]()[0].content.test_loss.values
    picture = page.evaluate(PICTURES)[0]
    page.select_option(".scale", "log")
    page.wait_for_timeout(1500)
    logs = np.log10([losses.min(), losses.max()])
    np.testing.assert_allclose(page.evaluate(SCALE), [*logs, *logs])
    words = page.evaluate("document.querySelector('.figure').data[3].colorbar.ticktext")
    assert page.evaluate(PICTURES)[0] != picture
    assert float(words[-1]) == pytest.approx(losses.max(), rel=1e-2)
    page.select_option(".scale", "clipped")
    page.wait_for_timeout(1500)
    low, high, *_ = page.evaluate(SCALE)
    assert low == pytest.approx(losses.min())
    assert np.quantile(losses, 0.85) <= high < losses.max()
    page.select_option(".scale", "linear")
    page.wait_for_timeout(1500)
    assert page.evaluate(PICTURES)[0] == picture


@pytest.mark.parametrize("kind", ["plane", "pair", "comparison"])
def test_contours_come_and_go(opened, tmp_path, kind) -> None:
    page = opened(written(tmp_path, kind))
    count = "document.querySelectorAll('.figure .contourlayer path').length"
    assert page.evaluate(count) == 0
    page.check(".contours")
    page.wait_for_function(f"{count} > 0", timeout=20_000)
    page.uncheck(".contours")
    page.wait_for_function(f"{count} === 0", timeout=20_000)


def test_two_planes_share_a_scale_and_show_their_difference(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "pair"))
    first, second = (run.content.test_loss for run in PAGES["pair"]())
    limits = [min(first.min(), second.min()), max(first.max(), second.max())]
    for figure in (0, 1):
        shown = f"document.querySelectorAll('.figure')[{figure}].data[1]"
        found = [page.evaluate(f"{shown}.{end}") for end in ("zmin", "zmax")]
        np.testing.assert_allclose(found, limits)
    z = page.evaluate("document.querySelectorAll('.figure')[2].data[0].z.map(r => Array.from(r))")
    np.testing.assert_allclose(z, (second - first).values, atol=1e-12)
    assert "weight_bits" in page.inner_text("table")
    assert "every difference is paired" in page.inner_text("section p")


def test_figures_are_dark_where_the_reader_wants_it(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "comparison"))
    paper = "document.querySelector('.figure')._fullLayout.paper_bgcolor"
    line = "document.querySelectorAll('.figure')[1].data[0].line.color"
    light = page.evaluate(paper), page.evaluate(line)
    assert light[0] == "#ffffff"
    page.fill(".step", "5")
    page.wait_for_timeout(500)
    label = page.inner_text(".label")
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("body[data-theme=dark]", timeout=60_000)
    assert page.evaluate(paper) == "#16181c"
    assert page.evaluate(line) != light[1]
    page.wait_for_timeout(500)
    assert page.inner_text(".label") == label, "the controls stand where they stood"
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("body[data-theme=light]", timeout=60_000)
    assert (page.evaluate(paper), page.evaluate(line)) == light


def test_points_and_pictures_are_downloaded(opened, tmp_path) -> None:
    page = opened(written(tmp_path, "plane"))
    with page.expect_download() as started:
        page.click(".csv")
    rows = Path(started.value.path()).read_text().splitlines()
    scan = PAGES["plane"]()[0].content
    assert started.value.suggested_filename == "scan.csv"
    assert rows[0].startswith("y,x,loss,test_loss,test_accuracy,status")
    assert len(rows) == 1 + scan.test_loss.size
    values = [float(value) for value in rows[1].split(",")]
    place = {"y": 0, "x": 0}
    corner = [
        scan[name].isel({k: v for k, v in place.items() if k in scan[name].dims})
        for name in ("y", "x", "loss", "test_loss")
    ]
    assert values[:4] == [float(value) for value in corner]
    with page.expect_download() as started:
        page.click(".svg")
    assert Path(started.value.path()).read_text().startswith("<svg")


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
