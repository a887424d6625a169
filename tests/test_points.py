import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolq.errors import InputError
from evolq.points import (
    combine,
    displace,
    displacement,
    entry_name,
    fingerprint,
    inner,
    norm,
    role,
    select,
)

POINT = {
    "blocks.0.attn.qkv.weight": torch.tensor([[1.0, -2.0], [0.5, 3.0]]),
    "blocks.0.attn.qkv.weight.scale": torch.tensor([0.1, 0.2]),
    "blocks.0.attn.qkv.weight.zero_point": torch.tensor([8.0, 7.0]),
    "blocks.0.attn.qkv.weight.bits": torch.tensor(4.0),
    "blocks.1.mlp.fc1.input.scale": torch.tensor(0.05),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blocks.0.attn.qkv.weight", "weight"),
        ("blocks.0.attn.qkv.weight.scale", "scale"),
        ("a.zero_point", "zero_point"),
        ("bits", "bits"),
        ("scale.bias", "weight"),
        ("layer_scale", "weight"),
    ],
)
def test_role_is_the_last_component(name, expected):
    assert role(name) == expected


@pytest.mark.parametrize("name", ["scale", "blocks.0.act.factor", "0.bits", "a.zero_point"])
def test_no_parameter_of_a_model_takes_the_role_of_a_quantizers_entry(name):
    assert role(name) != "weight"
    assert entry_name(name) == f"{name}.weight"
    assert role(entry_name(name)) == "weight"


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "scale.bias", "layer_scale"])
def test_other_parameters_keep_their_names(name):
    assert entry_name(name) == name


def test_select_by_role_and_globs():
    assert set(select(POINT, roles=["scale"])) == {
        "blocks.0.attn.qkv.weight.scale",
        "blocks.1.mlp.fc1.input.scale",
    }
    assert set(select(POINT, roles=["scale"], within="blocks.1.*")) == {
        "blocks.1.mlp.fc1.input.scale"
    }
    assert set(select(POINT, exclude="*.weight*")) == {"blocks.1.mlp.fc1.input.scale"}


def test_select_says_what_names_look_like_when_nothing_is_left():
    with pytest.raises(InputError, match=r"blocks\.0\.attn"):
        select(POINT, within="layers.*")
    with pytest.raises(InputError, match="'scales'"):
        select(POINT, roles=["scales"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"within": "layers.*"}, "no scale of the Point is within 'layers.*'; 2 names"),
        ({"exclude": "*"}, "no scale of the Point is outside '*'; 2 names"),
        (
            {"within": "fc.*", "exclude": "*.fc.*"},
            "no scale of the Point is within 'fc.*' and is outside '*.fc.*'; 2 names",
        ),
    ],
)
def test_select_says_which_globs_leave_nothing(options, message):
    names = ("mlp.fc.weight", "mlp.fc.weight.scale", "mlp.fc.weight.bits", "mlp.fc.input.scale")
    point = dict.fromkeys(names, torch.ones(()))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        select(point, ["scale"], **options)
    assert str(error.value).endswith("mlp.fc.weight.scale, mlp.fc.input.scale")


def test_select_says_that_a_role_is_not_there():
    with pytest.raises(InputError, match="has no zero_point"):
        select({"weight": torch.ones(2)}, ["zero_point"])


def test_a_fingerprint_changes_with_each_value_name_and_shape():
    point = {"a": torch.ones(2, 2), "b.scale": torch.tensor(0.5)}
    same = {"b.scale": torch.tensor(0.5), "a": torch.ones(2, 2)}
    assert fingerprint(point) == fingerprint(same)
    others = (
        point | {"b.scale": torch.tensor(0.5000001)},
        point | {"a": torch.ones(4)},
        {"a": point["a"], "c.scale": point["b.scale"]},
    )
    assert len({fingerprint(p) for p in (point, *others)}) == 4


def test_scales_move_by_factors_and_everything_else_by_sums():
    direction = {name: torch.full_like(value, 2.0) for name, value in POINT.items()}
    moved = displace(POINT, direction, 0.5)
    torch.testing.assert_close(
        moved["blocks.0.attn.qkv.weight.scale"], torch.tensor([0.1, 0.2]) * math.e
    )
    torch.testing.assert_close(
        moved["blocks.0.attn.qkv.weight.zero_point"], torch.tensor([9.0, 8.0])
    )
    torch.testing.assert_close(moved["blocks.0.attn.qkv.weight.bits"], torch.tensor(5.0))
    torch.testing.assert_close(
        moved["blocks.0.attn.qkv.weight"], POINT["blocks.0.attn.qkv.weight"] + 1
    )


def test_names_without_direction_keep_their_tensors():
    name = "blocks.1.mlp.fc1.input.scale"
    moved = displace(POINT, {name: torch.tensor(1.0)})
    assert all(moved[other] is POINT[other] for other in POINT if other != name)
    with pytest.raises(InputError, match="'nowhere'"):
        displace(POINT, {"nowhere": torch.tensor(1.0)})


@given(st.floats(1e-4, 10), st.floats(-5, 5), st.floats(-3, 3))
def test_displacement_inverts_displace_and_scales_stay_positive(scale, step, zero_point):
    start = {"a.scale": torch.tensor([scale]), "a.zero_point": torch.tensor([zero_point])}
    direction = {"a.scale": torch.tensor([-1.0]), "a.zero_point": torch.tensor([2.0])}
    end = displace(start, direction, step)
    assert end["a.scale"] > 0
    back = displacement(start, end)
    for name, value in direction.items():
        torch.testing.assert_close(back[name], step * value, rtol=1e-5, atol=2e-6)


def test_displacement_needs_equal_names():
    with pytest.raises(InputError, match="missing"):
        displacement(POINT, {})


def test_combine_adds_what_is_missing_as_zero():
    a, b = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([10.0, 0.0]), "y": torch.ones(1)}
    total = combine((a, 2.0), (b, -1.0))
    assert total["x"].tolist() == [-8.0, 4.0]
    assert total["y"].tolist() == [-1.0]


def test_inner_and_norm_sum_in_double_precision():
    a = {"x": torch.full((3,), 3.0), "y": torch.tensor([4.0])}
    assert inner(a, {"x": torch.tensor([1.0, 0.0, 2.0])}) == 9.0
    assert norm({"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}) == 5.0
    many = {"x": torch.full((10_000_000,), 0.1)}
    assert inner(many, many) == pytest.approx(10_000_000 * float(torch.tensor(0.1)) ** 2, rel=1e-12)
