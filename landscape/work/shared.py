"""A value that every process of a machine reads from one file, which is mapped into memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

PREFIX, SUFFIX = ".shared-", ".pt"
# Bytes of the largest piece of memory that glibc keeps for the next use when it is freed, and of
# all smaller ones, once it has seen such a piece freed (M_MMAP_THRESHOLD of mallopt(3), less a page
# or two). Until then it gives large tensors back to the system; to get them again took a third of
# the time of a point of the default scan.
KEPT = 2**25 - 2**13


class Shared(Generic[T]):
    """What calls have in common, such as weights and images: written once, when it is first sent.

    Where it was made `get` returns the value itself. Pickled, it is the name of a file; processes
    map its tensors, so that one machine has them in memory once. The file goes with this object.

    Whoever gets it computes with as many threads as the process that made it, since float32 sums
    are rounded in another order by another number.
    """

    def __init__(self, value: T, folder: Path | None = None) -> None:
        """Keep `value`; the file will be in `folder`, which all workers see, or a temporary one."""
        self._value = value
        self._folder = folder
        self._path: Path | None = None
        self._threads = torch.get_num_threads()
        self._lock = Lock()  # executors pickle in threads of theirs

    def get(self) -> T:
        """Return the value."""
        _set_threads(self._threads)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        """Write the file, unless it is there; return what finds it."""
        with self._lock:
            if self._path is None:
                descriptor, name = tempfile.mkstemp(SUFFIX, PREFIX, self._folder)
                weakref.finalize(self, Path(name).unlink, missing_ok=True)
                with os.fdopen(descriptor, "wb") as file:
                    torch.save(self._value, file)
                self._path = Path(name).absolute()
        return Received, (str(self._path), self._threads)


class Received:
    """A `Shared` in another process."""

    def __init__(self, path: str, threads: int) -> None:
        """Keep the name of the file, and the number of threads."""
        self._path = path
        self._threads = threads

    def get(self) -> Any:
        """Return the value; it is read once and kept until another one is asked for."""
        _set_threads(self._threads)
        return _read(self._path)


def _set_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@lru_cache(maxsize=1)
def _read(path: str) -> Any:
    bytearray(KEPT)  # and free it
    return torch.load(path, mmap=True, weights_only=False)
