"""The map of layers in docs/design.md, drawn from the code's own imports.

`python docs/layers.py` writes it into the page; `tests/test_layers.py` compares page and code.

A room is a folder of modules (`evolq.network`), or a module that stands beside the folders. Imports
between rooms form no circle, nor do those between modules. A room's floor is one above the highest
that it imports; what a package loads lazily by name (`__init__`) does not count.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("evolq", "landscape")
BEGIN, END = "<!-- layers: python docs/layers.py -->\n", "<!-- end of layers -->\n"


def modules() -> dict[str, Path]:
    """Return the file of each module of the packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, functions and type checking included.

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


def room(module: str) -> str:
    """Return the room of a module: its folder below the package, or itself."""
    parts = module.split(".")
    inside = (ROOT / Path(*parts[:2])).is_dir()
    return ".".join(parts[:2]) if inside else module


def module_arrows() -> dict[str, set[str]]:
    """Return what each module imports of the packages; lazy packages import nothing."""
    known = modules()
    return {
        name: (imports(path) & known.keys()) - {name} if name not in PACKAGES else set()
        for name, path in known.items()
    }


def room_arrows() -> dict[str, set[str]]:
    """Return what each room imports."""
    arrows: dict[str, set[str]] = {}
    for name, imported in module_arrows().items():
        own = room(name)
        arrows.setdefault(own, set()).update(room(other) for other in imported)
        arrows[own].discard(own)
    return arrows


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each name: 0 where it imports nothing.

    Raises:
        ValueError: for imports in a circle, which is named.
    """
    found: dict[str, int] = {}

    def floor(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ValueError(f"imports in a circle: {' -> '.join((*path, name))}")
        if name not in found:
            found[name] = 1 + max(
                (floor(other, (*path, name)) for other in arrows[name]), default=-1
            )
        return found[name]

    for name in arrows:
        floor(name, ())
    return found


def contents(name: str) -> list[str]:
    """Return the modules of a room, without its name in front."""
    return [
        module.removeprefix(name + ".") for module in modules() if module.startswith(name + ".")
    ]


def layer_map() -> str:
    """Return the map, highest floor first: an indented block of text for the page."""
    heights = floors(room_arrows())
    lines = []
    for package in reversed(PACKAGES):
        rooms = {name: height for name, height in heights.items() if name.startswith(package + ".")}
        for height in sorted(set(rooms.values()), reverse=True):
            for name in sorted(rooms):
                if rooms[name] != height:
                    continue
                label = f"{height:>3}  {name + ('/' if contents(name) else '')}"
                inside = textwrap.fill(
                    " ".join(contents(name)),
                    98,
                    initial_indent=" " * 32,
                    subsequent_indent=" " * 32,
                )
                lines.append(f"    {label:<28}{inside[32:]}".rstrip())
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def written(page: str) -> str:
    """Return the page with the present map between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the page lacks {BEGIN!r} and {END!r}"
    return f"{before}{BEGIN}\n{layer_map()}\n{END}{after}"


if __name__ == "__main__":
    design = ROOT / "docs" / "design.md"
    design.write_text(written(design.read_text()))
