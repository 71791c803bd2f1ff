"""From a manifest to valid clips on disk, resumable at any moment."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from joblib import Parallel, delayed

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.ledger import SHORT, Ledger, Outcome
from avbench.media.probe import TOLERANCE_S, InvalidClip, validate
from avbench.media.sources.base import ClipUnavailable, Source, open_source
from avbench.media.trim import trim
from avbench.resources import alone, writing
from avbench.types import AvbenchError, Report


@dataclass(frozen=True)
class Prepared:
    """What a run of `prepare_clips` did.

    Attributes:
        ok: Clips made by this run.
        already: Clips that were there before.
        failed: Which clips are missing for which reason, the most frequent first.
    """

    ok: int
    already: int
    failed: dict[str, list[str]]


def prepare_clips(
    benchmark: Benchmark, *, source: str | None, workers: int, report: Report
) -> Prepared:
    """Fetch, cut and check every clip of a benchmark that is not there yet.

    A clip that fails is recorded in the ledger and does not stop the others; the next run tries it
    again, unless its source said for good that it is gone.

    Args:
        benchmark: The benchmark; of one derived from another, the clips of the other are made.
        source: Where clips come from, `NAME` or `NAME:ARGUMENT`; None for the benchmark's first.
        workers: How many clips are made at a time.
        report: Called as clips are done.

    Raises:
        UsageError: If there is no such source.
        AvbenchError: If the benchmark has no source, another run is at work on it, or its folder
            cannot be written to.
    """
    benchmark = benchmark.base
    if source is None:
        if not benchmark.spec.sources:
            remedy = "pass --source folder:DIR with a folder of the videos"
            raise AvbenchError(f"{benchmark.name}: no automatic source yet: {remedy}")
        source = benchmark.spec.sources[0]
    opened = open_source(source, benchmark.spec)
    clips = list(benchmark.manifest)
    home = benchmark.home
    clips_dir = home / "clips"
    with (
        alone(home, f"preparing {benchmark.name}"),
        _scratch(home) as scratch,
        Ledger(home / "ledger.sqlite") as ledger,
    ):
        with writing(clips_dir):
            clips_dir.mkdir(exist_ok=True)
        make = _Maker(opened, source, benchmark.spec.clip_seconds, clips_dir, scratch)
        known = ledger.all()
        for clip in clips:
            row = known.get(clip.clip_id)
            if row and row.request != make.request(clip):
                # Cut to another time or length: not this clip any more, but maybe hard to replace.
                del known[clip.clip_id]
                _put_aside(clips_dir / f"{clip.clip_id}.mp4", home / "replaced")
        there = {clip_id for clip_id, row in known.items() if _is_there(clips_dir, row)}
        failed = {
            clip_id: row.reason
            for clip_id, row in known.items()
            if row.permanent and row.source == source
        }
        todo = [clip for clip in clips if clip.clip_id not in there | failed.keys()]
        report("preparing clips", len(clips) - len(todo), len(clips))
        outcomes = Parallel(n_jobs=workers, backend="threading", return_as="generator_unordered")(
            delayed(make)(clip) for clip in todo
        )
        for done, outcome in enumerate(outcomes, start=len(clips) - len(todo) + 1):
            if outcome is None:
                continue
            before = known.get(outcome.clip_id)
            ledger.record(replace(outcome, attempts=before.attempts + 1 if before else 1))
            if outcome.status == "failed":
                failed[outcome.clip_id] = outcome.reason
            report("preparing clips", done, len(clips))
        if make.fatal:
            raise make.fatal[0]
    by_reason: dict[str, list[str]] = defaultdict(list)
    already = 0
    for clip in clips:
        already += clip.clip_id in there
        if clip.clip_id in failed:
            by_reason[failed[clip.clip_id]].append(clip.clip_id)
    return Prepared(
        ok=len(clips) - already - sum(map(len, by_reason.values())),
        already=already,
        failed=dict(sorted(by_reason.items(), key=lambda item: -len(item[1]))),
    )


@dataclass(frozen=True)
class _Maker:
    """Makes one clip, in a worker.

    What would stop every clip is kept in `fatal`, and no further clip is begun: raising it at once
    would leave the other workers writing while the folder is being cleaned.
    """

    source: Source
    source_text: str
    seconds: float
    clips_dir: Path
    scratch: Path
    fatal: list[AvbenchError | OSError] = field(default_factory=list)

    def __call__(self, clip: Clip) -> Outcome | None:
        if self.fatal:
            return None
        began = time.monotonic()
        target = self.clips_dir / f"{clip.clip_id}.mp4"
        failed = Outcome(clip.clip_id, "failed", self.source_text, self.request(clip), 0.0)
        try:
            with writing(self.clips_dir):
                outcome = self._make(clip, target)
        except ClipUnavailable as error:
            outcome = replace(
                failed, reason=error.reason, detail=error.detail, permanent=error.permanent
            )
        except InvalidClip as error:
            outcome = replace(failed, reason=error.reason, detail=error.detail)
        except (AvbenchError, OSError) as error:
            self.fatal.append(error)
            return None
        return replace(outcome, seconds=time.monotonic() - began)

    def request(self, clip: Clip) -> str:
        """Say what is asked for: a clip of another time or length is another clip."""
        return f"{clip.youtube_id} {clip.start_s} {clip.end_s} {float(self.seconds)}"

    def _make(self, clip: Clip, target: Path) -> Outcome:
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as folder:
            given = Path(folder, "source")
            given.mkdir()
            found = self.source.fetch(clip, given)
            cut = Path(folder, target.name)
            trim(found.path, cut, start_s=found.start_s, seconds=self.seconds)
            info = validate(cut, seconds=self.seconds)
            content = cut.read_bytes()
            # Only what is whole and valid ever gets the name of a clip.
            cut.replace(target)
        is_short = info.video_s < self.seconds - TOLERANCE_S
        return Outcome(
            clip_id=clip.clip_id,
            status="ok",
            source=self.source_text,
            request=self.request(clip),
            seconds=0.0,
            reason=SHORT if is_short else "",
            detail=f"{info.video_s:.2f} s" if is_short else "",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )


def _put_aside(path: Path, folder: Path) -> None:
    if path.is_file():
        with writing(folder):
            folder.mkdir(exist_ok=True)
            path.replace(folder / path.name)


def _is_there(clips_dir: Path, row: Outcome) -> bool:
    if row.status != "ok":
        return False
    try:
        return (clips_dir / f"{row.clip_id}.mp4").stat().st_size == row.bytes
    except OSError:
        return False


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """Give an empty folder on the clips' file system, and leave none behind."""
    path = home / "scratch"
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    with writing(path):
        path.mkdir(exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
