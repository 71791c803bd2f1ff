"""What there is to do: which clips are wanted, which are there, where the others come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.ledger import Ledger
from avbench.media.originals import KEPT, Originals
from avbench.media.places import file_name, places_of, request, requests_of
from avbench.media.sources.base import Network, goes_by_label, open_source
from avbench.types import AvbenchError, Split, UsageError

_BYTES_PER_S, _WORK_PER_S = 150_000, 0.25
"""Of a clip per second of it, where none has been made yet: rules of thumb."""


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
        free_bytes: Space left where clips go; None where nobody tells.
    """

    clips: int
    already: int
    todo: dict[str, int]
    refused: int
    bytes_each: float
    seconds_each: float
    measured_on: int
    free_bytes: int | None


def plan_clips(benchmark: Benchmark, *, sources: Sequence[str] = (), choice: Choice = ALL) -> Plan:
    """Say what `prepare_clips` would do, without doing any of it.

    Raises:
        UsageError: If there is no such source.
        AvbenchError: If the benchmark has no source.
    """
    wanted = choice.of(benchmark)
    benchmark = benchmark.base
    chain = chain_of(benchmark, sources)
    opened = {text: open_source(text, benchmark.spec, Network()) for text in chain}
    places = places_of(benchmark)
    kept = Originals(places, benchmark.spec)

    def ask(clip: Clip, text: str) -> str:
        return request(clip, benchmark.spec, by_label=goes_by_label(opened[text]))

    with Ledger.reading(benchmark.home / "ledger.sqlite") as ledger:
        work = Work(benchmark, wanted, ledger)
        first = dict.fromkeys([KEPT, *chain], 0)
        refused = 0
        gone = {text: ledger.refused(text) for text in chain}
        for clip in work.clips(list(work.todo.values())):
            asked = next((t for t in opened if (clip.clip_id, ask(clip, t)) not in gone[t]), None)
            asked = KEPT if kept.has(clip) else asked
            if asked is None:
                refused += 1
            else:
                first[asked] += 1
        made, total_bytes, total_s = ledger.made()
    seconds = benchmark.spec.clip_seconds
    return Plan(
        clips=len(wanted),
        already=len(wanted) - len(work.todo),
        todo={text: count for text, count in first.items() if count or text != KEPT},
        refused=refused,
        bytes_each=total_bytes / made if made else _BYTES_PER_S * seconds,
        seconds_each=total_s / made if made else _WORK_PER_S * seconds,
        measured_on=made,
        free_bytes=places.clips.free_bytes(),
    )


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
