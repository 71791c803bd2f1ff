"""From a manifest to valid clips on disk, resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Literal

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media import ffmpeg
from avbench.media.backend import Backend, each, pool
from avbench.media.ledger import SHORT, STILL, Failure, Ledger, Outcome
from avbench.media.probe import TOLERANCE_S, InvalidClip, opened, validate
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    Source,
    SourceFile,
    StreamingSource,
    open_source,
)
from avbench.media.trim import trim
from avbench.resources import alone, writing
from avbench.types import AvbenchError, Report, Split, UsageError, silent

Stage = Literal["acquire", "trim", "validate", "features"]

_KEPT = "kept"
"""What the ledger calls the source of a clip that was cut from a kept original."""

_NOT_ACQUIRED = "no original yet"
_NOT_IN = "not in the "

_BYTES_PER_S, _WORK_PER_S = 150_000, 0.25
"""Of a clip per second of it, where none has been made yet: rules of thumb."""

_OPENED: dict[tuple[str, str], Source] = {}
_OPENING = Lock()
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_GIVE_UP_AFTER = 20
"""Downloads that fail in a row, each after its retries, before the network is blamed."""


@dataclass(frozen=True)
class Choice:
    """Which clips of a benchmark to work on.

    Attributes:
        split: Only this split.
        step: Only this step, from 0.
        limit: At most so many clips, the first in the manifest's order.
    """

    split: Split | None = None
    step: int | None = None
    limit: int | None = None

    def of(self, benchmark: Benchmark) -> list[str]:
        """Return the ids of the clips, in the manifest's order.

        Raises:
            UsageError: If the benchmark has no such step.
        """
        if self.step is not None and self.step >= benchmark.spec.steps:
            raise UsageError(f"{benchmark.name} has {benchmark.spec.steps} steps only")
        table = benchmark.manifest.table.select(["clip_id", "split", "step"]).to_pydict()
        rows = zip(table["clip_id"], table["split"], table["step"], strict=True)
        chosen = (
            clip_id
            for clip_id, split, step in rows
            if self.split in (None, split) and self.step in (None, step)
        )
        return list(islice(chosen, self.limit))


_ALL = Choice()
_DEFAULTS = Network()


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


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Attributes:
        clips: How many clips were chosen.
        already: How many of them are there.
        todo: How many are to be made, by the source to be asked first.
        refused: How many no source has, for good.
        bytes_each: Size of a clip.
        seconds_each: Work on a clip, in core-seconds.
        measured_on: From how many clips these two are known; 0 for a rule of thumb.
        free_bytes: Space left where clips go.
    """

    clips: int
    already: int
    todo: dict[str, int]
    refused: int
    bytes_each: float
    seconds_each: float
    measured_on: int
    free_bytes: int


