"""Benchmarks run for hours: that they start at all is tested here."""

import runpy
from pathlib import Path

import pytest
import torch

from evolq.losses.paired import paired_difference
from evolq.quantization import Quantization
from figures.__main__ import read
from figures.claims.networks import REAL_NETWORKS
from figures.real_networks import ROUNDINGS, STORED, right

# What one of them needs and no extra of this package has.
FOREIGN = {"pflacco"}
ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name="benchmark")
    except ModuleNotFoundError as error:
        if error.name not in FOREIGN:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_the_readme_says_what_real_networks_lose() -> None:
    rows = read(STORED)
    readme = (ROOT / "README.md").read_text()
    for network, name in REAL_NETWORKS.items():
        plain = right(rows, network, Quantization("none"))
        lost = []
        for rounding in ROUNDINGS[:2]:
            after = right(rows, network, Quantization("full", 4, 8, rounding=rounding))
            difference = paired_difference(torch.tensor(after), torch.tensor(plain))
            mean, low, high = (100 * value for value in difference)
            lost.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
        assert f"| {name} | {' | '.join(lost)} |" in readme
