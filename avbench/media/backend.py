"""Where work runs: threads, processes, or a cluster, behind joblib."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

from avbench.types import AvbenchError, UsageError

Backend = Literal["threading", "loky", "dask"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_CONNECT_S = 20
"""How long a scheduler, and a worker, is waited for."""

Work = TypeVar("Work")
Done = TypeVar("Done")


@contextmanager
def pool(backend: Backend, *, workers: int, scheduler: str | None = None) -> Iterator[None]:
    """Make `each` run on a backend.

    Args:
        backend: Threads and processes of this machine, or a Dask cluster.
        workers: How many at a time; of a cluster that is there already, all of it is used.
        scheduler: Address of a Dask scheduler, such as tcp://host:8786; without one, Dask workers
            are started here.

    Raises:
        UsageError: If Dask is not installed, or a scheduler is given for another backend.
        AvbenchError: If the scheduler cannot be reached, or has no workers.
    """
    if scheduler and backend != "dask":
        raise UsageError(f"--scheduler goes with --backend dask, not {backend}")
    if backend != "dask":
        with parallel_config(backend=backend, n_jobs=workers):
            yield
        return
    try:
        import distributed
    except ImportError as error:
        raise UsageError("--backend dask needs Dask: pip install distributed") from error
    local = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "dashboard_address": ":0",
        "silence_logs": logging.ERROR,
    }
    options: dict[str, Any] = {"address": scheduler, "timeout": _CONNECT_S} if scheduler else local
    try:
        connect: Any = distributed.Client
        with _children_deaf_to_ctrl_c():
            client = connect(**options)
    except (OSError, ValueError) as error:
        raise AvbenchError(f"no Dask scheduler at {scheduler}: check the address") from error
    try:
        client.wait_for_workers(1, timeout=_CONNECT_S)
    except TimeoutError as error:
        client.close()
        remedy = f"start some with: dask worker {scheduler}"
        raise AvbenchError(f"the Dask cluster has no workers: {remedy}") from error
    with client, parallel_config(backend="dask", n_jobs=-1):
        yield


@contextmanager
def _children_deaf_to_ctrl_c() -> Iterator[None]:
    """Leave Ctrl-C to this process, which ends its children: they would each print a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say how signals are taken
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def each(
    function: Callable[[Work], Done], work: Iterable[Work], *, takes: str = ""
) -> Iterator[Done]:
    """Yield what a function makes of each piece of work, as it is done, in any order.

    No more work is drawn than is about to be done.

    Args:
        function: What to do.
        work: The pieces.
        takes: Name of a resource that each piece takes one of while it is worked on: of a Dask
            cluster, only the workers that were started with it are used, if there are any.

    Raises:
        AvbenchError: If a worker process was ended from outside.
    """
    try:
        with _taking(takes):
            run = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
            yield from run(delayed(function)(piece) for piece in work)
    except TerminatedWorkerError as error:
        raise AvbenchError(
            "a worker process was ended, perhaps for want of memory: run the same command again,"
            " with fewer --workers"
        ) from error
    except Exception as error:
        # Its classes can be named only where Dask is installed.
        if not type(error).__module__.startswith("distributed"):
            raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvbenchError(f"the Dask cluster failed ({cause}): run the same command again") from (
            error
        )


@contextmanager
def _taking(resource: str) -> Iterator[None]:
    backend, _ = get_active_backend()
    client: Any = getattr(backend, "client", None)
    workers = client.scheduler_info(n_workers=-1)["workers"].values() if client else ()
    if not any(resource in worker["resources"] for worker in workers):
        yield
        return
    with parallel_config(backend="dask", n_jobs=-1, resources={resource: 1}):
        yield
