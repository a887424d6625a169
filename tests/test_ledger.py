"""Pieces that are on disk as soon as they are finished, and are never taken for others."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from test_sampling import PLANE, XS, YS, Toy, ToyTest

from evolq.errors import InputError
from landscape.ledger import Ledger, remember
from landscape.probes.sampling import sample_plane

IDENTITY = {"weight_bits": 3, "seed": 0}
PIECE = {"loss": np.array([1.5, np.nan, -np.inf], dtype=np.float32), "label": np.array("start")}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.sqlite"


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


@given(
    arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
        array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
def test_what_is_kept_comes_back_bit_for_bit(tmp_path_factory, values):
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "a", {})
    ledger.keep("a", {"values": values})
    assert same(ledger.find("a"), {"values": values})
    ledger.close()


def test_a_piece_is_pending_done_or_failed(path):
    ledger = Ledger(path, IDENTITY)
    assert ledger.find("x=1") is None
    with pytest.raises(RuntimeError):
        remember(ledger, "x=1", lambda: (_ for _ in ()).throw(RuntimeError("no memory")))
    assert ledger.find("x=1") is None, "it is tried again"
    with sqlite3.connect(path) as reader:  # while it grows
        assert list(reader.execute("SELECT key, state, error FROM piece")) == [
            ("x=1", "failed", "RuntimeError: no memory")
        ]
    assert same(remember(ledger, "x=1", lambda: PIECE), PIECE)
    ledger.close()
    again = Ledger(path, IDENTITY)
    assert same(remember(again, "x=1", lambda: pytest.fail("measured again")), PIECE)
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({**IDENTITY, "weight_bits": 4}, "weight_bits 3 then, 4 now;"),
        ({"weight_bits": 3}, "seed 0 then, not given now;"),
        ({**IDENTITY, "hash of weights": "ab"}, 'hash of weights not given then, "ab" now;'),
        ({"weight_bits": 4, "seed": 1}, r"seed 0 then, 1 now \(and 1 more\);"),
    ],
)
def test_a_run_of_another_identity_is_refused_with_the_difference(path, other, words):
    Ledger(path, IDENTITY).close()
    with pytest.raises(InputError, match=f"begun with something else: {words}"):
        Ledger(path, other)
    Ledger(path, IDENTITY).close()


def test_damage_is_named_and_never_used(path):
    """Bits of what was kept, bits anywhere, and whole pages."""
    ledger = Ledger(path, {})
    ledger.keep("x=1", PIECE)
    ledger.close()
    whole = path.read_bytes()
    content = whole.index(b"PK\3\4"), whole.rindex(b"PK\5\6")  # of the npz file
    random = np.random.default_rng(0)
    inside = random.integers(*content, size=100)
    for place in (*inside, *random.integers(len(whole), size=300)):
        used = True
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            ledger = Ledger(path, {})
            kept = ledger.find("x=1")
            ledger.close()
        except InputError:
            used = False
        assert not (used and place in inside)
        assert not used or kept is None or same(kept, PIECE)
    for content in (b"hello" * 1000, whole[:5000], whole[:100] + bytes(len(whole) - 100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"scan.sqlite is damaged.*remove it"):
            Ledger(path, {}).find("x=1")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE run SET value = '5' WHERE name = 'seed'",
        "UPDATE run SET name = 'sfed' WHERE name = 'seed'",
        "DELETE FROM run WHERE name = 'seed'",
        "DELETE FROM run WHERE name = 'checksum'",
    ],
)
def test_an_identity_that_was_not_written_is_damage(path, change):
    Ledger(path, {"seed": 4, "model": "m"}).close()
    Ledger(path, None).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(change)
    for identity in (None, {"seed": 5, "model": "m"}):
        with pytest.raises(InputError, match="its identity is not what was written"):
            Ledger(path, identity)


def test_a_full_disk_keeps_what_was_finished(path):
    ledger = Ledger(path, {})
    ledger.keep("x=1", PIECE)
    pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
    ledger._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(InputError, match=r"scan.sqlite: database or disk is full; .* is kept"):
        ledger.keep("x=2", {"loss": np.zeros(10_000)})
    assert ledger.find("x=2") is None
    assert same(ledger.find("x=1"), PIECE)
    ledger.close()


@pytest.mark.slow
def test_a_file_that_must_not_grow_is_one_clear_error(path):
    """What the operating system says, not what SQLite simulates: a limit on the size of files."""
    program = (
        "import resource, sys, numpy, pathlib\n"
        "from landscape.ledger import Ledger\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]), {})\n"
        "for key in range(100): ledger.keep(str(key), {'loss': numpy.full(1000, key)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "InputError: cannot use" in done.stderr
    ledger = Ledger(path, {})
    kept = [ledger.find(str(key)) for key in range(100)]
    count = sum(found is not None for found in kept)
    assert 0 < count < 100
    assert all((kept[key]["loss"] == key).all() for key in range(count))
    ledger.close()


def test_a_ledger_that_cannot_be_made_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="unable to open database file"):
        Ledger(tmp_path / "nowhere" / "scan.sqlite", {})


def test_a_sample_goes_on_where_it_stopped_and_measures_nothing_twice(path):
    whole = sample_plane(PLANE, XS, YS, Toy(), ToyTest())
    seen: list[tuple[float, ...]] = []

    class Counted(Toy):
        def losses(self, point):
            seen.append(tuple(point["w"].tolist()))
            return super().losses(point)

    def stop(_, done, total):
        if done == 5:
            raise KeyboardInterrupt

    first = Ledger(path, {})
    with pytest.raises(KeyboardInterrupt):
        sample_plane(PLANE, XS, YS, Counted(), ToyTest(), stop, ledger=first)
    first.close()
    second = Ledger(path, {})
    resumed = sample_plane(PLANE, XS, YS, Counted(), ToyTest(), ledger=second)
    assert resumed.identical(whole)
    # the start is one of the 12 points of the grid, measured as both
    assert len(seen) == XS.size * YS.size + 1
    assert len(set(seen)) >= XS.size * YS.size - 1
    done = sample_plane(PLANE, XS, YS, Counted(), ToyTest(), ledger=second)
    assert done.identical(whole)
    assert len(seen) == XS.size * YS.size + 1
    second.close()


def test_a_search_is_kept_as_it_was():
    from evolq.optimizers.evolve import Iterate
    from landscape.paths.comparison import _as_arrays, _from_arrays

    start = {"a.scale": torch.tensor([1.0, 2.0]), "b.scale": torch.tensor(3.0)}
    moved = {**start, "a.scale": torch.tensor([1.5, 2.5])}
    path = [
        Iterate(1, 0.0, 4.0, start, "start"),
        Iterate(2, 1.25, float("inf"), moved, "pass 1"),
        Iterate(3, 2.0, 3.5, moved, "pass 1, the same Point"),
        Iterate(4, 2.5, 3.0, dict(start), "equal to the start, but another"),
    ]
    back = _from_arrays(_as_arrays(path, start, ["a.scale"]), start)
    assert [i._replace(point={}) for i in back] == [i._replace(point={}) for i in path]
    ids = [[id(iterate.point) for iterate in each] for each in (path, back)]
    assert [own.index(key) for own in ids[:1] for key in own] == [
        own.index(key) for own in ids[1:] for key in own
    ]
    assert back[0].point is start
    for a, b in zip(path, back, strict=True):
        assert all(torch.equal(a.point[name], b.point[name]) for name in start)
    assert _from_arrays(_as_arrays(path[:1], start, ["a.scale"]), start) == path[:1]
