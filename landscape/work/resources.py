"""Where work is done: options of the commands, none of which changes a result.

Command lines read the fields, so nothing here imports torch before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from evolq.errors import InputError
from evolq.settings import Settings


@dataclass(frozen=True)
class Resources:
    """Where work is done.

    Attributes:
        workers: Processes that work side by side, of `threads` threads each. auto: one for each
            core, if a short measurement says that this is faster.

    Raises:
        InputError: for less than one worker.
    """

    workers: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.workers != "auto" and self.workers < 1:
            raise InputError(f"`workers` is {self.workers}; give 1 or more, or auto")

    def executor(self, settings: Settings, say: Callable[[str], None]) -> Executor:
        """Return what does the work; a context.

        Args:
            settings: of the problem, with its threads.
            say: where automatic choices are said.
        """
        from landscape.work.pieces import Here
        from landscape.work.workers import Automatic, Workers, cores

        if self.workers == "auto":
            # several processes would share one accelerator
            most = cores() // (settings.threads or 1) if settings.device == "cpu" else 1
            return Automatic(most, say)
        return Workers(self.workers) if self.workers > 1 else Here()
