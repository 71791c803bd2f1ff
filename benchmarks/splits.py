"""How long it takes to build and to load a split manifest.

    python -m benchmarks.splits [--runs N]

Prints, per benchmark, CPU time over runs in one process: building from the table of annotations,
loading the shipped file (with all checks and the fingerprint), and making a variant of it. The
last column is the time of pyarrow alone to read the file, which is the limit.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import build
from avbench.manifests.spec import load_spec, shipped_names
from benchmarks import timing


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "one run")
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    rows = []
    for name in shipped_names():
        path = Benchmark.load(name).manifest_path
        ways = {
            "build, ms": lambda name=name: build(load_spec(name)),
            "load, ms": lambda name=name: Benchmark.load(name).manifest,
            "load a variant, ms": lambda name=name: Benchmark.load(f"{name}:seed=3").manifest,
            "pyarrow alone, ms": lambda path=path: pq.read_table(path),
        }
        samples = timing.by_turns(ways, 1 if given.quick else given.runs)
        times = [timing.spread([1000 * s.cpu for s in each], 1) for each in samples.values()]
        rows.append([name, f"{len(Benchmark.load(name).manifest):,}", *times])
    print(timing.table(["benchmark", "clips", *ways], rows))


if __name__ == "__main__":
    main()
