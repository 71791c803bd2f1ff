"""How long it takes to score predictions of vs100-ci, and to bootstrap its metrics.

python -m benchmarks.score [--turns N]
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from avbench.evaluation.metrics import METRICS
from avbench.evaluation.score import score
from avbench.evaluation.statistics import bootstrap
from avbench.manifests.benchmark import Benchmark
from benchmarks import timing


def predictions(benchmark: Benchmark, seeds: int) -> pa.Table:
    """Guess among the classes seen, for every test clip after every step."""
    manifest, random = benchmark.manifest, np.random.default_rng(0)
    rows = manifest.rows("test")
    parts = []
    for seed in range(seeds):
        for step, seen in enumerate(np.cumsum(manifest.classes_per_step)):
            due = rows[manifest.step_of_row[rows] <= step]
            columns = {
                "seed": np.full(len(due), seed),
                "step": np.full(len(due), step),
                "clip_id": manifest.table["clip_id"].take(due).combine_chunks(),
                "prediction": random.integers(seen, size=len(due)),
            }
            parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def main() -> None:
    """Print a row for each of the two."""
    parser = timing.arguments(__doc__, "two seeds of toy-ci, one turn")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    benchmark = Benchmark.load("toy-ci" if given.quick else "vs100-ci")
    seeds, turns = (2, 1) if given.quick else (10, given.turns)
    one, all_seeds = predictions(benchmark, 1), predictions(benchmark, seeds)
    outcomes = score(all_seeds, benchmark).outcomes
    ways = {
        f"score one seed, {len(one):,} rows": lambda: score(one, benchmark),
        f"bootstrap {seeds} seeds of them": lambda: bootstrap(outcomes, METRICS, seed=0),
    }
    found = timing.by_turns(ways, turns)
    timing.show(
        ["what", "CPU, s", "wall, s"],
        (
            [
                name,
                timing.spread([s.cpu for s in samples]),
                timing.spread([s.wall for s in samples]),
            ]
            for name, samples in found.items()
        ),
    )


if __name__ == "__main__":
    main()
