"""Moment matching against what it promises."""

import pytest
import torch

from evolq.tensor.moments import moment_match
from evolq.tensor.observers import minmax
from evolq.tensor.quantizers import PerChannel, PerGroup, PerTensor, QuantSpec, fake_quantize


def weight_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(1, 4)], ids=repr)
def test_each_row_gets_the_moments_of_the_original(granularity) -> None:
    spec = QuantSpec(3, granularity=granularity)
    original = weight_of(6, 8)
    quantized = fake_quantize(original, *minmax([original], spec), 3, spec)
    rows = granularity.rows(moment_match(quantized, original, spec))
    expected = granularity.rows(original)
    torch.testing.assert_close(rows.mean(1), expected.mean(1))
    torch.testing.assert_close(rows.std(1), expected.std(1))


def test_a_row_of_one_value_gets_the_mean_alone() -> None:
    original = weight_of(2, 8)
    matched = moment_match(torch.zeros(2, 8), original, QuantSpec(granularity=PerChannel(0)))
    torch.testing.assert_close(matched, original.mean(1, keepdim=True).expand(2, 8))


def test_moment_matching_does_not_see_the_scale_between_flips() -> None:
    original, spec = weight_of(6, 8), QuantSpec(3, granularity=PerChannel(0))
    codes = fake_quantize(original, *minmax([original], spec), 3, spec)
    torch.testing.assert_close(
        moment_match(codes, original, spec), moment_match(codes * 1.01, original, spec)
    )
