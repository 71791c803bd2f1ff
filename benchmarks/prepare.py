"""What planning and the ledger of `avbench prepare` cost per clip, apart from media.

    python -m benchmarks.prepare [--clips 20000 200000]

Stand-ins take the place of media: a source that refuses every clip at once, or one that gives every
clip at once, an empty file. All of the time is spent on planning, handing out work and writing the
ledger. Afterwards it is planned again. The manifest is built in one process, and all else measured
in another, so that memory is of that alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip, Manifest
from avbench.media import make, plan, prepare
from avbench.media.ledger import Outcome
from avbench.media.places import file_name
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
_CASES = ("refused", "given")


class _Source:
    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        raise ClipUnavailable("refused", permanent=False)


def _given(maker: make.Maker, clip: Clip, *_: object) -> Outcome:
    (maker.places.clips.local / file_name(clip.clip_id)).touch()
    return Outcome(clip.clip_id, "ok", maker.source_text, maker.asked(clip), sha256="0" * 64)


def build(clips: int, folder: Path) -> None:
    """Write a benchmark with a manifest of so many clips, two a video."""
    with (folder / "many.csv").open("w") as file:
        file.write("clip_id,youtube_id,start_s,label,split\n")
        for n in range(clips):
            file.write(f"{n:07d},v{n // 2:06d},{10 * (n % 2)},c{n % 100},train\n")
    (folder / "many.toml").write_text(_TOML)
    Benchmark.load(str(folder / "many.toml")).manifest.write(folder / "many.parquet")


def measure(case: str, folder: Path) -> tuple[list[timing.Sample], list[float]]:
    """Return times of a plan, a run and a plan after it, and MB before and at the peak."""
    make.open_source = plan.open_source = lambda *_: _Source()
    if case == "given":
        make.Maker._make = _given
    benchmark = Benchmark.load(str(folder / "many.toml"))
    vars(benchmark)["manifest"] = Manifest.read(folder / "many.parquet")
    before = timing.peak_mb()
    samples: list[timing.Sample] = []
    with timing.timed(samples):
        assert plan.plan_clips(benchmark, sources=["source"]).already == 0
    with timing.timed(samples):
        done = prepare.prepare_clips(benchmark, sources=["source"], workers=2, report=silent)
    with timing.timed(samples):
        there = plan.plan_clips(benchmark, sources=["source"]).already
    clips = len(benchmark.manifest)
    assert there == done.ok == clips - sum(map(len, done.failed.values()))
    assert there == (clips if case == "given" else 0)
    return samples, [before, timing.peak_mb()]


def _alone(case: str, folder: str, clips: int) -> Any:
    options = ("--alone", case, folder, "--clips", str(clips))
    home = {"AVBENCH_HOME": str(Path(folder, "home"))}
    return json.loads(timing.alone("benchmarks.prepare", *options, environment=home))


def main() -> None:
    """Measure each size in processes of its own and print a Markdown table."""
    parser = timing.arguments(__doc__, "2,000 clips")
    parser.add_argument("--clips", type=int, nargs="+", default=[20_000, 60_000, 200_000])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        case, folder = given.alone[0], Path(given.alone[1])
        found = build(given.clips[0], folder) if case == "build" else measure(case, folder)
        print(json.dumps(found))
        return
    rows = []
    for clips in [2000] if given.quick else given.clips:
        for case in _CASES:
            with tempfile.TemporaryDirectory() as folder:
                _alone("build", folder, clips)
                samples, memory = _alone(case, folder, clips)
            times = [
                f"{1000 * cpu / clips:.3f} / {1000 * wall / clips:.3f}" for cpu, wall in samples
            ]
            rows.append([f"{clips:,}", case, *times, *(f"{size:,.0f}" for size in memory)])
    parts = ("plan", "run", "plan after it")
    columns = [
        *(f"{p}, ms a clip, CPU / clock" for p in parts),
        "memory before, MB",
        "at the peak, MB",
    ]
    print(timing.table(["clips", "every clip is", *columns], rows))


if __name__ == "__main__":
    main()
