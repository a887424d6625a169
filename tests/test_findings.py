import io
from dataclasses import replace

import numpy as np
import pytest
import synthetic_scans
from rich.console import Console
from scipy import stats

from landscape.analysis import analyze
from landscape.findings import describe, table
from landscape.statistics.minima import Minima, Minimum
from landscape.statistics.roughness import Reliability

LOWEST = Minimum({"y": 0.0, "x": 0.05}, 0.5, np.inf, np.nan, 1, False)
ON_EDGE = Minimum({"y": 0.05, "x": -0.1}, 0.6, 0.1, 0.01, 1, True)


def minima(*found, below=0):
    return Minima(found, below, excluded=0, connectivity=8, threshold=None, sigmas=4.0)


def reliability(full):
    return Reliability(half=full / (2 - full), low=0.1, high=0.4, full=full, images=40)


def rows(scan, **known):
    """Return the table of a scan by name, with some results replaced by known ones."""
    return {row.name: row for row in describe(scan, replace(analyze(scan), **known))}


def test_the_start_has_standard_errors():
    scan = synthetic_scans.plane()
    found = rows(scan)
    losses = scan.start_test_loss_per_image.values
    low, high = stats.t.interval(0.95, 39, losses.mean(), stats.sem(losses))
    row = found["Test loss at the start"]
    assert row.value == f"{losses.mean():.4f}"
    assert row.meaning == f"of 40 test images; {low:.4f} to {high:.4f} (95 %)"
    right = int(scan.start_test_correct_per_image.values.sum())
    row = found["Test accuracy at the start"]
    assert row.value == f"{right / 40:.1%}"
    bounds = stats.binomtest(right, 40).proportion_ci(0.95, "exact")
    assert row.meaning == f"of 40 test images; {bounds.low:.1%} to {bounds.high:.1%} (95 %)"
    calibration = float(scan.start_loss_per_image.mean())
    assert found["Calibration loss at the start"].value == f"{calibration:.4f}"


def test_points_without_a_value_are_counted():
    scan = synthetic_scans.plane(columns=5, rows=3)
    assert rows(scan)["Points measured"][1:] == ("15 of 15", "every loss is finite")
    synthetic_scans.spoil(scan, x=0, y=0)
    synthetic_scans.spoil(scan, np.inf, x=1, y=0)
    synthetic_scans.forget(scan, x=4, y=0)
    assert rows(scan)["Points measured"][1:] == (
        "12 of 15",
        "without 2 with a loss that is not finite and 1 not computed",
    )


def test_the_lowest_point_is_finite_and_has_a_paired_error():
    scan = synthetic_scans.plane(columns=5, rows=3)
    synthetic_scans.forget(scan, x=4, y=0)  # its -1 is not the lowest loss
    scan["test_loss_per_image"][{"x": 1, "y": 2}] -= 0.5
    scan["test_loss"][{"x": 1, "y": 2}] -= 0.5
    change = scan.test_loss_per_image.isel(x=1, y=2) - scan.start_test_loss_per_image
    error = float(change.std(ddof=1)) / np.sqrt(40)
    found = rows(scan)["Lowest test loss"]
    assert found.value == f"{float(scan.test_loss[2, 1]):.4f}"
    assert found.meaning == (
        f"at x = -0.05, y = 0.05: {float(change.mean()):+.4f} ± {error:.4f} from the start, "
        f"clearly lower (all points at once: {analyze(scan).critical.lower:.1f} standard errors); "
        "picked as the best of 14: expect less on other images"
    )


def test_a_scan_without_a_finite_point_is_described():
    scan = synthetic_scans.plane()
    synthetic_scans.spoil(scan)
    found = rows(scan)
    assert "Lowest test loss" not in found
    assert found["Points measured"].value == "0 of 15"
    assert found["Local minima above the noise"][1:] == ("none", "no point is finite")
    assert found["Total variation / range"].meaning == "too few finite points to tell"
    for kind in ("the network's", "sampling noise"):
        row = found[f"Jaggedness: {kind}"]
        assert row[1:] == ("not known", "nothing varies between neighbors")


def test_minima_are_counted_with_and_without_noise():
    found = rows(synthetic_scans.plane(), minima=minima(LOWEST, ON_EDGE, below=11))
    assert found["Local minima above the noise"][1:] == (
        "2",
        "the lowest point, which always counts, and 1 deeper than 4 standard errors; "
        "1 on the edge of the scan: the loss may fall further outside",
    )
    assert found["Local minima, noise ignored"].value == "13"
    assert found["Local minima, noise ignored"].meaning.startswith("11 of them")


def test_each_ray_has_a_lowest_point():
    found = rows(synthetic_scans.rays(), minima=minima(LOWEST, LOWEST))
    assert (
        found["Local minima above the noise"].meaning
        == "the lowest point of each ray, which always counts, and no other: none is deeper than "
        "4 standard errors"
    )


