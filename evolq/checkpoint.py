"""Checkpoints: named tensors and JSON values in one safetensors file, replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evolq.errors import InputError


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a checkpoint; a process killed at any moment leaves the old file or the new one.

    Raises:
        InputError: if the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            unfinished,
            metadata={"values": json.dumps(values)},
        )
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write the checkpoint {path} ({error})") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the values of a checkpoint.

    Raises:
        InputError: if the file is not a checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            values = json.loads(file.metadata()["values"])
            return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a checkpoint of a search ({error}); remove it to start again"
        ) from error
