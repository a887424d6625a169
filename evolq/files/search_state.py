"""The state of a search: named tensors and JSON values in one file, replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from evolq.atomic import write_whole
from evolq.errors import InputError
from evolq.files.checksum import checksum


def save_search_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a state; a process killed at any moment leaves the old file or the new one.

    Raises:
        InputError: if the file cannot be written.
    """
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = {"values": json.dumps(values), "checksum": checksum(values, content)}
    write_whole(path, to_bytes(content, header))


def load_search_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the values of a state.

    Raises:
        InputError: if the file does not hold the state of a search, or not the one that was saved.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(header["values"])
        if header["checksum"] != checksum(values, tensors):
            raise ValueError("its checksum does not fit its content")
        return tensors, values
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the state of a search ({error}); remove it to start again"
        ) from error
