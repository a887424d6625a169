"""The integer LayerNorm against its floating-point original."""

import pytest
import torch
from torch.nn import functional

from evolq.tensor.integer_layer_norm import integer_layer_norm


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_integer_layer_norm_is_layer_norm_to_a_step(generator: torch.Generator) -> None:
    scale = torch.tensor([0.01, 0.02, 0.04, 0.08]).repeat(8)
    value = torch.randint(-100, 100, (5, 7, 32), generator=generator) * scale
    weight = torch.randn(32, generator=generator)
    bias = torch.randn(32, generator=generator)
    output_scale = torch.tensor(0.05)
    result = integer_layer_norm(value, scale, weight, bias, output_scale)
    steps = result / output_scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    exact = functional.layer_norm(value, (32,), weight, bias, eps=0)
    # Half a step of rounding, and an integer factor of 8 bits that is cut off: up to 1/128.
    slack = output_scale / 2 + (exact - bias).abs().amax() * 2 / 128
    assert float((result - exact).abs().max()) < slack


def test_a_gain_of_zero_leaves_the_offset_to_all_bits() -> None:
    """With few bits 1.4999 would become 1.5 first, and then 2."""
    value = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    ones, gain = torch.ones(4), torch.tensor([1.0, 0.0, 1.0, 1.0])
    bias = torch.tensor([0.0, 1.4999, 0.0, 0.0])
    assert float(integer_layer_norm(value, ones, gain, bias, torch.tensor(1.0))[0, 1]) == 1.0
