"""Independent pieces of work, finished in any order and kept as soon as they are.

Any `concurrent.futures.Executor` does the work; only this process writes to the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from landscape.ledger import Arrays, Ledger

# How often a piece is tried. One that fails goes to the end of the queue first: what kills each
# worker that takes it does not keep the others from being finished.
TRIES = 3
# So many failures before anything is finished are no accident: all would fail.
HOPELESS = 4 * TRIES
# Pieces that an executor holds at one time, unless it says itself how many (`in_flight`): more than
# a cluster has workers, and few enough that results which wait to be written do not fill memory.
IN_FLIGHT = 512
# What a ledger of a part calls its note of all pieces.
NOTE = "part {}/{}"


class Piece(NamedTuple):
    """A piece of work.

    Attributes:
        key: unique in its run.
        function: to be pickled if other processes work; what is large goes through a `Shared`.
        arguments: of the function.
    """

    key: str
    function: Callable[..., Arrays]
    arguments: tuple[Any, ...]


class Failed(NamedTuple):
    """What is left of a piece that failed `TRIES` times: the last error in words."""

    error: str


class Here(Executor):
    """Runs each call when it is submitted, in this process."""

    in_flight = 1

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call that has ended."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def finish(
    pieces: Iterable[Piece], ledger: Ledger | None = None, executor: Executor | None = None
) -> Iterator[tuple[str, Arrays | Failed]]:
    """Yield each piece's key and what came out, as it is finished; those in the ledger at once.

    Args:
        pieces: taken from one after the other, when there is room for more.
        ledger: keeps each piece when it is finished, and how it failed; with a `part`, only its
            pieces are done.
        executor: does the work, by default here; it stays open.

    Raises:
        Exception: of a piece, if the first `HOPELESS` tries all failed, or all pieces.
    """
    if ledger is not None and ledger.part is not None:
        pieces = own(list(pieces), ledger, ledger.part)
    executor = executor or Here()
    waiting = iter(pieces)
    again: deque[tuple[Piece, int]] = deque()
    flying: dict[Future[Arrays], tuple[Piece, int]] = {}
    ended: SimpleQueue[Future[Arrays]] = SimpleQueue()
    failures, hopeful = 0, False
    try:
        while True:
            # asked anew: an executor may take on workers on the way
            while len(flying) < getattr(executor, "in_flight", IN_FLIGHT) and ended.empty():
                piece = next(waiting, None)
                tries = 0
                if piece is None:
                    if not again:
                        break
                    piece, tries = again.popleft()
                elif ledger is not None and (found := ledger.find(piece.key)) is not None:
                    hopeful = True
                    yield piece.key, found
                    continue
                future = executor.submit(piece.function, *piece.arguments)
                flying[future] = piece, tries + 1
                future.add_done_callback(ended.put)
            if not flying:
                return
            future = ended.get()
            piece, tries = flying.pop(future)
            error = _error(future)
            if error is None:
                hopeful = True
                if ledger is not None:
                    ledger.keep(piece.key, future.result())
                yield piece.key, future.result()
                continue
            failures += 1
            if not hopeful and (failures >= HOPELESS or (tries == TRIES and not flying)):
                if ledger is not None:
                    ledger.fail(piece.key, error)
                raise error
            if tries < TRIES:
                again.append((piece, tries))
                continue
            if ledger is not None:
                ledger.fail(piece.key, error)
            yield piece.key, Failed(f"{type(error).__name__}: {error}")
    finally:
        for future in flying:
            future.cancel()


def own(pieces: list[Piece], ledger: Ledger, part: tuple[int, int]) -> list[Piece]:
    """Return the pieces of a part; the ledger notes the keys of all, for those who merge parts."""
    number, count = part
    note = NOTE.format(number, count)
    if ledger.find(note) is None:
        ledger.keep(note, {"keys": np.array([piece.key for piece in pieces])})
    return pieces[number - 1 :: count]


def _error(future: Future[Arrays]) -> Exception | None:
    """Return how a call failed, None if it did not; what is no failure (Ctrl-C) is raised."""
    try:
        error = future.exception()
    except CancelledError as cancelled:  # by a scheduler that lost it
        return cancelled
    if error is None or isinstance(error, Exception):
        return error
    raise error
