"""What planning and the ledger of `avbench prepare` cost per clip, apart from media.

    python -m benchmarks.prepare [--clips 20000 200000]

A source that refuses every clip at once stands in for media, so that all of the time is spent on
planning, handing out work and writing the ledger. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media import make, plan, prepare
from avbench.media.sources.base import ClipUnavailable, SourceFile
from avbench.types import silent
from benchmarks import timing

_TOML = """
name = "many"
classes = 100
classes_per_step = 10
clip_seconds = 10.0
annotations = "many.csv"
"""


class _Refuses:
    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        raise ClipUnavailable("refused", permanent=False)


def measure(clips: int, folder: Path) -> tuple[float, float, float, float]:
    """Return seconds for building, a plan and a run, and the peak of memory in MB."""
    lines = ["clip_id,youtube_id,start_s,label,split"]
    lines += [f"{n:07d},v{n // 2:06d},{10 * (n % 2)},c{n % 100},train" for n in range(clips)]
    (folder / "many.csv").write_text("\n".join(lines) + "\n")
    (folder / "many.toml").write_text(_TOML)
    make.open_source = plan.open_source = lambda *_: _Refuses()
    times = [time.perf_counter()]
    benchmark = Benchmark.load(str(folder / "many.toml"))
    assert len(benchmark.manifest) == clips
    times.append(time.perf_counter())
    plan.plan_clips(benchmark, sources=["refuses"])
    times.append(time.perf_counter())
    done = prepare.prepare_clips(benchmark, sources=["refuses"], workers=2, report=silent)
    times.append(time.perf_counter())
    assert sum(map(len, done.failed.values())) == clips
    build, planned, run = (b - a for a, b in pairwise(times))
    return build, planned, run, timing.peak_mb()


def main() -> None:
    """Measure each size in a process of its own and print a Markdown table."""
    parser = timing.arguments(__doc__, "2,000 clips")
    parser.add_argument("--clips", type=int, nargs="+", default=[20_000, 60_000, 200_000])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AVBENCH_HOME"] = str(Path(folder, "home"))
            print(json.dumps(measure(given.clips[0], Path(folder))))
        return
    rows = []
    for clips in [2000] if given.quick else given.clips:
        found = timing.alone("benchmarks.prepare", "--alone", "--clips", str(clips))
        *seconds, peak = json.loads(found)
        rows.append([f"{clips:,}", *(f"{1000 * s / clips:.3f}" for s in seconds), f"{peak:,.0f}"])
    parts = ("manifest", "plan", "run")
    print(timing.table(["clips", *(f"{p}, ms a clip" for p in parts), "peak memory, MB"], rows))


if __name__ == "__main__":
    main()