@pytest.mark.parametrize(
    ("full", "share", "words"),
    [
        (-0.1, "0%", "mostly sampling noise: "),
        (0.1, "10%", "mostly sampling noise: "),
        (0.5, "50%", "partly the network, partly sampling noise: "),
        (0.9, "90%", "mostly the network's own: "),
    ],
)
def test_the_first_line_says_how_much_is_the_network_s(full, share, words):
    scan = synthetic_scans.plane()
    known = replace(analyze(scan), reliability=reliability(full))
    network, sampling, numerical, *_ = describe(scan, known)
    assert network.name == "Jaggedness: the network's"
    assert network.value == share
    assert network.meaning.startswith(words)
    assert "18% to 57% (95 %)" in network.meaning  # 2 r / (1 + r) of 0.1 and 0.4
    assert sampling.value == f"{1 - max(full, 0):.0%}"
    # what 40 others would show of it, and how many would do
    assert f"other 40 test images would show {max(full, 0) ** 2:.0%} of" in sampling.meaning
    if full == 0.5:
        assert "; about 360 images would make" in sampling.meaning
    assert numerical.value == "not measured"


def test_numerical_noise_stands_beside():
    scan = synthetic_scans.with_repeats(synthetic_scans.plane())
    found = analyze(scan)
    row = rows(scan)["Jaggedness: numerical noise"]
    assert f"{found.test_loss_floor.mean_loss.estimate:.2g} (" in row.meaning
    assert row.value == "under 0.1%"
    assert "numerical noise" in rows(scan)["Calibration loss at the start"].meaning


def test_rows_do_not_contradict_each_other():
    scan = synthetic_scans.plane()
    two = rows(scan, minima=minima(LOWEST, ON_EDGE), variation=1.5)["Total variation / range"]
    assert two.meaning.startswith("few turns along each line, but 1 more minima")
    for name in ("test_loss", "test_loss_per_image"):
        scan[name][:] = 1.0
    flat = rows(scan)["Total variation / range"]
    assert flat[1:] == ("none", "flat: every point has the same loss, but for rounding")


def test_one_test_image_has_no_error():
    scan = synthetic_scans.plane(images=1)
    found = rows(scan)
    assert "nan" not in repr(found)
    assert found["Test loss at the start"].meaning == "of one test image: no error is known"


def test_nothing_measured_has_no_minima():
    scan = synthetic_scans.plane(columns=2, rows=2)
    for column in range(2):
        for row in range(2):
            synthetic_scans.forget(scan, x=column, y=row)
    found = rows(scan)
    assert found["Local minima above the noise"][1:] == ("none", "nothing was measured")
    assert "nan" not in repr(found)


@pytest.mark.parametrize(
    ("variation", "word"), [(1.0, "smooth"), (2.1, "smooth"), (3.0, "uneven"), (6.0, "jagged")]
)
def test_reading_of_the_total_variation(variation, word):
    found = rows(synthetic_scans.plane(), variation=variation)["Total variation / range"]
    assert found.value == f"{variation:.2f}"
    assert found.meaning.startswith(word)


def test_pure_noise_is_called_noise():
    scan = synthetic_scans.plane(columns=11, rows=11, images=100, noise=1.0)
    noise = np.random.default_rng(3).standard_normal((11, 11, 100))
    scan["test_loss_per_image"][:] = scan.start_test_loss_per_image.values + noise
    scan["test_loss"] = scan.test_loss_per_image.mean("image")
    found = rows(scan)
    assert found["Jaggedness: the network's"].meaning.startswith("mostly sampling noise")
    assert "and no other" in found["Local minima above the noise"].meaning


def test_the_table_shows_every_row():
    scan = synthetic_scans.plane()
    found = describe(scan, analyze(scan))
    console = Console(width=80, file=io.StringIO())
    console.print(table(found))
    text = console.file.getvalue()
    for row in found:
        assert row.name in text
        assert row.value in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_walks_are_described_by_where_they_end():
    found = rows(synthetic_scans.walks(count=3, steps=8, noise=0.0))
    row = found["Test loss at the end of walks"]
    assert row.value == "+12.0000"
    assert "mean of 3 after 8 steps; single walks +8.000 to +16.000" in row.meaning
    assert "over walks and images" in found["Autocorrelation"].meaning
    assert not any("minima" in name for name in found)


def test_losses_that_are_equal_but_for_rounding_are_flat_and_have_no_reliability():
    scan = synthetic_scans.plane(columns=5, rows=5)
    rounding = 1e-7 * np.random.default_rng(0).standard_normal((5, 5, 1))
    same = scan.start_test_loss_per_image.values * (1 + rounding)
    scan["test_loss_per_image"][:] = same
    scan["test_loss"][:] = same.mean(-1)
    found = rows(scan)
    assert found["Total variation / range"].value == "none"
    assert found["Jaggedness: the network's"][1:] == (
        "not known",
        "nothing varies between neighbors",
    )


def test_a_minimum_beside_a_hole_is_not_on_the_edge():
    scan = synthetic_scans.plane(columns=5, rows=5)
    x, y = (int(i) for i in np.unravel_index(12, (5, 5)))
    scan["test_loss"][{"x": x, "y": y}] = -1.0
    for column in range(5):
        for row in range(5):
            if (column, row) != (x, y) and max(abs(column - x), abs(row - y)) == 1:
                synthetic_scans.spoil(scan, x=column, y=row)
    found = rows(scan)["Local minima above the noise"].meaning
    assert "1 beside points that are not finite" in found
