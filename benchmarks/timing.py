"""What the benchmarks share: time by turns, spreads, peaks of memory, tables, the machine."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# The C library's allocator as one that gives no memory back to the system.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1073741824",
}


class Sample(NamedTuple):
    """The time of one run.

    Attributes:
        cpu: Seconds of CPU of this process, all threads, and of its children that have ended.
        wall: Seconds on the clock.
    """

    cpu: float
    wall: float


def arguments(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Return the parser of a benchmark.

    Args:
        doc: Docstring of its module.
        quick: What `--quick` makes small.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"only see that it runs: {quick}")
    return parser


def cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


@contextmanager
def timed(samples: list[Sample]) -> Iterator[None]:
    """Add the time that a block takes."""
    cpu, wall = cpu_s(), time.perf_counter()
    yield
    samples.append(Sample(cpu_s() - cpu, time.perf_counter() - wall))


def by_turns(ways: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[Sample]]:
    """Run several ways by turns, after one run of each to warm up.

    What else the machine does then weighs on all of them alike.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(runs):
        for name, way in ways.items():
            with timed(samples[name]):
                way()
    return samples


def ratios(slow: Sequence[Sample], fast: Sequence[Sample]) -> list[str]:
    """Return how many times less the fast way takes, turn by turn: of CPU and of wall time."""
    turns = list(zip(slow, fast, strict=True))
    return [spread([s.cpu / f.cpu for s, f in turns]), spread([s.wall / f.wall for s, f in turns])]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and, in brackets, the smallest and the largest of several values."""
    middle, low, high = statistics.median(values), min(values), max(values)
    text = f"{middle:.{digits}f}"
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else text


def peak_mb() -> float:
    """Return the most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def held_mb() -> float:
    """Return how much memory this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def show(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table row by row, as each is measured."""
    print(table(header, []), flush=True)
    for row in rows:
        print(table(row, []).splitlines()[0], flush=True)


def machine() -> str:
    """Return machine and versions as a Markdown table."""
    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory, GB": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f}",
        "system": platform.platform(),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "h5py", "pyarrow")},
        "avbench": f"{version('avbench')}, commit {_commit()}",
    }
    return table(["", ""], facts.items())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def alone(module: str, *options: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a benchmark module in a process of its own and return what it prints.

    Raises:
        subprocess.CalledProcessError: If it fails; what it says goes to standard error.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
