"""Quantized weights as integer codes, and codes as bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evolq.network.deployed import constants, weight_nodes
from evolq.network.layers import matches_moments
from evolq.network.quantized import QuantizedNetwork
from evolq.points import Point
from evolq.tensor.moments import moments
from evolq.tensor.quantizers import QuantSpec, codes_range, dequantize
from evolq.tensor.quantizers import quantize as to_codes


@dataclass(frozen=True)
class IntegerWeight:
    """A quantized weight in integers.

    Attributes:
        codes: uint8, of the weight's shape, from 0 to 2^bits - 1; signed codes are shifted up.
        scale: shape by `spec.granularity`.
        zero_point: likewise and not rounded, for codes that are not shifted; None if symmetric.
        bits: 2 to 8.
        spec: the quantizer's constants.
        moments: (3, rows) with moment matching, else None: what is subtracted from each row of
            dequantized values, then multiplied, then added.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    spec: QuantSpec
    moments: Tensor | None

    def value(self) -> Tensor:
        """Return the weight that the quantizer gives, bit for bit."""
        lowest, _ = codes_range(self.bits, self.spec)
        codes = self.codes.to(self.scale.dtype) + lowest
        value = dequantize(codes, self.scale, self.zero_point, self.bits, self.spec)
        if self.moments is None:
            return value
        granularity = self.spec.granularity
        own_mean, ratio, mean = self.moments.unsqueeze(-1)
        rows = (granularity.rows(value) - own_mean) * ratio + mean
        return granularity.from_rows(rows, value.shape)


def integer_weights(network: QuantizedNetwork, point: Point) -> dict[str, IntegerWeight]:
    """Return the weights that `network` quantizes at `point`, by the names of their quantizers."""
    # a symmetric quantizer's zero point is None
    values: dict[Any, Any] = {None: None} | constants(network, point)
    weights = {}
    for name, node in weight_nodes(network).items():
        spec = network.sites[name].spec
        value, scale, zero_point, bits = (values[argument] for argument in node.args)
        codes = to_codes(value, scale, zero_point, bits, spec)
        matched = None
        if matches_moments(network, node):
            dequantized = dequantize(codes, scale, zero_point, bits, spec)
            matched = moments(dequantized, value, spec)
        lowest, _ = codes_range(bits, spec)
        weights[name] = IntegerWeight(
            (codes - lowest).to(torch.uint8), scale, zero_point, int(bits), spec, matched
        )
    return weights


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes from 0 to 2^bits - 1, of any shape, as bytes: uint8 (ceil(bits * count / 8),).

    Code i takes the bits from i * bits on, counted from the lowest bit of the first byte; with 4
    bits the first of two codes is in the lower half of a byte, as in ONNX.
    """
    digits = (codes.cpu().numpy().reshape(-1, 1) >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(digits.astype(np.uint8), bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` codes (count,) uint8 that `pack` made into bytes."""
    digits = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little")
    codes = digits.reshape(count, bits) << np.arange(bits, dtype=np.uint8)
    return torch.from_numpy(codes.sum(1, dtype=np.uint8))
