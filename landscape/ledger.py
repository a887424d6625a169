"""A ledger of finished pieces of work: each is on disk as soon as it is finished.

One SQLite file: each piece (a point of a scan, a search) is a row, written in a transaction of its
own, with a checksum. A process that is killed at any moment, also while it writes, leaves every
finished piece and no half of one. Any SQLite reader can look while it grows. When all is done the
results are written as a whole (`store`), and the ledger goes.

Tables: `run(name, value)`, what the work depends on, values as JSON; `piece(key, state, content,
checksum, error)`, where state is 'done' or 'failed', content is an npz file of numpy arrays (NaN is
a value like any other), and what has no row is pending.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evolq.errors import InputError
from evolq.points import Point, fingerprint
from evolq.problem import Problem

Arrays = dict[str, np.ndarray]

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS piece (
    key TEXT PRIMARY KEY, state TEXT NOT NULL, content BLOB, checksum TEXT, error TEXT
);
"""
# Name of the checksum of all other rows of the table `run`.
_SEAL = "checksum"


class Ledger:
    """The finished pieces of one run.

    Args:
        path: the file; made if there is none.
        identity: everything that the pieces depend on, by name, ready for JSON; None for that of
            the file.

    Attributes:
        identity: likewise.
        part: number and count: of all pieces of a sample, this process does every count-th one,
            beginning with that number (from 1); None for all.

    Raises:
        InputError: if the file cannot be read or written, is damaged, or was begun with another
            identity; the message names the difference.
    """

    part: tuple[int, int] | None = None

    def __init__(self, path: Path, identity: Mapping[str, Any] | None) -> None:
        self.path = path
        self._damaged = (
            f"{path} is damaged, and what it holds cannot be trusted; remove it to measure again"
        )
        with self._explained():
            self._database = sqlite3.connect(path, isolation_level=None)
        try:
            with self._explained():
                self.identity = self._begin(identity)
        except BaseException:
            self._database.close()
            raise

    def _begin(self, identity: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Make the tables and write the identity, in one transaction, or compare it; return it."""
        self._database.text_factory = lambda text: text.decode(errors="replace")  # damage differs
        self._database.execute("PRAGMA synchronous = EXTRA")  # outlasts a power cut, too
        self._database.executescript(_TABLES)
        found = dict(self._database.execute("SELECT name, value FROM run"))
        begun = bool(found)
        if begun and found.pop(_SEAL, None) != _seal(found):
            raise sqlite3.DatabaseError("its identity is not what was written")
        if identity is None:
            identity = {name: json.loads(value) for name, value in found.items()}
        given = {name: json.dumps(value) for name, value in identity.items()}
        if not begun:
            rows = [*given.items(), (_SEAL, _seal(given))]
            self._database.executemany("INSERT INTO run VALUES (?, ?)", rows)
        self._database.execute("COMMIT")
        different = [
            f"{name} {found.get(name, 'not given')} then, {given.get(name, 'not given')} now"
            for name in sorted(found.keys() | given.keys())
            if begun and found.get(name) != given.get(name)
        ]
        if different:
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise InputError(
                f"{self.path} was begun with something else: {different[0]}{more}; go on with the "
                "same, or choose another folder"
            )
        return identity

    def states(self) -> dict[str, tuple[str, str | None, str | None]]:
        """Return of each piece that is not pending: its state, checksum and error."""
        with self._explained():
            rows = self._database.execute("SELECT key, state, checksum, error FROM piece")
            return {key: (state, checksum, error) for key, state, checksum, error in rows}

    def find(self, key: str) -> Arrays | None:
        """Return what was kept of a piece, None if it is pending or has failed.

        Raises:
            InputError: if it is not what was written.
        """
        query = "SELECT state, content, checksum FROM piece WHERE key = ?"
        with self._explained():
            row = self._database.execute(query, (key,)).fetchone()
        if row is None or row[0] == "failed":
            return None
        if not isinstance(row[1], bytes) or row[2] != _checksum(key, row[1]):
            raise InputError(f"{self._damaged} ({key})")
        with np.load(io.BytesIO(row[1])) as arrays:
            return dict(arrays)

    def keep(self, key: str, arrays: Arrays) -> None:
        """Write a finished piece; it is on the disk when this returns.

        Raises:
            InputError: if it cannot be written; all pieces before it are kept.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        self._write(key, "done", content, _checksum(key, content), None)

    def fail(self, key: str, error: BaseException) -> None:
        """Write that a piece has failed, and how; it is tried again when the run goes on."""
        self._write(key, "failed", None, None, f"{type(error).__name__}: {error}")

    def _write(self, *row: object) -> None:
        with self._explained():
            self._database.execute("INSERT OR REPLACE INTO piece VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        """Close the file; it stays."""
        self._database.close()

    def remove(self) -> None:
        """Close the file and delete it: the results hold all of it."""
        self.close()
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, no permission
            raise InputError(
                f"cannot use {self.path}: {error}; what was finished before is kept"
            ) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # of its messages, which quote damage
            raise InputError(f"{self._damaged} ({error})") from error


OpenLedger = Callable[[Mapping[str, Any]], Ledger]  # given the identity of a run


def folder_of(ledger: Ledger | None) -> Path | None:
    """Return the folder of a run, which its workers see; None without a ledger."""
    return ledger.path.parent if ledger else None


def remember(ledger: Ledger | None, key: str, measure: Callable[[], Arrays]) -> Arrays:
    """Return a piece from the ledger, or measure it now and keep it.

    Args:
        ledger: None to keep nothing.
        key: of the piece, unique in its run.
        measure: what makes it; if that fails, the ledger says how, and the error is raised.
    """
    if ledger is None:
        return measure()
    found = ledger.find(key)
    if found is None:
        try:
            found = measure()
        except Exception as error:
            ledger.fail(key, error)
            raise
        ledger.keep(key, found)
    return found


def begin(
    open_ledger: OpenLedger | None,
    problem: Problem,
    options: Mapping[str, Any],
    leads: Iterable[Point] = (),
) -> Ledger | None:
    """Return the ledger of measurements on a problem (see `identity`), if there is to be one."""
    return open_ledger(identity(problem, options, leads)) if open_ledger else None


def identity(
    problem: Problem, options: Mapping[str, Any], leads: Iterable[Point] = ()
) -> dict[str, Any]:
    """Return all that measurements on a problem depend on, by name.

    Options, versions, and hashes of weights, start, images and their names, and of where `leads`
    (directions, checkpoints) lead.
    """
    images = vars(problem.split).values()
    names = "\n".join(name for part in images for name in (*part.names, ""))
    hashes = {
        **problem.provenance["hashes"],
        "image_names": _hash(names),
        "directions": hash_of(leads),
    }
    return {
        **problem.provenance["configuration"],
        **options,
        **{f"version of {name}": value for name, value in problem.provenance["versions"].items()},
        **{f"hash of {name}": value for name, value in hashes.items()},
    }


def hash_of(points: Iterable[Point]) -> str:
    """Return one hash of several Points or directions, in their order."""
    return _hash(" ".join(fingerprint(point) for point in points))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _seal(identity: Mapping[str, str]) -> str:
    return _hash(repr(sorted(map(repr, identity.items()))))


def _checksum(key: str, content: bytes) -> str:
    return hashlib.sha256(key.encode() + b"\0" + content).hexdigest()
