"""Weights rounded on calibration inputs: GPTQ and AdaRound."""

import pytest
import torch
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch.nn import functional

from evolq.errors import InputError
from evolq.network.graph import extract
from evolq.network.layers import Grid, grid_of, move_into_cells, weighted_layers
from evolq.network.operators import VIEWS
from evolq.network.quantized import quantize
from evolq.starts.adaround import adaround, inverse_soft_round, soft_round
from evolq.starts.calibration import calibrate
from evolq.starts.gptq import compensate, gptq, layer_inputs, round_columns
from evolq.tensor.moments import before_matching, moment_match
from evolq.tensor.quantizers import PerChannel, QuantSpec

MATCHING = pytest.mark.parametrize("matching", [False, True])
MODELS = pytest.mark.parametrize("kind", [TinyTransformer, TinyResidual])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def grid_for(weight: torch.Tensor, bits: int = 3) -> Grid:
    scale = (weight.abs().amax(1, keepdim=True) / 2 ** (bits - 1)).expand_as(weight)
    half = 2.0 ** (bits - 1)
    return Grid(scale, torch.full_like(weight, half), 0.0, 2 * half - 1)


def one_group(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, **options) -> torch.Tensor:
    """Round the columns of a layer of one group."""
    grid = grid.map(lambda values: values[None])
    return round_columns(weight[None], hessian[None], grid, **options)[0]


class TestRoundColumns:
    def test_uncorrelated_inputs_give_round_to_nearest(self):
        weight = numbers(5, 7)
        hessian = torch.diag(numbers(7, seed=1).square() + 0.1)
        assert torch.equal(
            one_group(weight, hessian, grid_for(weight)), grid_for(weight).nearest(weight)
        )

    def test_correlated_inputs_are_reconstructed_better_than_by_nearest(self):
        weight, inputs = numbers(8, 16), numbers(200, 4, seed=1) @ numbers(4, 16, seed=2)
        inputs = inputs + 0.1 * numbers(200, 16, seed=3)
        grid = grid_for(weight)
        made = one_group(weight, inputs.T @ inputs, grid)

        def error(rounded):
            return float((inputs @ (weight - rounded).T).square().sum())

        assert error(made) < 0.5 * error(grid.nearest(weight))
        assert torch.equal(grid.nearest(made), made), "on the grid"

    def test_two_columns_by_hand(self):
        """The second column makes good the first one's error e by e H01 / H11."""
        weight = torch.tensor([[0.4, 0.3]], dtype=torch.float64)
        grid = Grid(torch.ones(1, 2), torch.zeros(1, 2), -4.0, 3.0)
        hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        # 0.4 -> 0; 0.3 + 0.4 * 0.9 = 0.66 -> 1
        made = one_group(weight, hessian, grid, damping=1e-9)
        assert made.tolist() == [[0.0, 1.0]]

    def test_inputs_that_are_all_zero(self):
        weight = numbers(3, 4)
        grid = grid_for(weight)
        made = one_group(weight, torch.zeros(4, 4, dtype=torch.float64), grid)
        assert torch.equal(made, grid.nearest(weight))

    def test_groups_are_rounded_as_each_alone_is(self):
        """One of them reads nothing but zeros."""
        weight, inputs = numbers(3, 4, 6), numbers(3, 50, 6, seed=1)
        hessian = inputs.mT @ inputs
        hessian[1] = 0
        grid = grid_for(weight.flatten(0, 1)).map(lambda t: t.reshape(weight.shape))
        made = round_columns(weight, hessian, grid)
        for group in range(3):
            own = grid.map(lambda t, g=group: t[g])
            assert torch.equal(made[group], one_group(weight[group], hessian[group], own))
        assert torch.equal(made[1], grid.nearest(weight)[1])


