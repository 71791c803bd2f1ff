"""What there is to do: which clips are wanted, which are there, where the others come from."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip, Manifest
from avbench.media.ledger import Ledger
from avbench.media.originals import KEPT, Originals
from avbench.media.places import file_name, places_of, request, requests_of
from avbench.media.sources.base import (
    Network,
    Source,
    goes_by_label,
    is_remote,
    open_source,
    pace_of,
)
from avbench.types import AvbenchError, Split, UsageError

_BYTES_PER_S, _WORK_PER_S = 150_000, 0.25
"""Of a clip per second of it, where none has been made yet: rules of thumb."""

_ENOUGH = 20
"""Videos from which on a source's pace is taken from what it gave so far."""

Stage = Literal["acquire", "trim", "validate", "features"]


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


ALL = Choice()


class Work:
    """The clips that are wanted, as the ledger and the disk have them.

    Args:
        benchmark: The benchmark, not derived from another.
        wanted: Ids of clips of it.
        ledger: Its ledger.
        acquiring: Whether it is the originals that are wanted.

    Attributes:
        manifest: The benchmark's manifest.
        spec: Its specification.
        wanted: As given.
        todo: Row in the manifest of every clip still to be made, by id.
        outdated: Clips that were made for another time or length than the table has now.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        wanted: Sequence[str],
        ledger: Ledger,
        *,
        acquiring: bool = False,
    ) -> None:
        self.manifest, self.spec, self.wanted = benchmark.manifest, benchmark.spec, wanted
        self._places = places_of(benchmark)
        row_of = {clip_id: row for row, clip_id in enumerate(self.manifest.clip_ids)}
        self.todo = {clip_id: row_of[clip_id] for clip_id in wanted}
        self.outdated: list[str] = []
        known, there = ledger.standing(), self._places.clips.files()
        kept = Originals(self._places, self.spec) if acquiring else None
        for clip in self.clips(list(self.todo.values())):
            status, asked, size = known.get(clip.clip_id, ("", "", 0))
            found = there.get(file_name(clip.clip_id))
            is_there = status == "ok" and found is not None and found.size == size
            if asked and asked not in requests_of(clip, self.spec):
                self.outdated.append(clip.clip_id)
                is_there = False
            if kept.has(clip) if kept else is_there:
                del self.todo[clip.clip_id]

    def put_outdated_aside(self) -> None:
        """Move the outdated clips away."""
        for clip_id in self.outdated:
            self._places.clips.move(file_name(clip_id), self._places.replaced)

    def clips(self, rows: Sequence[int]) -> Iterator[Clip]:
        """Give clips of the manifest, few of them in memory at a time."""
        for at in range(0, len(rows), 1024):
            for row in self.manifest.table.take(rows[at : at + 1024]).to_pylist():
                yield Clip(**row)


@dataclass(frozen=True)
class Downloads:
    """Videos to download from one source.

    Attributes:
        videos: How many; one with several clips counts once.
        seconds_each: Of a video, by the clock; None where nobody knows.
        measured_on: From how many videos that is known; 0 for a rule of thumb.
    """

    videos: int
    seconds_each: float | None
    measured_on: int


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Attributes:
        clips: How many clips were chosen.
        already: How many of them are there.
        todo: How many are to be made, by the source to be asked first.
        refused: How many no source has, for good.
        downloads: What of that is to be downloaded, by source.
        bytes_each: Size of a clip; 0 if only originals are got, whose size nobody knows before.
        bytes_measured_on: From how many clips it is known; 0 for a rule of thumb.
        seconds_each: Work on a clip that is there to be cut, in core-seconds.
        seconds_measured_on: From how many clips it is known; 0 for a rule of thumb.
        free_bytes: Space left where clips go; None where nobody tells.
    """

    clips: int
    already: int
    todo: dict[str, int]
    refused: int
    downloads: dict[str, Downloads]
    bytes_each: float
    bytes_measured_on: int
    seconds_each: float
    seconds_measured_on: int
    free_bytes: int | None

    @property
    def coming(self) -> int:
        """How many clips are to be made."""
        return sum(self.todo.values())

    @property
    def left_out(self) -> int:
        """How many are neither there nor to be made, though no source has refused them for good."""
        return self.clips - self.already - self.coming - self.refused

    @property
    def bytes(self) -> int:
        """Size of the clips to be made."""
        return round(self.coming * self.bytes_each)

    def hours(self, workers: int) -> float:
        """Return how long all takes by the clock; downloads at an unknown pace count nothing.

        Clips are cut while others are downloaded, so that the slower of both counts.
        """
        seconds = 0.0
        for source, count in self.todo.items():
            work = count * self.seconds_each / workers
            found = self.downloads.get(source)
            download = found.videos * (found.seconds_each or 0.0) if found else 0.0
            seconds += max(work, download)
        return seconds / 3600


