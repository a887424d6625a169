import copy
from itertools import pairwise

import pytest
import torch
from graph_checks import unquantized_inputs, unquantized_values
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized
from torch import Tensor, fx, nn

from evolq.errors import InputError
from evolq.network.graph import Graph, fold_batch_norm, source
from evolq.network.placement import SCHEMES
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import Point, select
from evolq.starts import calibration
from evolq.starts.calibration import calibrate
from evolq.tensor.integer_layer_norm import integer_layer_norm
from evolq.tensor.moments import MomentMatchedQuantizer
from evolq.tensor.quantizers import PerChannel, Quantizer, QuantSpec, fake_quantize

MODELS = {"transformer": TinyTransformer, "residual": TinyResidual}


def build(
    kind: str, scheme: str = "linear", **options: object
) -> tuple[nn.Module, QuantizedNetwork]:
    model = randomized(MODELS[kind]())
    return model, quantize(model, images(), plain(scheme, **options))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_plain_graph_is_the_model_at_any_batch_size(kind: str, count: int) -> None:
    model, network = build(kind, "none")
    with torch.no_grad():
        torch.testing.assert_close(network(network.weights, images(count)), model(images(count)))


def test_batch_norm_is_folded_and_the_names_stay() -> None:
    model, network = build("residual", "weights")
    assert set(network.weights) == {
        f"{layer}.{tensor}" for layer in ("conv1", "conv2", "head") for tensor in ("weight", "bias")
    }
    seen = {}
    logits = network.observe(images(), seen.__setitem__)
    with torch.no_grad():
        # float32 rounding of the folded weights
        torch.testing.assert_close(logits, model(images()), rtol=1e-5, atol=1e-5)
    norm = model.bn1
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(
        network.weights["conv1.weight"], model.conv1.weight * factor[:, None, None, None]
    )
    torch.testing.assert_close(
        network.weights["conv1.bias"], norm.bias - norm.running_mean * factor
    )


def test_a_batch_norm_that_follows_no_layer_stays() -> None:
    model = randomized(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3)))
    network = quantize(model, images(), plain("linear"))
    assert "0.weight" in network.weights
    with torch.no_grad():
        torch.testing.assert_close(network.observe(images(), lambda *_: None), model(images()))


def test_the_model_is_not_changed() -> None:
    model = randomized(TinyResidual()).train()
    before = copy.deepcopy(model.state_dict())
    quantize(model, images(), plain())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


SITES = {
    ("transformer", "weights"): [
        "embed.weight", "qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "head.weight",
    ],
    ("transformer", "linear"): [
        "embed.input", "embed.weight", "qkv.input", "qkv.weight", "matmul.right", "matmul.left",
        "matmul_1.left", "matmul_1.right", "proj.input", "proj.weight", "fc1.input", "fc1.weight",
        "fc2.input", "fc2.weight", "head.input", "head.weight",
    ],
    ("transformer", "full"): [
        "embed.input", "embed.weight", "norm1.input", "qkv.input", "qkv.weight", "matmul.right",
        "matmul.left", "softmax.output", "matmul_1.right", "proj.input", "proj.weight",
        "add.output", "fc1.input", "fc1.weight", "act.output", "fc2.weight", "add_1.output",
        "head.input", "head.weight",
    ],
    ("transformer", "published"): [
        "embed.input", "embed.weight", "embed.output", "qkv.input", "qkv.weight", "qkv.output",
        "matmul.output", "softmax.output", "matmul_1.output", "proj.weight", "proj.output",
        "add.output", "fc1.input", "fc1.weight", "act.output", "fc2.weight", "fc2.output",
        "add_1.output", "head.input", "head.weight", "head.output",
    ],
    ("residual", "full"): [
        "conv1.input", "conv1.weight", "conv2.input", "conv2.weight", "add.output", "head.input",
        "head.weight",
    ],
    ("residual", "published"): [
        "conv1.input", "conv1.weight", "conv1.output", "conv2.input", "conv2.weight",
        "conv2.output", "add.output", "head.input", "head.weight", "head.output",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "scheme"), SITES)
def test_quantizers_stand_where_the_scheme_says(kind: str, scheme: str) -> None:
    _, network = build(kind, scheme)
    assert set(network.sites) == set(SITES[kind, scheme])
    order = {name: place for place, name in enumerate(network.sites)}
    for early, late in pairwise(["conv1.input", "conv2.weight", "head.weight"]):
        if kind == "residual":
            assert order[early] < order[late]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scheme", ["linear", "full"])
