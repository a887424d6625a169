"""Variables of a Dataset that are too large for memory: in a file, and read block by block."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from evolq.on_disk import DiskArray, boxes, full, largest_in_memory

# Values read and written at once.
_BLOCK_VALUES = 2**18


class _Slices(BackendArray):
    """What xarray reads of a `DiskArray`: slices, when they are asked for."""

    def __init__(self, array: DiskArray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        basic = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, basic, self.array.__getitem__)


def variable(dims: Sequence[Hashable], array: NDArray[Any] | DiskArray) -> xr.Variable:
    """Return an array as a variable; it shows what is written into the array later."""
    if isinstance(array, DiskArray):
        return xr.Variable(dims, indexing.LazilyIndexedArray(_Slices(array)))
    return xr.Variable(dims, array)


def is_large(found: xr.Variable | xr.DataArray) -> bool:
    """Whether a variable, of points and images, has more than its share of memory."""
    return found.ndim > 1 and found.nbytes > largest_in_memory()


def blocks(found: xr.Variable) -> Iterator[tuple[tuple[slice, ...], xr.Variable]]:
    """Yield the parts of a variable, each with all of the last axis, and where they are."""
    for box in boxes(found.shape[:-1], block_points(found.shape)):
        yield box, found[box]


def block_points(shape: tuple[int, ...]) -> int:
    """Return how many points are in a block, given the shape of points and images."""
    return max(1, _BLOCK_VALUES // max(shape[-1], 1))


def copied(found: xr.Variable) -> xr.Variable:
    """Return a variable that needs no other file: in memory, or in one of its own."""
    if not is_large(found):
        return found.load()
    array = full(found.shape, 0, found.dtype)
    for box, block in blocks(found):
        first = tuple(part.start or 0 for part in box)
        for index in np.ndindex(*block.shape[:-1]):
            place = tuple(i + j for i, j in zip(first, index, strict=True))
            array[place] = block.values[index]
    copy = variable(found.dims, array)
    copy.attrs = found.attrs
    return copy
