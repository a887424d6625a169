"""Tensors on disk under a key, so that a second run need not decode its images again.

One safetensors file per tensor under `~/.cache/evolq/images` (`EVOLQ_CACHE` names another place
than `~/.cache/evolq`). An entry carries its own checksum; a damaged one counts as absent. Nothing
is ever evicted: the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


def cache_folder() -> Path:
    """Return where decoded images are kept; the folder need not exist."""
    chosen = os.environ.get("EVOLQ_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "evolq") / "images"


def read(key: str) -> Tensor | None:
    """Return the uint8 tensor stored under `key`, or None if there is none or it is damaged."""
    try:
        entry = load(_path(key).read_bytes())
        tensor, checksum = entry["tensor"], entry["checksum"]
    except (OSError, SafetensorError, KeyError):
        return None
    return tensor if torch.equal(checksum, _checksum(tensor)) else None


def write(key: str, tensor: Tensor) -> None:
    """Store a uint8 tensor under `key`.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may read or write the same entry: it appears whole or not at all.
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_bytes(save({"tensor": tensor, "checksum": _checksum(tensor)}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return cache_folder() / key[:2] / f"{key}.safetensors"


def _checksum(tensor: Tensor) -> Tensor:
    digest = hashlib.sha256(tensor.contiguous().numpy().data).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)
