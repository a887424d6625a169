"""Attention as one operator, where nothing in it is quantized."""

import pickle

import pytest
import torch
from tiny_models import TinyResidual, TinyTransformer, images, plain, randomized

from evolq.network.attention import attend, fuse_attention
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.starts.calibration import calibrate


@pytest.fixture(scope="module")
def transformer() -> QuantizedNetwork:
    return quantize(randomized(TinyTransformer()), images(), plain("none"))


def test_attention_is_what_its_operators_say() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2, 3, *size, generator=generator) for size in ((7, 4), (4, 7), (7, 5))
    )
    wanted = (0.5 * queries.double() @ keys.double()).softmax(-1) @ values.double()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = attend(queries, keys, values, 0.5)
        # float32: sums of a few products
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_network_has_the_same_logits_and_as_many_operations(
    transformer: QuantizedNetwork,
) -> None:
    fused = fuse_attention(transformer.graph)
    attentions = [node for node in fused.nodes if node.target is attend]
    assert attentions
    assert sum(fused.operations.values()) == transformer.operations
    assert all(fused.operations[node.name] > 0 for node in attentions)
    operands = [*transformer.weights.values(), images()]
    with torch.no_grad():
        wanted = transformer.module(*operands)
        torch.testing.assert_close(fused.module(*operands), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(transformer(transformer.weights, images()), fused.module(*operands))


def test_second_derivatives_are_those_of_the_operators(transformer: QuantizedNetwork) -> None:
    name = next(name for name in transformer.weights if "qkv.weight" in name)

    def second(module: torch.fx.GraphModule) -> torch.Tensor:
        weights = dict(transformer.weights)
        weights[name] = weights[name].clone().requires_grad_()
        logits = module(*weights.values(), images())
        (first,) = torch.autograd.grad(logits.square().sum(), weights[name], create_graph=True)
        return torch.autograd.grad(first.square().sum(), weights[name])[0]

    torch.testing.assert_close(
        second(fuse_attention(transformer.graph).module), second(transformer.module)
    )


def test_networks_without_such_attention_are_left_alone() -> None:
    quantized = quantize(randomized(TinyTransformer()), images(), plain("full"))
    convolutional = quantize(randomized(TinyResidual()), images(), plain("none"))
    assert fuse_attention(quantized.graph) is quantized.graph
    assert fuse_attention(convolutional.graph) is convolutional.graph


def test_weights_alone_may_be_quantized() -> None:
    network = quantize(randomized(TinyTransformer()), images(), plain("weights"))
    point = calibrate(network, images(16, seed=2))
    assert any(node.target is attend for node in fuse_attention(network.graph).nodes)
    with torch.no_grad():
        wanted = network.module(*(point[name] for name in network.names), images())
        torch.testing.assert_close(network(point, images()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["none", "weights", "full"])
def test_a_network_from_another_process_is_put_together_anew(scheme: str) -> None:
    network = quantize(randomized(TinyTransformer()), images(), plain(scheme))
    copy = pickle.loads(pickle.dumps(network))
    weights = {name: 2 * value for name, value in network.weights.items()}
    with torch.no_grad():
        found = copy.with_weights(weights).full_precision()(weights, images())
        wanted = network.full_precision()(weights, images())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
