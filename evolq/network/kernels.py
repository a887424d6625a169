"""Products of 8-bit codes with what follows, by `kernels.cpp` where that works, else by PyTorch."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evolq.network.integer_ops import encode, integer_product, rescale, row_sums, steps
from evolq.network.native import LANES, kernels

# Columns that `linear_gelu` makes at a time.
PANEL = 4 * LANES

# An operand: stored codes, their scale, zero point and shift, as `integer_ops.decode` takes them.
Codes = tuple[Tensor, Tensor, Tensor, int]


def attention(
    queries: Codes,
    keys: Codes,
    values: Codes,
    scale: Tensor,
    zero: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Tensor:
    """Return softmax(queries keys), quantized, times values.

    Args:
        queries: (images, heads, tokens, depth), int8; 4 divides depth.
        keys: (images, heads, depth, tokens), as the product reads them.
        values: (images, heads, tokens, columns), `LANES` divides the number of columns.
        scale: of the probabilities' quantizer.
        zero: its rounded zero point.
        lower: its lowest code.
        upper: its highest code, 255 at most.

    Returns:
        (images, heads, tokens, columns), float32; in memory tokens come before heads.
    """
    library = kernels()
    if library is None or queries[0].device.type != "cpu":
        return attention_in_floats(queries, keys, values, scale, zero, lower, upper)
    operands = [queries[0], keys[0].transpose(-2, -1), values[0]]
    operands = [codes if codes.stride(-1) == 1 else codes.contiguous() for codes in operands]
    images, heads, tokens, depth = operands[0].shape
    columns = operands[2].shape[-1]
    out = torch.empty(images, tokens, heads, columns)
    library.attention(
        *(codes.data_ptr() for codes in operands),
        (ctypes.c_int64 * 9)(*(stride for codes in operands for stride in codes.stride()[:3])),
        *(images, heads, tokens, depth, columns),
        *(int(operand[2]) - operand[3] for operand in (queries, values)),
        float(queries[1] * keys[1]) * math.log2(math.e),
        *map(float, (scale, zero, lower, upper)),
        float(scale * values[1]),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.transpose(1, 2)


def attention_in_floats(queries: Codes, keys: Codes, values: Codes, *quantizer: Any) -> Tensor:
    """Do what `attention` does anywhere; sums are exact in float64."""
    left, right, factors = (
        codes.double() + shift - zero.double() for codes, _, zero, shift in (queries, keys, values)
    )
    logits = (left @ right).to(torch.float32) * (queries[1] * keys[1])
    probabilities = steps(logits.softmax(-1), *quantizer)
    return (probabilities.double() @ factors).to(torch.float32) * (quantizer[0] * values[1])


def linear_gelu(
    codes: Tensor,
    matrix: Tensor,
    constants: tuple[Tensor, ...],
    factor: Tensor | None,
    scale: Tensor,
    zero: Tensor,
    lower: Tensor,
    upper: Tensor,
    shift: int,
) -> Tensor:
    """Return the stored codes of GELU of a linear layer, int8 (..., columns).

    Args:
        codes: the layer's input, int8 (..., terms); 4 divides terms.
        matrix: the layer's weight, int8 (terms, columns); `PANEL` divides columns.
        constants: what `rescale` takes behind the sums of rows.
        factor: what values are divided by in front of the quantizer, one for each column, or None.
        scale: of the quantizer, as `encode` takes all that follows.
        zero: its rounded zero point.
        lower: its lowest code.
        upper: its highest code.
        shift: what stored codes are less than codes.
    """
    library = kernels()
    if library is None or codes.device.type != "cpu":
        rows = row_sums(codes, torch.tensor(True))
        value = functional.gelu(rescale(integer_product(codes, matrix), rows, *constants))
        value = value if factor is None else value / factor
        return encode(value, scale, zero, lower, upper, shift)
    terms, columns = matrix.shape
    unit = 1 / scale if factor is None else 1 / (factor * scale)
    stored = codes.contiguous()
    given = [value.contiguous() for value in (*constants, unit.expand(columns))]
    out = torch.empty(*codes.shape[:-1], columns, dtype=torch.int8)
    library.linear_gelu(
        *(tensor.data_ptr() for tensor in (stored, matrix, *given)),
        *map(float, (zero, lower, upper)),
        *(shift, stored.numel() // terms, terms, columns),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
