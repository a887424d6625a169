"""Scans and comparisons on disk: NetCDF-4 files, written whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import h5netcdf
import h5py
import xarray as xr
from xarray.backends import H5NetCDFStore

from evolq.atomic import write_whole
from evolq.errors import InputError

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
    write_whole(path, _encode(dataset.assign_attrs(format=_format(kind))))


def _encode(dataset: xr.Dataset) -> memoryview:
    """Return the bytes of a NetCDF-4 file.

    Built in memory, because the HDF5 library crashes the process when a disk is full.
    """
    compressed = {name: {"zlib": True} for name, array in dataset.data_vars.items() if array.ndim}
    buffer = BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file), encoding=compressed)
    return buffer.getbuffer()


def load(path: str | Path, kind: str = "scan") -> xr.Dataset:
    """Read a Dataset of a kind in `KINDS` into memory and close the file.

    Raises:
        InputError: if there is no such file, it cannot be read, or it is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        command = "scan" if kind == "scan" else "compare"
        raise InputError(
            f"there is no file {path}; such files are written by python -m landscape.{command}"
        )
    try:
        h5py.File(path).close()  # fails cleanly on damage that makes h5netcdf print its own errors
        dataset = xr.load_dataset(path, engine="h5netcdf", decode_times=False)
    except Exception as error:  # a damaged file fails in HDF5, h5netcdf or xarray, each in its way
        raise InputError(f"cannot read {path} as NetCDF-4: {error}") from error
    missing = [name for name in KINDS[kind] if name not in dataset]
    if dataset.attrs.pop("format", None) != _format(kind) or missing:
        raise InputError(
            f"{path} is not a {kind} of this program ({_format(kind)!r}"
            + (f"; it lacks {', '.join(missing)})" if missing else ")")
        )
    return dataset


def _format(kind: str) -> str:
    return f"evolq landscape {kind} 1"
