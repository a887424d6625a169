"""Compiled and integer execution against the simulated graph."""

import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, fx, nn
from torch.nn import functional

from evolq.data.images import LabeledImages
from evolq.errors import InputError
from evolq.losses.criteria import CRITERIA
from evolq.losses.objective import Forward, Objective, predict
from evolq.network import integer_ops, lowering
from evolq.network import regions as regions_module
from evolq.network.blocks import find_blocks
from evolq.network.fusion import PARTS
from evolq.network.graph import dependents
from evolq.network.integer_ops import (
    WeightCodes,
    decode,
    encode,
    integer_product,
    log2_softmax,
)
from evolq.network.kernels import linear
from evolq.network.lowering import differing_codes, lower
from evolq.network.operators import is_matrix_product
from evolq.network.placement import SCHEMES
from evolq.network.quantized import EXECUTIONS, QuantizedNetwork, quantize
from evolq.network.regions import compiler_works, fuse, multiplies, recurring, regions
from evolq.optimizers.evolve import search_scales
from evolq.optimizers.recipes import choose_recipe
from evolq.optimizers.registry import OPTIMIZERS
from evolq.points import Point, role, select
from evolq.starts.calibration import calibrate
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import (
    PerChannel,
    PerTensor,
    Quantizer,
    QuantSpec,
    codes_range,
)
from evolq.tensor.quantizers import quantize as to_codes
from landscape import store

MODELS = {"transformer": TinyTransformer, "residual": TinyResidual}
# Sums that are rounded in another order, in a network a few layers deep.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@cache
def build(kind: str, scheme: str, **options: object) -> tuple[QuantizedNetwork, Point]:
    network = quantize(randomized(MODELS[kind]()), images(), plain(scheme, **options))
    return network, calibrate(network, images(16, seed=2))


# The arithmetic -----------------------------------------------------------------------------------


def int8(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("terms", [1, 7, 1024, 2500])
def test_integer_products_are_exact(
    exact: bool, terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(integer_ops, "_int8_is_exact", lambda: False)
    left, right = int8(2, 20, terms), int8(terms, 5, seed=1)
    right[:, 0], left[0, 0] = -128, -128  # the largest sum
    expected = left.long() @ right.long()
    assert torch.equal(integer_product(left, right).long(), expected)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("rows", [1, 31, 32, 70])
@pytest.mark.parametrize("terms", [4, 36, 64, 68, 196, 1024])
@pytest.mark.parametrize("columns", [16, 48, 64])
def test_integer_products_are_exact_where_tiles_may_make_them(
    tiles: bool, rows: int, terms: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tiles:
        monkeypatch.setattr(integer_ops, "tile_product", lambda: None)
    left, right = int8(rows, terms), int8(columns, terms, seed=1).t()  # not contiguous
    right[:, 0], left[0] = -128, -128  # the largest sum
    assert torch.equal(integer_product(left, right).long(), left.long() @ right.long())


@pytest.mark.parametrize("exact", [True, False])
def test_integer_products_of_many_matrices_are_exact(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(integer_ops, "_int8_is_exact", lambda: False)
    left, right = int8(2, 3, 5, 7), int8(2, 3, 9, 7, seed=1).transpose(-2, -1)
    assert torch.equal(integer_product(left, right).long(), left.long() @ right.long())


@pytest.mark.parametrize("sizes", [(4, 1, 5), (1, 7, 5), (4, 7, 1), (1, 1, 1)])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "many"])
def test_integer_products_with_an_axis_of_length_1_are_exact(
    batch: tuple[int, ...], sizes: tuple[int, int, int]
) -> None:
    """Strides of such an axis can be anything, also in what is called contiguous."""
    rows, terms, columns = sizes
    left = int8(*batch, terms, rows).transpose(-2, -1)
    right = int8(*batch, columns, terms, seed=1).transpose(-2, -1)
    expected = left.long() @ right.long()
    for a, b in ((left, right), (left.contiguous(), right.contiguous())):
        assert torch.equal(integer_product(a, b).long(), expected)


@pytest.mark.parametrize("columns", [48, 50])
def test_integer_products_of_rows_that_are_one_are_exact(columns: int) -> None:
    left, right = int8(1, 64).expand(9, 64), int8(64, columns, seed=1)
    assert torch.equal(integer_product(left, right).long(), left.long() @ right.long())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (int8(3, 12), int8(8, 16)),
        (int8(3, 8), int8(8, 16).float()),
    ],
    ids=["other terms", "other types"],
)
def test_integer_products_of_what_does_not_fit_are_refused(left: Tensor, right: Tensor) -> None:
    with pytest.raises(RuntimeError):
        integer_product(left, right)


