"""Work on the machines of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from evolq.errors import InputError

# Seconds to wait for a scheduler to answer.
PATIENCE = 20


class Cluster(Executor):
    """Runs calls on the workers of a Dask scheduler, which gives a call of a dead one to another.

    Workers read a `Shared` from its file: they need the folder that it is in.
    """

    def __init__(self, address: str) -> None:
        """Connect to a scheduler.

        Raises:
            InputError: if Dask is not installed, or no scheduler answers.
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise InputError("`scheduler` needs Dask: pip install 'evolq[cluster]'") from error
        try:
            self._client = Client(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"no Dask scheduler answers at {address}: {error}") from error
        self._executor = self._client.get_executor()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of a call somewhere in the cluster."""
        return self._executor.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Leave the cluster, which stays."""
        self._executor.shutdown(wait=wait)
        self._client.close()
