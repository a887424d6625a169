"""Uniform quantization with parameters that are aligned with values, in few passes over memory.

`quantizers` says what is computed. On a CPU functions of `kernels.cpp` do it in one pass: values
are equal, and sums of gradients are made in another order.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from evolq.native import kernels

# The lowest and the highest code.
Bounds = tuple[Tensor | float, Tensor | float]


def codes_in_one_buffer(
    value: Tensor, scale: Tensor, offset: Tensor | None, bounds: Bounds
) -> Tensor:
    """Return codes, in one new tensor: passes are bound by memory, so that is faster than four.

    Args:
        value: any shape.
        scale: aligned with the value.
        offset: the rounded zero point, likewise, or None.
        bounds: lowest and highest code.
    """
    buffer = value / scale
    if offset is not None:
        buffer.add_(offset)
    # torch.clamp with two tensors takes seven times as long as with one at a time.
    return buffer.clamp_min_(bounds[0]).clamp_max_(bounds[1]).round_()


def rounded(value: Tensor, scale: Tensor, offset: Tensor | None, bounds: Bounds) -> Tensor:
    """Return values rounded to those that codes stand for; arguments as above."""
    if torch.is_grad_enabled():
        return _StraightThrough.apply(value, scale, offset, *bounds)
    return _rounded(value, scale, offset, bounds)


def _rounded(value: Tensor, scale: Tensor, offset: Tensor | None, bounds: Bounds) -> Tensor:
    """Do what `rounded` does, where no gradient is asked for."""
    library = _library(value, scale, offset)
    if library is not None:
        rows = _Rows(value, scale, offset, bounds)
        out = torch.empty_like(rows.value)
        library.fake_quantize(*rows.given, out.data_ptr(), torch.get_num_threads())
        return out
    buffer = codes_in_one_buffer(value, scale, offset, bounds)
    if offset is not None:
        buffer.sub_(offset)
    return buffer.mul_(scale)


class _StraightThrough(torch.autograd.Function):
    """`rounded` with the gradient of `quantizers.fake_quantize`.

    Left to autograd, a gradient takes much longer: it keeps or computes seven tensors for each
    value, where the value itself is enough. With x the value, y the output, s the scale,
    q the code and z the zero point, q - z is y / s; so the scale's derivative is (y - x) / s inside
    and y / s outside. Second derivatives are those of these formulas.
    """

    @staticmethod
    def forward(
        value: Tensor, scale: Tensor, offset: Tensor | None, lower: Any, upper: Any
    ) -> Tensor:
        return _rounded(value, scale, offset, (lower, upper))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, scale, offset, ctx.lower, ctx.upper = inputs
        ctx.save_for_backward(value, scale, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, scale, offset = ctx.saved_tensors
        gradient, bounds = gradients[0], (ctx.lower, ctx.upper)
        library = None if torch.is_grad_enabled() else _library(value, scale, offset)
        if library is not None:
            return *_gradients(library, gradient, value, scale, offset, bounds), None, None
        output = rounded(value, scale, offset, bounds)
        steps = value / scale if offset is None else value / scale + offset
        inside = (steps >= ctx.lower) & (steps <= ctx.upper)
        inner = torch.where(inside, gradient, 0.0)
        error = output - torch.where(inside, value, 0.0)
        of_scale = (gradient * error).sum_to_size(scale.shape) / scale
        if offset is None:
            return inner, of_scale, None, None, None
        of_offset = ((inner - gradient) * scale).sum_to_size(offset.shape)
        return inner, of_scale, of_offset, None, None


def _gradients(
    library: CDLL,
    gradient: Tensor,
    value: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bounds: Bounds,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients with respect to value, scale and offset."""
    rows = _Rows(value, scale, offset, bounds)
    of_value, of_scale, of_offset = map(torch.empty_like, (rows.value, *rows.parameters))
    if gradient.stride() != of_value.stride():
        gradient = torch.empty_like(of_value).copy_(gradient)
    library.fake_quantize_gradient(
        gradient.data_ptr(),
        *rows.given,
        *(part.data_ptr() for part in (of_value, of_scale, of_offset)),
        torch.get_num_threads(),
    )
    return of_value, of_scale, None if offset is None else of_offset


def _library(value: Tensor, scale: Tensor, offset: Tensor | None) -> CDLL | None:
    """Return the functions of `kernels.cpp` if they can take a value with a scale for each row.

    None where PyTorch has to do it: for anything but float32 on a CPU, for parameters along another
    axis than the first, and while operations are traced or intercepted.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode():
        return None
    parts = (value, scale) if offset is None else (value, scale, offset)
    usual = all(
        type(part) is Tensor and part.dtype == torch.float32 and part.device.type == "cpu"
        for part in parts
    )
    by_rows = scale.numel() == 1 or scale.shape[0] == scale.numel() == value.shape[0]
    by_rows = by_rows and (offset is None or offset.shape == scale.shape)
    return kernels() if usual and by_rows and value.numel() else None


class _Rows:
    """What `kernels.cpp` takes for values, and the tensors that have to live as long.

    Values that share one scale may lie in memory in any order.
    """

    def __init__(self, value: Tensor, scale: Tensor, offset: Tensor | None, bounds: Bounds) -> None:
        dense = torch.empty_like(value).stride() == value.stride()
        self.value = value if dense and scale.numel() == 1 else value.contiguous()
        offset = torch.zeros_like(scale) if offset is None else offset
        self.parameters = scale.contiguous(), offset.contiguous()
        self.given = (
            *(part.data_ptr() for part in (self.value, *self.parameters)),
            *map(float, bounds),
            *(scale.numel(), value.numel() // scale.numel()),
        )
