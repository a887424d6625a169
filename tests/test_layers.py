"""Imports go downward only, as docs/design.md says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up; a module may import what stands in an earlier line.
LAYERS = [
    ["evolq.errors", "evolq.lazy"],
    ["evolq.files", "evolq.fashion", "evolq.points", "evolq.quantizers", "evolq.image_cache"],
    ["evolq.image_decoding", "evolq.image_folders", "evolq.correction", "evolq.kernels"],
    ["evolq.data", "evolq.models", "evolq.observers", "evolq.graph"],
    ["evolq.placement", "evolq.integers"],
    ["evolq.fusion"],
    ["evolq.network"],
    ["evolq.calibration", "evolq.criteria", "evolq.blocks", "evolq.comparison"],
    ["evolq.objective", "evolq.saved", "evolq.onnx_operators", "evolq.layers"],
    ["evolq.gptq", "evolq.adaround"],
    ["evolq.export", "evolq.recipes"],
    ["evolq.checkpoint"],
    ["evolq.evolve", "evolq.problem"],
    ["evolq.mixed_precision", "evolq.budgeted"],
    ["evolq.workflow", "evolq.gradient", "evolq.black_box", "evolq.cma_es", "evolq.powell"],
    ["evolq.optimizers"],
    ["evolq", "evolq.command_line"],
    ["evolq.__main__"],
    ["landscape.directions", "landscape.slices", "landscape.store", "landscape.roughness"],
    ["landscape.sampling", "landscape.minima"],
    ["landscape.report", "landscape.trajectories", "landscape.bit_widths", "landscape.guided"],
    ["landscape.comparison"],
    ["landscape.transfer"],
    ["landscape.plots.info", "landscape.plots.palette"],
    ["landscape.plots.figures", "landscape.plots.html", "landscape.plots.comparison_info"],
    [
        "landscape.plots.comparison_figures",
        "landscape.plots.comparison_html",
        "landscape.plots.transfer_figures",
    ],
    ["landscape.plots"],
    ["landscape"],
    ["landscape.scan", "landscape.compare"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Heavy or replaceable libraries are used in one place each.
ONLY_IN = {
    "timm": {"evolq.models", "evolq.fashion", "evolq.image_decoding", "evolq.image_folders"},
    "torchvision": {"evolq.image_decoding"},
    "PIL": {"evolq.image_decoding", "evolq.image_folders"},
    "matplotlib": {
        "landscape.plots.figures",
        "landscape.plots.comparison_figures",
        "landscape.plots.transfer_figures",
    },
    "plotly": {"landscape.plots.html", "landscape.plots.comparison_html"},
    "gudhi": {"landscape.minima"},
    "cma": {"evolq.cma_es"},
    "scipy": {"evolq.powell", "landscape.guided", "landscape.minima"},
    "typer": {"evolq.command_line", "evolq.__main__", "landscape.scan", "landscape.compare"},
    "onnx": {"evolq.export"},
    "onnxruntime": {"evolq.export"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("evolq", "landscape"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, functions and type checking included.

    `from package import name` is an import of the package, unless the name is one of its modules.
    """
    found = set()
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_go_downward(name: str) -> None:
    own = name.partition(".")[0]
    for imported in imports(modules()[name]) & RANK.keys():
        assert imported != own, f"{name} imports from its package, which loads whatever it names"
        assert RANK[imported] < RANK[name], f"{name} imports {imported}, which lies above it"


def test_every_module_has_its_layer() -> None:
    assert modules().keys() <= RANK.keys()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import evolq.points", "evolq.points"),
        ("from evolq import points", "evolq.points"),
        ("from evolq import quantize", "evolq"),
        ("from evolq.points import Point", "evolq.points"),
        ("def f():\n    from landscape import axis", "landscape"),
    ],
)
def test_imports_are_seen(tmp_path: Path, line: str, found: str) -> None:
    (tmp_path / "module.py").write_text(line)
    assert imports(tmp_path / "module.py") == {found}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_place(library: str) -> None:
    users = {
        name
        for name, path in modules().items()
        if any(imported.partition(".")[0] == library for imported in imports(path))
    }
    assert users <= ONLY_IN[library]
