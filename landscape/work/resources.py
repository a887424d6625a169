"""Where work is done: options of the commands, none of which changes a result.

Command lines read the fields, so nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from evolq.declared import check_value
from evolq.errors import InputError
from evolq.settings import MAX_THREADS, Settings
from landscape.work.processes import start_method


@dataclass(frozen=True)
class Resources:
    """Where work is done.

    Attributes:
        workers: Processes that work side by side, of `threads` threads each. auto: one for each
            core, if a short measurement says that this is faster.
        scheduler: Address of a Dask scheduler, tcp://HOST:PORT, whose workers do the work instead.
            They need the output folder, by the same path.
        part: Such as 3/64: only every 64th point, from the third on; python -m landscape.merge
            makes one scan of all parts.

    Raises:
        InputError: for less than one worker or too many, or a part that there is not.
    """

    workers: int | Literal["auto"] = "auto"
    scheduler: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.workers != "auto":
            check_value("workers", self.workers, int, (1, MAX_THREADS))
        _ = self.own_part

    @property
    def own_part(self) -> tuple[int, int] | None:
        """Number and count of the part, None for the whole."""
        if self.part is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", self.part)
        if match is None or int(match[1]) > int(match[2]):
            raise InputError(f"`part` is {self.part}; give number/count, from 1/64 to 64/64")
        return int(match[1]), int(match[2])

    def executor(self, settings: Settings, say: Callable[[str], None]) -> Executor:
        """Return what does the work; a context, which is left when all is done.

        Args:
            settings: of the problem, with its threads.
            say: where automatic choices are said.

        Raises:
            InputError: if no scheduler answers.
        """
        if self.scheduler is not None:
            from landscape.work.cluster import Cluster

            return Cluster(self.scheduler)
        most = self.workers
        if most == "auto":
            # several processes would share one accelerator
            most = cores() // (settings.threads or 1) if settings.device == "cpu" else 1
        if most > 1:
            start_method()  # what it starts imports while this process does
        from landscape.work.pieces import Here
        from landscape.work.workers import Automatic, Workers

        if self.workers == "auto":
            return Automatic(most, say)
        return Workers(most) if most > 1 else Here()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
