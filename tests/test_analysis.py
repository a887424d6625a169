"""What a scan found, against the statistics themselves, and through a file."""

import json
from dataclasses import fields

import numpy as np
import pytest
import synthetic_scans

from evolq.errors import InputError
from landscape import store
from landscape.analysis import Analysis, analyze, bands, read_analysis, with_analysis
from landscape.findings import describe
from landscape.plots import draw
from landscape.statistics.minima import significant_minima
from landscape.statistics.roughness import (
    split_half_reliability,
    step_variance,
    total_variation,
)

SCANS = {
    "plane": synthetic_scans.plane,
    "rays": synthetic_scans.rays,
    "walks": synthetic_scans.walks,
    "layers": synthetic_scans.layers,
    "bits": synthetic_scans.bits,
}


def test_statistics_are_those_of_the_library() -> None:
    scan = synthetic_scans.plane()
    found = analyze(scan)
    assert repr(found.minima) == repr(significant_minima(scan))  # NaN differs from itself
    assert found.variation == total_variation(scan.test_loss)
    assert found.reliability == split_half_reliability(scan.test_loss_per_image)


def test_the_lowest_point_is_a_finite_one() -> None:
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.forget(scan, x=4, y=0)  # its -1 is not the lowest loss
    scan["test_loss_per_image"][{"x": 1, "y": 2}] -= 0.5
    scan["test_loss"][{"x": 1, "y": 2}] -= 0.5
    lowest = analyze(scan).lowest
    change = (scan.test_loss_per_image - scan.start_test_loss_per_image).isel(x=1, y=2)
    assert lowest.coordinates == {"x": pytest.approx(-0.05), "y": pytest.approx(0.05)}
    assert lowest.change.value == pytest.approx(float(change.mean()))
    assert lowest.change.error == pytest.approx(float(change.std(ddof=1)) / np.sqrt(40))


def test_the_fewest_bits_are_before_the_first_clear_rise() -> None:
    scan = synthetic_scans.layers()  # b rises by 1 at 3 bits, c by 0.5 at 2 bits
    assert analyze(scan).fewest_bits == {"a": 2, "b": 4, "c": 3}
    synthetic_scans.spoil(scan, layer=1, bits=2)
    assert analyze(scan).fewest_bits == {"a": 2, "c": 3}, "not even the most bits are fine"


def test_the_best_factor_has_the_lowest_calibration_loss() -> None:
    scan = synthetic_scans.bits()
    assert analyze(scan).best_factors == {2: 0.5, 3: 1.0, 4: 1.0}
    synthetic_scans.forget(scan, bits=1, multiplier=1)  # its -1 is not the lowest loss
    synthetic_scans.spoil(scan, -np.inf, bits=2, multiplier=1)
    synthetic_scans.spoil(scan, bits=0)
    assert analyze(scan).best_factors == {3: 2.0, 4: 2.0}
    assert draw(scan).get_suptitle()
    assert any("at 2 bits" in row.name for row in describe(scan, analyze(scan)))


def test_changes_do_not_depend_on_the_order_of_dimensions() -> None:
    scan = synthetic_scans.plane()
    turned = analyze(scan.transpose("image", "x", "calibration_image", "y")).changes
    assert turned.transpose("y", "x").equals(analyze(scan).changes.transpose("y", "x"))


@pytest.mark.parametrize("kind", SCANS)
def test_an_analysis_is_read_from_the_file_as_it_was(kind, tmp_path) -> None:
    scan = SCANS[kind]()
    if kind in ("plane", "rays", "walks"):  # infinities, NaN and holes among its numbers
        synthetic_scans.spoil(scan, np.inf, **dict.fromkeys(scan.test_loss.dims, 0))
    scan = synthetic_scans.with_repeats(scan)
    found = analyze(scan)
    store.save(with_analysis(scan, found), tmp_path / "scan.nc")
    loaded = store.load(tmp_path / "scan.nc")
    again = read_analysis(loaded)
    for field in fields(Analysis):
        if field.name != "changes":
            # NaN differs from itself, its representation does not
            assert repr(getattr(again, field.name)) == repr(getattr(found, field.name))
    assert again.changes.equals(found.changes)
    assert read_analysis(with_analysis(loaded, again)).changes.equals(found.changes)
    json.loads(loaded.attrs["analysis"], parse_constant=pytest.fail)  # strict JSON
    assert len(loaded.attrs["analysis"]) < 25_000  # up to 999 replicates of the threshold


