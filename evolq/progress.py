"""What a long run says meanwhile: a bar on a terminal, a line a minute in a log, or nothing.

All of it goes to standard error. Before more than a minute of work an estimate is said, from what
was measured so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

# Seconds between two lines where there is no terminal, and the work that is worth an estimate.
MINUTE = 60.0
# Seconds of work that an estimate is made from: the first evaluations are slower than the rest.
MEASURED = 2.0


class Task:
    """A part of the work, with `total` steps or an unknown number."""

    def __init__(
        self, progress: Progress, label: str, total: int | None, bars: Bars | None
    ) -> None:
        self._progress, self._label, self._total, self._bars = progress, label, total, bars
        self._id = bars.add_task(label, total=total) if bars else None
        self._began = self._spoke = time.monotonic()
        self._first = 0
        self._estimated = False

    def update(self, done: int, total: int | None = None, label: str | None = None) -> None:
        """Say that `done` of `total` steps are done, and what goes on; a new total begins anew."""
        now = time.monotonic()
        self._label = label or self._label
        if total is not None and total != self._total:
            self._total, self._first, self._began, self._estimated = total, done, now, False
        measured = done - self._first
        if self._total and measured and done < self._total and now - self._began >= MEASURED:
            left = (now - self._began) / measured * (self._total - done)
            if not self._estimated and left > MINUTE:
                self._progress.say(
                    f"{self._label}: about {_duration(left)} for {self._total - done:,} more steps"
                )
            self._estimated = True
        if self._bars is not None and self._id is not None:
            self._bars.update(self._id, completed=done, total=self._total, description=self._label)
        elif now - self._spoke >= MINUTE:
            self._spoke = now
            of = f" of {self._total:,}" if self._total else ""
            self._progress.say(f"{self._label}: {done:,}{of} after {_duration(now - self._began)}")


class Progress:
    """Where a command says what goes on."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    def say(self, words: str) -> None:
        """Print one line."""
        self._console.print(words, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Show `label`, and a bar once there is a total, for as long as the block runs."""
        if not self._console.is_terminal or self._console.quiet:
            yield Task(self, label, total, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield Task(self, label, total, bars)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