class TestCompensate:
    def test_least_squares(self):
        """With hardly a ridge, the residual is orthogonal to the quantized inputs."""
        weight, exact = numbers(1, 5, 8), numbers(300, 8, seed=1)
        quantized = (exact / 0.8).round() * 0.8
        hessian, cross = (a.T @ quantized for a in (quantized, exact - quantized))
        made = compensate(weight, hessian[None], cross[None], ridge=1e-12)
        left = made[0] @ quantized.T - weight[0] @ exact.T
        assert float((left @ quantized).abs().max()) < 1e-8
        before = weight[0] @ (quantized - exact).T
        assert float(left.square().sum()) < float(before.square().sum())

    def test_exact_inputs_and_inputs_that_are_all_zero_change_nothing(self):
        weight, inputs = numbers(2, 5, 4), numbers(2, 4, 30, seed=1)
        hessian, nothing = inputs @ inputs.mT, torch.zeros(2, 4, 4, dtype=torch.float64)
        assert torch.equal(compensate(weight, hessian, nothing), weight)
        assert torch.equal(compensate(weight, nothing, nothing), weight)


def prepared(kind, matching=False, **changes):
    model = randomized(kind())
    quantization = plain(**{"weight_bits": 3, "moment_matching": matching, **changes})
    network = quantize(model, images(), quantization)
    return model, network, calibrate(network, images(12))


def layer_error(network, start, point, layer) -> float:
    """How far a layer's outputs move, for the inputs that it has in the network at `point`."""
    source = layer.node.args[0].name
    values = network.record([source], images(12), point)[source]
    change = grid_of(network, point, layer.name).nearest(point[layer.name]) - start[layer.name]
    if change.dim() == 2:
        return float((values @ change.T).square().sum())
    stride, padding = (*layer.node.args[3:5], *[(1, 1), (0, 0)][len(layer.node.args[3:5]) :])
    return float(functional.conv2d(values, change, None, stride, padding).square().sum())


@MODELS
def test_gptq_lowers_the_error_of_every_layer(kind):
    _, network, start = prepared(kind, scheme="weights")  # inputs that are exact
    point = gptq(network, start, images(12), batch_size=5)
    network.check(point)
    layers = weighted_layers(network)
    assert len(layers) == sum(site.kind == "weight" for site in network.sites.values())
    better = []
    for layer in layers:
        plain = {**point, layer.name: start[layer.name]}
        better.append(
            layer_error(network, start, point, layer) <= layer_error(network, start, plain, layer)
        )
    assert all(better)


@MODELS
def test_inputs_of_layers_are_those_of_a_whole_prefix_and_no_operator_runs_twice(kind, monkeypatch):
    _, network, start = prepared(kind)
    ran = []

    def counted(module, nodes, outputs):
        ran.extend(node for node in nodes if node.target not in VIEWS)
        return extract(module, nodes, outputs)

    monkeypatch.setattr("evolq.starts.gptq.extract", counted)
    point, batches, layers = dict(start), images(12).split(5), weighted_layers(network)
    seen = []
    for layer, inputs in layer_inputs(network, point, layers, batches):
        source = layer.node.args[0].name
        quantizer = layer.input
        while quantizer.op != "call_module":  # views of what it makes
            quantizer = quantizer.args[0]
        module = network.module.get_submodule(quantizer.target)
        entries = [point[network.graph.name_of(node)] for node in quantizer.args[1:]]
        for batch, values in zip(batches, inputs, strict=True):
            assert torch.equal(values.quantized, network.record([source], batch, point)[source])
            assert not torch.equal(values.exact, values.quantized)
            assert torch.equal(module(values.exact, *entries), values.quantized)
        point[layer.name] = -2 * point[layer.name]  # later layers see it
        seen.append(layer)
    assert seen == layers
    assert len(ran) == len(set(ran))


