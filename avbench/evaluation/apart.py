"""A run in a process of its own: what ends it ends no other, and it ends with who started it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from avbench.types import AvbenchError, Modality

# Beyond them a process has more threads than a small network keeps busy.
_MOST_THREADS = 8
_POLL_SECONDS = 1.0
_LONGEST_REASON = 4000


@dataclass(frozen=True)
class Job:
    """What `evaluate` is to do, as another process or machine can be told it.

    Attributes:
        benchmark: As typed; the path of a TOML is absolute.
        method: A registered method.
        modality: What it looks at.
        seeds: One after the other.
        out: The run directory, absolute.
        preset: Which features.
        settings: Over the method's recipe.
        device: A torch device.
        allow_missing: Go on where clips have no features.
        home: The folder of clips and features.
        threads: Of torch, unless the environment there says another number.
    """

    benchmark: str
    method: str
    modality: Modality
    seeds: tuple[int, ...]
    out: str
    preset: str
    settings: dict[str, str]
    device: str
    allow_missing: bool
    home: str
    threads: int


def fair_threads(workers: int) -> int:
    """Return how many threads each of some processes should have on this machine."""
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // workers))


def run_apart(job: Job) -> tuple[str, str | None]:
    """Do a job in a new process, and wait for it.

    What a process printed that crashed is kept in a log beside the run directory.

    Returns:
        The run directory, and why the run failed; None if it did not.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
    threads = {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        with (
            tempfile.TemporaryFile() as printed,
            # Out of reach of the terminal's Ctrl-C: it ends when its standard input does.
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=threads | os.environ | {"AVBENCH_HOME": job.home},
                start_new_session=True,
            ) as process,
        ):
            assert process.stdout is not None
            try:
                code = _ended(process)
                answer = process.stdout.read()
            finally:
                process.kill()
            if code == 0:
                return job.out, None
            return job.out, answer.decode(errors="replace") or _crash(job, code, printed)
    except OSError as error:
        return job.out, str(error)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; end with the one that started this, if this is a worker of a pool."""
    worker = multiprocessing.current_process().name != "MainProcess"
    parent = os.getppid()
    while True:
        try:
            return process.wait(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if worker and os.getppid() != parent:
                os._exit(1)  # it would go on with the next run


def run_here(job: Job) -> None:
    """Do a job in this process.

    Raises:
        AvbenchError: As `evaluate` does.
    """
    from avbench.evaluation.evaluator import evaluate  # torch: slow to import
    from avbench.manifests.benchmark import Benchmark

    evaluate(
        Benchmark.load(job.benchmark),
        job.method,
        modality=job.modality,
        seeds=job.seeds,
        out=Path(job.out),
        preset=job.preset,
        settings=job.settings,
        device=job.device,
        allow_missing=job.allow_missing,
    )


def _crash(job: Job, code: int, printed: IO[bytes]) -> str:
    """Say how a process ended that gave no reason, and keep what it printed."""
    if code < 0:
        return f"ended by signal {-code}, perhaps for want of memory: run the same command again"
    printed.seek(0)
    text = printed.read().decode(errors="replace")
    log = Path(f"{job.out}.log")
    log.write_text(text, encoding="utf-8")
    last = text.strip().splitlines()
    return f"{last[-1] if last else f'exit code {code}'} (see {log})"


def _main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What a method prints must not be taken for the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        run_here(Job(**json.loads(sys.argv[1])))
    except (AvbenchError, OSError) as error:
        os.write(answer, str(error)[:_LONGEST_REASON].encode())
        sys.exit(1)


def _end_with_parent() -> None:
    # Not by way of sys.stdin: a thread that waits there would block the end of the process.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    _main()
