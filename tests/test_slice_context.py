"""What stands beside the minima of a slice: frozen codes, and ways out off the slice."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import synthetic_scans
import torch
from test_cliff_losses import SquaredLogits, losses_of, prepared
from test_cliff_scan import Test

from landscape.analysis import analyze
from landscape.findings import describe
from landscape.ledger import Ledger
from landscape.probes import escapes
from landscape.probes.cliff_losses import frozen
from landscape.probes.directions import orthogonal_pair
from landscape.probes.escapes import add_escapes
from landscape.probes.frozen_null import add_frozen, can_freeze
from landscape.probes.sampling import axis, sample_plane, sample_rays
from landscape.probes.slices import Line, Plane
from landscape.slice_analysis import analyze_escapes, analyze_frozen


def plane_of(matching, within="*.weight.scale", scheme="weights"):
    network, line = prepared(matching, within, scheme)
    moving = {name: line.origin[name] for name in line.direction}
    generator = torch.Generator().manual_seed(0)
    return network, Plane(line.origin, *orthogonal_pair(moving, generator))


def test_at_frozen_codes_each_point_has_the_codes_of_the_start():
    network, plane = plane_of(False)
    grid = axis(0.2, 3)
    found = sample_plane(plane, grid, grid[:2], SquaredLogits(network), Test(network))
    add_frozen(found, plane, network, Test(network))
    assert found.frozen_test_loss_per_image.dims == found.test_loss_per_image.dims
    for row, column in ((0, 0), (1, 2)):
        point = plane.at(grid[column], grid[row])
        wanted = losses_of(network, frozen(network, plane.origin, point))
        held = found.frozen_test_loss_per_image[row, column]
        np.testing.assert_allclose(held, wanted, rtol=1e-5)
        assert np.abs(held - found.test_loss_per_image[row, column]).max() > 1e-3


def test_with_matched_moments_weights_alone_are_flat_at_frozen_codes():
    network, plane = plane_of(True)
    line = Line(plane.origin, plane.x)
    found = sample_rays([line], axis(0.2, 5), SquaredLogits(network), Test(network))
    add_frozen(found, (line,), network, Test(network))
    held = found.frozen_test_loss_per_image
    np.testing.assert_array_equal(held, held.isel(distance=[2]).values.repeat(5, 1))
    said = analyze_frozen(found)
    assert said.step_share == 0
    assert said.ignored == 1


def test_scales_of_activations_alone_have_no_codes_of_weights_to_freeze():
    network, line = prepared(False, "fc1.input.scale", "linear")
    assert not can_freeze(network, (line,))
    network, plane = plane_of(False)
    assert can_freeze(network, plane)


class Bowl:
    """Per image the squared distance of three scales from where it is lowest, plus the image's."""

    def __init__(self, lowest, images, test=False):
        self.lowest, self.images, self.test, self.evaluations = lowest, images, test, 0

    def vary(self, names, at):
        return self

    def per_image(self, point):
        self.evaluations += 1
        logs = torch.log(point["a.scale"].double())
        values = ((logs - self.lowest) ** 2).sum() + 0.01 * torch.arange(self.images)
        return (values, values < 1) if self.test else values


def bowl(lowest):
    lowest = torch.tensor(lowest, dtype=torch.float64)
    origin = {"a.scale": torch.ones(3)}
    root = 3**0.5
    x, y = ({"a.scale": root * torch.eye(3)[k]} for k in (0, 1))
    plane = Plane(origin, x, y)
    losses = Bowl(lowest, 20), Bowl(lowest, 20, test=True)
    grid = axis(0.2, 5)
    return sample_plane(plane, grid, grid, *losses), plane, origin, losses


def escaped(lowest, **more):
    scan, plane, origin, losses = bowl(lowest)
    generator = torch.Generator().manual_seed(1)
    return add_escapes(scan, plane, origin, "none", *losses, 6, generator, **more), losses


