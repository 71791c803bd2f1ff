"""From a manifest to valid clips on disk, resumable at any moment."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media import ffmpeg
from avbench.media.backend import Backend, each, pool
from avbench.media.ledger import Ledger, Outcome
from avbench.media.make import Maker, Piece
from avbench.media.originals import KEPT, NOT_ACQUIRED, Originals
from avbench.media.places import (
    Places,
    file_name,
    places_of,
    sha256,
)
from avbench.media.plan import ALL, Choice, Stage, Work, chain_of
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    Source,
    SourceFile,
    StreamingSource,
    is_remote,
)
from avbench.media.storage import Folder
from avbench.resources import alone, writing
from avbench.types import AvbenchError, Report, UsageError

_NOT_IN = "not in the "

_DEFAULTS = Network()
_SLOT = "youtube"
"""The resource of a Dask worker that a download takes."""

_GIVE_UP_AFTER = 20
"""Downloads that fail in a row, each after its retries, before the network is blamed."""


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
    benchmark: Benchmark,
    *,
    sources: Sequence[str] = (),
    workers: int,
    report: Report,
    choice: Choice = ALL,
    network: Network = _DEFAULTS,
    backend: Backend = "threading",
    scheduler: str | None = None,
    stage: Stage | None = None,
    keep_originals: bool = False,
    retry_refused: bool = False,
) -> Prepared:
    """Fetch, cut and check every clip of a benchmark that is not there yet.

    A clip that fails is recorded in the ledger and does not stop the others; the next run tries it
    again, unless its source said for good that it is gone.

    Args:
        benchmark: The benchmark; of one derived from another, the clips of the other are made.
        sources: Where clips come from, `NAME` or `NAME:ARGUMENT`; the first that has a clip gives
            it. Empty for the benchmark's own. Originals that were kept are used before any.
        workers: How many clips are made at a time.
        report: Called as clips are done.
        choice: Which clips.
        network: How to download.
        backend: Where the work runs.
        scheduler: Address of a Dask scheduler.
        stage: "acquire" to fetch originals and cut them another time, "trim" to cut without
            downloading; None for both.
        keep_originals: Keep what was fetched, for cutting it again.
        retry_refused: Ask again for what sources said is gone for good.

    Raises:
        UsageError: If there is no such source or backend.
        AvbenchError: If the benchmark has no source, another run is at work on it, its folder
            cannot be written to, or the network seems to be gone.
    """
    wanted = choice.of(benchmark)
    benchmark = benchmark.base
    chain, tools = chain_of(benchmark, sources), _tools()
    places = places_of(benchmark)
    local = places.clips.local
    if places.clips.is_private and backend != "threading":
        raise UsageError(f"{places.base}: lives in one process: use --backend threading")
    with (
        alone(benchmark.home, f"preparing {benchmark.name}"),
        _scratch(local.parent if local else benchmark.home) as scratch,
        _cleared(places.journal),
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
        pool(backend, workers=workers, scheduler=scheduler),
    ):
        maker = Maker(
            spec=benchmark.spec,
            network=network,
            places=places,
            run=scratch.name,
            scratch=scratch if local else None,
            acquire_only=stage == "acquire",
            keep_originals=keep_originals or stage == "acquire",
        )
        # A wrong source should be told before anything is done.
        makers = [replace(maker, source_text=text) for text in chain]
        remote = [is_remote(each_maker.source) for each_maker in makers]
        if stage == "trim":
            makers = [m for m, is_remote in zip(makers, remote, strict=True) if not is_remote]
        if local:
            with writing(local):
                local.mkdir(exist_ok=True)
        _recover(places, ledger)
        if retry_refused:
            ledger.forget_refusals(wanted, chain)
        work = Work(benchmark, wanted, ledger, acquiring=stage == "acquire")
        work.put_outdated_aside()
        ledger.begin(len(work.todo), tools)
        desk = _Desk(work, ledger, report, scratch)
        if stage != "acquire" and not Originals(places, benchmark.spec).is_empty:
            makers.insert(0, replace(maker, source_text=KEPT))
        for number, each_maker in enumerate(makers, start=1):
            desk.run(each_maker, last=number == len(makers))
    return desk.result()


class _Desk:
    """The driver's side: hands out work, takes what comes of it, writes the ledger."""

    def __init__(self, work: Work, ledger: Ledger, report: Report, scratch: Path) -> None:
        self._work = work
        self._ledger = ledger
        self._report = report
        self._scratch = scratch
        self._already = len(work.wanted) - len(work.todo)
        self._failed: dict[str, str] = {}
        self._settled = 0
        self._in_a_row = 0
        self._fatal: Exception | None = None
        self._broken = ""

    def run(self, maker: Maker, *, last: bool) -> None:
        """Have made what is still to be made, as far as a source has it.

        Args:
            maker: Of that source.
            last: Whether no other source is asked afterwards.
        """
        source = maker.source
        asked = self._asked(source, maker)
        self._settled = len(self._work.todo) - len(asked)
        self._tell(last)
        if not asked:
            return
        seen: set[str] = set()
        for outcomes in each(
            maker, self._pieces(source, maker, asked), takes=_SLOT if is_remote(source) else ""
        ):
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    self._stop(maker, outcome)
                else:
                    seen.add(outcome.clip_id)
                    self._take(outcome, maker)
            self._tell(last)
        if self._fatal:
            raise self._fatal
        if isinstance(source, StreamingSource):
            for clip in self._work.clips(asked):
                if clip.clip_id not in seen:
                    self._take(self._not_streamed(clip, source, maker), maker)
            self._tell(last)

    def _asked(self, source: Source, maker: Maker) -> list[int]:
        """Return the rows of the clips to ask a source for, and note which it refused before."""
        refused = self._ledger.refused(maker.source_text)
        asked = []
        for clip in self._work.clips(list(self._work.todo.values())):
            reason = refused.get((clip.clip_id, maker.asked(clip)))
            if reason is not None:
                self._failed[clip.clip_id] = reason
            elif not isinstance(source, Originals) or source.has(clip):
                asked.append(self._work.todo[clip.clip_id])
        return asked

    def result(self) -> Prepared:
        """Say what came of it all."""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for clip_id in self._work.wanted:
            if clip_id in self._work.todo:
                by_reason[self._failed.get(clip_id, NOT_ACQUIRED)].append(clip_id)
        return Prepared(
            ok=len(self._work.wanted) - self._already - len(self._work.todo),
            already=self._already,
            failed=dict(sorted(by_reason.items(), key=lambda item: -len(item[1]))),
        )

    def _pieces(self, source: Source, maker: Maker, asked: list[int]) -> Iterator[Piece]:
        """Cut the work into pieces; drawn by threads of joblib, which would lose an error."""
        try:
            if isinstance(source, StreamingSource):
                wanted = list(self._work.clips(asked))
                for clip, file in source.stream(wanted, self._scratch):
                    yield self._handed(clip, file, maker)
            else:
                # Clips of one video go together, so that it is fetched once.
                videos = self._work.manifest.table["youtube_id"].take(asked).to_pylist()
                groups: dict[str | int, list[int]] = defaultdict(list)
                for row, video in zip(asked, videos, strict=True):
                    groups[row if video is None else video].append(row)
                for rows in groups.values():
                    yield Piece(tuple(self._work.clips(rows)))
        except AvbenchError as error:
            self._broken = str(error)  # what could be read of an archive has been given
        except OSError as error:
            self._stop(maker, error)

    def _handed(self, clip: Clip, file: SourceFile, maker: Maker) -> Piece:
        """Make a piece of a file that is on this machine."""
        if maker.scratch:
            return Piece((clip,), file)
        name = f"{clip.clip_id}{file.path.suffix}"
        maker.places.journal.put(file.path, name)
        file.path.unlink(missing_ok=True)
        return Piece((clip,), file, handed=name)

    def _not_streamed(self, clip: Clip, source: Source, maker: Maker) -> Outcome:
        """Say why a source that was gone through did not give a clip."""
        try:
            source.fetch(clip, self._scratch)
        except ClipUnavailable as error:
            return maker.failed(clip, "transient", error.reason, self._broken or error.detail)
        return maker.failed(clip, "transient", "the archive is damaged", self._broken)

    def _take(self, outcome: Outcome, maker: Maker) -> None:
        clip_id = outcome.clip_id
        if outcome.status == "failed":
            self._settled += 1
            said = self._failed.get(clip_id, _NOT_IN)
            if outcome.reason.startswith(_NOT_IN) and not said.startswith(_NOT_IN):
                return  # what an earlier source said tells more
            self._failed[clip_id] = outcome.reason
        else:
            self._work.todo.pop(clip_id, None)
            self._failed.pop(clip_id, None)
        try:
            self._ledger.record(outcome)
        except AvbenchError as error:
            self._stop(maker, error)
            return
        if outcome.status == "ok":
            maker.places.journal.remove(f"{clip_id}.json")
        blocked = outcome.failure == "transient" and is_remote(maker.source)
        self._in_a_row = self._in_a_row + 1 if blocked else 0
        if self._in_a_row == _GIVE_UP_AFTER:
            self._stop(
                maker,
                AvbenchError(
                    f"{_GIVE_UP_AFTER} downloads in a row failed, the last with"
                    f" {outcome.reason!r} ({outcome.detail}): check the network, wait, or see"
                    " --sleep, --cookies and --proxy; the same command goes on from here"
                ),
            )

    def _stop(self, maker: Maker, error: Exception) -> None:
        """Let no further clip be begun, and remember why."""
        self._fatal = self._fatal or error
        with suppress(OSError, AvbenchError):  # a full disk has no place: then every clip finds out
            maker.stop()

    def _tell(self, last: bool) -> None:
        settled = self._settled if last else 0
        done = len(self._work.wanted) - len(self._work.todo) + settled
        self._report("preparing clips", done, len(self._work.wanted))