@pytest.mark.parametrize(
    ("kind", "granularity"),
    [
        (TinyTransformer, "channel"),
        (TinyTransformer, "group"),
        (TinyTransformer, "tensor"),
        (TinyResidual, "channel"),
    ],
)
@MATCHING
def test_the_steps_that_gptq_takes_change_outputs_less_than_the_observer_s(
    kind, granularity, matching, monkeypatch
):
    """Of the first layer, whose inputs are the same whatever its weight, and exact."""
    grouped = {"weight_granularity": granularity, "group_size": 4}
    _, network, start = prepared(kind, matching, scheme="weights", **grouped)
    first = weighted_layers(network)[0]
    source, made = first.input.name, first.quantizer.name
    values = first.rows(network.record([source], images(12), start)[source], start[first.name])

    def errors(point):
        change = network.record([made], images(2), point)[made] - start[first.name]
        return (values @ first.matrices(change).transpose(1, 2)).square().sum(1).flatten()

    free = gptq(network, start, images(12))
    monkeypatch.setattr("evolq.starts.gptq.STEPS", (1.0,))
    fixed = gptq(network, start, images(12))
    scale = f"{first.name}.scale"
    assert torch.equal(fixed[scale], start[scale])
    assert not torch.equal(free[scale], start[scale])
    assert float(errors(free).sum()) < float(errors(fixed).sum())
    if granularity != "tensor":  # each output for itself; float32 arithmetic decides near ties
        assert bool((errors(free) <= errors(fixed) * 1.001).all())


@MODELS
def test_gptq_makes_good_what_quantized_inputs_do(kind, monkeypatch):
    """Of each output on average: the weight is free, and so are its codes with 8 bits."""
    _, network, start = prepared(kind, weight_bits=8, activation_bits=3)
    wanted = network.record([network_output(network)], images(12))[network_output(network)]

    def error(point):
        return float((network(point, images(12)) - wanted).square().mean())

    made = error(gptq(network, start, images(12)))
    monkeypatch.setattr("evolq.starts.gptq.compensate", lambda weight, *_: weight)
    assert made < 0.9 * error(gptq(network, start, images(12)))


def rounded(method: str, network, start, **arguments):
    if method == "gptq":
        return gptq(network, start, images(12))
    generator = torch.Generator().manual_seed(0)
    return adaround(network, start, images(12), generator=generator, **arguments)


@MODELS
@MATCHING
@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_rounded_weights_have_other_codes_the_same_moments_and_nothing_else_changes(
    kind, matching, method
):
    # inputs that are exact leave nothing to compensate
    _, network, start = prepared(kind, matching, scheme="weights")
    before = {name: value.clone() for name, value in start.items()}
    point = rounded(method, network, start, iterations=40)
    names = {layer.name for layer in weighted_layers(network)}
    moved = {name for name in point if not torch.equal(point[name], before[name])}
    assert moved
    scales = {f"{name}.scale" for name in names} if method == "gptq" else set()
    assert moved <= names | scales
    assert all(torch.equal(before[name], start[name]) for name in start)
    for name in moved & names:
        grid, spec = grid_of(network, point, name), network.sites[name].spec
        codes, plain_codes = grid.nearest_codes(point[name]), grid.nearest_codes(start[name])
        assert not torch.equal(codes, plain_codes)
        rows = spec.granularity.rows
        same = (codes == plain_codes).all()
        assert torch.equal(rows(point[name])[same], rows(start[name])[same])
        if method == "adaround":
            step = (codes - grid.codes(start[name]))[codes != plain_codes]
            assert float(step.abs().max()) < 1 + 1e-4, "up or down, no further"