@pytest.mark.parametrize("moment_matching", [False, True])
def test_every_product_reads_quantized_values(
    kind: str, scheme: str, moment_matching: bool
) -> None:
    _, network = build(kind, scheme, moment_matching=moment_matching)
    assert unquantized_inputs(network) == []
    assert (unquantized_values(network) == []) == (scheme == "full")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_eight_bits_are_close_to_full_precision(kind: str, scheme: str) -> None:
    model, network = build(kind, scheme)
    point = calibrate(network, images())
    with torch.no_grad():
        difference = network(point, images()) - model(images())
        # 8 bits leave 0.2 % of each tensor's range; a dozen roundings in a row, 5 % in all (and
        # the softmax of scheme full has 4 bits)
        assert difference.norm() < 0.05 * model(images()).norm()


def test_logits_equal_a_network_quantized_by_hand() -> None:
    model = randomized(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)))
    network = quantize(model, images(), plain("linear", weight_bits=3, activation_bits=4))
    point = calibrate(network, images())

    def rounded(value: Tensor, name: str, spec: QuantSpec) -> Tensor:
        scale, zero_point = point[f"{name}.scale"], point[f"{name}.zero_point"]
        return fake_quantize(value, scale, zero_point, spec.bits, spec)

    hidden, weight = QuantSpec(4), QuantSpec(3, granularity=PerChannel(0))
    x = rounded(images().flatten(1), "1.input", hidden)
    x = nn.functional.linear(x, rounded(model[1].weight, "1.weight", weight), model[1].bias)
    x = rounded(x.relu(), "3.input", hidden)
    x = nn.functional.linear(x, rounded(model[3].weight, "3.weight", weight), model[3].bias)
    assert torch.equal(network(point, images()), x)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scheme", ["linear", "full"])
