"""Pages of the documentation: what they show runs, and they name what the registries hold."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_scans
import yaml

import evolq
import landscape
from evolq.losses.criteria import CRITERIA
from evolq.network.operators import OPERATORS
from evolq.optimizers.registry import OPTIMIZERS
from evolq.tensor.observers import OBSERVERS
from landscape.__main__ import COMMANDS
from landscape.analysis import analyze, with_analysis
from landscape.plots.panels import PANELS
from landscape.probes.directions import DIRECTIONS
from landscape.statistics.ruggedness import STATISTICS
from landscape.store import save

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "extend.md"
OPTIMIZERS_PAGE = DOCS / "optimizers.md"
REGISTRIES = {
    "Observer": OBSERVERS,
    "Criterion": CRITERIA,
    "Direction": DIRECTIONS,
    "Optimizer": OPTIMIZERS,
    "Operator": OPERATORS,
    "Statistic": STATISTICS,
}


def examples() -> dict[str, str]:
    """Return the Python block below each heading, at the lines where it stands on the page."""
    page = PAGE.read_text()
    found = {}
    for block in re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        before = page[: block.start(1)]
        heading = re.findall(r"^## (.*)$", before, re.MULTILINE)[-1]
        assert heading not in found, f"two examples below {heading}"
        found[heading] = "\n" * before.count("\n") + block[1]
    return found


@pytest.fixture
def _registries_as_before() -> Iterator[None]:
    before = {heading: dict(registry) for heading, registry in REGISTRIES.items()}
    yield
    for heading, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[heading])


def test_every_heading_has_an_example() -> None:
    headings = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
    assert headings == list(examples()) == list(REGISTRIES)


@pytest.mark.usefixtures("_registries_as_before")
@pytest.mark.parametrize("heading", REGISTRIES)
def test_an_example_runs_and_adds_one_name(heading: str, capsys: pytest.CaptureFixture) -> None:
    before = {name: set(registry) for name, registry in REGISTRIES.items()}
    exec(compile(examples()[heading], str(PAGE), "exec"), {"__name__": "__example__"})
    added = {name: set(registry) - before[name] for name, registry in REGISTRIES.items()}
    assert {name: len(names) for name, names in added.items()} == {
        name: int(name == heading) for name in REGISTRIES
    }
    assert "nan" not in capsys.readouterr().out


def test_the_page_of_figures_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "runs" / "scan-fashion_vit-1"
    folder.mkdir(parents=True)
    scan = synthetic_scans.plane(columns=9, rows=9, noise=0.5)
    save(with_analysis(scan, analyze(scan)), folder / "scan.nc")
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "figures.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict = {"__name__": "__example__"}
    for block in blocks:
        exec(compile(block, "figures.md", "exec"), names)
    assert {path.name for path in tmp_path.glob("*.pdf")} == {"surface.pdf", "mine.pdf"}
    assert "minima above the noise of 40 images" in capsys.readouterr().out


def test_the_page_of_figures_names_every_panel() -> None:
    page = (DOCS / "figures.md").read_text()
    assert all(f"`{name}`" in page for panels in PANELS.values() for name in panels)


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert citation["authors"] == [{"name": "The evolq developers"}]
    assert {"cff-version", "title", "message", "type", "license"} <= citation.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_page_of_optimizers_says_what_each_is(name: str) -> None:
    rows = [line for line in OPTIMIZERS_PAGE.read_text().splitlines() if line.startswith("| `")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows), f"docs/optimizers.md lacks {name}"


@pytest.mark.parametrize("package", [evolq, landscape], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name_once(package) -> None:
    page = (DOCS / f"api_{package.__name__}.md").read_text()
    directives = r"^\.\. (?:autofunction|autoclass|autoexception|py:data):: " + package.__name__
    named = re.findall(rf"{directives}\.(\w+)(?:\(\))?$", page, re.MULTILINE)
    assert sorted(named) == sorted(package.__all__)


def test_the_reference_has_every_command() -> None:
    page = (DOCS / "commands.md").read_text()
    commands = ["evolq.__main__", *(f"landscape.{name}" for name in COMMANDS)]
    assert re.findall(r"^```{options} (.*)$", page, re.MULTILINE) == commands


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package)
    options = [*("-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path / "site"))]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-d", str(tmp_path / "doctrees"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for page in ROOT.glob("docs/*.md"):
        assert (tmp_path / "site" / "docs" / f"{page.stem}.html").exists()
    commands = (tmp_path / "site" / "docs" / "commands.html").read_text()
    assert "--weight-bits" in commands
    assert 'role="heading" aria-level="2"' in commands
    for page in (tmp_path / "site").rglob("*.html"):
        found = re.findall(r'<pre>|role="heading">', page.read_text())
        assert not found, f"{page.name}: axe-core refuses {found[0]}"
