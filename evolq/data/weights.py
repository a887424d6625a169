"""Weights in files as people have them, made to fit a model.

Files are read without running code that they hold: safetensors, or `torch.load` with
`weights_only=True`. What is done to make weights fit is told in one warning.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from evolq.errors import InputError

TORCH_SUFFIXES = frozenset((".pth", ".pt", ".ckpt", ".bin", ".tar"))
"""Files of `torch.save`; `.tar` as in `model.pth.tar`."""

# Where training scripts put the weights, averaged ones first, as timm.models.load_state_dict does.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")

# What DataParallel, torch.compile and Lightning's modules write in front of each name.
PREFIXES = re.compile(r"module\.|_orig_mod\.|model\.")

# Counters of training (of batch norms, of torch's AveragedModel), which evaluation does not read.
# Checkpoints from before torch 0.4 have none.
COUNTERS = ("num_batches_tracked", "n_averaged")

# Floating-point types that float32 can stand for, and types of indices and masks.
FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
INTEGERS = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))


def read_weights(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by the names of a model, floating ones as float32.

    Weights are looked for at the top of the file and under `CONTAINERS`. What wrappers wrote in
    front of the names (`PREFIXES`) is stripped where more names fit without it.

    Args:
        path: a `.safetensors` file, or one of `torch.save` (`TORCH_SUFFIXES`).
        names: those of the model's state dict.

    Raises:
        InputError: for a file that is missing, damaged, or cannot be read without running code; and
            for weights that have no float32 values: of 8-bit floating-point, complex or quantized
            types, sparse, or not finite.
    """
    tensors, notes = _unwrapped(_read(path), path)
    _check_types(tensors, path)
    prefix = _prefix(tensors, names)
    if prefix:
        stripped = sum(name.startswith(prefix) for name in tensors)
        notes.append(f"prefix {prefix!r} stripped from {stripped} of {len(tensors)} names")
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    converted = Counter(
        str(tensor.dtype).removeprefix("torch.")
        for tensor in weights.values()
        if tensor.dtype in FLOATS and tensor.dtype != torch.float32
    )
    notes += [
        f"{dtype} became float32 in {count} of {len(weights)} tensors"
        for dtype, count in converted.items()
    ]
    weights = {
        name: tensor.float() if tensor.dtype in FLOATS else tensor
        for name, tensor in weights.items()
    }
    infinite = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if infinite:
        others = f" and {len(infinite) - 1} others" if len(infinite) > 1 else ""
        raise InputError(
            f"{path} holds NaN or infinity in {infinite[0]!r}{others}; give finite weights"
        )
    if notes:
        warnings.warn(f"{path}: {'; '.join(notes)}", stacklevel=2)
    return weights


