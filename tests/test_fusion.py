"""Layers on codes with what follows, in networks where not all of that is as it usually is."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import plain, randomized
from torch import Tensor, nn
from torch.nn import functional

from evolq.network.kernels import attention, layer_norm, linear
from evolq.network.lowering import differing_codes, lower
from evolq.network.quantized import quantize
from evolq.starts.calibration import calibrate

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="the processor lacks AVX-512 VNNI"
)


class Network(nn.Module):
    """Two layers and what is between them; images (n, 3, 16, 16), 16 classes."""

    def __init__(self, between: Callable[["Network", Tensor], Tensor], width: int = 32) -> None:
        super().__init__()
        self.between = between
        self.first = nn.Linear(16, width)
        self.norm = nn.LayerNorm(32)
        self.position = nn.Parameter(torch.randn(1, 48, 32))
        self.scalar = nn.Parameter(torch.tensor([0.7]))
        self.head = nn.Linear(32, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.between(self, images.flatten(1, 2))).mean(1)


def scalar_norm(network: Network, x: Tensor) -> Tensor:
    weight = network.scalar.expand(32)
    return functional.layer_norm(network.first(x), (32,), weight, weight, 1e-6)


def merged_rows(network: Network, x: Tensor) -> Tensor:
    """Images and tokens are one axis where queries, keys and values are made."""
    made = network.first(x.reshape(-1, 16)).reshape(-1, 48, 3, 2, 16).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(*made.unbind(0)).transpose(1, 2).flatten(2)


def two_readers(network: Network, x: Tensor) -> Tensor:
    made = network.first(x)
    return functional.gelu(made) + network.norm(made)


# name: what is between the layers, the width of the first, and the functions that make it
BETWEEN = {
    "nothing": (lambda network, x: network.first(x), 32, [linear, linear]),
    "GELU": (lambda network, x: functional.gelu(network.first(x)), 32, [linear, linear]),
    "other GELU": (
        lambda network, x: functional.gelu(network.first(x), approximate="tanh"),
        32,
        [linear, linear],
    ),
    "LayerNorm": (lambda network, x: network.norm(network.first(x)), 32, None),
    "positions": (lambda network, x: network.first(x) + network.position, 32, [linear, linear]),
    "a multiple": (
        lambda network, x: torch.add(network.first(x), network.first(x).relu(), alpha=2),
        32,
        None,
    ),
    "twice itself": (lambda network, x: network.first(x) * 2, 32, [linear, linear]),
    "a mask": (
        lambda network, x: network.first(x) + (x > 0).repeat(1, 1, 2),
        32,
        [linear, linear],
    ),
    "a reversal": (lambda network, x: network.first(x).flip(-1), 32, [linear, linear]),
    "strided weights": (scalar_norm, 32, [linear, layer_norm, linear]),
    "merged rows": (merged_rows, 96, [linear, attention, linear]),
    "two readers": (two_readers, 32, None),
}


@pytest.mark.parametrize("scheme", ["linear", "full"])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_does_not_fit_is_left_as_it_is(between: str, scheme: str) -> None:
    made, width, functions = BETWEEN[between]
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = quantize(randomized(Network(made, width)).eval(), images, plain(scheme))
    point = calibrate(network, images)
    lowered = lower(network.graph)
    if functions is not None:
        found = [n.target for n in lowered.nodes if n.target in (attention, layer_norm, linear)]
        assert found == functions
    # no code of these is a tie to within float32 rounding
    assert {n for n, _ in differing_codes(network.graph, point, images).values()} == {0}
    with torch.no_grad():
        values = [point[name] for name in network.names]
        expected = network.module(*values, images)
        torch.testing.assert_close(lowered.module(*values, images), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_on_images_themselves_is_left_as_it_is() -> None:
    class OnImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, 16)

        def forward(self, images: Tensor) -> Tensor:
            return (self.head(images) + images + self.norm(images)).mean((1, 2))

    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = quantize(randomized(OnImages()).eval(), images, plain("full"))
    point = calibrate(network, images)
    with torch.no_grad():
        values = [point[name] for name in network.names]
        expected = network.module(*values, images)
        found = lower(network.graph).module(*values, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
