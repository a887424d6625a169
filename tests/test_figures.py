"""The figures of the project, drawn from stored runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
from synthetic_comparisons import comparison
from test_cliff_scan import scanned

from evolq.errors import InputError
from evolq.quantization import Quantization
from figures import criteria, deploy, layer_kinds, speed
from figures.__main__ import FIGURES, PLACES, enlarged, main
from landscape import compare, scan, store
from landscape.analysis import analyze, with_analysis

COMMANDS = {"landscape.scan": scan.COMMAND, "landscape.compare": compare.COMMAND}
OF_RUNS = [name for name, script in FIGURES.items() if hasattr(script, "RUNS")]


@pytest.mark.parametrize("name", OF_RUNS)
def test_the_commands_of_a_figure_are_parsed(name: str) -> None:
    for module, *options in FIGURES[name].RUNS.values():
        assert COMMANDS[module].parse(options) is not None
        assert COMMANDS[module].parse(enlarged(options)) is not None


def test_full_size_keeps_all_options_but_sizes() -> None:
    options = ["--seed", "3", "--points", "21", "--no-frozen-codes"]
    full = ["--seed", "3", "--points", "41", "--no-frozen-codes", "--test-images", "10000"]
    assert enlarged(options) == full
    assert enlarged(["--test-images", "300", "--seeds", "5"]) == [
        *("--test-images", "10000", "--seeds", "10")
    ]


@pytest.mark.slow
def test_figures_and_captions_come_from_stored_runs(tmp_path: Path, capsys) -> None:
    made = {
        "landscape.scan": lambda: synthetic_scans.plane(columns=9, rows=9, noise=0.5),
        "landscape.compare": comparison,
        "--probe cliffs": lambda: scanned()[-1],
        "--probe rays": synthetic_scans.rays,
    }
    for command, where in PLACES.items():
        module, *options = command
        place = tmp_path / "runs" / where
        place.mkdir(parents=True)
        kind = module.removeprefix("landscape.")
        probe = next((words for words in made if words in " ".join(options)), module)
        dataset = made[probe]()
        if kind == "scan":
            dataset = with_analysis(dataset, analyze(dataset))
        store.save(dataset, place / f"{kind}.nc", kind)
    main(OF_RUNS, tmp_path)
    said = capsys.readouterr().out
    for name in OF_RUNS:
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").exists()
        caption = (tmp_path / f"{name}.txt").read_text().strip()
        assert f"{name}: {caption}" in said
    assert "deeper than the noise of 40 images" in (tmp_path / "egg_carton.txt").read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "runs").rename(tmp_path / "full" / "runs")
    main(["--full", "default_scan", "speed"], tmp_path)
    assert (tmp_path / "full" / "default_scan.txt").exists()
    assert not (tmp_path / "full" / "speed.txt").exists()
    with pytest.raises(InputError, match="choose from egg_carton"):
        main(["no"], tmp_path)


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: object) -> str:
    """Return the caption of a figure that is drawn from a stored file."""
    text = json.dumps(content)
    if isinstance(content, list):
        text = "".join(f"{json.dumps(each)}\n" for each in content)
    stored = tmp_path / FIGURES[name].STORED.name
    stored.write_text(text)
    monkeypatch.setattr(FIGURES[name], "STORED", stored)
    main([name], tmp_path)
    assert (tmp_path / f"{name}.png").exists()
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert stored.read_text() == text
    return (tmp_path / f"{name}.txt").read_text()


def words_of(right: np.ndarray) -> str:
    """Return which images are right as files have it."""
    return "".join(str(int(one)) for one in right)


def test_the_figure_of_exports_is_drawn_from_rows(tmp_path, monkeypatch) -> None:
    right = np.arange(40) % 4 > 0  # 30 of 40

    def row(network: str, scheme: str, recipe: str, correct: np.ndarray, ratio: float) -> dict:
        latency = [{"batch": 8, "milliseconds": 10 * ratio, "full_precision": 10.0}]
        own = {"network": network, "scheme": scheme, "recipe": recipe, "runtime": "onnxruntime"}
        return own | {"size": 2e6, "latency": latency, "right": words_of(correct)}

    rows = [
        made
        for network in deploy.NAMES
        for made in (
            row(network, "none", "fp32", right, 1),
            row(network, "linear", "W8A8", right, 0.5),
            row(network, "linear", "W4A8, moments matched", right & (np.arange(40) != 1), 0.75),
        )
    ]
    words = drawn(tmp_path, monkeypatch, "deploy", rows)
    assert "DeiT-Tiny W8A8 in onnxruntime +0.0" in words
    assert "EfficientNet-Lite0 W4A8, moments matched in onnxruntime -2.5" in words
    assert "points at 0.75 of the time of fp32" in words


def claims_row(measure: str, network: str, seed: int, **values: float) -> dict:
    """Return a row as `python -m figures.claims` stores it."""
    own = {"measure": measure, "network": network, "bits": 3, "seed": seed}
    return own | {"values": values}


def test_roughness_by_kind_of_layer_is_drawn_from_claims(tmp_path, monkeypatch) -> None:
    rows = [
        claims_row(measure, network, seed, roughness=0.001 * (place + seed))
        for network in (layer_kinds.NETWORK, "another")
        for place, measure in enumerate(layer_kinds.KINDS)
        for seed in range(3 + (network == "another"))
    ]
    words = drawn(tmp_path, monkeypatch, "layer_kinds", rows)
    assert "all scales 0.0010 (-0.0015 to 0.0035, 3 seeds)" in words
    assert "fc1 and fc2 0.0030" in words


def test_criteria_are_drawn_from_claims(tmp_path, monkeypatch) -> None:
    rows = []
    for network in criteria.NETWORKS:
        for seed in range(4):
            wiggle = 0.001 * (seed % 2)
            counts = dict.fromkeys(criteria.NAMES, 7.0 + seed % 2)
            rows.append(claims_row("plane", network, seed, **counts))
            for measure in criteria.SIZES:
                losses = dict.fromkeys(criteria.NAMES, 0.3 + wiggle)
                losses["kl"] += 0.02 - wiggle / 10
                rows.append(claims_row(measure, network, seed, **losses))
    words = drawn(tmp_path, monkeypatch, "criteria", rows)
    assert "minima info_nce 7.5 (6.6 to 8.4)" in words
    assert "of 8 changes of the test loss against info_nce 2 have an interval without 0" in words
    assert "kl with 50 images +0.0199" in words
    assert "(4 seeds)" in words


def test_real_networks_are_compared_image_by_image(tmp_path, monkeypatch) -> None:
    def row(network: str, quantization: Quantization, right: np.ndarray) -> dict:
        names = ("scheme", "weight_bits", "activation_bits", "rounding", "moment_matching")
        own = {name: getattr(quantization.resolved(), name) for name in names}
        return {"network": network} | own | {"right": words_of(right)}

    full, few = Quantization("none"), Quantization(weight_bits=4, rounding="gptq")
    right = np.arange(80) % 4 > 0
    rows = [
        row("deit_tiny_patch16_224", full, right),
        row("deit_tiny_patch16_224", few, right & (np.arange(80) > 5)),
        row("deit_tiny_patch16_224", Quantization(weight_bits=3), right),
        row("vit_tiny_patch16_224", full, right),
        row("tf_efficientnet_lite0", full, right),
        row("tf_efficientnet_lite0", Quantization(weight_bits=8), right),
    ]
    words = drawn(tmp_path, monkeypatch, "real_networks", rows)
    assert "DeiT-Tiny (80 images) W4A8 gptq -5.0 (" in words  # images 1, 2, 3 and 5 of 80
    assert "W3A8 nearest +0.0" in words
    assert "ViT-Tiny (80 images) not measured" in words
    assert "EfficientNet-Lite0 (80 images) W8A8 nearest +0.0" in words


def test_speed_is_drawn_from_what_the_benchmark_writes(tmp_path, monkeypatch) -> None:
    keys = [key for key in speed.TASKS if key != "scale_gradient"]  # not measured
    found = {
        "machine": "A machine, 2 cores",
        "details": {
            key: {"values": [0.1 * (place + 1), 0.3 * (place + 1), 0.2 * (place + 1)], "note": ""}
            for place, key in enumerate(keys)
        },
        "profile": {"engines": {"ratios": {"another, int8": [0.5, 0.6], "**ours**": [0.2, 0.3]}}},
    }
    words = drawn(tmp_path, monkeypatch, "speed", found)
    assert "one Point, all scales new 0.200 (0.100 to 0.300, 3 repeats)" in words
    assert "A machine, 2 cores" in words
    assert "gradient" not in words
    drawn(tmp_path, monkeypatch, "speed", found | {"profile": {}})


def test_a_file_that_is_not_there_is_named_with_its_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(speed, "STORED", tmp_path / "speed.json")
    with pytest.raises(InputError, match=r"no .*speed.json; measure it with `.*speed.py --json"):
        main(["speed"], tmp_path)
    for name in list(FIGURES):
        if name != "speed":
            monkeypatch.delitem(FIGURES, name)
    main([], tmp_path)
    assert "measure it with" in capsys.readouterr().out


def test_choices_of_the_recipe_are_drawn_with_the_worst_above(tmp_path, monkeypatch) -> None:
    rows = [
        {"network": network, "bits": 2, "name": name, "seed": seed, "selection_loss": loss}
        for network in criteria.NETWORKS
        for name, losses in (
            ("default", [0.3, 0.4, 0.5]),
            ("no search", [0.32, 0.419, 0.521]),  # 0.02 more, deviation 0.001
            ("min-max weights", [0.6, 0.7, 0.8]),
            ("weights only", [0.31, 0.39, 0.5]),
        )
        for seed, loss in enumerate(losses)
    ]
    words = drawn(tmp_path, monkeypatch, "choices", rows)
    assert "2 of 3 worse: min-max weights +0.300 ± 0.000, no search +0.020 ± 0.002" in words