def _recover(places: Places, ledger: Ledger) -> None:
    """Take clips into the ledger that a killed run had finished, and clear what it left."""
    notes = places.journal.files()
    known = ledger.all() if notes else {}
    for name in sorted(name for name in notes if name.endswith(".json")):
        # Killed while it was written, or nothing of ours.
        with suppress(OSError, ValueError, TypeError, RecursionError):
            with places.journal.opened(name) as note:
                outcome = Outcome(**json.loads(note.read_text(encoding="utf-8")))
            recorded = known.get(outcome.clip_id)
            is_new = recorded is None or recorded.sha256 != outcome.sha256
            if is_new:
                with places.clips.opened(file_name(outcome.clip_id)) as clip:
                    if sha256(clip) == outcome.sha256:
                        ledger.record(outcome)
        places.journal.remove(name)
    for folder in (places.clips, places.whole_originals, places.cut_originals, places.journal):
        folder.sweep()


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """Give an empty folder, and leave none behind."""
    for left in root.glob("scratch*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with writing(root / "scratch"):
        root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix="scratch-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _cleared(journal: Folder) -> Iterator[None]:
    """Leave no journal behind, unless there is something in it for the next run."""
    try:
        yield
    finally:
        for name in journal.files():
            if not name.endswith(".json"):
                journal.remove(name)
        journal.remove_if_empty()


def _tools() -> str:
    used = {"ffmpeg": ffmpeg.version(), "PyAV": version("av"), "yt-dlp": version("yt-dlp")}
    return ", ".join(f"{name} {number}" for name, number in used.items())