def test_partial_evaluation_equals_the_whole_bit_for_bit(kind: str, scheme: str) -> None:
    _, network = build(kind, scheme, weight_bits=4)
    point = calibrate(network, images())
    moved = {
        name: value * 1.1 if name.endswith("scale") else value for name, value in point.items()
    }
    generator = torch.Generator().manual_seed(0)
    names = list(network.names)
    subsets = [names, *([name] for name in names if name.endswith("scale"))]
    for _ in range(10):
        chosen = torch.randperm(len(names), generator=generator)[: len(names) // 3]
        subsets.append([names[i] for i in chosen])
    for subset in subsets:
        part = network.vary(subset, point, images(), batch_size=4)
        given = {name: moved[name] for name in subset}
        whole = {**point, **given}
        expected = torch.cat([network(whole, batch) for batch in images().split(4)])
        assert torch.equal(part(given), expected)
        assert torch.equal(part(given), expected), "a second call gives the same"


def test_the_share_counts_products_downstream_only() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    network = quantize(model, images(), plain())
    assert network.operations == 64 * 10 + 10 * 3
    point = calibrate(network, images())
    last = network.vary(["3.weight.scale"], point, images())
    assert last.share == 30 / 670
    assert network.vary(["1.input.scale"], point, images()).share == 1
    assert network.vary([], point, images()).share == 0


@pytest.mark.parametrize(("batches", "recomputed"), [(0, 1.0), (1, 2 / 6), (2, 0.0)])
def test_values_on_the_cut_beyond_the_memory_are_computed_again(
    batches: int, recomputed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    network = quantize(model, images(), plain())
    point = calibrate(network, images())
    # the cut: quantized inputs (n, 10) of the last layer, in batches of 4 and 2 images
    monkeypatch.setattr("evolq.network.quantized.CUT_BYTES", (0, 4 * 40, 6 * 40)[batches])
    part = network.vary(["3.weight.scale"], point, images(), batch_size=4)
    assert len(part.cuts) == batches
    assert part.share == pytest.approx((30 + 640 * recomputed) / 670)
    moved = {"3.weight.scale": point["3.weight.scale"] * 1.1}
    with torch.no_grad():
        whole = [network({**point, **moved}, batch) for batch in images().split(4)]
    assert torch.equal(part(moved), torch.cat(whole))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("memory", [2**31, 0])
def test_turns_equal_partial_evaluations_bit_for_bit(
    kind: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, network = build(kind, weight_bits=4)
    point = dict(calibrate(network, images()))
    monkeypatch.setattr("evolq.network.quantized.CUT_BYTES", memory)
    scales = [name for name in network.names if name.endswith("scale")]
    # as they are visited, in the order of the graph (nothing in front stays), and one without cut
    for turns in ([[name] for name in scales[::-1]], [[name] for name in scales], [[]]):
        now = dict(point)
        made = network.vary_in_turn(turns, point, images(), batch_size=4)
        for names, vary in zip(turns, made, strict=True):
            part = vary(now)
            now |= {name: now[name] * 1.1 for name in names}
            given = {name: now[name] for name in names}
            expected = network.vary(names, now, images(), batch_size=4)
            assert torch.equal(part(given), expected(given))
            assert part.share == expected.share


def test_turns_run_the_images_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = build("transformer")
    point = calibrate(network, images())
    turns = [[name] for name in reversed(network.names) if name.endswith("weight.scale")]
    made = network.vary_in_turn(turns, point, images())
    monkeypatch.setattr(
        "evolq.network.quantized.PartialEvaluation.cut", lambda *_: pytest.fail("run again")
    )
    for names, vary in zip(turns, made, strict=True):
        vary(point)({name: point[name] for name in names})


def test_nothing_downstream_means_the_same_logits() -> None:
    _, network = build("transformer")
    point = calibrate(network, images())
    assert torch.equal(network.vary([], point, images())({}), network(point, images()))


def test_moment_matching_keeps_mean_and_deviation_of_each_channel() -> None:
    _, network = build("transformer", "weights", weight_bits=3, moment_matching=True)
    point = calibrate(network, images())
    matched = [m for m in network.module.modules() if isinstance(m, MomentMatchedQuantizer)]
    assert len(matched) == 6
    read = {}
    network.observe(images(), lambda name, value: read.setdefault(name, value))
    weight = read["qkv.weight"]
    made = matched[1](weight, *(point[f"qkv.weight.{r}"] for r in ("scale", "zero_point", "bits")))
    torch.testing.assert_close(made.mean(1), weight.mean(1))
    torch.testing.assert_close(made.std(1), weight.std(1))
    plain = build("transformer", "weights", weight_bits=3)[1]
    assert not torch.equal(network(point, images()), plain(point, images()))


def test_gradients_reach_every_scale_and_zero_point() -> None:
    for kind in MODELS:
        _, network = build(kind, "full", weight_bits=4, activation_bits=4)
        point = calibrate(network, images())
        # a log2 scale has a gradient only where probabilities exceed it, and 1 is none
        point = {
            **point,
            **{name: 0.1 * point[name] for name in point if "softmax.output.scale" in name},
        }
        moving = {
            name: value.clone().requires_grad_()
            for name, value in select(point, {"scale", "zero_point"}).items()
        }
        network({**point, **moving}, images()).square().sum().backward()
        for name, value in moving.items():
            assert value.grad is not None, name
            if name.endswith("scale"):
                assert value.grad.abs().sum() > 0, name


def test_one_value_has_one_quantizer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 4), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1).relu()
            return self.a(x) + self.b(x.reshape(-1, 64))

    network = quantize(randomized(Shared()), images(), plain("linear"))
    assert list(network.sites) == ["a.input", "a.weight", "b.weight"]


def test_a_view_that_feeds_layer_norm_and_a_sum_gives_each_its_quantizer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = (x + x.sin()).flatten(1).reshape(-1, 8, 8)
            x = x + self.fc(self.norm(x))
            return self.head(x.flatten(1))

    model = randomized(Block())
    network = quantize(model, images(), plain("full"))
    assert set(network.sites) == {
        "add.output", "norm.input", "fc.input", "fc.weight", "add_1.output", "head.weight",
    }  # fmt: skip
    nodes = list(network.module.graph.nodes)
    (norm,) = [node for node in nodes if "layer_norm" in str(node.target)]
    first_sum, second_sum = [node for node in nodes if "aten.add.Tensor" in str(node.target)]
    scaled_back = source(norm.args[0])
    own, other = scaled_back.args[0], source(second_sum.args[0])
    assert own.target == "quantizer_norm_input"
    assert source(own.args[0].args[0]) is first_sum, "the LayerNorm's own reads the plain sum"
    assert other.target == "quantizer_add_output"
    assert other.args[0] is first_sum
    point = calibrate(network, images())
    with torch.no_grad():
        difference = network(point, images()) - model(images())
    assert difference.norm() < 0.05 * model(images()).norm()
    assert unquantized_inputs(network) == []


def test_a_quantizer_says_what_it_is() -> None:
    _, network = build("transformer", weight_bits=4)
    texts = {repr(module) for module in network.module.modules() if isinstance(module, Quantizer)}
    assert "Quantizer(4 bits, unsigned, PerChannel(axis=0))" in texts


class TestBadInput:
    def test_unknown_scheme(self) -> None:
        with pytest.raises(InputError, match="unknown `scheme` 'half'"):
            build("residual", "half")

    @pytest.mark.parametrize("bits", [0, 1, 9])
    def test_bits(self, bits: int) -> None:
        with pytest.raises(InputError, match="bits"):
            build("residual", weight_bits=bits)

    def test_an_operator_that_cannot_be_quantized_is_named_with_its_module(self) -> None:
        class Pairs(nn.Bilinear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x, x)

        model = nn.Sequential(nn.Flatten(), Pairs(64, 64, 3))
        with pytest.raises(InputError, match=r"bilinear layer .* in module '1'"):
            quantize(model, images(), plain())

    def test_a_model_that_cannot_be_exported(self) -> None:
        class Branches(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        with pytest.raises(InputError, match="Branches returns"):
            quantize(Branches(), images(), plain())

    def test_a_model_with_two_outputs(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x, x + 1

        with pytest.raises(InputError, match="2 tensors"):
            quantize(Two(), images(), plain())

    def test_missing_entries_and_images(self) -> None:
        _, network = build("residual")
        point = calibrate(network, images())
        with pytest.raises(InputError, match=r"no entry 'conv1.input.scale'"):
            network(network.weights, images())
        with pytest.raises(InputError, match="is not an entry"):
            network.vary(["nothing"], point, images())
        with pytest.raises(InputError, match=r"`images` have shape \(0, 1, 8, 8\)"):
            network.vary([], point, images()[:0])

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("conv1.weight.scale", torch.full((6,), -1.0), "positive"),
            ("conv1.weight.scale", torch.full((6,), float("nan")), "positive and finite"),
            ("conv1.weight.bits", torch.tensor(9.0), "from 2 to 8"),
            ("conv1.weight", torch.zeros(2, 2), "has shape"),
            ("other.weight", torch.zeros(2), "lacks"),
        ],
    )
    def test_a_point_from_outside(self, name: str, value: Tensor, message: str) -> None:
        _, network = build("residual")
        point = calibrate(network, images())
        network.check(point)
        with pytest.raises(InputError, match=message):
            network.check({**point, name: value})


class Weighted(nn.Module):
    """A layer whose weight is read as a view, or from the left."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.zeros(64, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.how == "linear":
            x = nn.functional.linear(x, self.weight.t())
        elif self.how == "matmul":
            x = x @ self.weight
        else:
            x = torch.matmul(self.weight.t(), x.unsqueeze(-1)).squeeze(-1)
        return self.head(x)


@pytest.mark.parametrize("how", ["linear", "matmul", "left"])
def test_a_weight_has_one_scale_for_each_output_channel(how: str) -> None:
    network = quantize(randomized(Weighted(how)), images(), plain("weights"))
    point = calibrate(network, images())
    assert point["weight.scale"].shape == (5,)


def test_a_batch_norm_over_tokens_is_not_folded() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.fc(x.flatten(1).reshape(-1, 8, 8))).flatten(1))

    model = randomized(Tokens())
    network = quantize(model, images(), plain("linear"))
    with torch.no_grad():
        torch.testing.assert_close(network.observe(images(), lambda *_: None), model(images()))


def test_names_that_differ_by_dots_only_stay_apart() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_0 = nn.ModuleList([nn.Linear(64, 4)]), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a_0(self.a[0](x.flatten(1)))

    network = quantize(randomized(Alike()), images(), plain("linear"))
    assert {"a.0.weight", "a_0.weight"} <= set(network.sites)


def layer_norm_outputs(network: QuantizedNetwork, point: Point) -> dict[str, Tensor]:
    """What each LayerNorm hands to the quantizer behind it, by that quantizer's module."""
    found = {}

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.target in (torch.ops.aten.layer_norm.default, integer_layer_norm):
                (reader,) = (user for user in n.users if user.op == "call_module")
                found[str(reader.target)] = value
            return value

    with torch.no_grad():
        Reader(network.module).run(*[point[name] for name in network.names], images())
    return found


def test_layer_norms_in_integers_give_whole_multiples_of_the_next_scale() -> None:
    _, plain = build("transformer", "full")
    _, network = build("transformer", "full", integer_layer_norm=True)
    assert list(network.names) == list(plain.names)
    point = calibrate(plain, images())
    values, wanted = layer_norm_outputs(network, point), layer_norm_outputs(plain, point)
    assert len(values) == 2
    for name, reader in (("qkv", "qkv_input"), ("fc1", "fc1_input")):
        (key,) = (key for key in values if reader in key)
        steps = values[key] / point[f"{name}.input.scale"]
        torch.testing.assert_close(steps, steps.round())
        assert not torch.equal(values[key], wanted[key])
        if name == "qkv":  # the second one reads values that differ by then
            # The 8-bit multiplier is floored, up to 2^-7 of the value, and the result is rounded.
            error = (values[key] - wanted[key]).abs()
            bound = 2**-7 * (wanted[key].abs() + 1) + 1.5 * point[f"{name}.input.scale"]
            assert bool((error <= bound).all())


def test_layer_norms_in_integers_need_quantizers_around_them() -> None:
    _, plain = build("transformer", "linear")
    _, network = build("transformer", "linear", integer_layer_norm=True)
    point = calibrate(plain, images())
    assert torch.equal(network(point, images()), plain(point, images()))


class Standardized(nn.Conv2d):
    """A convolution with a standardized weight, computed through views as in timm's StdConv2d."""

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True
        ).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize("scheme", ["weights", "linear"])
