"""Moment matching: a correction for what quantizing a weight does to its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from evolq.tensor.quantizers import Quantizer, QuantSpec

# Added to a deviation that is divided by (published Evol-Q code).
EPSILON = 1e-8


def moment_match(dequantized: Tensor, original: Tensor, spec: QuantSpec) -> Tensor:
    """Shift and scale each row of a dequantized weight to the mean and deviation of the original.

    What the published Evol-Q code calls bias correction (after Banner et al. 2019, "Post training
    4-bit quantization of convolutional networks for rapid-deployment"). A row is what shares one
    scale: a channel, a group, or the whole tensor. A dequantized row of one single value keeps
    deviation zero and gets the original mean.

    The result is in general no longer on the grid of codes, and while no code flips it does not
    depend on the scale at all.

    Args:
        dequantized: any shape.
        original: likewise.
        spec: of the weight's quantizer; only its granularity is read.
    """
    mean, ratio, new_mean = moments(dequantized, original, spec)[..., None]
    matched = (spec.granularity.rows(dequantized) - mean) * ratio + new_mean
    return spec.granularity.from_rows(matched, original.shape)


def before_matching(
    wanted: Tensor, dequantized: Tensor, spec: QuantSpec, original: Tensor | None = None
) -> Tensor:
    """Return what `moment_match(dequantized, original, spec)` maps to `wanted`, row by row.

    A row that matching makes constant is left as it is.
    """
    original = wanted if original is None else original
    mean, ratio, new_mean = moments(dequantized, original, spec)[..., None]
    rows = spec.granularity.rows(wanted)
    inverse = (rows - new_mean) / torch.where(ratio > 0, ratio, 1.0) + mean
    return spec.granularity.from_rows(torch.where(ratio > 0, inverse, rows), wanted.shape)


def moments(dequantized: Tensor, original: Tensor, spec: QuantSpec) -> Tensor:
    """Return the steps of `moment_match`: what each row loses, is multiplied by, and gets.

    Arguments as there; the result has the shape (3, rows).
    """
    deviation, mean = _deviation_and_mean(spec.granularity.rows(original))
    own_deviation, own_mean = _deviation_and_mean(spec.granularity.rows(dequantized))
    ratio = torch.where(own_deviation > 0, deviation / (own_deviation + EPSILON), 0.0)
    return torch.stack([own_mean, ratio, mean])


def _deviation_and_mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `torch.std_mean` does, in a fifth of the time."""
    first = rows[:, :1]
    rows = rows - first  # so that the deviation of equal values is 0, and not the mean's rounding
    mean = rows.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(rows - mean, dim=1)
    # a row of one value has deviation zero
    return norm / max(1, rows.shape[1] - 1) ** 0.5, (first + mean)[:, 0]


class MomentMatchedQuantizer(Quantizer):
    """A weight's quantizer followed by `moment_match`, as a node of a graph."""

    def forward(
        self, value: Tensor, scale: Tensor, zero_point: Tensor | None, bits: Tensor | float
    ) -> Tensor:
        """Return the moment-matched, fake-quantized `value`."""
        return moment_match(super().forward(value, scale, zero_point, bits), value, self.spec)
