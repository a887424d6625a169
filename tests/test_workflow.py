"""The whole way: `evolq.workflow.search` for a module, `python -m evolq` for a user."""

import json
from pathlib import Path

import pytest
import torch

from evolq.__main__ import COMMAND
from evolq.data.fashion import fashion_resnet
from evolq.data.images import bundled_split
from evolq.data.models import load_model
from evolq.errors import InputError
from evolq.files.saved import load
from evolq.optimizers.mixed_precision import average_bits, bits_in
from evolq.quantization import Quantization
from evolq.workflow import BIT_EVALUATIONS, search

IMAGES = bundled_split(calibration=20).calibration.images


def test_three_lines_for_any_module(tmp_path: Path) -> None:
    model = fashion_resnet().train()
    result = search(model, IMAGES, Quantization(weight_bits=3), passes=1)
    assert model.training, "the model is not changed"
    assert result.loss < result.start_loss
    assert result.evaluations == 1 + 4 * 6
    result.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", fashion_resnet())
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), result(IMAGES))


@pytest.mark.slow
def test_bits_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolq.workflow.BIT_EVALUATIONS", 5)
    result = search(load_model("fashion_resnet"), IMAGES, average_bits=3.5, passes=0)
    sizes = {
        name: result.network.weights[name].numel()
        for name, site in result.network.sites.items()
        if site.kind == "weight"
    }
    found = bits_in(result.point)
    assert 3 < average_bits(found, sizes) <= 3.5
    assert result.evaluations == 1 + 5 + 1 != 1 + BIT_EVALUATIONS + 1


def test_labels_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match="needs labels"):
        search(fashion_resnet(), IMAGES, criterion="cross_entropy")


@pytest.fixture
def run(command_line_of):
    """Run `python -m evolq` in this process."""
    return command_line_of(COMMAND)


QUICK = (
    *("--model", "fashion_resnet", "--passes", "1", "--within", "layer4.*"),
    *("--calibration-images", "20", "--selection-images", "20", "--test-images", "40"),
)


def test_the_command_line(run, tmp_path: Path) -> None:
    code, out, err = run(*QUICK, "--out", "result")
    assert code == 0, err
    assert "95 % interval" in out
    folder = tmp_path / "result"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "report.json",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert report["difference"] == pytest.approx(
        report["final_accuracy"] - report["start_accuracy"]
    )
    low, high = report["difference_interval"]
    assert low <= report["difference"] <= high
    assert report["fitness_evaluations"] == 1 + 4
    assert report["gain"] >= 0  # the search keeps the start if nothing is better
    assert 0 < report["jitter_gain"] < 1
    assert f"fell by {report['gain']:.4f}" in out
    assert f"would give {report['jitter_gain']:.4f}" in " ".join(out.split())
    assert report["seconds"] > 0
    assert report["configuration"]["weight_bits"] == 3
    assert report["options"]["within"] == "layer4.*"

    split = bundled_split(20, 20, 40)
    model = load_model("fashion_resnet")
    for key, module in (
        ("fp32_accuracy", model),
        ("final_accuracy", load(folder / "model.safetensors")),
    ):
        with torch.no_grad():
            right = module(split.test.images).argmax(1) == split.test.labels
        assert report[key] == pytest.approx(float(right.double().mean()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "nonesuch"), 'Invalid value "nonesuch" for --recipe'),
        (("--passes", "-1"), "passes is -1"),
        (("--test-images", "1"), "--test-images is 1"),
        (("--resume",), "no run here is unfinished"),
        (("--average-bits", "9"), "number from 2 to 8"),
        (("--within", "nowhere"), "is within 'nowhere'; "),
    ],
)
def test_bad_input_is_one_line(run, arguments: tuple[str, ...], words: str) -> None:
    given = [*QUICK]
    for name in arguments[:-1:2]:  # an option is given once
        if name in given:
            del given[given.index(name) : given.index(name) + 2]
    code, out, err = run(*given, *arguments)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
