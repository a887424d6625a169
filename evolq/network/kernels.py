"""What a transformer computes on codes, by `kernels.cpp` where that works, else by PyTorch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evolq.native import kernels
from evolq.network.integer_ops import decode, integer_product, rescale, row_sums, steps

# An operand: stored codes, their scale, zero point and shift, as `integer_ops.decode` takes them.
Codes = tuple[Tensor, Tensor, Tensor, int]

# Stored codes (..., columns), and `column_steps`.
Columns = tuple[Tensor, Tensor]


def quantizer_rows(
    counts: Sequence[int], quantizers: Sequence[tuple[Any, ...]], factor: Tensor | None
) -> Tensor:
    """Return the quantizers of columns as the functions below take them: `rows`, (4, columns).

    In rows: what a value is multiplied by, zero point, lowest and highest code, those of stored
    codes.

    Args:
        counts: how many columns each quantizer has, one after the other.
        quantizers: of each what its values are multiplied by first, its scale, rounded zero point,
            lowest and highest code, and what stored codes are less than codes.
        factor: what values are divided by first, one for each column, or None.
    """
    parts = [
        torch.stack([n.expand(count) for n in (times / scale, *(code - shift for code in codes))])
        for count, (times, scale, *codes, shift) in zip(counts, quantizers, strict=True)
    ]
    rows = torch.cat(parts, 1)
    if factor is not None:
        rows[0] /= factor
    return rows


def column_steps(
    columns: int, scale: Tensor, zero: Tensor, shift: int, factor: Tensor | None
) -> Tensor:
    """Return scale and zero point in stored codes of each column, (2, columns).

    Args:
        columns: how many there are.
        scale: of the quantizer.
        zero: its rounded zero point, one or one for each column.
        shift: what stored codes are less than codes.
        factor: what values are multiplied by in the end, one for each column, or None.
    """
    scale = scale if factor is None else scale * factor
    return torch.stack([scale.expand(columns), (zero - shift).expand(columns)])


def stored(codes: Tensor, scale: Tensor, shift: int) -> Tensor:
    """Return `codes` as they are: those of the quantizer with this scale, minus `shift`."""
    return codes


def attention(
    queries: Codes,
    keys: Codes,
    values: Codes,
    scale: Tensor,
    zero: Tensor,
    lower: Tensor,
    upper: Tensor,
    rows: Tensor | None = None,
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
        rows: quantizers of what comes out, for heads x columns (`quantizer_rows`), or None.

    Returns:
        (images, heads, tokens, columns), float32, or stored codes with `rows`; in memory tokens
        come before heads.
    """
    library = kernels()
    if library is None or queries[0].device.type != "cpu":
        value = attention_in_floats(queries, keys, values, scale, zero, lower, upper)
        return value if rows is None else encode_heads(value, rows)
    operands = [queries[0], keys[0].transpose(-2, -1), values[0]]
    operands = [codes if codes.stride(-1) == 1 else codes.contiguous() for codes in operands]
    images, heads, tokens, depth = operands[0].shape
    columns = operands[2].shape[-1]
    out = _empty((images, tokens, heads, columns), rows)
    library.attention(
        *(codes.data_ptr() for codes in operands),
        (ctypes.c_int64 * 9)(*(stride for codes in operands for stride in codes.stride()[:3])),
        *(images, heads, tokens, depth, columns),
        *(int(operand[2]) - operand[3] for operand in (queries, values)),
        float(queries[1] * keys[1]) * math.log2(math.e),
        *map(float, (scale, zero, lower, upper)),
        float(scale * values[1]),
        *_out(out, rows),
        torch.get_num_threads(),
    )
    return out.transpose(1, 2)


def attention_in_floats(queries: Codes, keys: Codes, values: Codes, *quantizer: Any) -> Tensor:
    """Do what `attention` does anywhere, without quantizing the result; sums are exact."""
    left, right, factors = (
        codes.double() + shift - zero.double() for codes, _, zero, shift in (queries, keys, values)
    )
    logits = (left @ right).to(torch.float32) * (queries[1] * keys[1])
    probabilities = steps(logits.softmax(-1), *quantizer)
    return (probabilities.double() @ factors).to(torch.float32) * (quantizer[0] * values[1])