def test_a_weight_in_chosen_cells_keeps_mean_and_deviation():
    weight = numbers(6, 200).float()
    spec = QuantSpec(3, granularity=PerChannel(0))
    grid = grid_for(weight)
    nearest = grid.nearest_codes(weight)
    step = torch.randint(-1, 2, weight.shape, generator=torch.Generator().manual_seed(0))
    step[2] = 0
    codes = (nearest + step).clamp(grid.lower, grid.upper)
    made = move_into_cells(weight, codes, grid, spec)
    assert torch.equal(grid.nearest_codes(made), codes)
    assert torch.equal(made[2], weight[2]), "its codes are the nearest ones"
    # float32 means of 200 values
    torch.testing.assert_close(made.mean(1), weight.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(made.std(1), weight.std(1), rtol=1e-6, atol=0)
    # what a quantizer with moment matching gives is that of the codes and the original's moments
    wanted = moment_match(grid.values(codes), weight, spec)
    torch.testing.assert_close(moment_match(grid.nearest(made), made, spec), wanted)


def test_cells_without_room_for_the_moments_still_decide():
    weight = torch.tensor([[0.4, -0.4, 3.0, -3.0]])
    grid = Grid(torch.ones(1, 4), torch.zeros(1, 4), -4.0, 3.0)
    codes = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    made = move_into_cells(weight, codes, grid, QuantSpec(3, granularity=PerChannel(0)))
    assert torch.equal(grid.nearest_codes(made), codes)


@MODELS
@MATCHING
def test_adaround_without_iterations_changes_nothing(kind, matching):
    _, network, start = prepared(kind, matching)
    point = rounded("adaround", network, start, iterations=0)
    assert all(torch.equal(point[name], start[name]) for name in start)


@MODELS
@MATCHING
@pytest.mark.slow
def test_adaround_reconstructs_blocks_at_least_as_well_as_nearest(kind, matching):
    _, network, start = prepared(kind, matching)
    data = images(12)
    generator = torch.Generator().manual_seed(0)
    made = adaround(network, start, data, generator=generator, iterations=150, learning_rate=0.03)
    nearest = adaround(network, start, data, generator=generator, iterations=0)
    wanted = network.record([network_output(network)], data)[network_output(network)]

    def error(point):
        return float((network(point, data) - wanted).square().mean())

    assert error(made) < error(nearest)


def network_output(network) -> str:
    (output,) = (node for node in network.module.graph.nodes if node.op == "output")
    return output.all_input_nodes[0].name


def test_before_matching_is_what_matching_undoes():
    weight = numbers(4, 50).float()
    spec = QuantSpec(3, granularity=PerChannel(0))
    dequantized = grid_for(weight).nearest(weight)
    weight[3], dequantized[3] = 0.01 * weight[3], 0
    before = before_matching(weight, dequantized, spec)
    # matching is affine in each row: its lowest and its highest value fix the line
    matched = moment_match(dequantized, weight, spec)[:3]
    (low, high), (new_low, new_high) = (
        (rows.amin(1, True), rows.amax(1, True)) for rows in (dequantized[:3], matched)
    )
    made = new_low + (before[:3] - low) / (high - low) * (new_high - new_low)
    torch.testing.assert_close(made, weight[:3])
    assert torch.equal(before[3], weight[3])


def test_the_rectified_sigmoid_and_its_inverse():
    shares = torch.linspace(0, 1, 11)
    torch.testing.assert_close(soft_round(inverse_soft_round(shares)), shares)
    assert float(soft_round(torch.tensor(9.0))) == 1
    assert float(soft_round(torch.tensor(-9.0))) == 0


def test_seeds_repeat():
    _, network, start = prepared(TinyTransformer)
    points = [
        adaround(
            network,
            start,
            images(12),
            generator=torch.Generator().manual_seed(seed),
            iterations=10,
            batch_size=3,
        )
        for seed in (0, 0)
    ]
    assert all(torch.equal(points[0][name], points[1][name]) for name in start)


def test_bad_input():
    _, network, start = prepared(TinyTransformer)
    generator = torch.Generator()
    with pytest.raises(InputError, match="at least one calibration image"):
        gptq(network, start, images(0))
    with pytest.raises(InputError, match="damping is 0"):
        gptq(network, start, images(), damping=0)
    with pytest.raises(InputError, match="at least one calibration image"):
        adaround(network, start, images(0), generator=generator)
    with pytest.raises(InputError, match="iterations is -1"):
        adaround(network, start, images(), generator=generator, iterations=-1)
