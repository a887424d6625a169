"""The figures of the project, drawn from stored runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
from synthetic_comparisons import comparison
from test_cliff_scan import scanned

from evolq.errors import InputError
from figures import deploy
from figures.__main__ import FIGURES, main
from landscape import compare, scan, store
from landscape.analysis import analyze, with_analysis

COMMANDS = {"landscape.scan": scan.COMMAND, "landscape.compare": compare.COMMAND}


@pytest.mark.parametrize("name", FIGURES)
def test_the_commands_of_a_figure_are_parsed(name: str) -> None:
    for module, *options in FIGURES[name].RUNS.values():
        assert COMMANDS[module].parse(options) is not None


@pytest.mark.slow
def test_figures_and_captions_come_from_stored_runs(tmp_path: Path, capsys) -> None:
    made = {
        "landscape.scan": lambda: synthetic_scans.plane(columns=9, rows=9, noise=0.5),
        "landscape.compare": comparison,
        "--probe cliffs": lambda: scanned()[-1],
        "--probe rays": synthetic_scans.rays,
    }
    for name, script in FIGURES.items():
        for part, (module, *options) in script.RUNS.items():
            place = tmp_path / "runs" / f"{name}-{part}"
            place.mkdir(parents=True)
            kind = module.removeprefix("landscape.")
            probe = " ".join(options[:2])
            dataset = made[probe if probe in made else module]()
            if kind == "scan":
                dataset = with_analysis(dataset, analyze(dataset))
            store.save(dataset, place / f"{kind}.nc", kind)
    main([], tmp_path)
    said = capsys.readouterr().out
    for name in FIGURES:
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").exists()
        caption = (tmp_path / f"{name}.txt").read_text().strip()
        assert f"{name}: {caption}" in said
    assert "deeper than the noise of 40 images" in (tmp_path / "egg_carton.txt").read_text()
    with pytest.raises(InputError, match="choose from egg_carton"):
        main(["no"], tmp_path)


def test_the_figure_of_exports_is_drawn_from_rows(tmp_path: Path) -> None:
    right = np.arange(40) % 4 > 0  # 30 of 40

    def row(network: str, scheme: str, recipe: str, correct: np.ndarray, ratio: float) -> dict:
        latency = [{"batch": 8, "milliseconds": 10 * ratio, "full_precision": 10.0}]
        words = "".join(str(int(one)) for one in correct)
        own = {"network": network, "scheme": scheme, "recipe": recipe, "runtime": "onnxruntime"}
        return own | {"size": 2e6, "latency": latency, "right": words}

    rows = [
        made
        for network in deploy.NAMES
        for made in (
            row(network, "none", "fp32", right, 1),
            row(network, "linear", "W8A8", right, 0.5),
            row(network, "linear", "W4A8, moments matched", right & (np.arange(40) != 1), 0.75),
        )
    ]
    stored = tmp_path / "rows.jsonl"
    stored.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    deploy.main(tmp_path, stored)
    words = (tmp_path / "deploy.txt").read_text()
    assert "DeiT-Tiny W8A8 in onnxruntime +0.0" in words
    assert "EfficientNet-Lite0 W4A8, moments matched in onnxruntime -2.5" in words
    assert "points at 0.75 of the time of fp32" in words
    assert (tmp_path / "deploy.png").exists()