def prepare_clips(
    benchmark: Benchmark,
    *,
    sources: Sequence[str] = (),
    workers: int,
    report: Report,
    choice: Choice = _ALL,
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
    chain, tools = _chain(benchmark, sources), _tools()
    with (
        alone(benchmark.home, f"preparing {benchmark.name}"),
        _scratch(benchmark.home) as scratch,
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
        pool(backend, workers=workers, scheduler=scheduler),
    ):
        maker = _Maker(
            spec=benchmark.spec,
            network=network,
            home=benchmark.home,
            scratch=scratch,
            acquire_only=stage == "acquire",
            keep_originals=keep_originals or stage == "acquire",
        )
        # A wrong source should be told before anything is done.
        makers = [replace(maker, source_text=text) for text in chain]
        remote = [_is_remote(each_maker.source) for each_maker in makers]
        if stage == "trim":
            makers = [m for m, is_remote in zip(makers, remote, strict=True) if not is_remote]
        with writing(clips_dir(benchmark)):
            clips_dir(benchmark).mkdir(exist_ok=True)
        _recover(benchmark, ledger)
        if retry_refused:
            ledger.forget_refusals(wanted, chain)
        desk = _Desk(benchmark, wanted, ledger, report, acquiring=stage == "acquire")
        _put_aside(desk.outdated, benchmark)
        ledger.begin(len(desk.todo), tools)
        if (benchmark.home / "originals").is_dir() and stage != "acquire":
            makers.insert(0, replace(maker, source_text=_KEPT))
        for number, each_maker in enumerate(makers, start=1):
            desk.run(each_maker, last=number == len(makers))
    return desk.result()


def plan_clips(benchmark: Benchmark, *, sources: Sequence[str] = (), choice: Choice = _ALL) -> Plan:
    """Say what `prepare_clips` would do, without doing any of it.

    Raises:
        UsageError: If there is no such source.
        AvbenchError: If the benchmark has no source.
    """
    wanted = choice.of(benchmark)
    benchmark = benchmark.base
    chain = _chain(benchmark, sources)
    for text in chain:
        open_source(text, benchmark.spec, _DEFAULTS)
    kept = _Kept(benchmark.home, benchmark.spec)
    with Ledger.reading(benchmark.home / "ledger.sqlite") as ledger:
        desk = _Desk(benchmark, wanted, ledger)
        first = dict.fromkeys([_KEPT, *chain], 0)
        refused = 0
        gone = {text: ledger.refused(text) for text in chain}
        for clip in desk.clips(list(desk.todo.values())):
            key = clip.clip_id, _request(clip, benchmark.spec)
            asked = next((text for text in chain if key not in gone[text]), None)
            asked = _KEPT if kept.has(clip) else asked
            if asked is None:
                refused += 1
            else:
                first[asked] += 1
        made, total_bytes, total_s = ledger.made()
    place = next(p for p in (benchmark.home, *benchmark.home.absolute().parents) if p.is_dir())
    seconds = benchmark.spec.clip_seconds
    return Plan(
        clips=len(wanted),
        already=len(wanted) - len(desk.todo),
        todo={text: count for text, count in first.items() if count or text != _KEPT},
        refused=refused,
        bytes_each=total_bytes / made if made else _BYTES_PER_S * seconds,
        seconds_each=total_s / made if made else _WORK_PER_S * seconds,
        measured_on=made,
        free_bytes=shutil.disk_usage(place).free,
    )


def check_clips(
    benchmark: Benchmark, *, workers: int, report: Report, choice: Choice = _ALL
) -> tuple[list[str], list[str]]:
    """Decode all clips that are there again, and compare their checksums.

    A damaged clip is put aside and noted in the ledger, so that the next run makes it again. One
    cut to another time than the table has now is not looked at.

    Returns:
        The ids of the clips that are sound, and of the damaged ones.

    Raises:
        AvbenchError: If another run is at work on the benchmark, or no clip can be found.
        OSError: If a clip cannot be read.
    """
    wanted = set(choice.of(benchmark))
    benchmark = benchmark.base
    sound, damaged = [], []
    with (
        alone(benchmark.home, f"checking {benchmark.name}"),
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
        pool("threading", workers=workers),
    ):
        rows, requests = ledger.all(), requests_of(benchmark)
        there = [
            row
            for i, row in rows.items()
            if i in wanted and row.status == "ok" and row.request == requests[i]
        ]
        if there and not _sizes(clips_dir(benchmark)):
            raise AvbenchError(
                f"{clips_dir(benchmark)}: none of {len(there)} clips is there: is a disk missing?"
            )
        check = _Check(clips_dir(benchmark), benchmark.spec.clip_seconds)
        for done, (row, finding) in enumerate(each(check, there), start=1):
            if not finding:
                sound.append(row.clip_id)
            else:
                damaged.append(row.clip_id)
                _put_aside([row.clip_id], benchmark)
                failed = Outcome(row.clip_id, "failed", row.source, row.request, attempts=0)
                ledger.record(replace(failed, failure="invalid", reason="damaged", detail=finding))
            report("checking clips", done, len(there))
    return sorted(sound), sorted(damaged)


def put_outdated_aside(benchmark: Benchmark) -> None:
    """Move away clips that were cut to another time or length than the table has now.

    Raises:
        AvbenchError: If another run is at work on the benchmark.
    """
    benchmark = benchmark.base
    if not (benchmark.home / "ledger.sqlite").is_file():
        return
    with (
        alone(benchmark.home, f"preparing {benchmark.name}"),
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
    ):
        desk = _Desk(benchmark, benchmark.manifest.clip_ids, ledger)
        _put_aside(desk.outdated, benchmark)


def requests_of(benchmark: Benchmark) -> dict[str, str]:
    """Return what is asked for as each clip of a benchmark: a row that says else is outdated."""
    return {clip.clip_id: _request(clip, benchmark.spec) for clip in benchmark.manifest}


def clips_dir(benchmark: Benchmark) -> Path:
    """Return the folder of a benchmark's clips."""
    return benchmark.home / "clips"


class _Desk:
    """The driver's side: knows what is there, hands out work, writes the ledger."""

    def __init__(
        self,
        benchmark: Benchmark,
        wanted: Sequence[str],
        ledger: Ledger,
        report: Report = silent,
        *,
        acquiring: bool = False,
    ) -> None:
        self._manifest = benchmark.manifest
        self._spec = benchmark.spec
        self._ledger = ledger
        self._report = report
        self._wanted = wanted
        self._failed: dict[str, str] = {}
        self._settled = 0
        self._in_a_row = 0
        self._fatal: Exception | None = None
        self._broken = ""
        row_of = {clip_id: row for row, clip_id in enumerate(self._manifest.clip_ids)}
        # Row in the manifest of every clip still to be made.
        self.todo = {clip_id: row_of[clip_id] for clip_id in wanted}
        self.outdated: list[str] = []
        known, there = ledger.standing(), _sizes(clips_dir(benchmark))
        kept = _Kept(benchmark.home, benchmark.spec) if acquiring else None
        for clip in self.clips(list(self.todo.values())):
            status, request, size = known.get(clip.clip_id, ("", "", 0))
            is_there = status == "ok" and there.get(f"{clip.clip_id}.mp4") == size
            if request and request != _request(clip, self._spec):
                self.outdated.append(clip.clip_id)
                is_there = False
            if kept.has(clip) if kept else is_there:
                del self.todo[clip.clip_id]
        self._already = len(wanted) - len(self.todo)

    def clips(self, rows: Sequence[int]) -> Iterator[Clip]:
        """Give clips of the manifest, few of them in memory at a time."""
        for at in range(0, len(rows), 1024):
            for row in self._manifest.table.take(rows[at : at + 1024]).to_pylist():
                yield Clip(**row)

    def run(self, maker: _Maker, *, last: bool) -> None:
        """Have made what is still to be made, as far as a source has it.

        Args:
            maker: Of that source.
            last: Whether no other source is asked afterwards.
        """
        source = maker.source
        asked = self._asked(source, maker.source_text)
        self._settled = len(self.todo) - len(asked)
        self._tell(last)
        if not asked:
            return
        seen: set[str] = set()
        for outcomes in each(maker, self._pieces(source, maker, asked)):
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
            for clip in self.clips(asked):
                if clip.clip_id not in seen:
                    self._take(self._not_streamed(clip, source, maker), maker)
            self._tell(last)

    def _asked(self, source: Source, source_text: str) -> list[int]:
        """Return the rows of the clips to ask a source for, and note which it refused before."""
        refused = self._ledger.refused(source_text)
        asked = []
        for clip in self.clips(list(self.todo.values())):
            reason = refused.get((clip.clip_id, _request(clip, self._spec)))
            if reason is not None:
                self._failed[clip.clip_id] = reason
            elif not isinstance(source, _Kept) or source.has(clip):
                asked.append(self.todo[clip.clip_id])
        return asked

    def result(self) -> Prepared:
        """Say what came of it all."""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for clip_id in self._wanted:
            if clip_id in self.todo:
                by_reason[self._failed.get(clip_id, _NOT_ACQUIRED)].append(clip_id)
        return Prepared(
            ok=len(self._wanted) - self._already - len(self.todo),
            already=self._already,
            failed=dict(sorted(by_reason.items(), key=lambda item: -len(item[1]))),
        )

    def _pieces(self, source: Source, maker: _Maker, asked: list[int]) -> Iterator[_Piece]:
        """Cut the work into pieces; drawn by threads of joblib, which would lose an error."""
        try:
            if isinstance(source, StreamingSource):
                wanted = list(self.clips(asked))
                for clip, file in source.stream(wanted, maker.scratch):
                    yield _Piece((clip,), file)
            else:
                # Clips of one video go together, so that it is fetched once.
                videos = self._manifest.table["youtube_id"].take(asked).to_pylist()
                groups: dict[str | int, list[int]] = defaultdict(list)
                for row, video in zip(asked, videos, strict=True):
                    groups[row if video is None else video].append(row)
                for rows in groups.values():
                    yield _Piece(tuple(self.clips(rows)), None)
        except AvbenchError as error:
            self._broken = str(error)  # what could be read of an archive has been given
        except OSError as error:
            self._stop(maker, error)

    def _not_streamed(self, clip: Clip, source: Source, maker: _Maker) -> Outcome:
        """Say why a source that was gone through did not give a clip."""
        try:
            source.fetch(clip, maker.scratch)
        except ClipUnavailable as error:
            return maker.failed(clip, "transient", error.reason, self._broken or error.detail)
        return maker.failed(clip, "transient", "the archive is damaged", self._broken)

    def _take(self, outcome: Outcome, maker: _Maker) -> None:
        clip_id = outcome.clip_id
        if outcome.status == "failed":
            self._settled += 1
            said = self._failed.get(clip_id, _NOT_IN)
            if outcome.reason.startswith(_NOT_IN) and not said.startswith(_NOT_IN):
                return  # what an earlier source said tells more
            self._failed[clip_id] = outcome.reason
        else:
            self.todo.pop(clip_id, None)
            self._failed.pop(clip_id, None)
        try:
            self._ledger.record(outcome)
        except AvbenchError as error:
            self._stop(maker, error)
            return
        if outcome.status == "ok":
            (_journal(maker.home) / f"{clip_id}.json").unlink(missing_ok=True)
        blocked = outcome.failure == "transient" and _is_remote(maker.source)
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

    def _stop(self, maker: _Maker, error: Exception) -> None:
        """Let no further clip be begun, and remember why."""
        self._fatal = self._fatal or error
        with suppress(OSError):  # a full disk has no place for it: then every clip finds out
            maker.stop_file.touch()

    def _tell(self, last: bool) -> None:
        settled = self._settled if last else 0
        done = len(self._wanted) - len(self.todo) + settled
        self._report("preparing clips", done, len(self._wanted))


@dataclass(frozen=True)
class _Piece:
    """Work for one worker: the clips of one video, and the file if it is there already."""

    clips: tuple[Clip, ...]
    file: SourceFile | None


@dataclass(frozen=True)
class _Maker:
    """Makes clips, in a worker, which may be another process.

    What would stop every clip is returned, and no further clip is begun: raising it at once would
    leave the other workers writing while the folder is being cleaned.
    """

    spec: BenchmarkSpec
    network: Network
    home: Path
    scratch: Path
    source_text: str = ""
    acquire_only: bool = False
    keep_originals: bool = False

    @property
    def source(self) -> Source:
        """The source, opened once in every process."""
        key = (str(self.scratch), self.source_text)
        with _OPENING:
            if key not in _OPENED:
                # Those of an earlier run may not know what has come since.
                for old in [k for k in _OPENED if k[0] != key[0]]:
                    del _OPENED[old]
                _OPENED[key] = (
                    _Kept(self.home, self.spec)
                    if self.source_text == _KEPT
                    else open_source(self.source_text, self.spec, self.network)
                )
            return _OPENED[key]

    @property
    def stop_file(self) -> Path:
        """As soon as it exists, no clip is begun any more."""
        return self.scratch / "stop"

    def __call__(self, piece: _Piece) -> list[Outcome | Exception]:
        outcomes: list[Outcome | Exception] = []
        kept: dict[str, Path] = {}  # videos this piece has put among the originals
        try:
            with tempfile.TemporaryDirectory(
                dir=self.scratch, ignore_cleanup_errors=True
            ) as folder:
                for clip in piece.clips:
                    if not self.stop_file.exists():
                        outcomes.append(self._make(clip, piece.file, Path(folder), kept))
        except (AvbenchError, OSError) as error:
            # Another process may not know how to unpickle what a library raises.
            outcomes.append(error if isinstance(error, AvbenchError) else OSError(*error.args))
        finally:
            if piece.file and piece.file.path.is_relative_to(self.scratch):
                piece.file.path.unlink(missing_ok=True)
        return outcomes

    def failed(self, clip: Clip, failure: Failure, reason: str, detail: str = "") -> Outcome:
        """Return the outcome of a clip that could not be made."""
        return Outcome(
            clip.clip_id,
            "failed",
            self.source_text,
            _request(clip, self.spec),
            failure=failure,
            reason=reason,
            detail=detail,
        )

    def _make(
        self, clip: Clip, file: SourceFile | None, folder: Path, kept: dict[str, Path]
    ) -> Outcome:
        began = time.monotonic()
        given = folder / "source"
        try:
            with writing(self.home / "clips"):
                given.mkdir(exist_ok=True)
                if file is None and _video_key(clip) in kept:
                    found = SourceFile(kept[_video_key(clip)], clip.start_s)
                else:
                    found = file or self.source.fetch(clip, given)
                if self.acquire_only:
                    with opened(found.path):
                        outcome = replace(self.failed(clip, "", ""), status="acquired")
                else:
                    outcome = self._cut(clip, found, folder)
                # Only what can be used is worth keeping.
                if self.keep_originals and not isinstance(self.source, _Kept):
                    self._keep(clip, found, kept)
        except ClipUnavailable as error:
            failure: Failure = "permanent" if error.permanent else "transient"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        except InvalidClip as error:
            # A video will not have sound the next time it is downloaded.
            lasting = error.lasting and _is_remote(self.source)
            failure = "permanent" if lasting else "invalid"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        return replace(outcome, seconds=time.monotonic() - began)

    def _keep(self, clip: Clip, found: SourceFile, kept: dict[str, Path]) -> None:
        if found.path in kept.values():
            return
        movable = found.path.is_relative_to(self.scratch)
        originals = replace(self, source_text=_KEPT).source
        assert isinstance(originals, _Kept)
        there = originals.keep(clip, found, movable=movable)
        if there.path.parent.name == "videos":
            kept[_video_key(clip)] = there.path

    def _cut(self, clip: Clip, found: SourceFile, folder: Path) -> Outcome:
        name = f"{clip.clip_id}.mp4"
        trim(found.path, folder / name, start_s=found.start_s, seconds=self.spec.clip_seconds)
        info = validate(folder / name, seconds=self.spec.clip_seconds)
        size, digest = (folder / name).stat().st_size, _sha256(folder / name)
        is_short = info.video_s < self.spec.clip_seconds - TOLERANCE_S
        outcome = Outcome(
            clip_id=clip.clip_id,
            status="ok",
            source=self.source_text,
            request=_request(clip, self.spec),
            reason=SHORT if is_short else STILL if info.still else "",
            detail=f"{info.video_s:.2f} s" if is_short else "",
            bytes=size,
            sha256=digest,
        )
        # Should the driver be killed before it writes the ledger, the next one reads this.
        note = _journal(self.home) / f"{clip.clip_id}.json"
        note.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        # Only what is whole and valid ever gets the name of a clip.
        (folder / name).replace(self.home / "clips" / name)
        return outcome


class _Kept:
    """The originals that were kept: whole videos by video, all others by what was asked for.

    A file's name says where the clip starts in it, so that nothing else has to be remembered.
    """

    def __init__(self, home: Path, spec: BenchmarkSpec) -> None:
        self._spec = spec
        self._folders = {kind: home / "originals" / kind for kind in ("videos", "clips")}
        # Listed once: looking for each clip would take time in the square of their number.
        self._there: dict[tuple[str, str], SourceFile] = {}
        for path in _files(self._folders["videos"]):
            self._there["videos", path.stem] = SourceFile(path, 0.0)
        for path in _files(self._folders["clips"]):
            key, _, start = path.stem.rpartition("@")
            with suppress(ValueError):
                start_s = None if start == "cut" else float(start)
                self._there["clips", key] = SourceFile(path, start_s)

    def has(self, clip: Clip) -> bool:
        """Whether there is the original of a clip."""
        return self._find(clip) is not None

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        """Find the original of a clip."""
        found = self._find(clip)
        if found is None:
            raise ClipUnavailable(_NOT_ACQUIRED, permanent=False)
        return found

    def keep(self, clip: Clip, file: SourceFile, *, movable: bool) -> SourceFile:
        """Move a file here, or link to one that is somebody else's; say where it is now."""
        whole = clip.youtube_id is not None and file.start_s == clip.start_s is not None
        kind = "videos" if whole else "clips"
        stem = _video_key(clip) if whole else self._clip_key(clip)
        folder = self._folders[kind]
        folder.mkdir(parents=True, exist_ok=True)
        old = self._there.pop((kind, stem), None)
        if old:
            old.path.unlink(missing_ok=True)
        start = "" if whole else "@cut" if file.start_s is None else f"@{file.start_s!r}"
        target = folder / f"{stem}{start}{file.path.suffix}"
        if movable:
            file.path.replace(target)
        else:
            target.unlink(missing_ok=True)
            target.symlink_to(file.path.absolute())
        self._there[kind, stem] = replace(file, path=target)
        return self._there[kind, stem]

    def _find(self, clip: Clip) -> SourceFile | None:
        own = self._there.get(("clips", self._clip_key(clip)))
        whole = self._there.get(("videos", _video_key(clip)))
        if own or not whole or clip.start_s is None:
            return own
        return replace(whole, start_s=clip.start_s)

    def _clip_key(self, clip: Clip) -> str:
        request = hashlib.sha256(_request(clip, self._spec).encode()).hexdigest()[:16]
        return f"{clip.clip_id}@{request}"


@dataclass(frozen=True)
class _Check:
    """Looks at one clip again, in a worker; what cannot be read is not taken for damaged."""

    clips_dir: Path
    seconds: float

    def __call__(self, row: Outcome) -> tuple[Outcome, str]:
        path = self.clips_dir / f"{row.clip_id}.mp4"
        try:
            if _sha256(path) != row.sha256:
                return row, "its bytes have changed"
            validate(path, seconds=self.seconds)
        except FileNotFoundError:
            return row, "it is gone"
        except InvalidClip as error:
            return row, str(error)
        return row, ""


def _chain(benchmark: Benchmark, sources: Sequence[str]) -> list[str]:
    chain = list(sources or benchmark.spec.sources)
    if not chain:
        remedy = "pass --source folder:DIR with a folder of the videos"
        raise AvbenchError(f"{benchmark.name}: no automatic source: {remedy}")
    return chain


def _is_remote(source: Source) -> bool:
    return bool(getattr(source, "remote", False))


def _request(clip: Clip, spec: BenchmarkSpec) -> str:
    """Say what is asked for: a clip of another time or length is another clip."""
    return f"{clip.youtube_id} {clip.start_s} {clip.end_s} {float(spec.clip_seconds)}"


def _video_key(clip: Clip) -> str:
    """Return a file name for a video whose id comes from somebody's table."""
    video = clip.youtube_id or clip.clip_id
    return video if _SAFE.fullmatch(video) else hashlib.sha256(video.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder, by name; links count as what they lead to."""
    return sorted(path for path in folder.glob("*") if path.is_file())


def _sizes(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _journal(home: Path) -> Path:
    """Return the folder of what was made, but may not be in the ledger yet."""
    return home / "journal"


def _recover(benchmark: Benchmark, ledger: Ledger) -> None:
    """Take clips into the ledger that a killed run had finished."""
    with writing(_journal(benchmark.home)):
        _journal(benchmark.home).mkdir(exist_ok=True)
    known = ledger.all() if any(_files(_journal(benchmark.home))) else {}
    for note in _files(_journal(benchmark.home)):
        # Killed while it was written, or nothing of ours.
        with suppress(OSError, ValueError, TypeError, RecursionError):
            outcome = Outcome(**json.loads(note.read_text(encoding="utf-8")))
            recorded = known.get(note.stem)
            is_new = recorded is None or recorded.sha256 != outcome.sha256
            clip = clips_dir(benchmark) / f"{note.stem}.mp4"
            if is_new and outcome.clip_id == note.stem and _sha256(clip) == outcome.sha256:
                ledger.record(outcome)
        note.unlink()


def _put_aside(clip_ids: Iterable[str], benchmark: Benchmark) -> None:
    """Move clips cut to another time or length away: they may be hard to replace."""
    folder = benchmark.home / "replaced"
    for clip_id in clip_ids:
        path = clips_dir(benchmark) / f"{clip_id}.mp4"
        if path.is_file():
            with writing(folder):
                folder.mkdir(exist_ok=True)
                path.replace(folder / path.name)


def _tools() -> str:
    used = {"ffmpeg": ffmpeg.version(), "PyAV": version("av"), "yt-dlp": version("yt-dlp")}
    return ", ".join(f"{name} {number}" for name, number in used.items())


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """Give an empty folder on the clips' file system, and leave none behind."""
    for left in home.glob("scratch*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with writing(home / "scratch"):
        path = Path(tempfile.mkdtemp(prefix="scratch-", dir=home))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # not empty: the next run reads it
            _journal(home).rmdir()
