"""Modules as users bring them, before they become graphs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from evolq.errors import InputError


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, out of `DataParallel` and `torch.compile`.

    Tensors that the model keeps of a training step (`self.features = h`) are copied without their
    history.

    Raises:
        InputError: for parameters in less than float32, or a module that Python cannot copy.
    """
    model = unwrapped(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"parameter {name} of {type(model).__name__} is {kind}, and quantizers need "
                "float32; give model.float()"
            )
    try:
        copied = copy.deepcopy(model, _without_history(model)).eval()
    except Exception as error:  # whatever an attribute raises when it is copied
        raise InputError(
            f"{type(model).__name__} cannot be copied ({_first_line(error)}); drop the attribute "
            "that cannot be, or build the model anew and load its weights"
        ) from error
    for path, module in list(copied.named_modules()):
        inner = unwrapped(module)
        if path and inner is not module:
            copied.set_submodule(path, inner)
    return copied


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's module, out of `DataParallel`, its relatives and `torch.compile`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _without_history(model: nn.Module) -> dict[int, Any]:
    """Return what `copy.deepcopy` takes as copied already: tensors that autograd made."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in pytree.tree_leaves(vars(module))
        if isinstance(value, Tensor) and value.grad_fn is not None
    }


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return a module's logits (n, classes), without gradients.

    What its forward writes to images or buffers goes to copies of them.

    Raises:
        InputError: if it returns no tensor or several.
    """
    model = unwrapped(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        output = torch.func.functional_call(model, buffers, (images.clone(),))
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    check_outputs(type(model).__name__, len(tensors))
    (logits,) = tensors
    # `squeeze` takes away the axis of images if there is only one
    return logits[None] if logits.dim() == 1 and len(images) == 1 else logits


def check_outputs(model: str, count: int) -> None:
    """Check that a model returns one tensor.

    Raises:
        InputError: if not.
    """
    if count != 1:
        raise InputError(
            f"{model} returns {count} tensors; wanted one, the logits: wrap it in a module whose "
            "forward returns them alone"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
