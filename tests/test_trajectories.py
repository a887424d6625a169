"""Paths of optimizers, with coordinates known in closed form."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evolq.errors import InputError
from evolq.points import displace, inner, norm
from landscape.paths.trajectories import (
    measure_path,
    pca_plane,
    plane_through,
    project_path,
)
from landscape.probes.directions import orthogonal_pair
from landscape.probes.slices import Plane

START = {"a.scale": torch.tensor([1.0, 2.0]), "b.scale": torch.tensor(4.0), "w": torch.ones(3)}
NAMES = ("a.scale", "b.scale")
E1 = {"a.scale": torch.tensor([1.0, 0.0]), "b.scale": torch.tensor(0.0)}
E2 = {"a.scale": torch.tensor([0.0, 1.0]), "b.scale": torch.tensor(0.0)}
E3 = {"a.scale": torch.tensor([0.0, 0.0]), "b.scale": torch.tensor(1.0)}


def at(x: float, y: float = 0.0, z: float = 0.0):
    return displace(displace(displace(START, E1, x), E2, y), E3, z)


def path(*points, costs=None):
    return [
        SimpleNamespace(cost=cost, loss=10.0 - number, point=point)
        for number, (point, cost) in enumerate(
            zip(points, costs or range(1, len(points) + 1), strict=True)
        )
    ]


class Test:
    """A test loss that is the first scale, on three images; it counts its evaluations."""

    __test__ = False
    evaluations = 0

    def per_image(self, point):
        self.evaluations += 1
        values = point["a.scale"][0] * torch.tensor([1.0, 2.0, 3.0])
        return values, values < 2.5


def test_the_plane_through_three_points_holds_them():
    plane = plane_through(START, at(0.3), at(0.1, 0.2), NAMES)
    projected = project_path(path(START, at(0.3), at(0.1, 0.2), at(0, 0, 0.6)), plane)
    unit = math.sqrt(3)  # root mean square over three coordinates
    np.testing.assert_allclose(projected.x * unit, [0, 0.3, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(projected.y * unit, [0, 0, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(projected.distance * unit, [0, 0, 0, 0.6], atol=1e-6)
    lengths = [0, 0.3, math.hypot(0.1, 0.2), 0.6]
    np.testing.assert_allclose(projected.distance_from_start * unit, lengths, atol=1e-6)
    assert norm(plane.x) == pytest.approx(unit)
    assert inner(plane.x, plane.y) == pytest.approx(0, abs=1e-6)


def test_points_of_a_plane_have_the_types_of_the_start():
    planes = [
        plane_through(START, at(0.3), at(0.1, 0.2), NAMES),
        pca_plane(START, [[at(0.1, 0.1), at(0.5, 0.4), at(0.3, -0.2)]], NAMES),
    ]
    for plane in planes:
        assert {value.dtype for value in plane.at(0.1, 0.2).values()} == {torch.float32}


def test_coordinates_and_distance_add_up_to_the_length():
    generator = torch.Generator().manual_seed(0)
    plane = Plane(START, *orthogonal_pair({name: START[name] for name in NAMES}, generator))
    points = [at(*torch.randn(3, generator=generator).tolist()) for _ in range(5)]
    found = project_path(path(START, *points), plane)
    squares = found.x**2 + found.y**2 + found.distance**2
    np.testing.assert_allclose(squares, found.distance_from_start**2, rtol=1e-5, atol=1e-9)


def test_the_principal_plane_of_points_in_a_plane_is_that_plane():
    points = [at(0.1, 0.1), at(0.5, 0.4), at(0.3, -0.2), at(0.9, 0.1)]
    plane = pca_plane(START, [[START, *points]], NAMES)
    found = project_path(path(*points), plane)
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)
    # the first axis is the one of the longest second moment, towards the end of the path
    matrix = np.array([[0.1, 0.1], [0.5, 0.4], [0.3, -0.2], [0.9, 0.1]])
    _, _, axes = np.linalg.svd(matrix)
    expected = axes[0] * np.sign(axes[0] @ matrix[-1]) * math.sqrt(3)
    np.testing.assert_allclose(plane.x["a.scale"], expected, atol=1e-5)
    assert abs(inner(plane.x, plane.y)) < 1e-5


def test_paths_have_equal_weight_in_the_principal_plane():
    """A hundred Points along z weigh as much as one path along x that goes further."""
    short = [at(0, 0, 0.1 + 1e-4 * i) for i in range(100)]
    plane = pca_plane(START, [[at(0.2)], short, [at(0, 0.01)]], NAMES)
    assert abs(float(plane.x["a.scale"][0])) == pytest.approx(math.sqrt(3), rel=1e-3)
    assert abs(float(plane.y["b.scale"])) == pytest.approx(math.sqrt(3), rel=1e-3)


def test_planes_that_do_not_exist():
    with pytest.raises(InputError, match="random plane"):
        plane_through(START, at(0.1), at(0.2), NAMES)
    with pytest.raises(InputError, match="first end is the start"):
        plane_through(START, START, at(0.2), NAMES)
    with pytest.raises(InputError, match="random plane"):
        pca_plane(START, [[START, at(0.1), at(0.2)]], NAMES)
    with pytest.raises(InputError, match="random plane"):
        pca_plane(START, [[START]], NAMES)


def test_costs_losses_and_test_values():
    test = Test()
    middle = at(math.log(2))
    found = measure_path(path(START, middle, at(math.log(3)), costs=[1, 4, 9]), test)
    assert found.cost.values.tolist() == [1, 4, 9]
    assert found.loss.values.tolist() == [10, 9, 8]
    np.testing.assert_allclose(found.test_loss, [2, 4, 6], rtol=1e-6)
    np.testing.assert_allclose(found.test_accuracy, [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found.final_test_loss_per_image, [3, 6, 9], rtol=1e-6)
    assert found.start_test_correct_per_image.values.tolist() == [True, True, False]
    assert test.evaluations == 3


def test_equal_points_are_tested_once_and_long_paths_at_some_places():
    test = Test()
    better = at(0.1)
    found = measure_path(path(START, START, better, better), test)
    assert test.evaluations == 2
    assert found.test_loss.notnull().all()

    test = Test()
    points = [at(0.01 * i) for i in range(50)]
    found = measure_path(path(*points), test, points=5)
    assert test.evaluations == 5
    known = np.flatnonzero(found.test_loss.notnull())
    assert known[[0, -1]].tolist() == [0, 49]
    assert np.diff(known).max() <= 13, "evenly spaced"


def test_bad_paths():
    with pytest.raises(InputError, match="empty"):
        measure_path([], Test())
    with pytest.raises(InputError, match="not at 1 points"):
        measure_path(path(START), Test(), points=1)
