"""Scans whose losses are in files: the same bits as those in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic_scans
import xarray as xr
from test_sampling import PLANE, XS, YS, Toy, ToyTest

from evolq import on_disk
from evolq.on_disk import DiskArray
from landscape import large
from landscape.analysis import analyze, with_analysis
from landscape.ledger import Ledger
from landscape.probes.sampling import sample_plane
from landscape.statistics import image_losses
from landscape.store import load, save

LARGE = ("loss_per_image", "test_loss_per_image", "test_correct_per_image")


def is_lazy(array):
    return not isinstance(array.variable._data, np.ndarray)


def test_a_scan_in_files_is_that_in_memory_measured_saved_and_loaded(tmp_path):
    whole = sample_plane(PLANE, XS, YS, Toy(), ToyTest())
    save(whole, tmp_path / "memory.nc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_disk, "largest_in_memory", lambda: 100)
        patch.setattr(large, "largest_in_memory", lambda: 100)
        patch.setattr(large, "_BLOCK_VALUES", 5)
        ledger = Ledger(tmp_path / "ledger", {})
        found = sample_plane(PLANE, XS, YS, Toy(), ToyTest(), ledger=ledger)
        ledger.close()
        assert [name for name in LARGE if is_lazy(found[name])]
        assert found.isel(x=slice(None, None, -1), y=[0]).identical(
            whole.isel(x=slice(None, None, -1), y=[0])
        )
        save(found, tmp_path / "file.nc")
        back = load(tmp_path / "file.nc")
        assert [name for name in LARGE if is_lazy(back[name])]
        assert back.identical(whole)
        assert load(tmp_path / "memory.nc").identical(whole)
    back = load(tmp_path / "file.nc")
    assert back.identical(whole)
    assert {n: v.dtype for n, v in back.variables.items()} == {
        n: v.dtype for n, v in whole.variables.items()
    }
    assert not any(is_lazy(back[name]) for name in LARGE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.nc", "ledger", "memory.nc"]


def test_an_analysis_reads_blocks_and_finds_the_same():
    for scan in (synthetic_scans.plane(9, 8), synthetic_scans.rays(3, 9)):
        scan["status"][0, 0] = 0
        wanted = with_analysis(scan, analyze(scan))
        variables = {}
        for name in LARGE:
            array = DiskArray(scan[name].shape, scan[name].dtype)
            for index in np.ndindex(*scan.status.shape):
                array[index] = scan[name].values[index]
            variables[name] = large.variable(scan[name].dims, array)
        lazy = scan.assign(variables)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_losses, "BLOCK_VALUES", 150)
            found = with_analysis(lazy, analyze(lazy))
        assert all(is_lazy(found[name]) for name in LARGE), "nothing was loaded as a whole"
        xr.testing.assert_allclose(found, wanted, rtol=1e-12)


FULL_DISK = """
import resource, signal, sys
from test_sampling import PLANE, XS, YS, Toy, ToyTest
from evolq.errors import InputError
from landscape import large
from landscape.probes.sampling import sample_plane
from landscape.store import save

scan = sample_plane(PLANE, XS, YS, Toy(), ToyTest())
save(scan, sys.argv[1])
large.largest_in_memory = lambda: 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 3000, 9000, 15_000, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        save(scan, sys.argv[1])
    except InputError as error:
        assert "File too large" in str(error), error
    else:
        raise AssertionError(f"{limit}: it was saved")
    print(open(sys.argv[1], "rb").read().hex())
"""


@pytest.mark.slow  # a process of its own: limits hold for all of one, and threads do not fork
def test_a_full_disk_is_one_clear_error_also_in_the_middle(tmp_path):
    path = tmp_path / "scan.nc"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [path.read_bytes().hex()] * 5  # the old file stays whole
    assert [each.name for each in tmp_path.iterdir()] == ["scan.nc"]
