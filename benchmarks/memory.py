"""Peak memory of a run of AV-CIL on AVE at full size, 4,079 clips of 1568 x 768, on the CPU.

One epoch a step, batches of 256 new clips and 128 exemplars, as the authors train; more epochs take
more time and no more memory. The features are random numbers. Each row is a process of its own; in
the last, avbench chooses where features lie, in a control group of 4 GiB where root may make one.
Peak memory is the most of the process that was resident (VmHWM), features kept in RAM included; the
system's cache of files is not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avbench.evaluation.evaluator import evaluate
from avbench.manifests.benchmark import Benchmark
from avbench.types import RESIDENCIES, Residency
from benchmarks import timing
from benchmarks.synthetic import table_benchmark, write_store

_GIB = 2**30


def measure(folder: Path, quick: bool, residency: Residency | None) -> list[object]:
    """Run once; return a row of the table."""
    benchmark = _benchmark(folder, quick)
    result = evaluate(
        benchmark,
        "avcil",
        seeds=[0],
        out=folder / str(residency),
        features=str(folder / "store"),
        settings={"epochs": "1"},
        residency=residency,
    )
    cost = result.runs[0].cost
    peak = max(step.peak_memory_bytes for step in cost)
    lay = ", ".join(dict.fromkeys(str(step.residency) for step in cost))
    return [lay, f"{peak / _GIB:.2f}", f"{sum(step.seconds for step in cost):.0f}"]


def _benchmark(folder: Path, quick: bool) -> Benchmark:
    return table_benchmark(folder, 200, classes=4, steps=2) if quick else Benchmark.load("ave-ci")


@contextmanager
def _group(limit: int) -> Iterator[Path | None]:
    """Make a control group that may have so many bytes, while in use; None where nobody may."""
    root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not root.is_dir():
        root, name = root.parent, "memory.max"
    group = root / f"avbench-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit), encoding="ascii")
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "200 clips of 8 x 4 tokens")
    parser.add_argument("--folder", type=Path, help="for 10 GB of features; deleted afterwards")
    parser.add_argument("--one", choices=["chosen", *RESIDENCIES], help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.group:
            (options.group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        residency = None if options.one == "chosen" else options.one
        row = measure(options.folder, options.quick, residency)
        print("\t".join(map(str, row)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        shape = {"dim": 32, "frames": 8, "cells": 4} if options.quick else {}
        write_store(folder / "store", _benchmark(folder, options.quick), **shape)
        given = ["--folder", str(folder), *["--quick"] * options.quick, "--one"]
        rows = []
        for residency in ("disk", "ram"):
            rows.append(
                ["none", *timing.alone("benchmarks.memory", *given, residency).strip().split("\t")]
            )
        with _group(4 * _GIB) as group:
            if group:
                found = timing.alone("benchmarks.memory", *given, "chosen", "--group", str(group))
                rows.append(["4 GiB", *found.strip().split("\t")])
    print(timing.table(["limit", "features", "peak memory, GiB", "run, s"], rows))


if __name__ == "__main__":
    main()
