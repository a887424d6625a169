"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from evolq.errors import InputError


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file, replacing an older one only when all is written.

    Raises:
        InputError: if it cannot be written; an older file is then still there, unchanged.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which replaces an older one when the block ends without an error.

    Raises:
        InputError: if it cannot be written; an older file is then still there, unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # gone after success; its folder may be what is wrong
            partial.unlink()
