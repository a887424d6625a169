"""How processes of this machine start."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

# What a worker imports.
NEEDED = ["evolq.losses.objective", "landscape.probes.evaluation"]


def start_method() -> BaseContext:
    """Return how processes start: forked from a server that has imported what they need.

    The first call starts the server, which imports while this process does something else. It
    computes nothing, since threads of PyTorch do not outlive a fork. Where the system has no such
    server, processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)
    before = block_interrupts()
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def block_interrupts() -> set[signal.Signals]:
    """Let processes that this thread starts never see Ctrl-C, not even while they start.

    It reaches every process of a terminal; what to do about it is the first one's business.

    Returns:
        What was blocked before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    resource_tracker.ensure_running()  # whoever starts it has its interrupts unblocked
    return {
        signal.Signals(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    }
