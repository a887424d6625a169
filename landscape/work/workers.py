"""Processes that work side by side on one machine, and whether they pay."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.thread import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from landscape.work.pieces import Here
from landscape.work.processes import block_interrupts, start_method
from landscape.work.shared import Shared

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Calls that wait for each worker: it never waits for this process, and results do not pile up.
QUEUED = 4
# Seconds of work after which it is worth while to start workers.
ALONE = 0.5
# One call that takes so many seconds does not wait for a second one.
LONG = 20.0
# Seconds in which the results of workers are counted.
TOGETHER = 2.5


class Workers(ThreadPoolExecutor):
    """Processes that run one call at a time each.

    One that dies fails its own call alone, and another one takes its place. All of them end with
    this executor, and with this process, however that ends.
    """

    def __init__(self, count: int) -> None:
        """Start no process yet."""
        super().__init__(count, initializer=block_interrupts)
        self.in_flight = QUEUED * count
        self._context = start_method()
        self._line, self._held = self._context.Pipe(duplex=False)
        self._own = threading.local()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call in one of the processes."""
        return super().submit(self._run, function, *args, **kwargs)

    def _run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a call in the process of this thread."""
        pool = getattr(self._own, "pool", None)
        if pool is None:
            pool = ProcessPoolExecutor(1, self._context, _begin, (self._line,))
        self._own.pool = None
        result = pool.submit(function, *args, **kwargs)
        error = result.exception()
        if not isinstance(error, BrokenExecutor):
            self._own.pool = pool
        if error is not None:
            raise error
        return result.result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End all processes, whatever they do."""
        self._held.close()
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._line.close()


def _begin(line: Connection) -> None:
    """Make a process a worker: it ends when the other end of the line is gone."""

    def watch() -> None:
        line.poll(None)
        os._exit(1)

    # What the server has imported is no garbage. To look through it would copy all of that memory,
    # which is shared until then: half a second of the first work.
    gc.freeze()
    # Inductor's progress bar else has a lock among processes, of which Python says at the end that
    # it leaked.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=watch, daemon=True).start()


class Automatic(Executor):
    """Works here, and in workers as soon as that is known to pay.

    Calls run in this process until there were some seconds of them. Then workers are started, and
    after some more seconds the results are counted: what is faster goes on. What was measured is
    said. Meanwhile no work is lost, and results do not depend on where they were made. Calls of
    another function, or with another `Shared`, take another time: if nothing is decided yet, they
    are compared anew.
    """

    def __init__(self, most: int, say: Callable[[str], None]) -> None:
        """Keep the largest number of workers, and where to say what was found."""
        self._most = most
        self._say = say
        self._alone: list[float] = []
        self._ended: list[float] = []
        self._kind: tuple[object, ...] = ()  # of the calls that are compared
        self._undecided = most > 1
        self._workers: Workers | None = None
        self._idle: Workers | None = None

    @property
    def in_flight(self) -> int:
        """How many calls to submit at one time."""
        return self._workers.in_flight if self._workers else Here.in_flight

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call, which has ended if it ran here."""
        kind = (function, *(id(each) for each in args if isinstance(each, Shared)))
        if self._undecided and kind != self._kind:
            self._kind, self._alone, self._ended = kind, [], []
            self._workers, self._idle = None, self._workers or self._idle
        if self._workers is None:
            began = time.perf_counter()
            future = Here().submit(function, *args, **kwargs)
            self._alone.append(time.perf_counter() - began)
            # the first one prepares more than the others
            if self._undecided and (sum(self._alone[1:]) >= ALONE or self._alone[0] >= LONG):
                self._start()
            return future
        if self._undecided and len(self._alone) > 1:
            self._compare(self._workers)
        future = (self._workers or Here()).submit(function, *args, **kwargs)
        if self._undecided:
            ended = self._ended  # of this kind, whenever the call ends
            future.add_done_callback(lambda _: ended.append(time.perf_counter()))
        return future

    def _start(self) -> None:
        if self._idle is not None:
            self._workers, self._idle = self._idle, None
            return
        size, available = _memory_in_use(), _memory_available()
        count = next((n for n in range(self._most, 1, -1) if n * size <= available), 1)
        if count > 1:
            self._workers = Workers(count)
            self._undecided = len(self._alone) > 1  # else there is nothing to compare with
        else:
            self._undecided = False
            self._say(f"One process: another one would need {size / 2**30:.1f} GiB of memory")

    def _compare(self, workers: Workers) -> None:
        """Compare once there are enough results; the first ones of each worker do not count."""
        count = workers.in_flight // QUEUED
        ended = self._ended[2 * count :]
        if len(ended) < 2 * count or ended[-1] - ended[0] < TOGETHER:
            return
        rate = (len(ended) - 1) / (ended[-1] - ended[0])
        times = rate * median(self._alone[1:])
        words = f"{count} workers: {times:.1f} times as fast as one process"
        if times < 1:
            self._workers, self._idle = None, workers
            words += "; going on with one"
        self._say(words)
        self._undecided = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End all processes."""
        for workers in (self._workers, self._idle):
            if workers is not None:
                workers.shutdown(wait, cancel_futures=cancel_futures)


def _memory_in_use() -> float:
    """Return the largest size of this process so far, bytes; 0 where nobody says."""
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _memory_available() -> float:
    """Return how much memory is free for programs, bytes; infinity where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable"))
