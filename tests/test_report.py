import io
from dataclasses import replace

import numpy as np
import pytest
import synthetic_scans
from rich.console import Console

from landscape.analysis import analyze
from landscape.report import describe, table
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
    error = losses.std(ddof=1) / np.sqrt(40)
    assert found["Test loss at the start"].value == f"{losses.mean():.4f} ± {error:.4f}"
    share = scan.start_test_correct_per_image.values.mean()
    error = np.sqrt(share * (1 - share) / 39)
    assert found["Test accuracy at the start"].value == f"{share:.1%} ± {error:.1%}"
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
        "clearly lower; picked as the best of 14: expect less on other images"
    )


def test_a_scan_without_a_finite_point_is_described():
    scan = synthetic_scans.plane()
    synthetic_scans.spoil(scan)
    found = rows(scan)
    assert "Lowest test loss" not in found
    assert found["Points measured"].value == "0 of 15"
    assert found["Local minima above the noise"][1:] == ("0", "no point is finite")
    assert found["Total variation / range"].meaning == "too few finite points to tell"
    assert found["Split-half reliability"].meaning.startswith("not known: nothing varies")


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
        == "the lowest point of each ray, which always counts, and no other"
    )


@pytest.mark.parametrize(
    ("full", "words"),
    [
        (-0.1, "mostly sampling noise: about 0% "),
        (0.1, "mostly sampling noise: about 10% "),
        (0.5, "partly the network, partly sampling noise: about 50% "),
        (0.9, "mostly the network's own: about 90% "),
    ],
)
def test_reading_of_the_reliability(full, words):
    found = rows(synthetic_scans.plane(), reliability=reliability(full))["Split-half reliability"]
    assert found.meaning.startswith(words)
    assert "another 40 test images" in found.meaning
    assert "0.10 to 0.40" in found.meaning
    assert found.value == f"{full / (2 - full):.2f}"


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
    assert found["Split-half reliability"].meaning.startswith("mostly sampling noise")
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
