"""Arrays in files, against numpy."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolq import on_disk
from evolq.errors import InputError
from evolq.on_disk import DiskArray, full


@st.composite
def arrays_and_keys(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    numbers = st.integers(-6, 6) | st.none()
    slices = st.builds(slice, numbers, numbers, st.sampled_from([None, 1, 2, 3, -1, -2]))
    axes = draw(st.integers(0, len(shape)))
    key = [draw(st.integers(0, n - 1) | slices) for n in shape[:axes]]
    return shape, tuple(key)


@given(arrays_and_keys())
def test_what_is_read_is_what_numpy_gives(array_and_key):
    shape, key = array_and_key
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array = DiskArray(shape, np.float32)
    for index in np.ndindex(*shape[:-1]):
        array[index] = values[index]
    found = array[key]
    assert found.dtype == np.float32
    assert np.array_equal(found, values[key])


def test_parts_are_written_and_the_rest_is_zero_or_the_value(monkeypatch):
    monkeypatch.setattr(on_disk, "SHARE", 0)
    zeros, nans = full((3, 2, 4), 0, bool), full((3, 2, 4), np.nan, np.float32)
    assert isinstance(zeros, DiskArray)
    assert isinstance(nans, DiskArray)
    zeros[1] = True
    nans[2, 0] = np.arange(4)
    assert zeros[:].sum(axis=(1, 2)).tolist() == [0, 8, 0]
    assert np.isnan(nans[:]).sum() == 20
    assert nans[2, 0].tolist() == [0, 1, 2, 3]


def test_small_arrays_stay_in_memory():
    assert isinstance(full((3, 4), 1.5, np.float32), np.ndarray)
    assert 2**20 < on_disk.largest_in_memory() < 2**40


def test_another_process_reads_the_same_file():
    array = DiskArray((2, 3), np.int64)
    array[1] = [1, 2, 3]
    other = pickle.loads(pickle.dumps(array))
    assert other[:].tolist() == [[0, 0, 0], [1, 2, 3]]
    opened, (_, *rest) = array.__reduce__()
    another = DiskArray((2, 3), np.int64)
    for path in ("/proc/self/fd/nowhere", f"/proc/self/fd/{another._file.fileno()}"):
        with pytest.raises(InputError, match="only processes of the same machine"):
            opened(path, *rest)


def test_no_file_is_left_and_no_room_is_one_clear_error(tmp_path, monkeypatch):
    array = DiskArray((2, 3), np.int64, tmp_path)
    assert list(tmp_path.iterdir()) == []

    def is_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", is_full)
    with pytest.raises(InputError, match=r"cannot keep an array of 0 MiB in .*: No space left"):
        array[0] = 1
    with pytest.raises(InputError, match="No such file or directory; make room there"):
        DiskArray((2, 3), np.int64, tmp_path / "nowhere")
