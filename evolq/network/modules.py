"""Modules as users bring them, before they become graphs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from evolq.errors import InputError, first_line


def check_model(model: nn.Module) -> None:
    """Check that a model is one.

    Raises:
        InputError: if not.
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else f"a {type(model).__name__}"
        raise InputError(
            f"`model` is {kind}; give a torch.nn.Module, such as evolq.load_model('fashion_vit')"
        )


def check_images(images: Any, image_shape: Sequence[int] | None = None) -> None:
    """Check images: dense float32 (n, channels, height, width), n > 0.

    Args:
        images: a Tensor, or what gives one for a slice.
        image_shape: (channels, height, width) that they must have; None for any.

    Raises:
        InputError: if they are something else.
    """
    some = None
    if isinstance(images, Tensor) and images.layout != torch.strided:
        some = images
    elif hasattr(images, "shape") and hasattr(images, "to"):
        some = images[:1]
    if not isinstance(some, Tensor):
        raise InputError(
            f"`images` is a {type(images).__name__}; give a tensor (n, channels, height, width)"
        )
    wanted = "n" if image_shape is None else f"n, {', '.join(map(str, image_shape))}"
    if (
        some.dim() != 4
        or not some.numel()
        or some.dtype != torch.float32
        or some.layout != torch.strided
        or some.is_meta
        or (image_shape is not None and tuple(some.shape[1:]) != tuple(image_shape))
    ):
        kind = str(some.dtype).removeprefix("torch.")
        kind += "" if some.layout == torch.strided else " sparse"
        raise InputError(
            f"`images` have shape {tuple(images.shape)} and type {kind}; give "
            f"({wanted if image_shape else 'n, channels, height, width'}) float32, n > 0"
        )
    if not bool(some.isfinite().all()):
        raise InputError("`images` hold NaN or infinity; give finite ones")


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, out of `DataParallel` and `torch.compile`.

    Tensors that the model keeps of a training step (`self.features = h`) are copied without their
    history.

    Raises:
        InputError: for parameters that are not finite or not in float32, or a module that Python
            cannot copy.
    """
    check_model(model)
    model = unwrapped(model)
    for name, parameter in model.named_parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        floating = parameter.is_floating_point() or parameter.is_complex()
        if floating and parameter.dtype != torch.float32:
            raise InputError(
                f"parameter {name} of {type(model).__name__} is {kind}, and quantizers need "
                "float32; give model.float()"
            )
        if floating and not bool(parameter.isfinite().all()):
            raise InputError(
                f"parameter {name} of {type(model).__name__} holds NaN or infinity; give a `model` "
                "with finite weights"
            )
    try:
        copied = copy.deepcopy(model, _without_history(model)).eval()
    except Exception as error:  # whatever an attribute raises when it is copied
        raise InputError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}); drop the attribute "
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
        InputError: if it cannot be called with these images, returns no tensor or several, or none
            of that shape.
    """
    check_model(model)
    check_images(images)
    model = unwrapped(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        try:
            output = torch.func.functional_call(model, buffers, (images.clone(),))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise InputError(
                f"`model` {type(model).__name__} cannot be called with images "
                f"{tuple(images.shape)} ({first_line(error)}); give the size and channels that "
                "it was made for"
            ) from error
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    check_outputs(type(model).__name__, len(tensors))
    (logits,) = tensors
    # `squeeze` takes away the axis of images if there is only one
    logits = logits[None] if logits.dim() == 1 and len(images) == 1 else logits
    if logits.dim() != 2 or len(logits) != len(images):
        raise InputError(
            f"`model` {type(model).__name__} returns {tuple(logits.shape)} for {len(images)} "
            "images; wanted logits (n, classes)"
        )
    return logits


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
