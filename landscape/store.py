"""Scans and comparisons on disk: NetCDF-4 files, written whole or not at all.

Behind the content of HDF5, where no reader looks, stands the SHA-256 of all of it. It is compared
before the HDF5 library sees the file, because that library crashes on some damaged ones.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import h5netcdf
import h5py
import xarray as xr
from xarray.backends import H5NetCDFStore
from xarray.conventions import encode_cf_variable

from evolq.atomic import whole_file
from evolq.declared import check_value
from evolq.errors import InputError
from landscape.large import block_points, blocks, copied, is_large

# Kind of Dataset -> the variables without which it is none.
KINDS = {
    "scan": ("loss", "test_loss", "test_accuracy", "test_loss_per_image", "status"),
    "compare": ("cost", "loss", "test_loss", "final_test_correct_per_image"),
    "transfer": ("cost", "loss", "start_loss", "final_test_loss_per_image"),
}
# In front of the checksum, at the end of a file.
_MARK = b"\nevolq sha256 "
_HASHED_AT_ONCE = 2**20


def save(dataset: xr.Dataset, path: str | Path, kind: str = "scan") -> None:
    """Write a Dataset of a kind in `KINDS` to `path`, compressed.

    An older file is replaced only when all is written.

    Raises:
        InputError: if the file cannot be written; an older file is then still there, unchanged.
    """
    _check_kind(kind)
    check_value("dataset", dataset, xr.Dataset)
    dataset = dataset.assign_attrs(format=_format(kind))
    large = {name: array.variable for name, array in dataset.data_vars.items() if is_large(array)}
    small = dataset.drop_vars(large)
    compressed = {name: {"zlib": True} for name, array in small.data_vars.items() if array.ndim}
    with whole_file(path) as file:
        patient = _Patient(file)
        try:
            with h5netcdf.File(patient, "w") as netcdf:
                small.dump_to_store(H5NetCDFStore(netcdf), encoding=compressed)
                for name, variable in large.items():
                    _write_blocks(netcdf, str(name), variable, patient)
        finally:
            patient.check()  # whatever HDF5 made of it
        written = _checksum(file, file.seek(0, io.SEEK_END))
        file.write(_MARK + written)


def _write_blocks(
    netcdf: h5netcdf.File, name: str, variable: xr.Variable, patient: _Patient
) -> None:
    """Write a variable block by block, as xarray would write it."""
    for dim, size in variable.sizes.items():
        if dim not in netcdf.dimensions:
            netcdf.dimensions[dim] = size
    nothing = encode_cf_variable(variable[tuple(slice(0, 0) for _ in variable.dims)], name=name)
    attributes = dict(nothing.attrs)
    points = min(variable.shape[-2], block_points(variable.shape))
    chunks = [*(1 for _ in variable.dims[:-2]), points, variable.shape[-1]]
    target = netcdf.create_variable(
        name,
        variable.dims,
        nothing.dtype,
        fillvalue=attributes.pop("_FillValue", None),
        chunks=tuple(chunks),
        compression="gzip",
        compression_opts=4,
    )
    target.attrs.update(attributes)
    for box, block in blocks(variable):
        target[box] = encode_cf_variable(block, name=name).values
        patient.check()


class _Patient:
    """A file that never fails, because HDF5 crashes the process when one does.

    The first error is raised by `check`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what went wrong, if anything has.

        Raises:
            OSError: as the file gave it.
        """
        if self._error is not None:
            raise self._error

    def _done(self, name: str, *arguments: Any, otherwise: Any = None) -> Any:
        try:
            return getattr(self._file, name)(*arguments)
        except OSError as error:
            self._error = self._error or error
            return otherwise

    def write(self, content: memoryview) -> int:
        """Write."""
        return self._done("write", content, otherwise=len(content))

    def readinto(self, content: memoryview) -> int:
        """Read."""
        return self._done("readinto", content, otherwise=len(content))

    def read(self, size: int = -1) -> bytes:
        """Read."""
        return self._done("read", size, otherwise=b"")

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._done("seek", place, whence, otherwise=place)

    def tell(self) -> int:
        """Return the place."""
        return self._done("tell", otherwise=0)

    def truncate(self, size: int | None = None) -> int:
        """Cut, or make longer."""
        return self._done("truncate", size, otherwise=size or 0)

    def flush(self) -> None:
        """Write what is kept back."""
        self._done("flush")


def load(path: str | Path, kind: str = "scan") -> xr.Dataset:
    """Read a Dataset of a kind in `KINDS` and close the file.

    Losses of images that are too large for memory are read into a file of their own, block by block
    (`evolq.on_disk`); it vanishes with the Dataset.

    Raises:
        InputError: if there is no such file, it cannot be read, it is of another kind, or it does
            not hold what was written. A file without a checksum (written again by another program)
            is read with a warning.
    """
    _check_kind(kind)
    check_value("path", path, Path)
    path = Path(path)
    if not path.is_file():
        command = "scan" if kind == "scan" else "compare"
        raise InputError(
            f"there is no file {path}; such files are written by python -m landscape.{command}"
        )
    checked = _check_content(path)
    try:
        h5py.File(path).close()  # fails cleanly on damage that makes h5netcdf print its own errors
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False, cache=False) as dataset:
            large = {n: copied(v) for n, v in dataset.variables.items() if is_large(v)}
            dataset = dataset.drop_vars(large).load().assign(large)[list(dataset.variables)]
    except Exception as error:  # a damaged file fails in HDF5, h5netcdf or xarray, each in its way
        raise InputError(f"cannot read {path} as NetCDF-4: {error}") from error
    missing = [name for name in KINDS[kind] if name not in dataset]
    found = dataset.attrs.pop("format", None)
    if found != _format(kind) or missing:
        raise InputError(
            f"{path} is not a {kind} of this program ({_format(kind)!r}"
            + (f"; it lacks {', '.join(missing)})" if missing else ")")
        )
    if not checked:
        warnings.warn(f"{path} has no checksum; if it is damaged, nobody knows", stacklevel=2)
    return dataset


def _check_content(path: Path) -> bool:
    """Return whether a file has a checksum.

    Raises:
        InputError: if the checksum does not fit, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END) - len(_MARK) - 2 * hashlib.sha256().digest_size
            file.seek(max(0, size))
            mark, written = file.read(len(_MARK)), file.read()
            if size < 0 or mark != _MARK:
                return False
            fits = written == _checksum(file, size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not fits:
        raise InputError(
            f"{path} cannot be used: its checksum does not fit its content; measure again, or "
            "fetch the file again"
        )
    return True


def _checksum(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 (hex) of the first `size` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, _HASHED_AT_ONCE))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _format(kind: str) -> str:
    return f"evolq landscape {kind} 3"


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"unknown `kind` {kind!r}; choose from {', '.join(KINDS)}")
