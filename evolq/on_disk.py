"""Arrays that would take too much memory, in files that vanish with the process.

What is read from a file lies in the operating system's cache, which gives way when memory is
needed; an array does not. So arrays beyond a share of the memory go into a file without a name: up
to three sets of images and the losses and hits of each image of a scan are kept at once, and all
that work on them take blocks of them. A share of 1/64 keeps the sum below a tenth. Reading a block
from a file that is in the cache takes as long as copying it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evolq.errors import InputError

SHARE = 1 / 64

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may use


def largest_in_memory() -> int:
    """Return the bytes that one array may take before it goes into a file."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CGROUP.exists() and (allowed := _CGROUP.read_text().strip()) != "max":
        memory = min(memory, int(allowed))
    return int(memory * SHARE)


class DiskArray:
    """An array in a file without a name; slices of it are read, and whole parts written.

    Args:
        shape: of the array, zeros at first.
        dtype: of its values.
        folder: where the file is; the system's folder for such files by default.

    Raises:
        InputError: if there is no room for it, now or when it is written.
    """

    def __init__(
        self, shape: Sequence[int], dtype: DTypeLike, folder: str | Path | None = None
    ) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._folder = folder or tempfile.gettempdir()
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            os.ftruncate(self._file.fileno(), self.nbytes)
        except OSError as error:
            raise self._no_room(error) from error

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place of the file: a process of this machine reads it while this one lives."""
        path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return _opened, (path, _identity(self._file), self.shape, self.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return slices along any axes, or the parts at an index, as an array in memory."""
        keys = key if isinstance(key, tuple) else (key,)
        slices = [slice(k, k + 1) if isinstance(k, int | np.integer) else k for k in keys]
        slices += [slice(None)] * (len(self.shape) - len(slices))
        ranges = [range(*s.indices(n)) for s, n in zip(slices, self.shape, strict=True)]
        # All between the first and the last is read; steps are taken afterwards.
        spans = [range(min(r), max(r) + 1) if r else range(0) for r in ranges]
        found = self._read(spans)
        found = found[tuple(slice(None, None, r.step) for r in ranges)]
        dropped = tuple(i for i, k in enumerate(keys) if isinstance(k, int | np.integer))
        return found.squeeze(axis=dropped)

    def _read(self, spans: list[range]) -> NDArray[Any]:
        found = np.empty([len(span) for span in spans], self.dtype)
        axis = len(spans) - 1
        while axis > 0 and len(spans[axis]) == self.shape[axis]:
            axis -= 1  # whole rows are read together with all that follow each other
        if found.size:
            steps = [prod(self.shape[i + 1 :]) * self.dtype.itemsize for i in range(axis + 1)]
            pieces = found.reshape(prod(len(span) for span in spans[:axis]), -1)
            for piece, index in zip(pieces, product(*spans[:axis]), strict=True):
                first = (*index, spans[axis].start)
                self._fill(piece, sum(i * step for i, step in zip(first, steps, strict=True)))
        return found

    def _fill(self, piece: NDArray[Any], place: int) -> None:
        left = piece.view(np.uint8).data
        while left:
            number = os.preadv(self._file.fileno(), [left], place)
            left, place = left[number:], place + number

    def __setitem__(self, index: int | tuple[int, ...], values: Any) -> None:
        """Write the part at an index of the first axis or axes; see `__getitem__` for reading."""
        places = index if isinstance(index, tuple) else (index,)
        part = self.shape[len(places) :]
        content = np.ascontiguousarray(np.broadcast_to(values, part), self.dtype)
        number = int(np.ravel_multi_index(places, self.shape[: len(places)]))
        left = content.reshape(-1).view(np.uint8).data
        place = number * content.nbytes
        try:
            while left:
                written = os.pwrite(self._file.fileno(), left, place)
                left, place = left[written:], place + written
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> InputError:
        return InputError(
            f"cannot keep an array of {self.nbytes / 2**20:,.0f} MiB in {self._folder}: "
            f"{error.strerror}; make room there, or name another folder with TMPDIR"
        )


def _opened(
    path: str, identity: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype
) -> DiskArray:
    """Return a DiskArray of another process.

    Raises:
        InputError: if that has ended, or runs on another machine.
    """
    array = DiskArray.__new__(DiskArray)
    array.shape, array.dtype, array._folder = shape, dtype, path
    try:
        array._file = Path(path).open("r+b", buffering=0)  # noqa: SIM115
        same = _identity(array._file) == identity
    except OSError:
        same = False
    if not same:
        raise InputError(
            "an array that is too large for memory lies in a file that only processes of the same "
            "machine see; work in parts (--part), or with fewer images"
        )
    return array


def _identity(file: BinaryIO | FileIO) -> tuple[int, ...]:
    """Return what tells a file from every other one of a machine."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size


def full(
    shape: Sequence[int], value: Any, dtype: DTypeLike, folder: str | Path | None = None
) -> NDArray[Any] | DiskArray:
    """Return an array of one value: in memory, or in a file if it is larger than its share.

    Args:
        shape: of the array.
        value: everywhere.
        dtype: of the value.
        folder: of the file.

    Raises:
        InputError: if there is no room for it.
    """
    if prod(shape) * np.dtype(dtype).itemsize <= largest_in_memory():
        return np.full(shape, value, dtype)
    array = DiskArray(shape, dtype, folder)
    if value:
        for index in np.ndindex(*array.shape[:-1]):
            array[index] = value
    return array


def boxes(shape: tuple[int, ...], cells: int) -> Iterator[tuple[slice, ...]]:
    """Yield the parts of a grid, of at most so many cells, that come one after the other in it."""
    within = prod(shape[1:])
    if within > cells and len(shape) > 1:
        for index in range(shape[0]):
            for box in boxes(shape[1:], cells):
                yield (slice(index, index + 1), *box)
        return
    step = max(1, cells // max(within, 1))
    for first in range(0, shape[0], step):
        yield (slice(first, first + step), *(slice(None) for _ in shape[1:]))
