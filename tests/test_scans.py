"""Scans declared as values, and the complete Datasets that they give."""

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import synthetic_scans
from test_sampling import ORIGIN, PLANE, XS, YS, Toy, ToyTest

from evolq.errors import InputError
from evolq.problem import Settings, prepare
from evolq.quantization import Quantization
from landscape import BitScan, LayerScan, PlaneScan, RayScan, draw, scans, words
from landscape.analysis import analyze
from landscape.plots import interactive, plane_info
from landscape.probes.directions import DIRECTIONS, NORMALIZATIONS
from landscape.probes.guided import GUIDED
from landscape.probes.sampling import sample_plane

KINDS = get_args(scans.Scan)
SETTINGS = Settings(calibration_images=10, selection_images=0, test_images=10)


@pytest.fixture(scope="module")
def problem():
    return prepare(SETTINGS)


def configuration(dataset) -> dict:
    return json.loads(dataset.attrs["provenance"])["configuration"]


def test_choices_are_those_of_the_registries() -> None:
    assert get_args(scans.Directions) == (*DIRECTIONS, *GUIDED)
    assert tuple(GUIDED) == scans.LED
    assert get_args(scans.Normalization) == NORMALIZATIONS
    assert get_args(scans.Over) == tuple(scans.ROLES) == tuple(words.OVER_WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_line_for_help(kind: type) -> None:
    documented = {
        name
        for base in kind.__mro__
        for name in re.findall(r"^    (\w+): \S", inspect.getdoc(base) or "", re.MULTILINE)
    }
    assert documented >= {field.name for field in fields(kind)}


def test_declarations_import_no_numpy() -> None:
    code = "import sys, landscape.scans; print({'torch', 'numpy', 'xarray'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PlaneScan, {"over": "bits"}, "unknown `over` 'bits'; choose from scales"),
        (RayScan, {"normalize": "batch"}, "unknown `normalize` 'batch'; choose from none"),
        (PlaneScan, {"points": 1}, "`points` is 1; give a whole number from 2"),
        (PlaneScan, {"rows": 1}, "`rows` is 1; give a whole number from 2"),
        (RayScan, {"rays": 0}, "`rays` is 0; give a whole number from 1"),
        (PlaneScan, {"repeats": 1}, "`repeats` is 1; give 2 or more, or 0"),
        (RayScan, {"radius": 0.0}, "`radius` is 0; give a number from 1e-09 to 80"),
        (BitScan, {"radius": float("inf")}, "`radius` is inf"),
        (BitScan, {"points": 1}, "`points` is 1"),
        (PlaneScan, {"directions": "pca"}, "go with `checkpoints`"),
        (RayScan, {"checkpoints": (Path("a"),)}, "go with `checkpoints`"),
        (PlaneScan, {"directions": "hessian", "normalize": "filter"}, "leave out `normalize`"),
    ],
)
def test_values_that_do_not_go_together_are_refused(kind, values, message) -> None:
    with pytest.raises(InputError, match=message) as raised:
        kind(**values)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("scan", "settings", "message"),
    [
        (PlaneScan(directions="up"), {}, "unknown `directions` 'up'; choose from gaussian"),
        (PlaneScan(), {"scheme": "none"}, "`scheme` none has no scales"),
        (BitScan(), {"scheme": "none"}, "`scheme` none has no bits"),
        (LayerScan(), {"scheme": "none"}, "`scheme` none has no bits"),
        (RayScan(over="weights", directions="hessian"), {}, "twice: `scheme` none"),
        (
            RayScan(over="weights", directions="hessian"),
            {"scheme": "none", "execution": "compiled"},
            "`execution` simulated",
        ),
        (PlaneScan(), {"test_images": 1}, "2 test images"),
    ],
)
def test_problems_that_cannot_be_scanned_are_refused_before_any_work(
    scan, settings, message
) -> None:
    scheme = settings.get("scheme", "linear")
    others = {name: value for name, value in settings.items() if name != "scheme"}
    problem = Settings(quantization=Quantization(scheme), **others)
    with pytest.raises(InputError, match=message) as raised:
        scan.check(problem)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("scan", "sizes"),
    [
        (PlaneScan(points=3, rows=2, radius=0.1), {"y": 2, "x": 3}),
        (PlaneScan(points=2, radius=0.1), {"y": 2, "x": 2}),
        (RayScan(points=3, rays=2, over="zero_points"), {"ray": 2, "distance": 3}),
        (BitScan(points=2, within="head*"), {"bits": 7, "multiplier": 2}),
        (LayerScan(within="head*"), {"layer": 1, "bits": 7}),
    ],
    ids=["plane", "square", "rays", "bits", "layers"],
)
def test_a_sample_is_complete(problem, scan, sizes) -> None:
    """Names, units and provenance are there, before the first point and at the end."""
    kept = []
    before = json.dumps(problem.provenance)
    dataset = scan.sample(problem, lambda dataset, done, total: kept.append(dict(dataset.attrs)))
    frozen = "frozen_test_loss_per_image" in dataset  # which measures each point once more
    assert frozen == (isinstance(scan, PlaneScan | RayScan) and scan.over == "scales")
    assert len(kept) == 1 + (1 + frozen) * np.prod(list(sizes.values()))
    assert kept[0] == dataset.attrs
    assert dataset.test_loss.sizes == sizes
    assert dataset.attrs["title"].startswith("fashion_vit")
    assert dataset.loss.attrs == {
        "long_name": "infoNCE against full precision",
        "units": "nats × 2τ",
    }
    assert dataset.test_loss.attrs == {"long_name": "cross entropy", "units": "nats"}
    assert all("long_name" in dataset[axis].attrs for axis in sizes if axis != "ray")
    said = configuration(dataset)
    assert said["model"] == "fashion_vit"
    for field in fields(scan):
        given = getattr(scan, field.name)
        assert field.name in said
        if given is not None and given != ():
            assert said[field.name] == given
    assert json.dumps(problem.provenance) == before, "one problem can be scanned many times"