def plan_clips(
    benchmark: Benchmark,
    *,
    sources: Sequence[str] = (),
    choice: Choice = ALL,
    stage: Stage | None = None,
) -> Plan:
    """Say what `prepare_clips` would do, without doing any of it.

    Args:
        benchmark: As for `prepare_clips`.
        sources: Likewise.
        choice: Likewise.
        stage: Likewise; nothing is to be made in "validate" and "features".

    Raises:
        UsageError: If there is no such source.
        AvbenchError: If the benchmark has no source.
    """
    wanted = choice.of(benchmark)
    benchmark = benchmark.base
    places = places_of(benchmark)
    kept = Originals(places, benchmark.spec)
    making, acquiring = stage in (None, "acquire", "trim"), stage == "acquire"
    chain = chain_of(benchmark, sources) if making else []
    opened = {text: open_source(text, benchmark.spec, Network()) for text in chain}
    if stage == "trim":
        opened = {text: source for text, source in opened.items() if not is_remote(source)}

    def ask(clip: Clip, text: str) -> str:
        return request(clip, benchmark.spec, by_label=goes_by_label(opened[text]))

    with Ledger.reading(benchmark.home / "ledger.sqlite") as ledger:
        work = Work(benchmark, wanted, ledger, acquiring=acquiring)
        first = {text: array("q") for text in [KEPT, *opened]}
        gone = {text: ledger.refused(text) for text in opened}
        refused = 0
        rows = list(work.todo.values())
        for row, clip in zip(rows, work.clips(rows), strict=True):
            asked = next((t for t in opened if (clip.clip_id, ask(clip, t)) not in gone[t]), None)
            if making and not acquiring and kept.has(clip):
                asked = KEPT
            if asked is not None:
                first[asked].append(row)
            elif opened:
                refused += 1
        downloads = {
            text: _downloads(source, text, first[text], benchmark.manifest, ledger)
            for text, source in opened.items()
            if is_remote(source)
        }
        made = ledger.made()
    count, size = sum(row[0] for row in made.values()), sum(row[1] for row in made.values())
    # The time of clips that were downloaded is mostly waiting.
    cut = [row for text, row in made.items() if text in first and text not in downloads]
    timed, seconds = sum(row[0] for row in cut), sum(row[2] for row in cut)
    length = 0.0 if acquiring else benchmark.spec.clip_seconds
    return Plan(
        clips=len(wanted),
        already=len(wanted) - len(work.todo),
        todo={text: len(rows) for text, rows in first.items() if rows or text != KEPT},
        refused=refused,
        downloads=downloads,
        bytes_each=size / count if count and length else _BYTES_PER_S * length,
        bytes_measured_on=count,
        seconds_each=seconds / timed if timed and length else _WORK_PER_S * length,
        seconds_measured_on=timed,
        free_bytes=places.clips.free_bytes(),
    )


def _downloads(
    source: Source, text: str, rows: array[int], manifest: Manifest, ledger: Ledger
) -> Downloads:
    videos = _videos(manifest.table["youtube_id"].take(pa.array(rows, pa.int64())))
    ids, runs, seconds = ledger.given_by(text)
    given = pc.is_in(manifest.table["clip_id"], value_set=pa.array(ids, pa.string()))
    # Of each run's first video it is not known how long it took.
    timed = _videos(manifest.table["youtube_id"].filter(given)) - runs
    if timed >= _ENOUGH:
        return Downloads(videos, seconds / timed, timed)
    pace = pace_of(source)
    return Downloads(videos, 3600 / pace if pace else None, 0)


def _videos(ids: pa.ChunkedArray) -> int:
    """Count videos; a clip without an id has one of its own."""
    distinct: int = pc.count_distinct(ids).as_py()
    return distinct + int(ids.null_count)


def chain_of(benchmark: Benchmark, sources: Sequence[str]) -> list[str]:
    """Return the sources to ask, in order: those given, or the benchmark's own.

    Raises:
        AvbenchError: If there is none.
    """
    chain = list(sources or benchmark.spec.sources)
    if not chain:
        remedy = "pass --source folder:DIR with a folder of the videos"
        raise AvbenchError(f"{benchmark.name}: no automatic source: {remedy}")
    return chain
