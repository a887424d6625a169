"""The report of stored runs, and pairs of planes, against what was put into them."""

import json
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
from pages import unpacked
from synthetic_comparisons import comparison

from evolq.__main__ import _Curve
from evolq.errors import InputError
from evolq.optimizers.evolve import Iterate
from landscape import report, store
from landscape.analysis import analyze, with_analysis
from landscape.pairs import pair_planes
from landscape.plots import html, sections_of
from landscape.plots.search import search_section
from landscape.runs import load_run

# What `python -m evolq` writes, little of it.
SEARCH = {
    **{
        f"{stage}_{what}": 0.5
        for stage in ("fp32", "start", "final")
        for what in ("accuracy", "loss")
    },
    "difference": 0.1,
    "difference_interval": [0.05, 0.15],
    "loss_difference": -0.1,
    "loss_difference_interval": [-0.2, -0.05],
    "fitness_evaluations": 7,
    "forward_passes": 5.0,
    "gain": 0.2,
    "jitter_gain": 0.01,
    "configuration": {
        **synthetic_scans.CONFIGURATION,
        "calibration_images": 9,
        "test_images": 8,
    },
    "hashes": {},
    "versions": {},
    "options": {"weight_bits": 4},
}


def stored(folder: Path, **runs) -> list[Path]:
    """Write runs as their commands do, in folders of their own."""
    for name, content in runs.items():
        (folder / name).mkdir()
        if isinstance(content, dict):
            (folder / name / "report.json").write_text(json.dumps(content))
        elif "optimizer" in content.dims:
            store.save(content, folder / name / "compare.nc", "compare")
        else:
            whole = with_analysis(content, analyze(content))
            store.save(whole, folder / name / "scan.nc")
    return [folder / name for name in runs]


def shifted(by: float = 0.3):
    """Return the plane of another network, higher by as much at one point, on every image."""
    scan = synthetic_scans.plane()
    scan["test_loss_per_image"][{"y": 1, "x": 3}] += by
    scan["test_loss"] = scan.test_loss_per_image.mean("image")
    return scan


def with_hashes(scan, **hashes):
    about = json.loads(scan.attrs["provenance"])
    scan.attrs["provenance"] = json.dumps(about | {"hashes": about["hashes"] | hashes})
    return scan


def test_every_kind_of_run_is_in_one_file(command_line_of, tmp_path) -> None:
    runs = stored(
        tmp_path,
        first=synthetic_scans.plane(),
        second=shifted(),
        bits=synthetic_scans.bits(),
        compared=comparison(),
        searched=SEARCH,
    )
    run = command_line_of(report.COMMAND)
    code, out, err = run(*map(str, runs), "--out", "all.html")
    assert (code, out, err) == (0, "Written to all.html\n", "")
    page = Path("all.html").read_text()
    for name in ("first", "second", "bits", "compared", "searched"):
        assert f">{name}: fashion_vit" in page
    assert "second beside first" in page
    assert "landscape.compare --like compare.nc" not in page, "that run has no options"
    assert "python -m evolq --like report.json" in page
    code, _, err = run(str(runs[0]), "--out", "all.html")
    assert (code, err) == (
        2,
        "error: --out all.html exists; choose another file or give --overwrite\n",
    )
    assert run(str(runs[0]), "--out", "all.html", "--overwrite")[0] == 0


def test_what_is_no_run_is_one_line(command_line_of, tmp_path) -> None:
    run = command_line_of(report.COMMAND)
    assert run()[::2] == (2, "error: Parameter RUNS requires an argument.\n")
    Path("empty").mkdir()
    assert "holds no run" in run("empty")[2]
    Path("empty/scan.sqlite").touch()
    assert "unfinished; its command with --resume --out empty finishes it" in run("empty")[2]
    assert "there is no nowhere" in run("nowhere")[2]
    Path("report.json").write_text("{}")
    with pytest.raises(InputError, match="lacks `final_accuracy`"):
        load_run(Path("report.json"))


