"""Other processes: waiting for what they do, and finding those that a process started."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], *, process: subprocess.Popen[Any] | None = None) -> T:
    """Return what a condition says as soon as it says something; fail after a minute.

    Fails, too, if a process ends before.
    """
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until, "it never came to pass"
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.002)
    return found


def children_of(parent: int, what: str) -> list[int]:
    """Return the processes that a process started and that run something."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == parent and what in command and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def all_wait_for_a_lock(processes: Iterable[subprocess.Popen[Any]]) -> bool:
    """Whether each of some processes waits for a lock on a file that another holds."""
    lines = Path("/proc/locks").read_text().splitlines()
    waiting = {line.split()[5] for line in lines if "->" in line}
    return {str(process.pid) for process in processes} <= waiting


def forked(function: Callable[[], T]) -> T:
    """Return what a function returns in a forked process; fail if it takes a minute."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(function()))
    process.start()
    sending.close()
    try:
        assert receiving.poll(60), "the forked process hangs"
        found: T = receiving.recv()
        return found
    finally:
        process.kill()
        process.join()
