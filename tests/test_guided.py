"""Planes of a network without quantizers (Li et al. 2018), and directions that something leads."""

import copy
import math

import pytest
import torch
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Objective, predict
from evolq.network.quantized import quantize
from evolq.points import displace, inner, norm
from landscape.probes.directions import DIRECTIONS, normalize
from landscape.probes.guided import GUIDED, Guide, hessian, pca, towards
from landscape.probes.slices import Line, Plane


def unquantized(model: nn.Module) -> tuple[dict[str, Tensor], Objective]:
    """The weights of a network without quantizers, and its cross entropy."""
    network = quantize(model, images(), plain("none"))
    data = LabeledImages(images(8), torch.arange(8) % 3, tuple("abcdefgh"))
    objective = Objective.of(
        network, data, CRITERIA["cross_entropy"], predict(model, data.images), batch_size=3
    )
    return dict(network.weights), objective


def draw(seed: int, at: dict[str, Tensor]) -> dict[str, Tensor]:
    return DIRECTIONS["gaussian"](at, torch.Generator().manual_seed(seed))


# Filter-normalized planes -------------------------------------------------------------------------


def test_filter_normalization_is_the_papers() -> None:
    """d_ij <- d_ij / |d_ij| |w_ij| (Li et al. 2018, section 4), written as loops over filters.

    The j-th filter of the i-th layer is what makes one output channel or neuron; as in the
    authors' code, biases and parameters of batch norms do not move.
    """
    point, _ = unquantized(randomized(TinyResidual()))
    drawn = draw(0, point)
    result = normalize(drawn, point, "filter")
    for layer, weights in point.items():
        for j in range(len(weights)):
            if weights.dim() == 1:
                expected = torch.zeros(())
            else:
                expected = drawn[layer][j] / drawn[layer][j].norm() * weights[j].norm()
            torch.testing.assert_close(result[layer][j], expected)


def test_weights_move_and_buffers_do_not() -> None:
    """A Point of the plane is the model with these parameters and its own running statistics."""
    model = randomized(TinyResidual())
    point, objective = unquantized(model)
    assert point.keys() == dict(model.named_parameters()).keys(), "no batch norm was folded"
    moved = displace(point, normalize(draw(0, point), point, "filter"), 0.5)
    other = copy.deepcopy(model)
    other.load_state_dict({**model.state_dict(), **moved})
    assert not torch.equal(other.conv1.weight, model.conv1.weight)
    assert torch.equal(other.bn1.running_var, model.bn1.running_var)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(other(images(8)), torch.arange(8) % 3)
    assert float(objective(moved)) == pytest.approx(float(expected), rel=1e-5)


# Towards checkpoints ------------------------------------------------------------------------------


def test_coordinate_one_is_the_checkpoint() -> None:
    point, objective = unquantized(randomized(TinyResidual()))
    ends = [unquantized(randomized(TinyResidual(), seed))[0] for seed in (1, 2)]
    directions = towards(point, point, 2, Guide(ends, objective))
    for direction, end in zip(directions, ends, strict=True):
        at_one = Line(point, direction).at(1.0)
        for name in point:
            torch.testing.assert_close(at_one[name], end[name])
    plane = Plane(point, *directions)
    torch.testing.assert_close(plane.project(ends[1]), (0.0, 1.0, 0.0), atol=1e-5, rtol=0)


def test_principal_components_span_a_flat_trajectory() -> None:
    point, objective = unquantized(randomized(TinyResidual()))
    x, y = draw(0, point), draw(1, point)
    coordinates = [(3.0, 0.1), (-1.0, 0.3), (2.0, -0.2), (1.0, 0.4)]
    ends = [displace(displace(point, x, a), y, b) for a, b in coordinates]
    found = pca(point, point, 5, Guide(ends, objective))
    assert len(found) == 2, "the rest is rounding"
    assert abs(inner(*found)) < 1e-5 * norm(found[0]) * norm(found[1])
    plane = Plane(point, *found)
    projected = [plane.project(end) for end in ends]
    for axis in (0, 1):  # in units of the root mean square
        assert sum(p[axis] ** 2 for p in projected) / 4 == pytest.approx(1, rel=1e-4)
    assert max(p[2] for p in projected) < 1e-4 * norm(x)
    spreads = [norm(direction) for direction in found]
    assert spreads[0] > 5 * spreads[1]
    assert pca(point, point, 2, Guide([], objective)) == []


# Curvature ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3)), "3."),
        # forward derivatives of a LayerNorm's backward pass are wrong in torch 2.14
        (TinyTransformer(), "norm"),
    ],
    ids=["linear", "layer_norm"],
)
def test_eigenvectors_are_those_of_the_dense_hessian(model: nn.Module, prefix: str) -> None:
    model = randomized(model)
    point, objective = unquantized(model)
    moving = {name: value for name, value in point.items() if name.startswith(prefix)}

    def loss(*values: Tensor) -> Tensor:
        logits = functional_call(model, dict(zip(moving, values, strict=True)), images(8))
        return nn.functional.cross_entropy(logits, torch.arange(8) % 3)

    with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
        parts = torch.autograd.functional.hessian(loss, tuple(moving.values()))
    sizes = [value.numel() for value in moving.values()]
    dense = torch.cat(
        [
            torch.cat([parts[i][j].reshape(sizes[i], sizes[j]) for j in range(len(sizes))], 1)
            for i in range(len(sizes))
        ]
    ).double()
    values, vectors = torch.linalg.eigh(dense)
    found = hessian(moving, point, 2, Guide([], objective))
    for k, direction in enumerate(found, start=1):
        flat = torch.cat([value.flatten() for value in direction.values()]).double()
        assert float(flat.square().mean()) == pytest.approx(1, rel=1e-4)
        cosine = float(flat @ vectors[:, -k] / flat.norm())
        assert abs(cosine) == pytest.approx(1, abs=1e-3), f"eigenvalue {values[-k]}"
    again = hessian(moving, point, 2, Guide([], objective))
    assert all(torch.equal(found[0][name], again[0][name]) for name in moving)


def test_more_eigenvectors_than_values_are_refused() -> None:
    point, objective = unquantized(randomized(TinyResidual()))
    with pytest.raises(InputError, match="3 eigenvectors need more than 3 values"):
        hessian({"head.bias": point["head.bias"]}, point, 3, Guide([], objective))


@pytest.mark.parametrize("kind", GUIDED)
def test_every_kind_names_what_moves_and_nothing_else(kind: str) -> None:
    point, objective = unquantized(randomized(TinyResidual()))
    ends = [unquantized(randomized(TinyResidual(), seed))[0] for seed in (1, 2, 3)]
    moving = {name: value for name, value in point.items() if value.dim() > 1}
    directions = GUIDED[kind](moving, point, 2, Guide(ends, objective))
    assert len(directions) == 2
    for direction in directions:
        assert list(direction) == list(moving)
        assert all(direction[name].shape == value.shape for name, value in moving.items())
        assert math.isfinite(norm(direction))
