import os

import numpy as np
import pytest
import xarray as xr

from evolq.errors import InputError
from landscape.store import load, save


@pytest.fixture
def scan():
    random = np.random.default_rng(0)
    values = random.normal(size=(3, 4))
    values[1, 2], values[2, 3] = np.nan, -np.inf
    return xr.Dataset(
        {
            "loss": (("y", "x"), values),
            "test_loss": (("y", "x"), values),
            "test_accuracy": (("y", "x"), random.random((3, 4))),
            "status": (("y", "x"), np.ones((3, 4), dtype=np.int8)),
            "test_loss_per_image": (
                ("y", "x", "image"),
                random.normal(size=(3, 4, 5)).astype(np.float32),
            ),
            "test_correct_per_image": (("y", "x", "image"), random.random((3, 4, 5)) > 0.5),
        },
        coords={"y": [-1.0, 0.0, 1.0], "x": np.arange(4) / 3, "image": np.arange(5)},
        attrs={"provenance": '{"seed": 0, "name": "é"}'},
    )


def test_a_scan_comes_back_as_it_was(scan, tmp_path):
    save(scan, tmp_path / "scan.nc")
    back = load(tmp_path / "scan.nc")
    assert scan.identical(back)
    assert {name: array.dtype for name, array in scan.variables.items()} == {
        name: array.dtype for name, array in back.variables.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nc"]


def test_equal_scans_give_equal_bytes(scan, tmp_path):
    save(scan, tmp_path / "a.nc")
    save(load(tmp_path / "a.nc"), tmp_path / "b.nc")
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(scan, tmp_path, monkeypatch):
    save(scan, tmp_path / "scan.nc")
    before = (tmp_path / "scan.nc").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*scan.nc: No space left"):
        save(scan * 2, tmp_path / "scan.nc")
    assert (tmp_path / "scan.nc").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nc"]


def test_a_missing_folder_is_one_clear_line(scan, tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        save(scan, tmp_path / "nowhere" / "scan.nc")


def test_files_that_are_no_scans_are_refused(scan, tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        load(tmp_path / "scan.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "text.nc")
    save(scan, tmp_path / "scan.nc")
    content = (tmp_path / "scan.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "cut.nc")
    save(scan.drop_vars("status"), tmp_path / "part.nc")
    with pytest.raises(InputError, match=r"not a scan.*lacks status"):
        load(tmp_path / "part.nc")
    xr.Dataset({"t": ("x", [1.0])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(InputError, match=r"not a scan.*lacks loss"):
        load(tmp_path / "foreign.nc")
