"""Softmax and LayerNorm in integer arithmetic, as FQ-ViT runs them on an integer processor.

Both are simulated in float32 on values that are whole multiples of a scale, as in the published
code (Lin et al. 2022, "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer"),
whose results they reproduce bit for bit. They are not differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evolq.tensor.quantizers import QuantSpec, codes_range, dequantize

# The second-order polynomial 0.3585 (p + 1.353)^2 + 0.344 approximates exp(p) on (-ln 2, 0]
# (Kim et al. 2021, "I-BERT: Integer-only BERT Quantization", i-exp).
EXP_FACTOR, EXP_SHIFT, EXP_OFFSET = 0.3585, 1.353, 0.344

# Bits after the binary point of the integer exponential (published FQ-ViT code). What lies more
# than this many halvings below the largest value is held there.
EXP_FRACTION_BITS = 30

# Width of the integer multiplier that stands for a real factor in the integer LayerNorm, and the
# largest shift that goes with it (published FQ-ViT code; M and N below).
MULTIPLIER_BITS, MAX_SHIFT = 8, 31

LOG2 = QuantSpec(kind="log2")


def _integer_exp(steps: Tensor, scale: Tensor) -> Tensor:
    """Return exp(scale * steps) of whole `steps` <= 0, as whole multiples of some common unit.

    I-BERT's i-exp: exp(x) = 2^-halvings * exp(remainder), the remainder in (-ln 2, 0].
    """
    ln2_steps = torch.floor(-math.log(2) / scale)  # negative
    steps = torch.maximum(steps, EXP_FRACTION_BITS * ln2_steps)
    halvings = (steps / ln2_steps).floor()
    remainder = steps - ln2_steps * halvings
    # 0.3585 (p + 1.353)^2 + 0.344, multiplied out and divided by 0.3585 scale^2.
    linear = torch.floor(2 * EXP_SHIFT / scale)
    constant = torch.floor((EXP_SHIFT**2 + EXP_OFFSET / EXP_FACTOR) / scale**2)
    polynomial = remainder * (remainder + linear) + constant
    return (polynomial * torch.exp2(EXP_FRACTION_BITS - halvings)).floor()


def log_int_softmax(logits: Tensor, scale: Tensor, bits: Tensor | float) -> Tensor:
    """Return the softmax over the last axis, computed in integers and quantized to powers of two.

    Log-Int-Softmax (FQ-ViT): the code of an entry is the rounded log2 of (sum of the
    integer exponentials / the entry's own). The logarithm of a whole number is rounded by its
    highest bit and the one after, so upwards from 1.5 * 2^k.

    Args:
        logits: any shape; whole multiples of `scale`.
        scale: (), of the logits. One halving takes a whole number of steps, ln 2 / scale rounded
            up, so that a coarse scale acts as a higher temperature: 1.15 at a scale of 0.2, 1.01 at
            0.05. Above ln 2 no resolution is left.
        bits: of the code; an entry whose code needs more is zero.
    """
    steps = (logits / scale).round()
    exponentials = _integer_exp(steps - steps.amax(-1, keepdim=True), scale)
    ratio = (exponentials.sum(-1, keepdim=True) / exponentials).round()
    mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa * 2^exponent, mantissa in [0.5, 1)
    codes = exponent - 1 + (mantissa >= 0.75).to(logits.dtype)
    return dequantize(
        codes.clamp(max=codes_range(bits, LOG2)[1]), logits.new_ones(()), None, bits, LOG2
    )


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
    multiplier = (factor.abs() * torch.exp2(shift)).floor().clamp(max=2**MULTIPLIER_BITS - 1)
    offset = ((bias - mean / deviation * weight) / output_scale * torch.exp2(shift)).round()
    output = (factor.sign() * multiplier * steps + offset) * torch.exp2(-shift)
    return output.round() * output_scale