def test_the_radius_says_how_it_was_chosen(problem) -> None:
    chosen = RayScan(points=2, rays=1, over="zero_points").sample(problem)
    said = configuration(chosen)
    assert (said["radius"], said["radius_is_auto"]) == (float(chosen.distance[-1]), True)
    given = RayScan(points=2, rays=1, over="zero_points", radius=said["radius"]).sample(problem)
    assert configuration(given)["radius_is_auto"] is False
    assert "radius_reached" not in configuration(given)
    assert given.drop_attrs().identical(chosen.drop_attrs())


# A Dataset of one's own --------------------------------------------------------------------------


def own():
    return sample_plane(PLANE, XS, YS, Toy(), ToyTest())


def test_a_dataset_without_names_draws_with_general_ones() -> None:
    dataset = own()
    info = plane_info(dataset, analyze(dataset))
    assert info.title == "Losses around the start"
    assert info.subtitle == "around the start · 4 calibration images · 5 test images"
    assert info.loss.quantity.label == "Calibration loss (calibration loss)"
    assert info.test_loss.quantity.measure == "cross entropy (nats)"
    assert info.x.label == "Step along x (lengths of the direction)"


def test_a_dataset_draws_with_its_own_names_and_units() -> None:
    dataset = own()
    dataset.attrs |= {"title": "A toy", "comment": "around (1, 1)"}
    dataset.loss.attrs |= {"long_name": "height", "units": "m"}
    dataset.x.attrs |= {"long_name": "To the east", "units": "km"}
    figure = draw(dataset)
    assert figure.get_suptitle().splitlines()[0] == "A toy"
    assert figure.get_suptitle().splitlines()[1].startswith("around (1, 1) · 4")
    assert "To the east\n(km)" in {axes.get_xlabel() for axes in figure.axes}
    assert "height (m)" in {axes.get_ylabel() for axes in figure.axes}
    page = interactive(dataset)
    assert page.panels[0].figures[0].layout.xaxis.title.text == "To the east (km)"
    assert page.title == "A toy"
    assert set(ORIGIN) == {"w", "fixed"}  # what moved has no model and no configuration


def test_figures_of_every_kind_are_drawn_by_one_function() -> None:
    for scan in (
        synthetic_scans.plane(),
        synthetic_scans.rays(),
        synthetic_scans.layers(),
        synthetic_scans.bits(),
    ):
        assert draw(scan).get_suptitle().startswith(scan.attrs["title"])
