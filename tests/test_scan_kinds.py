"""The command line `python -m landscape.scan`: over bit-widths, and along guided directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import unpacked
from safetensors.torch import save_file
from test_scan import QUICK

from evolq.data.models import load_model
from landscape import store
from landscape.probes.guided import GUIDED

SMALL = (*QUICK, "--model", "fashion_resnet")


def configuration(dataset) -> dict:
    return json.loads(dataset.attrs["provenance"])["configuration"]


@pytest.mark.slow
def test_bits_against_a_factor_on_the_scales(scan) -> None:
    code, out, err = scan(*SMALL, "--probe", "bits", "--points", "2", "--out", "a")
    assert code == 0, err
    dataset = store.load("a/scan.nc")
    assert dataset.loss.sizes == {"bits": 7, "multiplier": 2}
    assert dataset.multiplier.values.tolist() == pytest.approx([0.5, 2.0])
    assert configuration(dataset)["weight_bits"] == 4
    assert configuration(dataset)["moment_matching"] is True
    assert "Test accuracy at 2 bits" in out


@pytest.mark.slow
def test_random_walks(scan) -> None:
    arguments = ("--probe", "walks", "--walks", "2", "--steps", "3", "--length", "0.2")
    code, out, err = scan(*SMALL, *arguments, "--within", "fc.*", "--repeats", "2", "--out", "a")
    assert code == 0, err
    dataset = store.load("a/scan.nc")
    assert dataset.test_loss.sizes == {"walk": 2, "step": 4}
    assert (dataset.status == 1).all()
    # every walk begins at the start, and takes steps of one length
    assert (dataset.test_loss_per_image.sel(step=0) == dataset.start_test_loss_per_image).all()
    lengths = np.linalg.norm(np.diff(dataset.position, axis=1), axis=2)
    assert lengths == pytest.approx(np.full((2, 3), 0.2), rel=1e-4)
    assert "repeat_test_loss_per_image" in dataset
    assert "steps of 0.2" in dataset.attrs["comment"]
    assert "Test loss at the end of walks" in out


@pytest.mark.slow
def test_cliffs(scan) -> None:
    arguments = ("--probe", "cliffs", "--points", "3", "--cliffs", "1", "--intervals", "3")
    code, out, err = scan(*SMALL, *arguments, "--within", "fc.*", "--repeats", "2", "--out", "a")
    assert code == 0, err
    dataset = store.load("a/scan.nc")
    assert dataset.test_loss.sizes == {"ray": 1, "distance": 3}
    assert dataset.weight.values.tolist() == ["fc.weight"]
    assert dataset.width.values.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert dataset.sizes["interval"] <= 3
    assert "Ups and downs made by flips" in out
    assert "Cliffs per unit of distance" in out


def test_layers_one_at_a_time(scan) -> None:
    arguments = ("--probe", "layers", "--weight-bits", "4")
    code, out, err = scan(*SMALL, *arguments, "--within", "fc.*", "--out", "a")
    assert code == 0, err
    dataset = store.load("a/scan.nc")
    assert dataset.layer.values.tolist() == ["fc.weight"]
    # at the bits of the start, the start itself
    assert (dataset.test_loss_per_image.sel(bits=4) == dataset.start_test_loss_per_image).all()
    assert (dataset.status == 1).all()
    assert "Layers worse at 2 bits" in out


@pytest.mark.slow
def test_a_line_to_a_checkpoint_ends_there(scan, tmp_path) -> None:
    model = load_model("fashion_resnet")
    for name, factor in (("near", 1.1), ("far", 0.5)):
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        weights["fc.weight"] *= factor
        save_file(weights, tmp_path / f"{name}.safetensors")
    arguments = (
        *SMALL, "--scheme", "none", "--over", "weights", "--directions", "towards",
        "--checkpoints", "near.safetensors",
    )  # fmt: skip
    code, _, err = scan(
        *arguments, "--probe", "rays", "--points", "11", "--radius", "1.25", "--out", "a"
    )
    assert code == 0, err
    dataset = store.load("a/scan.nc")
    assert dataset.sizes["ray"] == 1
    assert configuration(dataset)["checkpoints"] == ["near.safetensors"]
    scan(
        *SMALL, "--scheme", "none", "--over", "weights", "--points", "2", "--radius", "0.1",
        "--weights", "near.safetensors", "--out", "b",
    )  # fmt: skip
    end = dataset.isel(ray=0).sel(distance=1.0, method="nearest").test_loss_per_image
    there = store.load("b/scan.nc").start_test_loss_per_image
    torch.testing.assert_close(end.values, there.values, rtol=1e-4, atol=1e-5)
    code, _, err = scan(*arguments, "--out", "c")
    assert code == 2
    assert "a plane needs 2" in err


@pytest.mark.parametrize("kind", ["towards", "pca"])
def test_a_plane_led_by_checkpoints_says_where_they_are(scan, tmp_path, kind) -> None:
    """Three lie on a plane through the start, apart in two weights; the fourth leaves it."""
    model = load_model("fashion_resnet")
    steps = {"a": (0.02, 0, 0), "b": (0, 0.01, 0), "c": (0.01, 0.0025, 0), "d": (0.01, 0, 0.001)}
    arguments = []
    for name, step in steps.items():
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        weights["fc.weight"][0, :3] += torch.tensor(step)
        save_file(weights, tmp_path / f"{name}.safetensors")
        if kind == "towards" or name != "d":
            arguments.append(f"{name}.safetensors")
    code, _, err = scan(
        *SMALL, "--scheme", "none", "--over", "weights", "--within", "fc.weight",
        "--directions", kind, "--checkpoints", *arguments, "--points", "2", "--out", "a",
    )  # fmt: skip
    assert code == 0, err
    found = store.load("a/scan.nc")
    places = {str(c): found.sel(checkpoint=c) for c in found.checkpoint.values}
    where = {c: (float(p.checkpoint_x), float(p.checkpoint_y)) for c, p in places.items()}
    off = {c: float(p.checkpoint_distance / p.checkpoint_distance_from_start)
           for c, p in places.items()}  # fmt: skip
    for name in "abc":
        assert off[name] < 1e-4
    if kind == "towards":
        for name, place in {"a": (1, 0), "b": (0, 1), "c": (0.5, 0.25), "d": (0.5, 0)}.items():
            assert where[name] == pytest.approx(place, abs=1e-4)
        assert off["d"] == pytest.approx(0.1 / 1.01**0.5, rel=1e-3)
        assert float(found.x.max()) == 1.25
    else:
        assert list(where) == ["a", "b", "c"]
        farthest = max(abs(coordinate) for place in where.values() for coordinate in place)
        assert float(found.x.max()) == pytest.approx(1.25 * farthest)
    assert "1: a" in unpacked(Path("a/scan.html").read_text(encoding="utf-8"), "data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--probe", "rays", "--rows", "3"), "--rows does not go with --probe rays; it does with"),
        (("--probe", "layers", "--points", "3"), "--points does not go with --probe layers"),
        (("--probe", "bits", "--directions", "uniform"), "--directions does not go with"),
        (("--directions", "pca"), "go with --checkpoints"),
        (("--checkpoints", "a"), "go with --checkpoints"),
        (("--directions", "hessian"), "twice: --scheme none"),
        (
            ("--scheme", "none", "--over", "weights", "--directions", "hessian",
             "--normalize", "filter"),
            "leave out --normalize",
        ),
        (("--scheme", "none", "--probe", "bits"), "--scheme none has no bits"),
        (("--scheme", "none", "--probe", "walks"), "--scheme none has no scales"),
        (("--probe", "cliffs", "--over", "weights"), "along lines over scales alone"),
        (("--probe", "walks", "--length", "0"), "--length is 0; give a number from 1e-09"),
        (("--probe", "walks", "--radius", "1"), "--radius does not go with --probe walks"),
        (
            ("--scheme", "none", "--over", "weights", "--directions", "hessian",
             "--execution", "compiled"),
            "cannot: --execution simulated",
        ),
        (("--execution", "fast"), 'Invalid value "fast" for --execution'),
    ],
)  # fmt: skip
def test_what_does_not_go_together(scan, arguments, message) -> None:
    code, _, err = scan(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_help_names_guided_directions(scan) -> None:
    _, out, _ = scan("--help")
    assert all(name in out for name in GUIDED)
