"""How far a benchmark is prepared, read from its ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from avbench.manifests.benchmark import Benchmark
from avbench.media.ledger import Ledger, Run
from avbench.media.places import requests_of
from avbench.resources import is_held, replacing


@dataclass(frozen=True)
class FailureCount:
    """Clips that failed alike, with one of them."""

    reason: str
    failure: str
    clips: int
    example: str


@dataclass(frozen=True)
class Status:
    """How far a benchmark is prepared.

    Attributes:
        benchmark: Its name.
        clips: How many clips it has.
        ready: How many are there.
        acquired: Of how many there is the original only.
        waiting: How many were not tried yet.
        kept: Clips that are there though something is odd about them, by what.
        failures: What failed and why, the most frequent first.
        bytes: Of the clips that are there.
        seconds: Work on them.
        rate: Clips per second of the last run; None if there is none at work.
        eta_s: Seconds until that run has done all it set out to do; None likewise.
        last_run: The last run.
    """

    benchmark: str
    clips: int
    ready: int
    acquired: int
    waiting: int
    kept: dict[str, int]
    failures: list[FailureCount]
    bytes: int
    seconds: float
    rate: float | None
    eta_s: float | None
    last_run: Run | None


def status_of(benchmark: Benchmark) -> Status:
    """Read how far a benchmark is prepared; of a derived one, as far as its own clips go.

    Raises:
        AvbenchError: If the ledger cannot be read.
    """
    rows, run = _rows(benchmark)
    by_status = Counter(rows["status"])
    ok = rows[rows["status"] == "ok"]
    failed = rows[rows["status"] == "failed"]
    counted = [
        FailureCount(str(reason), str(failure), len(alike), str(alike["clip_id"].iloc[0]))
        for (reason, failure), alike in failed.groupby(["reason", "failure"])
    ]
    working = run is not None and run.done < run.todo and is_held(benchmark.home)
    rate = run.done / run.seconds if run and working and run.seconds else None
    return Status(
        benchmark=benchmark.name,
        clips=len(rows),
        ready=by_status["ok"],
        acquired=by_status["acquired"],
        waiting=by_status["waiting"],
        kept=dict(Counter(ok["reason"]) - Counter({"": len(ok)})),
        failures=sorted(counted, key=lambda count: (-count.clips, count.reason)),
        bytes=int(ok["bytes"].sum()),
        seconds=float(ok["seconds"].sum()),
        rate=rate,
        eta_s=(run.todo - run.done) / rate if run and rate else None,
        last_run=run,
    )


def export_clips(benchmark: Benchmark, path: Path) -> int:
    """Write what is known of every clip of a benchmark to a Parquet or CSV file.

    Returns:
        How many clips there are.

    Raises:
        AvbenchError: If the ledger cannot be read, or the file not be written.
    """
    rows, _ = _rows(benchmark)
    facts = benchmark.manifest.table.select(["clip_id", "youtube_id", "label", "split"]).to_pandas()
    table = facts.merge(rows, on="clip_id", how="left", validate="one_to_one")
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
    return len(table)


def _rows(benchmark: Benchmark) -> tuple[pd.DataFrame, Run | None]:
    path = benchmark.home / "ledger.sqlite"
    with Ledger.reading(path) as ledger:
        rows = pd.DataFrame(ledger.export(benchmark.manifest.clip_ids))
        run = ledger.last_run()
    current = {clip.clip_id: requests_of(clip, benchmark.spec) for clip in benchmark.manifest}
    asked = zip(rows["clip_id"], rows["request"], strict=True)
    outdated = [pd.notna(request) and request not in current[clip_id] for clip_id, request in asked]
    rows.loc[outdated, [c for c in rows if c not in ("clip_id", "status")]] = None
    rows.loc[outdated, "status"] = "waiting"
    return rows.astype({"attempts": "Int64", "bytes": "Int64", "seconds": "float64"}), run
