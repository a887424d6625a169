"""The command line as a user meets it: `python -m landscape.compare`."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evolq.losses.criteria import CRITERIA, Criterion
from evolq.optimizers.black_box import random_search
from evolq.optimizers.registry import OPTIMIZERS, Optimizer
from evolq.problem import prepare
from evolq.settings import Settings
from landscape import compare as compare_module
from landscape import store
from landscape.comparisons import Comparison
from landscape.paths.comparison import PLANES
from landscape.plots import draw_comparison, draw_transfer, interactive_comparison

# without matched moments two steps of Adam are enough to get ahead
QUICK = (
    *("--test-images", "20", "--budget", "8", "--seeds", "2", "--learning-rates", "0.01"),
    "--no-moment-matching",
)


@pytest.fixture
def compare(command_line_of):
    """Run `python -m landscape.compare` in this process."""
    return command_line_of(compare_module.COMMAND)


@pytest.mark.parametrize(
    "plane",
    ["pca", *(pytest.param(p, marks=pytest.mark.slow) for p in PLANES if p != "pca")],
)
def test_a_comparison(compare, plane) -> None:
    arguments = (*QUICK, "--calibration-images", "20", "--points", "2", "--plane", plane)
    optimizers = ("evol-q", "adam") if plane == "ends" else ("random-search", "cma", "adam")
    code, out, err = compare(*arguments, "--optimizers", *optimizers)
    assert code == 0, err
    folder = Path("runs/compare-fashion_vit-1")
    files = {path.name for path in folder.iterdir()}
    assert files == {"compare.nc", "compare.png", "compare.html", "config.yaml"}
    dataset = store.load(folder / "compare.nc", "compare")
    assert dataset.optimizer.values.tolist() == [*optimizers]
    assert dataset.sizes["seed"] == 2
    assert (dataset.cost.max("iterate") <= 8 + 1e-6).all()
    starts = dataset.isel(iterate=0)
    assert len(np.unique(starts.loss)) == 1, "all from the same start"
    assert (starts.distance_from_start == 0).all()
    squares = dataset.path_x**2 + dataset.path_y**2 + dataset.distance**2
    np.testing.assert_allclose(squares, dataset.distance_from_start**2, rtol=1e-3, atol=1e-7)
    if plane == "ends":
        last = dataset.isel(seed=0).cost.argmax("iterate")
        ends = dataset.isel(seed=0).isel(iterate=last)
        assert (ends.distance < 1e-5 + 1e-3 * ends.distance_from_start).all()
    assert dataset.surface_loss.dims == ("y", "x")
    configuration = json.loads(dataset.attrs["provenance"])["configuration"]
    assert configuration["weight_bits"] == 3
    assert configuration["budget"] == 8
    gradient, other = dataset.attrs["between_from"], dataset.attrs["between_to"]
    assert f"Barrier between the ends of {gradient} and {other}" in " ".join(out.split())
    assert gradient.startswith("adam")
    last = dataset.final_test_loss_per_image.sel(optimizer="adam", seed=0)
    measured = dataset.between_test_loss_per_image.isel(between=0)
    np.testing.assert_array_equal(measured, last, "the line begins at the very end")
    assert "Against" in out
    assert str(folder) in out


@pytest.mark.slow
def test_searches_side_by_side_end_where_one_after_the_other_do(compare) -> None:
    arguments = (*QUICK, "--calibration-images", "20", "--points", "2", "--quiet")
    for workers in ("1", "2"):
        assert compare(*arguments, "--workers", workers, "--out", workers)[0] == 0
    for path in Path("1").iterdir():
        assert (Path("2") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_criteria_by_calibration_sets(compare) -> None:
    arguments = (*QUICK, "--criteria", "info_nce", "kl", "--sizes", "16", "8")
    code, out, err = compare(*arguments, "--optimizers", "evol-q", "adam", "--out", "out")
    assert code == 0, err
    assert {path.name for path in Path("out").iterdir()} == {
        "transfer.nc",
        "transfer.png",
        "transfer.html",
        "config.yaml",
    }
    dataset = store.load("out/transfer.nc", "transfer")
    assert dataset["size"].values.tolist() == [8, 16]
    assert dataset.criterion.values.tolist() == ["info_nce", "kl"]
    assert (dataset.loss <= dataset.start_loss + 1e-6).all()
    assert (dataset.ideal_loss.sel(criterion="kl") == 0).all()
    assert "Calibration gap" in out


@pytest.mark.slow
def test_a_new_criterion_and_a_new_optimizer_need_nothing_else(monkeypatch) -> None:
    l1 = Criterion("l1", lambda student, teacher, labels: (student - teacher).abs().mean(1))
    monkeypatch.setitem(CRITERIA, "l1", l1)
    monkeypatch.setitem(OPTIMIZERS, "mine", Optimizer(random_search))
    settings = Settings("fashion_resnet", criterion="l1", calibration_images=8, test_images=20)
    quick = Comparison(("mine", "adam"), 8, 1, (0.01,), points=2, plane="random")
    dataset = quick.sample(prepare(settings))
    draw_comparison(dataset)
    interactive_comparison(dataset)
    assert dataset.optimizer.values.tolist() == ["mine", "adam"]
    dataset = replace(quick, criteria=("info_nce", "l1"), sizes=(8,)).sample_transfer(settings)
    draw_transfer(dataset)
    assert dataset.criterion.values.tolist() == ["info_nce", "l1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizers", "evol-q", "annealing"), 'Invalid value "annealing" for --optimizers'),
        (("--optimizers", "adam", "adam"), "give each once"),
        (("--plane", "tilted"), 'Invalid value "tilted" for --plane'),
        (("--learning-rates", "0.1", "x"), "Invalid value for --learning-rates"),
        (("--learning-rates", "-1"), "a number from 0"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--points", "1"), "--points is 1"),
        (("--budget", "1"), "--budget is 1"),
        (("--test-images", "1"), "--test-images is 1"),
        (("--criteria", "info_nce", "hinge"), 'Invalid value "hinge" for --criteria'),
        (("--scheme", "none"), "--scheme none has no scales"),
        *(
            (("--start", "file", f"--{option}", value), f"leave out --{option}")
            for option, value in (("scheme", "full"), ("weight-bits", "4"), ("softmax", "log2"))
        ),
        (("--start", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line_before_any_work(compare, arguments, words) -> None:
    code, out, err = compare(*arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_help_names_every_optimizer_and_needs_no_torch(compare) -> None:
    code, out, _ = compare("--help")
    assert code == 0
    words = "".join(out.replace("│", " ").split())  # lines break at hyphens
    assert all(name in words for name in OPTIMIZERS)
    program = (
        "import sys; sys.argv = ['x', '--help']\n"
        "import landscape.compare, evolq.command_line\n"
        "try:\n    evolq.command_line.run(landscape.compare.COMMAND)\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
