import math

import pytest
import torch

from evolq.errors import InputError
from evolq.points import displace
from landscape.probes.slices import Line, Plane

ORIGIN = {
    "a.scale": torch.tensor([0.1, 2.0]),
    "a.zero_point": torch.tensor([3.0]),
    "fixed": torch.ones(2),
}
X = {"a.scale": torch.tensor([1.0, 0.0]), "a.zero_point": torch.tensor([1.0])}
Y = {"a.scale": torch.tensor([1.0, 1.0])}  # neither orthogonal to X nor over the same names


def test_the_origin_is_at_zero_exactly_and_points_are_complete():
    for at_zero in (Line(ORIGIN, X).at(0.0), Plane(ORIGIN, X, Y).at(0.0, 0.0)):
        assert at_zero.keys() == ORIGIN.keys()
        assert all(torch.equal(at_zero[name], ORIGIN[name]) for name in ORIGIN)


def test_coordinates_mean_steps_along_the_directions():
    point = Plane(ORIGIN, X, Y).at(0.5, -1.0)
    torch.testing.assert_close(
        point["a.scale"], torch.tensor([0.1 * math.exp(-0.5), 2.0 * math.exp(-1.0)])
    )
    assert point["a.zero_point"].item() == 3.5
    line = Line(ORIGIN, X).at(-2.0)
    torch.testing.assert_close(line["a.scale"], torch.tensor([0.1 * math.exp(-2.0), 2.0]))
    assert line["a.zero_point"].item() == 1.0


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.3, -0.7), (-2.0, 1.0)])
def test_projection_inverts_at_for_directions_at_any_angle(a, b):
    assert Plane(ORIGIN, X, Y).project(Plane(ORIGIN, X, Y).at(a, b)) == pytest.approx(
        (a, b, 0.0), abs=1e-6
    )
    assert Line(ORIGIN, X).project(Line(ORIGIN, X).at(a)) == pytest.approx((a, 0.0), abs=1e-6)


def test_the_distance_is_what_sticks_out_at_a_right_angle():
    normal = {"a.scale": torch.tensor([1.0, -1.0]), "a.zero_point": torch.tensor([-1.0])}  # of X, Y
    off = displace(Plane(ORIGIN, X, Y).at(0.3, -0.7), normal, 2.0)
    expected = (0.3, -0.7, 2 * math.sqrt(3))
    assert Plane(ORIGIN, X, Y).project(off) == pytest.approx(expected, abs=1e-6)
    elsewhere = ORIGIN | {"fixed": torch.tensor([4.0, 5.0])}
    assert Line(ORIGIN, X).project(elsewhere) == pytest.approx((0.0, 5.0))


def test_a_place_measures_by_the_typical_coordinate_that_the_plane_varies():
    plane = Plane(ORIGIN, X, Y)
    point = displace(displace(ORIGIN, X, 0.5), Y, 0.25) | {"fixed": torch.zeros(2)}
    length = math.sqrt(0.75**2 + 0.25**2 + 0.5**2)  # two scales and a zero point
    expected = (0.5, 0.25, 0.0, length / math.sqrt(3))
    assert plane.place(point) == pytest.approx(expected, abs=1e-6)
    normal = {"a.scale": torch.tensor([1.0, -1.0]), "a.zero_point": torch.tensor([-1.0])}
    assert plane.place(displace(ORIGIN, normal, 0.2)) == pytest.approx((0, 0, 0.2, 0.2), abs=1e-6)


def test_a_point_of_the_varied_names_alone_can_be_projected():
    point = Line(ORIGIN, X).at(0.25)
    varied = {name: point[name] for name in X}
    assert Line(ORIGIN, X).project(varied) == pytest.approx((0.25, 0.0), abs=1e-6)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({"a.scale": torch.zeros(2)}, "norm 0"),
        ({"a.scale": torch.tensor([1.0, math.nan])}, "norm nan"),
        ({"b.scale": torch.ones(1)}, "'b.scale'"),
    ],
)
def test_directions_that_span_nothing_are_refused(direction, message):
    with pytest.raises(InputError, match=message):
        Line(ORIGIN, direction)
    with pytest.raises(InputError, match=message):
        Plane(ORIGIN, X, direction)


def test_parallel_directions_are_refused():
    with pytest.raises(InputError, match="parallel"):
        Plane(ORIGIN, X, {name: -3 * value for name, value in X.items()})
