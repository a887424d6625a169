import math

import pytest
import torch

from evolq.errors import InputError
from evolq.points import displace, displacement, inner, norm, role
from landscape.probes.directions import (
    DIRECTIONS,
    NORMALIZATIONS,
    between,
    normalize,
    orthogonal_pair,
    orthogonal_to,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def point():
    """Every role, per-channel and per-tensor entries, a convolution, a bias."""
    random = generator(1)
    return {
        "conv.weight": torch.randn(6, 3, 2, 2, generator=random),
        "fc.weight": 5 * torch.randn(4, 7, generator=random),
        "fc.bias": torch.randn(4, generator=random),
        "conv.weight.scale": 0.01 * torch.rand(6, 1, 1, 1, generator=random) + 1e-3,
        "fc.input.scale": torch.tensor(0.3),
        "conv.weight.zero_point": torch.arange(6.0).reshape(6, 1, 1, 1),
        "fc.input.zero_point": torch.tensor(7.0),
    }


def groups(direction, at, how):
    """All normalization groups as (entries, target norm), written out from the definition."""
    found = []
    for kind in ("scale", "zero_point"):
        entries = torch.cat([v.double().flatten() for n, v in direction.items() if role(n) == kind])
        found.append((entries, math.sqrt(entries.numel())))
    weights = {n: v.double() for n, v in direction.items() if role(n) == "weight"}
    if how == "none":
        entries = torch.cat([v.flatten() for v in weights.values()])
        found.append((entries, math.sqrt(entries.numel())))
    elif how == "layer":
        found += [(v.flatten(), float(at[n].double().norm())) for n, v in weights.items()]
    else:
        for name, value in weights.items():
            for i, part in enumerate(value):
                target = float(at[name][i].double().norm()) if value.dim() > 1 else 0.0
                found.append((part.flatten(), target))
    return found


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_a_draw_has_the_form_of_the_point_and_depends_on_the_seed_alone(kind):
    at = point() | {"int.bits": torch.tensor([4, 8])}
    drawn = DIRECTIONS[kind](at, generator(3))
    assert list(drawn) == list(at)
    assert all(drawn[n].shape == v.shape for n, v in at.items())
    assert all(drawn[n].dtype == torch.float32 for n in at)
    turned = DIRECTIONS[kind](dict(reversed(at.items())), generator(3))
    assert all(torch.equal(drawn[n], turned[n]) for n in at)
    other = DIRECTIONS[kind](at, generator(4))
    assert not torch.equal(drawn["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("kind", "second", "fourth"),
    [("gaussian", 1, 3), ("uniform", 1 / 3, 1 / 5), ("rademacher", 1, 1)],
)
def test_moments_of_the_draws(kind, second, fourth):
    drawn = DIRECTIONS[kind]({"w": torch.zeros(200_000, dtype=torch.float64)}, generator())["w"]
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float((drawn**2).mean()) == pytest.approx(second, rel=0.01)
    assert float((drawn**4).mean()) == pytest.approx(fourth, rel=0.03)


@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("kind", DIRECTIONS)
def test_orthogonal_pairs_have_right_norms_and_angles_in_every_group(kind, how):
    at = point()
    x, y = orthogonal_pair(at, generator(5), kind, how)
    for (a, target), (b, _) in zip(groups(x, at, how), groups(y, at, how), strict=True):
        assert float(a.norm()) == pytest.approx(target, rel=1e-6)
        assert float(b.norm()) == pytest.approx(target, rel=1e-6)
        assert abs(float(a @ b)) <= 1e-6 * target**2
    assert abs(inner(x, y)) < 1e-6 * norm(x) * norm(y)


def test_filter_normalization_is_the_formula_of_li_et_al():
    at = {n: v for n, v in point().items() if role(n) == "weight"}
    drawn = DIRECTIONS["gaussian"](at, generator(2))
    result = normalize(drawn, at, "filter")
    for name in ("conv.weight", "fc.weight"):
        for d, w, got in zip(drawn[name], at[name], result[name], strict=True):
            torch.testing.assert_close(got, d / d.norm() * w.norm())
    assert not result["fc.bias"].any()


def test_filters_that_are_zero_do_not_move():
    at = {"w": torch.tensor([[0.0, 0.0], [3.0, 4.0]])}
    moved = normalize({"w": torch.ones(2, 2)}, at, "filter")["w"]
    assert not moved[0].any()
    assert float(moved[1].norm()) == pytest.approx(5)
    still = normalize(
        {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, {"w": torch.ones(2, 2)}, "filter"
    )
    assert not still["w"][1].any()


def test_radius_is_a_typical_relative_step_of_scales_and_a_step_in_codes():
    at = point()
    end = displace(at, normalize(DIRECTIONS["uniform"](at, generator()), at), 0.02)
    step = displacement(at, end)
    for kind in ("scale", "zero_point"):
        entries = torch.cat([v.flatten() for n, v in step.items() if role(n) == kind])
        assert float((entries**2).mean().sqrt()) == pytest.approx(0.02, rel=1e-4)


def test_a_group_of_one_entry_leaves_nothing_for_the_second_direction():
    at = {"logit": torch.tensor([[2.0]]), "w": torch.ones(2, 3)}
    x, y = orthogonal_pair(at, generator(), how="layer")
    assert x["logit"].abs().item() == pytest.approx(2)
    assert y["logit"].item() == 0
    assert abs(inner(x, y)) < 1e-6


def test_orthogonal_to_a_direction_over_fewer_names():
    at = point()
    x = between(at, at | {"fc.weight": at["fc.weight"] + 1})
    x = {"fc.weight": x["fc.weight"]}
    y = orthogonal_to(x, DIRECTIONS["gaussian"](at, generator()), at)
    assert abs(inner(x, y)) < 1e-6 * norm(x) * norm(y)
    assert y["conv.weight"].any()


def test_rounding_is_no_direction():
    at = {"w": torch.randn(50, 30, generator=generator())}
    x = normalize(DIRECTIONS["gaussian"](at, generator(1)), at, "filter")
    parallel = {"w": x["w"].double() * torch.rand(50, 1, generator=generator(2)).double()}
    parallel["w"][0] += torch.arange(30)
    y = orthogonal_to(x, parallel, at, "filter")["w"]
    assert y[0].any()
    assert not y[1:].any()


def test_between_leads_from_start_to_end():
    start, end = point(), {n: v * 1.5 + (role(n) != "scale") for n, v in point().items()}
    arrived = displace(start, between(start, end))
    for name, value in end.items():
        torch.testing.assert_close(arrived[name], value)


def test_bad_input_is_named():
    at = {"bias": torch.ones(3)}
    with pytest.raises(InputError, match="gaussian, uniform"):
        orthogonal_pair(at, generator(), kind="normal")
    with pytest.raises(InputError, match="none, layer, filter"):
        orthogonal_pair(at, generator(), how="filters")
    with pytest.raises(InputError, match="nothing of the direction is left"):
        orthogonal_pair(at, generator(), how="filter")
    with pytest.raises(InputError, match=r"1 in all, a\.scale .* scan rays"):
        orthogonal_pair({"a.scale": torch.tensor(1.0)}, generator())
    with pytest.raises(InputError, match="'other'"):
        normalize({"other": torch.ones(3)}, at)
    with pytest.raises(InputError, match=r"\(2,\)"):
        normalize({"bias": torch.ones(2)}, at)
