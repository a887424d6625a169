"""Benchmarks run for hours: that they start at all is tested here."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from evolq.losses.paired import paired_difference

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
    lines = (ROOT / "benchmarks" / "real_networks.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    readme = (ROOT / "README.md").read_text()
    for network, name in (
        ("deit_tiny_patch16_224", "DeiT-Tiny"),
        ("vit_tiny_patch16_224", "ViT-Tiny"),
        ("tf_efficientnet_lite0", "EfficientNet-Lite0"),
    ):
        own = [row for row in rows if row["network"] == network]
        full = next(row for row in own if row["scheme"] == "none")
        lost = []
        for rounding in ("nearest", "gptq"):
            wanted = {"scheme": "full", "weight_bits": 4, "activation_bits": 8}
            wanted |= {"rounding": rounding, "fold_layer_norms": False}
            row = next(row for row in own if wanted.items() <= row.items())
            right = (torch.tensor([*map(int, one["right"])]) for one in (row, full))
            mean, low, high = (100 * value for value in paired_difference(*right))
            lost.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
        assert f"| {name} | {' | '.join(lost)} |" in readme
