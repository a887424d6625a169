"""Paired differences, against the textbook."""

import pytest
import torch
from scipy import stats

from evolq.losses.paired import paired_difference


def test_the_interval_is_that_of_the_paired_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(400, generator=generator)
    after = before + 0.1 + 0.2 * torch.randn(400, generator=generator)
    found = paired_difference(before, after)
    difference = (after.double() - before.double()).numpy()
    low, high = stats.norm.interval(0.95, difference.mean(), stats.sem(difference))
    assert found == pytest.approx((difference.mean(), low, high), rel=1e-6)
    assert found.high - found.low < 0.05, "what both share cancels"


def test_right_and_wrong_answers() -> None:
    before = torch.tensor([True, True, False, False])
    after = torch.tensor([True, True, True, False])
    found = paired_difference(before, after)
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - 1.959964 * 0.5 / 2)
