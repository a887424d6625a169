"""The integer softmax and LayerNorm against their floating-point originals."""

import math

import pytest
import torch
from torch.nn import functional

from evolq.tensor.integer_layer_norm import integer_layer_norm, log_int_softmax


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2])
def test_log_int_softmax_is_the_softmax_to_a_power_of_two(
    scale: float, generator: torch.Generator
) -> None:
    logits = (torch.randn(3, 5, 20, generator=generator) * 2 / scale).round() * scale
    result = log_int_softmax(logits, torch.tensor(scale), bits=4)
    assert torch.equal(result, torch.exp2(torch.log2(result).round()))
    # One halving is a whole number of steps, at least ln 2: this is what raises the temperature.
    temperature = math.ceil(math.log(2) / scale) * scale / math.log(2)
    error = torch.log2(result / (logits / temperature).softmax(-1)).abs()
    # A ratio of 2.5 rounds to 3 and that to 4: log2(1.6) at worst. The polynomial adds the rest.
    assert float(error[result > 0].max()) < math.log2(1.6) + scale / 2


def test_log_int_softmax_drops_what_has_no_code() -> None:
    logits = torch.tensor([0.0, -1.0, -2.0, -4.0])
    result = log_int_softmax(logits, torch.tensor(0.1), bits=2)
    assert result.tolist() == [0.5, 0.25, 0.125, 0]


def test_log_int_softmax_ignores_a_shift() -> None:
    logits = torch.tensor([0.0, -1.0, -2.0, -4.0])
    scale = torch.tensor(0.125)
    assert torch.equal(log_int_softmax(logits, scale, 4), log_int_softmax(logits + 50, scale, 4))


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
