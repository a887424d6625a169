"""How processes of this machine start."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

# What a worker imports: modules with what pieces of work call, and what loads compiled kernels.
NEEDED = [
    "evolq.losses.objective",
    "landscape.paths.comparison",
    "landscape.probes.escapes",
    "landscape.probes.frozen_null",
    "torch._inductor.codecache",
]


@cache
def start_method() -> BaseContext:
    """Return how processes start: on Linux forked from a server that has imported what they need.

    The first call starts the server, which imports while this process does something else. It
    computes nothing, since threads of PyTorch do not outlive a fork. Elsewhere processes are
    spawned: macOS has libraries that do not outlive a fork either.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)
    before = block_interrupts()
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    atexit.register(_end_server)
    return context


def _end_server() -> None:
    """End the server, which else imports to the end first and keeps pipes open until then."""
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)


def block_interrupts() -> set[int]:
    """Let processes that this thread starts never see Ctrl-C, not even while they start.

    It reaches every process of a terminal; what to do about it is the first one's business.

    Returns:
        What was blocked before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    resource_tracker.ensure_running()  # whoever starts it has its interrupts unblocked
    return {*signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])}