def test_a_weight_that_is_computed_through_views_is_quantized_per_channel(scheme: str) -> None:
    model = randomized(nn.Sequential(Standardized(1, 5, 3), nn.Flatten(), nn.Linear(180, 3)))
    network = quantize(model, images(), plain(scheme))
    point = calibrate(network, images())
    assert point["0.weight.scale"].shape == (5,)
    assert network.sites["0.weight"].kind == "weight"
    if scheme == "linear":
        assert unquantized_inputs(network) == []
    read = {}
    network.observe(images(), read.__setitem__)
    torch.testing.assert_close(read["0.weight"].mean((1, 2, 3)), torch.zeros(5), atol=1e-6, rtol=0)
    with torch.no_grad():
        difference = network(point, images()) - model(images())
    assert difference.norm() < 0.05 * model(images()).norm()
    coarse = {**point, "0.weight.scale": 8 * point["0.weight.scale"]}
    assert not torch.equal(network(coarse, images()), network(point, images()))


def test_a_wrong_folding_of_batch_norms_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph) -> None:
        fold_batch_norm(graph)
        graph.weights["conv1.bias"] += 1

    monkeypatch.setattr("evolq.network.quantized.fold_batch_norm", wrong)
    with pytest.raises(InputError, match="folding the batch norms of TinyResidual"):
        quantize(randomized(TinyResidual()), images(), plain())
    quantize(randomized(TinyResidual()), images(), plain("none"))


class Windows(nn.Module):
    """Cuts each image into windows, which become a part of the batch, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        windows = x.reshape(n, 4, 2, 4, 2).transpose(2, 3).reshape(n * 16, 4)
        return self.head(self.fc(windows).relu().reshape(n, 64))


@pytest.mark.parametrize("count", [1, 2, 6])
def test_memory_is_counted_for_all_windows(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = quantize(randomized(Windows()), images(), plain("linear"))
    sizes = {}
    network.observe(images(count), lambda name, value: sizes.__setitem__(name, value.nbytes))
    assert sizes["fc.input"] == count * 64 * 4
    for limit in {*sizes.values(), sum(sizes.values()), sum(sizes.values()) - 1}:
        monkeypatch.setattr(calibration, "MEMORY_BYTES", limit)
        groups = calibration._groups(network, images(count))
        assert [name for group in groups for name in group] == list(network.sites)
        assert all(len(g) == 1 or sum(sizes[name] for name in g) <= limit for g in groups)
    monkeypatch.setattr(calibration, "MEMORY_BYTES", sum(sizes.values()))
    assert len(calibration._groups(network, images(count))) == 1
