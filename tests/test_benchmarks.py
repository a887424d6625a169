"""Benchmarks run for hours: that they start at all is tested here."""

import runpy
from pathlib import Path

import pytest

# What one of them needs and no extra of this package has.
FOREIGN = {"pflacco"}
SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name="benchmark")
    except ModuleNotFoundError as error:
        if error.name not in FOREIGN:
            raise
        pytest.skip(f"{error.name} is not installed")
