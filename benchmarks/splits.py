"""How long it takes to build and to load a split manifest.

    python benchmarks/splits.py [--runs N]

Prints, per benchmark, medians over runs in one process: building from the table of annotations,
loading the shipped file (with all checks and the fingerprint), and making a variant of it. The
last column is the time of pyarrow alone to read the file, which is the limit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import build
from avbench.manifests.spec import load_spec, shipped_names


def median_ms(call: Callable[[], Any], runs: int) -> float:
    """Return the median time of a call in milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    print("| benchmark | clips | build, ms | load, ms | load a variant, ms | pyarrow alone, ms |")
    print("|---|---|---|---|---|---|")
    for name in shipped_names():
        path = Benchmark.load(name).manifest_path
        calls: list[Callable[[], Any]] = [
            lambda name=name: build(load_spec(name)),
            lambda name=name: Benchmark.load(name).manifest,
            lambda name=name: Benchmark.load(f"{name}:seed=3").manifest,
            lambda path=path: pq.read_table(path),
        ]
        times = " | ".join(f"{median_ms(call, runs):.1f}" for call in calls)
        print(f"| {name} | {len(Benchmark.load(name).manifest):,} | {times} |")


if __name__ == "__main__":
    main()