def test_a_scan_without_an_analysis_says_so() -> None:
    with pytest.raises(InputError, match=r"landscape\.analyze"):
        read_analysis(synthetic_scans.plane())


def test_bands_at_their_edges() -> None:
    changes = [-4.1, -3.5, -2.0, 0.0, 1.9, 2.0, 3.5]
    assert bands(changes, 1.0, 3.5).tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert bands(changes, 1.0, np.inf).tolist() == [1, 1, 2, 2, 2, 3, 3], "too few images"
    assert bands(0.0, 0.0, 3.5) == 2  # the start
    assert bands(0.5, 0.0, 3.5) == 4  # every image agrees
    assert np.isnan(bands([np.nan, np.inf], 1.0, 3.5)).all()


def test_the_critical_value_is_that_of_all_points_together() -> None:
    scan = synthetic_scans.plane(columns=11, rows=11)
    found = analyze(scan).critical
    assert 2 < found.lower < found.both  # of one side, and of both
    few = analyze(synthetic_scans.plane(images=9))
    assert np.isinf(few.critical.both)
    assert few.counts is None


def test_the_floor_is_that_of_the_repeats() -> None:
    scan = synthetic_scans.plane(noise=0.0)
    assert analyze(scan).test_loss_floor is None
    repeated = synthetic_scans.with_repeats(scan, noise=0.3, count=50)
    found = analyze(repeated)
    # standard deviation of a mean over 40 images; that of 50 repeats has an error of 10 %
    assert found.test_loss_floor.mean_loss.estimate == pytest.approx(0.3 / 40**0.5, rel=0.3)
    variance = step_variance(scan.test_loss)
    share = 2 * found.test_loss_floor.mean_loss.estimate**2 / variance
    assert found.numerical_share.estimate == pytest.approx(share)
    steps = np.concatenate([np.diff(scan.test_loss, axis=axis).ravel() for axis in (0, 1)])
    assert variance == pytest.approx(steps.var())
    assert set(found.nulls) == {"sampling", "smooth", "numerical"}


def test_minima_are_counted_at_every_threshold() -> None:
    scan = synthetic_scans.plane(columns=11, rows=11, noise=2.0)
    found = analyze(scan)
    assert found.counts.count[0] == len(found.minima.minima) + found.minima.below
    assert found.counts.count[-1] == 1
    assert (found.counts.low <= found.counts.count).all()
    assert (found.counts.count <= found.counts.high).all()


def test_points_that_are_not_computed_have_no_part_in_the_analysis() -> None:
    scan = synthetic_scans.plane()
    for column in range(5):
        for row in range(3):
            synthetic_scans.forget(scan, x=column, y=row)
    found = analyze(scan)
    assert found.not_computed == 15
    assert not found.minima.minima
    assert found.lowest is None


def test_names_and_units_stay_with_the_analysis() -> None:
    scan = synthetic_scans.plane()
    assert with_analysis(scan, analyze(scan)).x.attrs == scan.x.attrs != {}


def test_walks_have_no_minima_but_a_correlogram_over_walks_and_images() -> None:
    scan = synthetic_scans.walks(count=4, steps=12, noise=0.0)
    found = analyze(scan)
    assert found.minima is None
    assert found.counts is None
    assert found.lowest.coordinates == {"step": 0.0, "walk": 0.0}  # they climb
    assert found.correlogram.lag.tolist() == [1, 2, 3, 4, 5, 6]
    losses = scan.test_loss.values - scan.test_loss.values.mean()
    for lag, value in zip((1, 4), found.correlogram.value[[0, 3]], strict=True):
        first, second = losses[:, :-lag], losses[:, lag:]
        wanted = 2 * (first * second).mean() / ((first**2).mean() + (second**2).mean())
        assert value == pytest.approx(wanted)
    assert found.ruggedness["autocorrelation"].value == pytest.approx(found.correlogram.value[0])
    # all images alike: the interval is that of the walks, which climb differently
    assert found.correlogram.low[0] < found.correlogram.high[0]
    step = found.ruggedness["correlation_length"].value * np.log(found.correlogram.value[0])
    assert step == pytest.approx(-0.1)  # the length of a step, from the positions
    assert found.changes.mean_test_loss_change[-1] == pytest.approx(12 * 1.5)
