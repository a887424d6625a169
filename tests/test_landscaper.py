"""Planes as Landscaper reads them (its own package is tried if it is installed)."""

import numpy as np
import pytest
import xarray as xr

import landscape
from evolq.errors import InputError
from landscape.statistics.merge_tree import merge_tree

X, Y = np.linspace(-2, 2, 9), np.linspace(-1, 3, 9)  # two axes to be told apart


def wells(noise: float = 0.0) -> xr.Dataset:
    """Return a plane with two wells at x = -1 and 1, y = 0, the right one 0.2 higher."""
    loss = 0.3 * (X**2 - 1) ** 2 + Y[:, None] ** 2 + 0.1 * X
    loss += noise * np.random.default_rng(0).normal(size=loss.shape)
    return xr.Dataset({"test_loss": (("y", "x"), loss)}, {"x": X, "y": Y})


def test_each_loss_lies_at_its_coordinates(tmp_path):
    landscape.to_landscaper(wells().transpose(), tmp_path / "plane.npz")
    found = np.load(tmp_path / "plane.npz")
    ranges = found["coordinates"]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*ranges)], axis=1)  # as Landscaper does
    x, y = points[found["loss"].argmin()]
    assert (x, y) == (-1, 0)
    expected = 0.3 * (points[:, 0] ** 2 - 1) ** 2 + points[:, 1] ** 2 + 0.1 * points[:, 0]
    np.testing.assert_allclose(found["loss"].ravel(), expected)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda plane: plane, "plane.nc", "end in .npz"),
        (lambda plane: plane.isel(x=0), "plane.npz", "no plane"),
        (lambda plane: plane.drop_vars("test_loss"), "plane.npz", "no plane"),
        (lambda plane: plane.isel(x=slice(5)), "plane.npz", "not 5 and 9"),
        (lambda plane: plane.where(plane.x < 2), "plane.npz", "9 losses are not finite"),
    ],
)
def test_what_landscaper_cannot_read_is_refused(tmp_path, change, name, words):
    with pytest.raises(InputError, match=words):
        landscape.to_landscaper(change(wells()), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_landscaper_finds_the_same_minima_and_the_same_climb(tmp_path, noise):
    landscaper = pytest.importorskip("landscaper")
    plane = wells(noise)
    landscape.to_landscaper(plane, tmp_path / "plane.npz")
    theirs = landscaper.LossLandscape.load_from_npz(str(tmp_path / "plane.npz"))
    values = plane.test_loss.values
    ours = merge_tree(values[None], connectivity=4)
    assert set(theirs.get_sublevel_tree().leaves) == set(ours.minima.tolist())
    joining = ours.saddles >= 0
    heights = values.ravel()[ours.saddles[joining]] - values.ravel()[ours.minima[joining]]
    persistence = theirs.get_persistence()
    assert {int(point) for point in ours.minima} <= set(persistence)
    for minimum, height in zip(ours.minima[joining], heights, strict=True):
        assert persistence[int(minimum)] == pytest.approx(height, abs=1e-5)  # it keeps 6 digits
