"""Scans on disk: NetCDF-4 files, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr

from evolq.errors import InputError

FORMAT = "evolq landscape scan 1"

_REQUIRED = ("loss", "test_loss", "test_accuracy", "test_loss_per_image", "status")


def save(dataset: xr.Dataset, path: str | Path) -> None:
    """Write a scan to `path`, compressed, replacing an older file only when all is written.

    Raises:
        InputError: if the file cannot be written; an older file is then still there, unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    compressed = {name: {"zlib": True} for name, array in dataset.data_vars.items() if array.ndim}
    try:
        dataset.assign_attrs(format=FORMAT).to_netcdf(
            partial, engine="h5netcdf", encoding=compressed
        )
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: str | Path) -> xr.Dataset:
    """Read a scan into memory and close the file.

    Raises:
        InputError: if there is no such file, it cannot be read, or it is not a scan.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; scans are written by python -m landscape.scan")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf", decode_times=False)
    except Exception as error:  # a damaged file fails in HDF5, h5netcdf or xarray, each in its way
        raise InputError(f"cannot read {path} as NetCDF-4: {error}") from error
    missing = [name for name in _REQUIRED if name not in dataset]
    if dataset.attrs.pop("format", None) != FORMAT or missing:
        raise InputError(
            f"{path} is not a scan of this program ({FORMAT!r}"
            + (f"; it lacks {', '.join(missing)})" if missing else ")")
        )
    return dataset