def test_descents_leave_a_minimum_that_the_slice_alone_has():
    found, _ = escaped((0.0, 0.0, 0.5))
    (said,) = analyze_escapes(found, floor=0.0)
    assert said.coordinates == {"x": 0.0, "y": 0.0}
    # one direction is left, and it goes up in one sense: every descent takes the other
    assert (said.descents, said.lower, said.escaped) == (6, 6, 6)
    # 0.025 root 3, doubled until the loss is no longer lower
    reached = np.abs(found.escape_distance.values) * 3**0.5
    np.testing.assert_allclose(reached, 8 * 0.025 * 3**0.5, rtol=1e-5)
    wanted = (reached[0, 0] - 0.5) ** 2 - 0.25
    assert said.change == pytest.approx(wanted, rel=1e-4)
    assert said.loss_change == pytest.approx(wanted, rel=1e-4)
    (below,) = analyze_escapes(found, floor=abs(wanted))
    assert below.escaped == 0, "not beyond the numerical noise of a difference"
    rows = {row.name: row for row in describe(found, analyze(found))}
    assert rows["Ways out of a minimum"].value == "6 of 6"


def test_no_descent_leaves_the_lowest_point_of_all():
    found, _ = escaped((0.0, 0.0, 0.0))
    assert (found.escape_distance == 0).all()
    assert (found.escape_change_per_image == 0).all()
    (said,) = analyze_escapes(found, floor=0.0)
    assert (said.lower, said.escaped) == (0, 0)


def test_descents_are_kept_in_the_ledger(tmp_path):
    ledger = Ledger(tmp_path / "scan.sqlite", {})
    first, _ = escaped((0.0, 0.0, 0.5), ledger=ledger)
    again, losses = escaped((0.0, 0.0, 0.5), ledger=ledger)
    assert again.equals(first)
    assert losses[0].evaluations == 26, "the scan's own: 25 points and the start"
    ledger.close()


def test_descents_are_the_same_with_others_that_work():
    with ThreadPoolExecutor(3) as executor:
        found, _ = escaped((0.0, 0.0, 0.5), executor=executor)
    assert found.equals(escaped((0.0, 0.0, 0.5))[0])


def test_a_descent_that_fails_is_named_and_the_scan_is_kept(monkeypatch):
    def descend(descents, number, index, step):
        if index == 2:
            raise MemoryError("no room")
        return done(descents, number, index, step)

    scan = bowl((0.0, 0.0, 0.5))[0]
    done = escapes._descend
    monkeypatch.setattr(escapes, "_descend", descend)
    found, _ = escaped((0.0, 0.0, 0.5))
    assert found.drop_attrs().equals(scan.drop_attrs())
    assert json.loads(found.attrs["failed"]) == {"escape 0 2": "MemoryError: no room"}


def test_a_slice_of_all_that_moves_has_no_way_out():
    scan, _, _, losses = bowl((0.0, 0.0, 0.0))
    plane = Plane({"a.scale": torch.ones(2)}, {"a.scale": torch.tensor([1.0, 0.0])},
                  {"a.scale": torch.tensor([0.0, 1.0])})  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    moving = {"a.scale": torch.ones(2)}
    assert add_escapes(scan, plane, moving, "none", *losses, 6, generator) is scan


def test_the_null_of_frozen_codes_is_said_beside_the_minima():
    scan = synthetic_scans.plane(columns=5, rows=5, noise=0.0)
    half = (
        scan.start_test_loss_per_image
        + (scan.test_loss_per_image - scan.start_test_loss_per_image) / 2
    )
    scan["frozen_test_loss_per_image"] = half.transpose(*scan.test_loss_per_image.dims)
    rows = {row.name: row for row in describe(scan, analyze(scan))}
    assert rows["Local minima, codes frozen"].value == "1"
    assert "steps have 25% of the variance" in rows["Local minima, codes frozen"].meaning
