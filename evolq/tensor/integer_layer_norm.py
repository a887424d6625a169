"""LayerNorm in integer arithmetic, as FQ-ViT runs it on an integer processor.

It is simulated in float32 on values that are whole multiples of a scale, as in the published code
(Lin et al. 2022, "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer"),
whose results it reproduces bit for bit. It is not differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Width of the integer multiplier that stands for a real factor in the integer LayerNorm, and the
# largest shift that goes with it (published FQ-ViT code; M and N below).
MULTIPLIER_BITS, MAX_SHIFT = 8, 31


def integer_layer_norm(
    value: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    output_scale: Tensor,
) -> Tensor:
    """Return LayerNorm over the last axis, computed in integers; whole multiples of `output_scale`.

    Power-of-two factors (FQ-ViT) bring all channels to the smallest scale by shifts, so that mean
    and variance are integer sums; each affine factor becomes M * 2^-N with an integer M of 8 bits.
    As published, no epsilon is added to the variance: a row of equal values gives NaN.

    Args:
        value: (..., channels), whole multiples of `scale`.
        scale: (channels,), a common scale times a power-of-two factor each.
        weight: (channels,).
        bias: (channels,).
        output_scale: (), of the quantizer that follows; the result is not yet clamped to its codes.
    """
    smallest = scale.amin()
    steps = (value / scale).round() * (scale / smallest).round()
    count = steps.shape[-1]
    total = steps.sum(-1, keepdim=True)
    mean = total / count * smallest
    squares = steps.square().sum(-1, keepdim=True)
    deviation = smallest / count * (count * squares - total.square()).sqrt()

    factor = smallest / deviation * weight / output_scale
    shift = (MULTIPLIER_BITS - torch.frexp(factor).exponent).clamp(0, MAX_SHIFT)
    shift = torch.where(factor == 0, MAX_SHIFT, shift)  # as the logarithm of zero has it
    multiplier = (factor.abs() * torch.exp2(shift)).floor().clamp(max=2**MULTIPLIER_BITS - 1)
    offset = ((bias - mean / deviation * weight) / output_scale * torch.exp2(shift)).round()
    output = (factor.sign() * multiplier * steps + offset) * torch.exp2(-shift)
    return output.round() * output_scale