def linear(
    codes: Tensor,
    matrix: Tensor,
    constants: tuple[Tensor, ...],
    with_gelu: bool,
    added: Tensor | Columns | None,
    rows: Tensor | None,
) -> Tensor:
    """Return a linear layer, perhaps its GELU, perhaps with what is added to it.

    Args:
        codes: the layer's input, int8 (..., terms); 4 divides terms.
        matrix: the layer's weight, int8 (terms, columns); `LANES` divides columns.
        constants: what `WeightCodes` returns behind the matrix.
        with_gelu: whether GELU follows.
        added: (..., columns), floats or codes, or None.
        rows: quantizers of what comes out (`quantizer_rows`), or None.

    Returns:
        (..., columns), float32, or stored codes with `rows`.
    """
    library = kernels()
    *numbers, needed = constants
    if library is None or codes.device.type != "cpu":
        value = rescale(integer_product(codes, matrix), row_sums(codes, needed), *numbers)
        value = functional.gelu(value) if with_gelu else value
        value = value if added is None else value + _floats(added)
        return value if rows is None else _encode(value, rows)
    terms, columns = matrix.shape
    read = codes.contiguous()
    numbers = [value.contiguous() for value in numbers]
    _kept, more = _given(added)
    out = _empty((*codes.shape[:-1], columns), rows)
    library.linear(
        *(tensor.data_ptr() for tensor in (read, matrix, *numbers)),
        *(bool(needed), with_gelu),
        *more,
        *(read.numel() // terms, terms, columns),
        *_out(out, rows),
        torch.get_num_threads(),
    )
    return out


def layer_norm(
    given: Tensor | Columns, weight: Tensor, bias: Tensor, epsilon: float, rows: Tensor
) -> Tensor:
    """Return the stored codes of a LayerNorm over the last axis, int8 (..., columns).

    Args:
        given: floats or codes (..., columns); `LANES` divides columns.
        weight: (columns,).
        bias: (columns,).
        epsilon: added to the variance.
        rows: quantizers of what comes out (`quantizer_rows`).
    """
    library = kernels()
    if library is None or rows.device.type != "cpu":
        value = functional.layer_norm(_floats(given), weight.shape, weight, bias, epsilon)
        return _encode(value, rows)
    kept, values = _given(given)
    weight, bias = weight.contiguous(), bias.contiguous()
    out = torch.empty(kept.shape, dtype=torch.int8)
    columns = len(weight)
    library.layer_norm(
        *values,
        *(weight.data_ptr(), bias.data_ptr(), epsilon, rows.data_ptr()),
        *(out.numel() // columns, columns, out.data_ptr(), torch.get_num_threads()),
    )
    return out


def _given(values: Tensor | Columns | None) -> tuple[Tensor, tuple[Any, ...]]:
    """Return what `kernels.cpp` takes for floats or codes, and the tensor that has to live on."""
    if values is None:
        return torch.empty(0), (None, None, None)
    if isinstance(values, Tensor):
        kept = values.contiguous()
        return kept, (kept.data_ptr(), None, None)
    codes, steps = values
    kept = codes.contiguous()
    return kept, (None, kept.data_ptr(), steps.data_ptr())


def _empty(shape: tuple[int, ...], rows: Tensor | None) -> Tensor:
    return torch.empty(shape, dtype=torch.float32 if rows is None else torch.int8)


def _out(out: Tensor, rows: Tensor | None) -> tuple[int | None, int | None, int | None]:
    """Return what `kernels.cpp` takes for quantizers, floats that it writes, or codes."""
    if rows is None:
        return None, out.data_ptr(), None
    return rows.data_ptr(), None, out.data_ptr()


def _floats(values: Tensor | Columns) -> Tensor:
    if isinstance(values, Tensor):
        return values
    codes, (scale, zero) = values
    return decode(codes, scale, zero, 0)


def encode_heads(value: Tensor, rows: Tensor) -> Tensor:
    """Return stored codes of (images, heads, tokens, columns), by the rows of heads x columns."""
    return _encode(value, rows.unflatten(1, (value.shape[1], 1, value.shape[3])))


def _encode(value: Tensor, rows: Tensor) -> Tensor:
    """Return stored codes of `value`, by `rows` that broadcast to it."""
    unit, zero, lower, upper = rows
    return torch.maximum(torch.minimum(value * unit + zero, upper), lower).round().to(torch.int8)
