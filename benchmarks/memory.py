"""Peak memory of a run of AV-CIL on AVE at full size, 4,079 clips of 1568 x 768, on the CPU.

One epoch a step, batches of 256 new clips and 128 exemplars, as the authors train; more epochs take
more time and no more memory. The features are random numbers. Each row is a process of its own.
Peak memory is the most of the process that was resident (VmHWM), features kept in RAM included; the
system's cache of files is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from avbench.evaluation.evaluator import evaluate
from avbench.manifests.benchmark import Benchmark
from avbench.types import RESIDENCIES
from benchmarks import timing
from benchmarks.synthetic import table_benchmark, write_store


def measure(folder: Path, quick: bool, residency: str) -> list[object]:
    """Run once; return a row of the table."""
    benchmark = _benchmark(folder, quick)
    result = evaluate(
        benchmark,
        "avcil",
        seeds=[0],
        out=folder / residency,
        features=str(folder / "store"),
        settings={"epochs": "1"},
        residency=residency,  # type: ignore[arg-type]
    )
    cost = result.runs[0].cost
    peak = max(step.peak_memory_bytes for step in cost)
    return [residency, f"{peak / 2**30:.2f}", f"{sum(step.seconds for step in cost):.0f}"]


def _benchmark(folder: Path, quick: bool) -> Benchmark:
    return table_benchmark(folder, 200, classes=4, steps=2) if quick else Benchmark.load("ave-ci")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "200 clips of 8 x 4 tokens")
    parser.add_argument("--folder", type=Path, help="for 10 GB of features; deleted afterwards")
    parser.add_argument("--one", choices=RESIDENCIES, help="only this, with features in --folder")
    options = parser.parse_args()
    if options.one:
        row = measure(options.folder, options.quick, options.one)
        print("\t".join(map(str, row)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        shape = {"dim": 32, "frames": 8, "cells": 4} if options.quick else {}
        write_store(folder / "store", _benchmark(folder, options.quick), **shape)
        rows = []
        for residency in ("disk", "ram"):
            given = ["--one", residency, "--folder", str(folder), *["--quick"] * options.quick]
            rows.append(timing.alone("benchmarks.memory", *given).strip().split("\t"))
    print(timing.table(["features", "peak memory, GiB", "run, s"], rows))


if __name__ == "__main__":
    main()