def fitted(
    state: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Return `given` with all names of a model's state dict, ready for `load_state_dict`.

    Of tensors that the model ties (one memory under several names) one is enough. Counters of
    training may be missing or too many.

    Args:
        state: the model's state dict.
        given: weights by name.
        what: names both in an error, as in "FILE does not fit 'vit'".

    Raises:
        InputError: if names, shapes or types do not agree, or tied weights differ; with the number
            of names, the first of them and what all begin with.
    """
    complete = {name: tensor for name, tensor in given.items() if not name.endswith(COUNTERS)}
    for names in _tied(state):
        there = [name for name in names if name in complete]
        for name in there[1:]:
            if not torch.equal(complete[name], complete[there[0]]):
                raise InputError(
                    f"{what}: {there[0]!r} and {name!r} are one tensor in the model, but differ in "
                    "the file; keep one of them"
                )
        if there:
            complete |= dict.fromkeys(names, complete[there[0]])
    needed = [name for name in state if not name.endswith(COUNTERS)]
    common = [name for name in needed if name in complete]
    problems = {
        "missing": [name for name in needed if name not in complete],
        "unexpected": [name for name in complete if name not in state],
        "of another shape": [
            f"{name} {tuple(complete[name].shape)} instead of {tuple(state[name].shape)}"
            for name in common
            if complete[name].shape != state[name].shape
        ],
        "of another type": [
            f"{name} {complete[name].dtype} instead of {state[name].dtype}"
            for name in common
            if complete[name].is_floating_point() != state[name].is_floating_point()
        ],
    }
    told = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in problems.items() if keys]
    if told:
        raise InputError(
            f"{what}, keys: {len(common)} of {len(needed)} there; {'; '.join(told)}; give weights "
            "of this model, or name the model of these weights"
        )
    return {name: complete.get(name, tensor) for name, tensor in state.items()}


# Reading ------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"no weights at {path}; give a file that exists")
    suffix = path.suffix.lower()
    try:
        if suffix == ".safetensors":
            return load_file(path)
        if suffix in TORCH_SUFFIXES:
            # Training scripts keep their options beside the weights: attributes without code.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # about torch's own formats
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own kinds
        code = _needed_code(error)
        if code is not None:
            raise InputError(
                f"{path} cannot be opened without running code that it holds ({code}); if you "
                "trust it, load it yourself and save its state dict: safetensors.torch.save_file("
                f"STATE_DICT, {path.with_suffix('.safetensors').name!r})"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own text is a page of advice
            reason = "it is damaged, or was not written by torch.save"
        raise InputError(
            f"cannot read the weights in {path} ({reason}); fetch or convert the file again"
        ) from error
    raise InputError(
        f"{path} is no file of weights that is known; wanted .safetensors, "
        f"{', '.join(sorted(TORCH_SUFFIXES))}"
    )


def _needed_code(error: Exception) -> str | None:
    """Return what `torch.load` would have to run, None if the file is damaged instead."""
    if "TorchScript" in str(error):
        return "a TorchScript archive"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else None


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a checkpoint, and what to tell about where they were found."""
    found = _find(content)
    if found is None:
        keys = _first([str(key) for key in content]) if isinstance(content, Mapping) else ""
        raise InputError(
            f"no weights in {path}: wanted tensors by name, at the top or in one of "
            f"{', '.join(CONTAINERS)}; it holds {keys or type(content).__name__}"
        )
    return found


def _find(content: Any, depth: int = 3) -> tuple[dict[str, Tensor], list[str]] | None:
    if not isinstance(content, Mapping) or depth == 0:
        return None
    inside = {name: _find(content.get(name), depth - 1) for name in CONTAINERS}
    usable = {name: found for name, found in inside.items() if found is not None}
    if usable:
        first, *others = usable
        tensors, notes = usable[first]
        told = f"weights taken from {first!r}, not {' or '.join(map(repr, others))}"
        return tensors, [told, *notes] if others else notes
    tensors = {
        str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)
    }
    return (tensors, []) if tensors else None


def _check_types(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if (
            tensor.dtype not in FLOATS | INTEGERS
            or tensor.layout != torch.strided
            or tensor.is_meta
        ):
            kind = str(tensor.dtype).removeprefix("torch.")
            if tensor.layout != torch.strided:
                kind = "sparse " + kind
            if tensor.is_meta:
                kind += " without values"
            raise InputError(
                f"{path} holds tensors that cannot be used ({kind}, such as {name!r}); give "
                "weights in float32, float16 or bfloat16"
            )


# Names --------------------------------------------------------------------------------------------


def _prefix(given: Collection[str], names: Collection[str]) -> str:
    """Return the chain of `PREFIXES` without which most names fit, the shortest if several."""
    candidates = {""}
    for name in given:
        end = 0
        while found := PREFIXES.match(name, end):
            end = found.end()
            candidates.add(name[:end])

    def fitting(prefix: str) -> int:
        found = Counter(name.removeprefix(prefix) for name in given)
        return sum(name in found for name in names) if max(found.values()) == 1 else 0

    return min(candidates, key=lambda prefix: (-fitting(prefix), len(prefix), prefix))


def _tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names of each tensor that has several."""
    groups = defaultdict(list)
    for name, tensor in state.items():
        if tensor.numel():
            groups[tensor.data_ptr(), tensor.shape, tensor.stride()].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _first(keys: Sequence[str]) -> str:
    """Return the first keys and, for three or more, what all of them begin with."""
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    parts = zip(*(key.split(".") for key in keys), strict=False)
    common = [part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts)]
    return f"{shown}; all begin with {'.'.join(common)}." if common and len(keys) > 2 else shown
