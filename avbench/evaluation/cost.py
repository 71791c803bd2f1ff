"""What a run costs, and where it ran."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import torch

import avbench
from avbench.evaluation.result import Environment, GitState
from avbench.learning.method import Method
from avbench.learning.stopwatch import Stopwatch


class Meter:
    """Measures a step: time and what it goes into, memory of the process and on its GPU."""

    def __init__(self, device: torch.device, stopwatch: Stopwatch) -> None:
        self._device = device
        self._stopwatch = stopwatch
        stopwatch.reset()
        self._begun = time.perf_counter()
        self._before: dict[str, Any] = {}
        with suppress(OSError):  # where the system has this, a peak is of the step alone
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, before: dict[str, Any]) -> None:
        """Count what the step cost before it was killed."""
        self._before = before

    def read(self) -> dict[str, Any]:
        """Return the costs so far."""
        gpu = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        peaks = {"peak_memory_bytes": _peak_memory(), "peak_gpu_memory_bytes": gpu}
        return {
            "seconds": self._before.get("seconds", 0.0) + time.perf_counter() - self._begun,
            **{k: v if v is None else max(v, self._before.get(k) or 0) for k, v in peaks.items()},
            "profile": self._profile(),
        }

    def _profile(self) -> dict[str, float] | None:
        if not self._stopwatch.running:
            return None
        before = self._before.get("profile") or {}
        return {
            phase: before.get(phase, 0.0) + seconds
            for phase, seconds in self._stopwatch.seconds.items()
        }


def _peak_memory() -> int:
    """Return the most memory this process had resident, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def environment_of(method_class: type[Method]) -> Environment:
    """Record the machine, the packages, and the state of the code: avbench's and the method's."""
    package = Path(avbench.__file__).resolve()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        machine=platform.machine(),
        cpu_count=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        packages=packages(),
        git=_git_state(Path(inspect.getfile(method_class)).resolve()),
        avbench_git=_git_state(package),
        avbench_hash=_hash_sources(package.parent),
    )


def packages() -> dict[str, str]:
    """Return the versions of avbench, of what it requires, and of all else that is loaded."""
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    names = {name for module in loaded for name in _distributions().get(module, ())}
    found = {re.sub("[-_.]+", "-", name).lower(): _version(name) for name in names | _required()}
    return {name: known for name, known in sorted(found.items()) if known}


@cache
def _required() -> frozenset[str]:
    """Return the names of avbench and of what it requires."""
    needed = [each for each in requires("avbench") or () if "extra ==" not in each]
    return frozenset(["avbench", *(re.split(r"[^\w.-]", each)[0] for each in needed)])


@cache
def _distributions() -> dict[str, list[str]]:
    """Return which packages have a module."""
    return dict(packages_distributions())


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _hash_sources(package: Path) -> str:
    """Return the SHA-256 of all code in a folder, as it was when first asked."""
    found = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".c")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return found.hexdigest()


@cache
def _git_state(file: Path) -> GitState | None:
    """Return the state of the checkout that tracks a file, as it was when first asked."""

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)
        changes = git("diff", "--no-ext-diff", "--no-textconv", "--full-index", "HEAD")
        return GitState(
            commit=git("rev-parse", "HEAD").decode().strip(),
            modified=changes != b"",
            changes=hashlib.sha256(changes).hexdigest() if changes else None,
        )
    except (OSError, subprocess.SubprocessError):
        return None
