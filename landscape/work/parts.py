"""Parts of a run, done by processes that know nothing of each other, and merged by identity.

Of n parts, part k does every n-th piece from the k-th on. Each has a folder with a ledger of its
own, and notes there which pieces the whole has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from evolq.errors import InputError
from landscape.ledger import Ledger
from landscape.work.pieces import NOTE

_IS_NOTE = re.compile(NOTE.format(r"(\d+)", r"(\d+)"))


def merge(parts: Sequence[Ledger], whole: Ledger) -> None:
    """Copy all finished pieces of parts; those that are there already stay.

    Args:
        parts: of one identity; see `check`.
        whole: of the same.
    """
    for part in parts:
        for key, (state, _, _) in part.states().items():
            if state == "done" and not _IS_NOTE.fullmatch(key) and whole.find(key) is None:
                found = part.find(key)
                assert found is not None
                whole.keep(key, found)


def open_parts(folders: Sequence[Path], name: str) -> list[Ledger]:
    """Return the ledgers of parts that make a whole.

    Args:
        folders: of the parts.
        name: of the ledger in each.

    Raises:
        InputError: if one has no ledger, is a part of something else (the difference is named), has
            measured the same piece with another result, or if pieces are missing (they are named).
    """
    for folder in folders:
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no part: there is no {name} in it")
    first = Ledger(folders[0] / name, None)
    parts = [first, *(Ledger(folder / name, first.identity) for folder in folders[1:])]
    whole: dict[str, tuple[str, Ledger]] = {}
    errors: dict[str, str] = {}
    wanted: dict[int, list[str]] = {}
    for part in parts:
        for key, (state, checksum, error) in part.states().items():
            if match := _IS_NOTE.fullmatch(key):
                note = part.find(key)
                assert note is not None
                wanted[int(match[2])] = note["keys"].tolist()
            elif state == "failed":
                errors[key] = f" ({error})"
            else:
                known, other = whole.setdefault(key, (str(checksum), part))
                if known != checksum:
                    raise InputError(
                        f"{other.path.parent} and {part.path.parent} disagree on {key!r}: the same "
                        "work gave other bits, as other kinds of processors do; measure all parts "
                        "on one kind"
                    )
    if not wanted:
        raise InputError(f"{folders[0]} is no part; parts are made with --part 1/N to --part N/N")
    _check_complete(wanted, whole.keys(), errors)
    return parts


def _check_complete(
    wanted: Mapping[int, Sequence[str]], done: Collection[str], errors: Mapping[str, str]
) -> None:
    """Name what is missing, by the parts that would do it.

    Raises:
        InputError: if anything is.
    """
    keys = next(iter(wanted.values()))
    missing = [key for key in keys if key not in done]
    if not missing:
        return
    count = max(wanted)
    of_part: dict[int, list[str]] = {}
    for index, key in enumerate(keys):
        if key not in done:
            of_part.setdefault(index % count + 1, []).append(f"{key}{errors.get(key, '')}")
    words = [f"--part {number}/{count}: {_few(found)}" for number, found in sorted(of_part.items())]
    raise InputError(
        f"{len(missing):,} of {len(keys):,} points are missing; {'; '.join(words)}; give the "
        "folders that have them, or run these parts, which go on where they stopped"
    )


def _few(words: Sequence[str]) -> str:
    """Return some of the words, and how many more there are."""
    more = f" and {len(words) - 3:,} more" if len(words) > 3 else ""
    return ", ".join(words[:3]) + more