def test_arrays_are_in_a_page_once(tmp_path) -> None:
    (path,) = stored(tmp_path, a=synthetic_scans.plane(columns=9, rows=9))
    run = load_run(path)
    page = html(sections_of([run]))
    content = json.loads(unpacked(page, "data"))
    arrays = content["arrays"]
    assert len(arrays) == len(set(arrays))

    def references(part):
        if isinstance(part, dict) and "dtype" in part and "array" in part:
            yield part["array"]
        elif isinstance(part, dict | list):
            for item in part.values() if isinstance(part, dict) else part:
                yield from references(item)

    (section,) = content["sections"]
    loss = section["table"]["test_loss"]["array"]
    used = list(references(section))
    assert used.count(loss) >= 4, "map, surface, contours, table"
    assert {*used} == {*range(len(arrays))} - {*references(content["templates"])}


def test_the_difference_of_two_planes_is_paired_image_by_image() -> None:
    pair = pair_planes(synthetic_scans.plane(), shifted())
    assert (pair.same_directions, pair.same_points, pair.same_images) == (True, True, True)
    expected = np.zeros((3, 5))
    expected[1, 3] = 0.3
    np.testing.assert_allclose(pair.differences.difference, expected, atol=1e-12)
    np.testing.assert_allclose(pair.differences.error, 0, atol=1e-12)
    assert pair.differences.band.values[1, 3] == 4
    assert (pair.differences.band.values[0] == 2).all()
    assert pair.start.estimate == 0
    assert pair.settings == ()


def test_noise_between_two_planes_is_not_told_apart() -> None:
    quiet = synthetic_scans.plane(images=100)
    generator = np.random.default_rng(3)
    apart = 0
    for _ in range(40):
        other = quiet.copy(deep=True)
        noise = generator.standard_normal(other.test_loss_per_image.shape)
        other["test_loss_per_image"] = other.test_loss_per_image + noise
        band = pair_planes(quiet, other).differences.band
        apart += bool(((band == 0) | (band == 4)).any())
    assert apart <= 6, "5 % of such pairs: more than 6 of 40 in 1 of 200 tests"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (with_hashes(shifted(), directions="others"), (False, True, True)),
        (with_hashes(shifted(), test_images="others"), (True, True, False)),
        (synthetic_scans.plane(columns=7), (True, False, True)),
        (shifted().assign_attrs(provenance="{}"), (None, True, None)),
    ],
    ids=["directions", "images", "points", "unknown"],
)
def test_planes_that_cannot_be_paired_have_no_difference(other, expected) -> None:
    pair = pair_planes(synthetic_scans.plane(), other)
    assert (pair.same_directions, pair.same_points, pair.same_images) == expected
    assert pair.differences is None
    assert (pair.start is None) == (not expected[2])


def test_what_differs_between_two_runs_is_named() -> None:
    other = with_hashes(shifted(), start="b")
    other.attrs["provenance"] = other.attrs["provenance"].replace('bits": 4', 'bits": 3')
    pair = pair_planes(synthetic_scans.plane(), other)
    assert pair.settings == (("weight_bits", "4", "3"), ("hash of start", "not given", "b"))


def test_the_curve_of_a_search_outlasts_a_break(tmp_path) -> None:
    def step(cost: float, loss: float) -> Iterate:
        return Iterate(int(cost), cost, loss, {}, "")

    first = _Curve(tmp_path)
    first.add(step(1, 3.0))
    assert not any(tmp_path.iterdir()), "nothing before there is a state to go on from"
    first.state.touch()
    first.add(step(2, 2.0))
    again = _Curve(tmp_path)
    for iterate in (step(1, 3.0), step(2, 2.0), step(3, 1.5)):
        again.add(iterate)
    assert again.columns == {"cost": [1, 2, 3], "evaluations": [1, 2, 3], "loss": [3.0, 2.0, 1.5]}
    found = search_section(SEARCH | {"curve": again.columns})
    (figure,) = found.panels[0].figures
    assert figure.data[0].y == (3.0, 2.0, 1.5)
    assert found.table["cost"].tolist() == [1, 2, 3]
