"""Stored runs of every command, found by their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarray import Dataset

from evolq.errors import InputError
from landscape.store import load


@dataclass(frozen=True, eq=False)
class Run:
    """What one command wrote.

    Attributes:
        name: of its folder.
        kind: scan, compare, transfer or search.
        command: the module that wrote it.
        file: name of the file with all numbers.
        content: a Dataset; of a search, its report.
    """

    name: str
    kind: str
    command: str
    file: str
    content: Dataset | Mapping[str, Any]


# The file with all numbers -> kind and command; what only an unfinished run has is beside it.
FILES = {
    "scan.nc": ("scan", "landscape.scan"),
    "compare.nc": ("compare", "landscape.compare"),
    "transfer.nc": ("transfer", "landscape.compare"),
    "report.json": ("search", "evolq"),
}
UNFINISHED = ("scan.sqlite", "compare.sqlite", "search_state.safetensors")


def load_run(path: Path) -> Run:
    """Read a run.

    Args:
        path: its folder, or the file with all its numbers.

    Raises:
        InputError: if there is none, it is unfinished, or its file cannot be read.
    """
    if not path.exists():
        raise InputError(f"there is no {path}; give the folder of a run")
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            if any((path / name).exists() for name in UNFINISHED):
                raise InputError(
                    f"the run in {path} is unfinished; its command with --resume --out {path} "
                    "finishes it"
                )
            raise InputError(f"{path} holds no run: none of {', '.join(FILES)}")
        (path,) = found[:1]
    if path.name not in FILES:
        raise InputError(f"{path} is no run's folder, and none of {', '.join(FILES)}")
    kind, command = FILES[path.name]
    content = _load_search(path) if kind == "search" else load(path, kind)
    return Run(path.resolve().parent.name, kind, command, path.name, content)


def _load_search(path: Path) -> Mapping[str, Any]:
    try:
        report = json.loads(path.read_text())
        if not isinstance(report, dict) or "final_accuracy" not in report:
            raise ValueError("it lacks `final_accuracy`")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as the report of a search: {error}") from error
    return report