@given(
    zeros=strategies.tuples(strategies.integers(-2048, 2048), strategies.integers(0, 255)),
    shifts=strategies.tuples(strategies.sampled_from([0, 128]), strategies.sampled_from([0, 128])),
    terms=strategies.integers(1, integer_ops.LARGEST_SUM),
    seed=strategies.integers(0, 2**16),
)
def test_zero_points_go_into_a_product_of_codes_exactly(
    zeros: tuple[int, int], shifts: tuple[int, int], terms: int, seed: int
) -> None:
    left, right = int8(2, 4, terms, seed=seed), int8(2, terms, 3, seed=seed + 1)
    (a, b), (s, r) = map(torch.tensor, zeros), shifts
    found = (
        integer_product(left, right)
        - integer_ops.zero_point_term(left, -1, a.float(), s, b.float(), r)
        - integer_ops.zero_point_term(right, -2, None, 0, a.float(), s)
    )
    expected = (left.long() + s - a) @ (right.long() + r - b)
    assert torch.equal(found.long(), expected)


@given(
    bits=strategies.integers(2, 8),
    signed=strategies.booleans(),
    matched=strategies.booleans(),
    per_channel=strategies.booleans(),
    with_bias=strategies.booleans(),
    seed=strategies.integers(0, 2**16),
)
def test_an_integer_layer_is_the_layer_on_dequantized_values(
    bits: int, signed: bool, matched: bool, per_channel: bool, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spec = QuantSpec(bits, signed, granularity=PerChannel(0) if per_channel else PerTensor())
    count = (5,) if per_channel else ()
    kind = MomentMatchedQuantizer if matched else Quantizer
    weight, scale, zero = drawn(5, 12), drawn(count).abs() + 0.1, 9 * drawn(count)
    bias = drawn(5) if with_bias else None
    width = torch.tensor(float(bits))
    value, input_scale, input_zero = drawn(4, 12), torch.tensor(0.02), torch.tensor(100.0)

    codes = encode(value, input_scale, input_zero, torch.tensor(0.0), torch.tensor(255.0), 128)
    matrix, *constants, needed = WeightCodes(kind(spec), 128)(
        weight, scale, zero, width, bias, input_scale, input_zero
    )
    rows = integer_ops.row_sums(codes, needed)
    result = integer_ops.rescale(integer_product(codes, matrix), rows, *constants)

    dequantized = kind(spec)(weight, scale, zero, width)
    inputs = decode(codes, input_scale, input_zero, 128)
    expected = functional.linear(
        inputs.double(), dequantized.double(), None if bias is None else bias.double()
    )
    # float32 rounding of what is added after the exact sums
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_log2_softmax_has_the_codes_of_a_softmax(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 7, 50, generator=generator, dtype=torch.float64)
    logits[0, 0, 0] -= 95  # at 8 bits a code below the exponents of float32
    scale, width = torch.tensor(0.5), torch.tensor(float(bits))
    spec = QuantSpec(max(bits, 2), kind="log2")
    codes = to_codes(logits.softmax(-1), scale.double(), None, bits, spec)
    expected = torch.where(codes < codes_range(bits, spec)[1], torch.exp2(-codes), 0.0)
    found = log2_softmax(logits.float(), scale, width, -1)
    # no probability of these is a tie to within float32 rounding
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2.0**-126)


def test_a_zero_point_out_of_reach_is_named() -> None:
    with pytest.raises(InputError, match=r"zero point of 5000 .* execution simulated"):
        integer_ops.code_bounds(torch.tensor(5000.0), torch.tensor(8.0), False)


