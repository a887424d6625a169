"""Minima of the nulls, against what is known of them."""

import numpy as np
import pytest
import synthetic_scans

from landscape.statistics.null_counts import NullCount, null_counts


def counts(scan, **options):
    return null_counts(scan, np.random.default_rng(0), **options)


def test_a_bowl_without_noise_has_one_minimum() -> None:
    scan = synthetic_scans.plane(columns=21, rows=21, noise=0.0)
    found = counts(scan, floor=0.0)
    assert found["smooth"] == found["numerical"] == NullCount(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("connectivity", "expected"),
    [(8, 19 * 19 / 9 + 4 * 19 / 6 + 4 / 4), (4, 19 * 19 / 5 + 4 * 19 / 4 + 4 / 3)],
)
def test_white_noise_has_a_minimum_where_none_of_the_neighbors_is_lower(
    connectivity, expected
) -> None:
    """One of 9 points in the middle, of 6 at an edge and of 4 in a corner; with 4: 5, 4, 3."""
    scan = synthetic_scans.plane(columns=21, rows=21, noise=1e6)  # the bowl is flat against it
    found = counts(scan, floor=1e6, connectivity=connectivity)
    for kind in ("sampling", "smooth", "numerical"):
        # the standard error of 99 grids is 0.5 %; replicates of one set of images share more
        assert found[kind].mean == pytest.approx(expected, rel=0.05)
        assert found[kind].low < expected < found[kind].high


def test_each_ray_has_a_minimum_of_its_own() -> None:
    found = counts(synthetic_scans.rays(count=4, noise=0.0))
    assert set(found) == {"sampling", "smooth"}
    assert found["smooth"].mean == 4


def test_points_that_are_not_finite_are_walls() -> None:
    scan = synthetic_scans.plane(columns=21, rows=21, noise=0.0)
    for row in range(21):
        synthetic_scans.spoil(scan, x=10, y=row)
    assert counts(scan, floor=0.0)["numerical"].mean == 2
    synthetic_scans.spoil(scan)
    assert counts(scan) == {}


def test_few_images_have_no_nulls() -> None:
    assert counts(synthetic_scans.plane(images=9)) == {}
