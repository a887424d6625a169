"""Scans and comparisons on disk: NetCDF-4 files, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import h5netcdf
import h5py
import numpy as np
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


def save(dataset: xr.Dataset, path: str | Path, kind: str = "scan") -> None:
    """Write a Dataset of a kind in `KINDS` to `path`, compressed.

    An older file is replaced only when all is written.

    Raises:
        InputError: if the file cannot be written; an older file is then still there, unchanged.
    """
    _check_kind(kind)
    check_value("dataset", dataset, xr.Dataset)
    dataset = dataset.assign_attrs(format=_format(kind))
    dataset = dataset.assign_attrs(checksum=_checksum(dataset))
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
            not hold what was written. Files of format 1 have no checksum, which a warning says.
    """
    _check_kind(kind)
    check_value("path", path, Path)
    path = Path(path)
    if not path.is_file():
        command = "scan" if kind == "scan" else "compare"
        raise InputError(
            f"there is no file {path}; such files are written by python -m landscape.{command}"
        )
    try:
        h5py.File(path).close()  # fails cleanly on damage that makes h5netcdf print its own errors
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False, cache=False) as dataset:
            large = {n: copied(v) for n, v in dataset.variables.items() if is_large(v)}
            dataset = dataset.drop_vars(large).load().assign(large)[list(dataset.variables)]
    except Exception as error:  # a damaged file fails in HDF5, h5netcdf or xarray, each in its way
        raise InputError(f"cannot read {path} as NetCDF-4: {error}") from error
    missing = [name for name in KINDS[kind] if name not in dataset]
    written = dataset.attrs.pop("checksum", None)
    if dataset.attrs.get("format") == _format(kind) and written != _checksum(dataset):
        raise InputError(
            f"{path} cannot be used: its checksum does not fit its content; measure again, or "
            "fetch the file again"
        )
    found = dataset.attrs.pop("format", None)
    if found == _format(kind, 1):
        warnings.warn(f"{path} is of format 1, without a checksum", stacklevel=2)
        found = _format(kind)
    if found != _format(kind) or missing:
        raise InputError(
            f"{path} is not a {kind} of this program ({_format(kind)!r}"
            + (f"; it lacks {', '.join(missing)})" if missing else ")")
        )
    return dataset


def _format(kind: str, version: int = 2) -> str:
    return f"evolq landscape {kind} {version}"


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"unknown `kind` {kind!r}; choose from {', '.join(KINDS)}")


def _checksum(dataset: xr.Dataset) -> str:
    """Return the SHA-256 (hex) of names, dimensions, types, values and attributes."""
    digest = hashlib.sha256(_words(dataset.attrs))
    for name, array in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        numbers = array.dtype.kind in "biufc"
        kind = array.dtype.newbyteorder("=") if numbers else "text"  # its type is the reader's
        digest.update(f"{name} {array.dims} {array.shape} {kind}".encode() + _words(array.attrs))
        for block in (b for _, b in blocks(array)) if is_large(array) else (array,):
            values = block.values
            digest.update(
                np.ascontiguousarray(values, kind).tobytes()
                if numbers
                else "\0".join(map(str, values.ravel())).encode()
            )
    return digest.hexdigest()


def _words(attributes: Mapping[Any, Any]) -> bytes:
    named = {
        str(name): str(np.asarray(value).tolist())
        for name, value in attributes.items()
        if name != "checksum"
    }
    return json.dumps(named, sort_keys=True).encode()