# Whole networks -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
# 8-bit codes minus a zero point do not fit in int8, others do
@pytest.mark.parametrize(
    ("matched", "bits"),
    [
        (True, 3),
        pytest.param(False, 8, marks=pytest.mark.slow),
        pytest.param(False, 3, marks=pytest.mark.slow),
        pytest.param(True, 8, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
# the products of attention on codes, or in floats
@pytest.mark.parametrize(
    ("execution", "size"),
    [
        ("integer", 2**19),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in [*((n, 2**19) for n in EXECUTIONS if n != "integer"), ("integer", 1)]
        ),
    ],
)
def test_executions_agree(
    execution: str,
    size: int,
    kind: str,
    scheme: str,
    matched: bool,
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, point = build(kind, scheme, weight_bits=bits, moment_matching=matched)
    monkeypatch.setattr(lowering, "CODE_PRODUCT_SIZE", size)
    other = network.executed(execution)
    with torch.no_grad():
        # no code of these is a tie to within float32 rounding
        torch.testing.assert_close(other(point, images(9)), network(point, images(9)), **CLOSE)
    assert other.operations == network.operations
    for prefix in ("qkv", "fc2", "conv2"):
        names = [name for name in network.names if name.startswith(prefix)]
        # one function more where the layer in front makes this one's codes
        assert network.share(names) <= other.share(names) <= network.share(names) + 0.2


def linears(network: QuantizedNetwork) -> int:
    return sum(node.target is torch.ops.aten.linear.default for node in network.module.graph.nodes)


@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_differing_codes_are_counted_where_they_arise(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, start = build("transformer", scheme)
    counts = differing_codes(network.graph, start, images(9))
    activations = {name for name, site in network.sites.items() if site.kind != "weight"}
    assert counts.keys() == activations
    # no code of these is a tie to within float32 rounding
    assert {differing for differing, _ in counts.values()} == {0}
    assert counts["qkv.input"] == (0, 9 * 4 * 8)

    def wrong(value: Tensor, scale: Tensor, *others: Tensor | int) -> Tensor:
        codes = encode(value, scale, *others).contiguous()
        codes.view(-1)[:2] ^= 1  # two other codes
        return codes

    wrong.__name__ = "encode"
    monkeypatch.setattr(lowering, "encode", wrong)
    counts = differing_codes(network.graph, start, images(9))
    products = {name for name in activations if name.startswith(("matmul", "softmax"))}
    assert {name for name, (differing, _) in counts.items() if differing == 0} == products
    assert {counts[name][0] for name in activations - products} == {2}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", MODELS)
def test_the_published_network_runs_in_integers(kind: str) -> None:
    network, point = build(kind, "published", moment_matching=True)
    counts = differing_codes(network.graph, point, images(9))
    # no code of these is a tie to within float32 rounding
    assert {differing for differing, _ in counts.values()} == {0}
    assert counts.keys() == {n for n, site in network.sites.items() if site.kind != "weight"}
    with torch.no_grad():
        logits = network.executed("integer")(point, images(9))
        torch.testing.assert_close(logits, network(point, images(9)), **CLOSE)


@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_lowering_leaves_no_linear_layer_and_no_float_product(scheme: str) -> None:
    network, _ = build("transformer", scheme)
    graph = lower(network.graph)
    on_images = dependents(graph.module.graph, [graph.images])
    targets = [node.target for node in graph.nodes if node in on_images]
    products = targets.count(integer_product) + targets.count(linear)
    assert products == linears(network) + 1  # and the patch embedding
    assert torch.ops.aten.linear.default not in targets
    assert torch.ops.aten.conv2d.default not in targets
    assert targets.count(integer_ops.times_scales) == 2  # the products of attention
    # what is left of quantizers belongs to weights that stand in no product
    assert not [node for node in graph.nodes if node.op == "call_module" and node in on_images]


@pytest.mark.parametrize(("softmax", "products"), [("uniform", 2), ("log2", 1)])
def test_large_products_of_attention_run_on_codes(
    softmax: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = build("transformer", "full", softmax=softmax)

    def integer_products() -> int:
        return [node.target for node in lower(network.graph).nodes].count(integer_product)

    before = integer_products()
    size = 4 * 4 * 4  # tokens and width of a head
    monkeypatch.setattr(lowering, "CODE_PRODUCT_SIZE", size)
    # attention maps in powers of two stay floats
    assert integer_products() == before + products
    monkeypatch.setattr(lowering, "CODE_PRODUCT_SIZE", size + 1)
    assert integer_products() == before


def test_lowering_does_not_change_the_network() -> None:
    network, point = build("transformer", "full")
    with torch.no_grad():
        before = network(point, images())
        lower(network.graph)
        fuse(network.graph)
        assert torch.equal(network(point, images()), before)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_attention_maps_in_log_sqrt_2_stay_floats(execution: str) -> None:
    network, start = build("transformer", "linear", activation_bits=4)
    with torch.no_grad():
        found = network.executed(execution)(start, images(9))
        torch.testing.assert_close(found, network(start, images(9)), **CLOSE)
    lowered = [node.target for node in lower(network.graph).nodes]
    assert lowered.count(integer_ops.times_scales) == 1  # queries with keys


def test_weights_in_groups_stay_simulated() -> None:
    groups = plain(weight_granularity="group", group_size=4)
    network = quantize(randomized(TinyTransformer()), images(), groups)
    targets = [node.target for node in lower(network.graph).nodes]
    assert integer_product not in targets
    assert targets.count(torch.ops.aten.linear.default) == linears(network)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_partial_evaluation_equals_the_whole(execution: str, kind: str) -> None:
    network, start = build(kind, "full")
    network = network.executed(execution)
    for block in ("qkv", "fc", "conv2", "head"):
        names = [name for name in select(start, {"scale"}) if name.startswith(block)]
        if not names:
            continue
        part = network.vary(names, start, images(7), batch_size=3)
        moved = {name: start[name] * 1.1 for name in names}
        with torch.no_grad():
            whole = torch.cat([network({**start, **moved}, batch) for batch in images(7).split(3)])
            assert torch.equal(part(moved), whole)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_turns_equal_the_whole(execution: str, kind: str) -> None:
    network, start = build(kind, "full")
    network = network.executed(execution)
    turns = [[name] for name in reversed(list(select(start, {"scale"})))]
    now = dict(start)
    made = network.vary_in_turn(turns, start, images(7), batch_size=3)
    for names, vary in zip(turns, made, strict=True):
        part = vary(now)
        now |= {name: now[name] * 1.1 for name in names}
        with torch.no_grad():
            whole = torch.cat([network(now, batch) for batch in images(7).split(3)])
            assert torch.equal(part(now), whole)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("kind", "scheme"), [("transformer", "full"), ("residual", "linear")])
def test_another_process_gets_the_same_network(execution: str, kind: str, scheme: str) -> None:
    network, point = build(kind, scheme)
    network = network.executed(execution)
    copy = pickle.loads(pickle.dumps(network))
    assert torch.equal(copy(point, images()), network(point, images()))
    for one, other in ((copy.graph, network.graph), (copy._executed, network._executed)):
        assert [node.name for node in one.nodes] == [node.name for node in other.nodes]
    names = list(select(point, {"scale"}))
    part, same = (each.vary(names, point, images(), 4) for each in (network, copy))
    assert torch.equal(part(point), same(point))
    assert part.share == same.share
    assert find_blocks(copy) == find_blocks(network), "module paths came along"
    assert copy.executed(execution) is copy
    with torch.no_grad():
        simulated = network.executed("simulated")(point, images())
        assert torch.equal(copy.executed("simulated")(point, images()), simulated)
    other = next(name for name in ("compiled", "integer") if name != execution)
    with pytest.raises(InputError, match=f"runs as it did there, {execution}; choose {other}"):
        copy.executed(other)
    with pytest.raises(TypeError, match="pickle the whole"):
        pickle.dumps(Forward.whole(network, images()).vary(names, point))


@pytest.mark.usefixtures("uncompiled")
def test_cuts_keep_codes() -> None:
    network, start = build("transformer", "full")
    names = [name for name in select(start, {"scale"}) if name.startswith("fc2")]
    part = network.executed("integer").vary(names, start, images())
    kept = {value.dtype for value in part.cuts[0].values()}
    assert torch.int8 in kept


@pytest.mark.usefixtures("uncompiled")
def test_gradients_of_integer_execution_are_simulated() -> None:
    network, start = build("transformer", "linear")
    data = LabeledImages(images(), torch.zeros(6, dtype=torch.int64), tuple("abcdef"))
    simulated, objective = (
        Objective.of(network.executed(name), data, CRITERIA["mse"], torch.zeros(6, 3))
        for name in ("simulated", "integer")
    )
    unpickled = pickle.loads(pickle.dumps(objective))
    names = [name for name in select(start, {"scale"}) if name.startswith("fc2")]
    for moving in (network.names, names):
        loss, expected = simulated.vary(moving, start).gradient(start)
        for other in (objective, unpickled):
            part = other.vary(moving, start)
            before = other.cost
            differentiable = part.differentiable()
            share = network.share(moving)
            assert other.cost - before == pytest.approx(1 - share)
            assert differentiable.differentiable().forward is differentiable.forward
            for each in (part, differentiable):
                found_loss, found = each.gradient(start)
                assert torch.equal(found_loss, loss)
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in found)
            assert other.cost - before == pytest.approx(2 * (1 - share) + 6 * share)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("within", ["", "fc2"])
def test_budgets_hold_where_gradients_of_integers_are_simulated(within: str) -> None:
    network, start = build("transformer", "full")
    data = LabeledImages(images(), torch.zeros(6, dtype=torch.int64), tuple("abcdef"))
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    names = [name for name in select(start, {"scale"}) if name.startswith(within)]
    spent, losses = [], []
    for execution in ("simulated", "integer"):
        objective = Objective.of(network.executed(execution), data, CRITERIA["kl"], teacher)
        generator = torch.Generator().manual_seed(0)
        last = list(
            OPTIMIZERS["adam"].search(
                objective, start, names=names, budget=12.0, generator=generator
            )
        )[-1]
        assert last.cost == pytest.approx(objective.cost)
        spent.append(objective.cost)
        recipe = choose_recipe("memetic", passes=3)
        objective = objective.with_own_cost()
        result = list(search_scales(objective, start, recipe, names=names, budget=12.0))[-1]
        spent.append(objective.cost)
        losses.append(result.loss)
    assert max(spent) <= 12 + 1e-9
    # a search by gradients is one and the same
    assert spent[1] == pytest.approx(spent[3])
    assert losses[0] == losses[1]


def test_an_unknown_execution_is_refused() -> None:
    network, _ = build("residual", "linear")
    with pytest.raises(InputError, match="choose from simulated, compiled, integer"):
        network.executed("fast")


# Regions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_regions_hold_every_elementwise_node_once_and_no_product(kind: str, scheme: str) -> None:
    graph = lower(build(kind, scheme)[0].graph)
    inside = [node for nodes in regions(graph) for node in nodes]
    assert len(set(inside)) == len(inside)
    assert not any(multiplies(node) for node in inside)
    outside = {
        node
        for node in dependents(graph.module.graph, [graph.images]) - set(inside)
        if isinstance(node.meta.get("val"), Tensor) and node.op == "call_function"
    }
    assert all(multiplies(node) or node.target in PARTS for node in outside)


def test_products_leave_biases_and_copies_to_regions() -> None:
    network, point = build("transformer", "full")
    graph = regions_module.arrange(network.graph)
    products = [node for node in graph.nodes if node.name in graph.operations]
    assert sorted(graph.operations.items()) == sorted(network.graph.operations.items())
    for node in products:
        if node.target is torch.ops.aten.linear.default:
            assert len(node.args) == 2
        for operand in node.all_input_nodes if is_matrix_product(node) else ():
            (stored,) = regions_module.source(operand).users
            assert stored.target is torch.ops.aten.contiguous.default
    with torch.no_grad():
        found = graph.module(*[point[name] for name in graph.entries], images())
        torch.testing.assert_close(found, network(point, images()), **CLOSE)


def test_no_path_leaves_a_region_and_comes_back() -> None:
    graph = lower(build("transformer", "full")[0].graph)
    for nodes in regions(graph):
        inside = set(nodes)
        outside: set[fx.Node] = set()
        for node in graph.nodes:
            if node not in inside and any(
                n in inside or n in outside for n in node.all_input_nodes
            ):
                outside.add(node)
        assert not any(n in outside for node in nodes for n in node.all_input_nodes)


class Deep(nn.Module):
    """Equal blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(depth))
        )

    def forward(self, value: Tensor) -> Tensor:
        return self.blocks(value.flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("execution", ["compiled", "integer"])
def test_a_deep_network_has_as_few_functions_as_a_shallow_one(execution: str) -> None:
    counts = []
    for depth in (3, 9):
        network = quantize(Deep(depth), torch.randn(4, 8, 2, 2), plain("full")).executed(execution)
        called = [
            network._executed.module.get_submodule(node.target)
            for node in network._executed.nodes
            if node.op == "call_module"
        ]
        shared = {id(module) for module in called if isinstance(module, regions_module.Region)}
        counts.append(len(shared))
    assert counts[0] == counts[1] > 0


@pytest.mark.usefixtures("uncompiled")
def test_what_does_not_recur_is_not_compiled() -> None:
    network = quantize(Deep(1), torch.randn(4, 8, 2, 2), plain("full"))
    assert not recurring(network.graph)
    assert fuse(network.graph) is network.graph
    assert recurring(quantize(Deep(3), torch.randn(4, 8, 2, 2), plain("full")).graph)


def test_without_a_compiler_the_graph_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> None:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    compiler_works.cache_clear()
    pixels = torch.randn(4, 8, 2, 2)
    network = quantize(Deep(3), pixels, plain("full"))
    point = calibrate(network, pixels)
    with pytest.warns(UserWarning, match=r"does not work here \(no C\+\+ compiler\)"):
        other = network.executed("compiled")
    with torch.no_grad():
        assert torch.equal(other(point, pixels), network(point, pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.executed("integer")  # said once
    compiler_works.cache_clear()


# With the compiler --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_transformer() -> Iterator[tuple[QuantizedNetwork, Point]]:
    """One network for all tests that really compile: its functions are compiled once."""
    threads = torch.get_num_threads()
    network, start = build("transformer", "full")
    yield network, start
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["compiled", "integer"])
def test_compiled_functions_agree_and_compile_once(
    execution: str, compiled_transformer: tuple[QuantizedNetwork, Point]
) -> None:
    network, start = compiled_transformer
    other = network.executed(execution)
    with torch.no_grad():
        torch.testing.assert_close(other(start, images(8)), network(start, images(8)), **CLOSE)
        moved = {
            name: value * 1.01 if role(name) == "scale" else value for name, value in start.items()
        }
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(other(moved, images(8)), network(moved, images(8)), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2**19], ids=["codes", "floats"])
def test_integer_results_depend_on_neither_threads_nor_batch_size(
    size: int,
    compiled_transformer: tuple[QuantizedNetwork, Point],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lowering, "CODE_PRODUCT_SIZE", size)
    network, start = compiled_transformer
    network = network.executed("integer")
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch_size in (1, 3, 8, 50):
            function = network.vary(network.names, {}, images(50), batch_size)
            with torch.no_grad():
                results.append(function(start))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.slow
def test_compiled_gradients_are_those_of_the_simulated_graph(
    compiled_transformer: tuple[QuantizedNetwork, Point],
) -> None:
    network, start = compiled_transformer
    data = LabeledImages(images(), torch.zeros(6, dtype=torch.int64), tuple("abcdef"))
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss, expected = Objective.of(network, data, CRITERIA["kl"], teacher).gradient(start)
    compiled = Objective.of(network.executed("compiled"), data, CRITERIA["kl"], teacher)
    other_loss, found = compiled.gradient(start)
    torch.testing.assert_close(other_loss, loss, **CLOSE)
    assert found.keys() == expected.keys()
    for name in select(start, {"scale"}):
        # sums of many terms of both signs, in another order
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_a_search_runs_on_integers() -> None:
    model = randomized(TinyTransformer())
    network, start = build("transformer", "full", weight_bits=3)
    data = LabeledImages(images(12), torch.zeros(12, dtype=torch.int64), tuple("abcdefghijkl"))
    teacher = predict(model, data.images)
    recipe = choose_recipe("default", passes=1, cycles=3)
    results = [
        list(search_scales(
            Objective.of(network.executed(execution), data, CRITERIA["kl"], teacher),
            start, recipe, seed=1,
        ))[-1]
        for execution in ("simulated", "integer")
    ]  # fmt: skip
    assert results[0].evaluations == results[1].evaluations
    # a region that holds some of what depends on the moving entries runs whole
    assert results[0].cost <= results[1].cost <= 1.1 * results[0].cost
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_a_scan_says_how_it_ran(scan: Callable[..., tuple[int, str, str]]) -> None:
    quick = ("--points", "3", "--radius", "0.1", "--calibration-images", "8")
    found = {}
    for execution in ("simulated", "integer"):
        out = ("--test-images", "10", "--out", execution, "--execution", execution)
        code, _, err = scan(*quick, *out)
        assert code == 0, err
        found[execution] = store.load(f"{execution}/scan.nc")
        provenance = json.loads(found[execution].attrs["provenance"])
        assert provenance["configuration"]["execution"] == execution
    # ties among codes, decided by float32 rounding, move single images
    np.testing.assert_allclose(found["integer"].loss, found["simulated"].loss, atol=1e-2)
