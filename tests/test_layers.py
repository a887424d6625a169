"""Imports go downward only, and docs/design.md shows them as they are."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("layers", ROOT / "docs" / "layers.py")
layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layers)

# Heavy or replaceable libraries are used in one place each.
ONLY_IN = {
    "timm": {"evolq.data"},
    "torchvision": {"evolq.data"},
    "PIL": {"evolq.data"},
    "matplotlib": {"landscape.plots"},
    "plotly": {"landscape.plots"},
    "cma": {"evolq.optimizers"},
    "scipy": {"evolq.optimizers", "landscape.probes", "landscape.statistics"},
    "cyclopts": {"evolq.command_line", "landscape.__main__"},
    "onnx": {"evolq.files"},
    "onnxruntime": {"evolq.files"},
}


def test_rooms_and_modules_import_without_circles() -> None:
    layers.floors(layers.room_arrows())
    layers.floors(layers.module_arrows())


def test_circles_are_seen() -> None:
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        layers.floors({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("name", layers.modules())
def test_nothing_below_imports_what_is_above(name: str) -> None:
    own = name.partition(".")[0]
    imported = layers.imports(layers.modules()[name])
    assert own not in imported, f"{name} imports from its package, which loads whatever it names"
    assert own == "landscape" or not any(other.startswith("landscape") for other in imported)


def test_the_page_shows_the_map_of_the_code() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    assert page == layers.written(page), "run: python docs/layers.py"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import evolq.points", "evolq.points"),
        ("from evolq import points", "evolq.points"),
        ("from evolq import quantize", "evolq"),
        ("from evolq.points import Point", "evolq.points"),
        ("from evolq.network import graph", "evolq.network.graph"),
        ("def f():\n    from landscape import axis", "landscape"),
    ],
)
def test_imports_are_seen(tmp_path: Path, line: str, found: str) -> None:
    (tmp_path / "module.py").write_text(line)
    assert layers.imports(tmp_path / "module.py") == {found}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_place(library: str) -> None:
    users = {
        layers.room(name)
        for name, path in layers.modules().items()
        if any(imported.partition(".")[0] == library for imported in layers.imports(path))
    }
    assert users <= ONLY_IN[library]
