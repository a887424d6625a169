"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from evolq.errors import InputError


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file, replacing an older one only when all is written.

    Raises:
        InputError: if it cannot be written; an older file is then still there, unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # gone after success; its folder may be what is wrong
            partial.unlink()
