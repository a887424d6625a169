"""The folder of a run: claimed when work begins, with the ledger of what is finished."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolq import command_line
from evolq.command_line import Output
from landscape.ledger import Ledger
from landscape.work.shared import PREFIX

if TYPE_CHECKING:
    from xarray import Dataset


@dataclass
class RunFolder:
    """A folder to be; a context, which lets go of it.

    Attributes:
        output: as the user gave it.
        name: of what is done, for a folder that the user has not named.
        results: files that the run writes.
        unfinished: file name of the ledger.
        options: names of the options that repeat the run.
        part: of the pieces; see `Ledger`.
    """

    output: Output
    name: str
    results: Sequence[str]
    unfinished: str
    options: Collection[str]
    part: tuple[int, int] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _ledger: Ledger | None = None

    def open_ledger(self, identity: Mapping[str, Any]) -> Ledger:
        """Claim the folder, and return the ledger of the run that is in it or begins now.

        Args:
            identity: from `ledger.identity`, with the options.

        Raises:
            InputError: if the folder cannot be claimed, or holds the run of another identity.
        """
        folder = command_line.output_folder(self.output, self.name, self.results, self.unfinished)
        path = self._stack.enter_context(folder)
        for left in path.glob(f"{PREFIX}*"):  # by a process that was killed
            left.unlink()
        options = {name: identity[name] for name in self.options}
        command_line.write_configuration(path, options)
        self._ledger = Ledger(path / self.unfinished, identity)
        self._ledger.part = self.part
        self._stack.callback(self._ledger.close)
        return self._ledger

    @property
    def path(self) -> Path:
        """The folder, once it is claimed."""
        assert self._ledger is not None
        return self._ledger.path.parent

    def finish(self, dataset: Dataset) -> None:
        """Remove the ledger, unless it is of a part: the results hold all of it.

        Raises:
            SystemExit: with code 1, if points failed, which is said. The ledger stays, so that the
                same command tries them again.
        """
        assert self._ledger is not None
        failed = json.loads(dataset.attrs.get("failed", "{}"))
        if failed:
            key, error = next(iter(failed.items()))
            words = f"failed: {len(failed):,} points, {key}: {error}"
            print(f"{words}; --resume --out {self.path} tries again", file=sys.stderr)
            sys.exit(1)
        if self.part is None:
            self._ledger.remove()

    def __enter__(self) -> RunFolder:
        """Return the folder."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the ledger and let go of the folder."""
        self._stack.__exit__(*error)
