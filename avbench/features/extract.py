"""From the clips of a benchmark to its features."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avbench.features import unfinished
from avbench.features.encoder import Encoder, bytes_of_clip
from avbench.features.rows import Floats, NotFinite
from avbench.features.store import HALF, FeatureStore, hash_preset, store_folder
from avbench.features.unfinished import Unfinished
from avbench.manifests.benchmark import Benchmark
from avbench.media.places import file_name, places_of
from avbench.media.storage import Folder
from avbench.resources import alone
from avbench.types import AvbenchError, Report


def extract(
    benchmark: Benchmark,
    encoder: Encoder,
    *,
    workers: int,
    report: Report,
    batch_size: int | None = None,
) -> FeatureStore:
    """Encode every clip that is there, in the manifest's order.

    What an earlier run encoded is kept, finished or killed, unless the preset differs or the clip
    is newer. A killed run that is run again ends with the bytes of one that was left alone, given
    the same clips and batch size. Clips that cannot be encoded are left out; the store's `failed`
    says why.

    Args:
        benchmark: Whose clips; of one derived from another, those of the other.
        encoder: What encodes them.
        workers: Clips decoded at the same time, in threads, while others are encoded.
        report: Called as clips are done.
        batch_size: Clips encoded at a time; None for the encoder's own.

    Raises:
        AvbenchError: If there is no clip, none can be encoded, or the disk refuses.
    """
    benchmark = benchmark.base
    clips = _clips(benchmark)
    folder = store_folder(benchmark, encoder.name)
    preset = encoder.describe() | {"clip_seconds": float(benchmark.spec.clip_seconds)}
    with alone(folder.parent, f"extracting features of {benchmark.name}"), ExitStack() as stack:
        previous = _previous(folder, preset)
        kept = _Kept()
        if previous:
            kept.add_store(previous, folder, clips)
            same = previous.fingerprint == benchmark.manifest.fingerprint
            if same and kept.is_all_of(previous, clips):
                unfinished.clear(folder)
                return previous
        shape = encoder.dim, encoder.frames * encoder.cells
        left = unfinished.find(folder, preset, *shape, report)
        for each in left:
            stack.callback(each.close)
        if left and _goes_on(left[-1], clips):
            target = left.pop()
        else:
            target = unfinished.begin(folder, preset, *shape)
            stack.callback(target.close)
        for each in left:
            kept.add_unfinished(each, clips)
        size = batch_size or encoder.batch_size
        _fill(target, encoder, clips, kept, size=size, workers=workers, report=report)
        if all(entry.failed for entry in target.entries):
            first = target.entries[0]
            raise AvbenchError(
                f"none of {len(clips)} clips can be encoded; {first.clip_id}: {first.failed}"
            )
        target.finish(
            folder,
            preset=preset,
            fingerprint=benchmark.manifest.fingerprint,
            dim=encoder.dim,
            frames=encoder.frames,
            cells=encoder.cells,
        )
        unfinished.clear(folder)
    return FeatureStore.open(folder)


def bytes_to_come(benchmark: Benchmark, preset: str, coming: int) -> int | None:
    """Return what `extract` will add to the disk; None where nobody knows before weights are there.

    A store that stands is replaced by a new one, and kept until that is whole.

    Args:
        benchmark: As for `extract`.
        preset: Of the features.
        coming: How many clips will be there beside those that are.

    Raises:
        UsageError: If there is no such preset.
        AvbenchError: If the preset cannot be imported.
    """
    benchmark = benchmark.base
    folder = store_folder(benchmark, preset)
    there = places_of(benchmark).clips.files()
    ids = {clip_id for clip_id in benchmark.manifest.clip_ids if file_name(clip_id) in there}
    with suppress(AvbenchError):
        store = FeatureStore.open(folder)
        if not coming and ids <= {*store.clip_ids, *store.failed}:
            return 0
    each = bytes_of_clip(preset)
    if each is None:
        return None
    return max(0, (len(ids) + coming) * each - unfinished.size(folder))


@dataclass(frozen=True)
class _Clip:
    """The file of a clip, as it was when the run began."""

    clip_id: str
    folder: Folder
    mtime_ns: int


@dataclass(frozen=True)
class _Kept:
    """What earlier runs found out about clips whose files are the same: features, or failures."""

    features: dict[str, Callable[[], tuple[Floats, Floats]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add_store(self, store: FeatureStore, folder: Path, clips: Sequence[_Clip]) -> None:
        """Add what a finished store in a folder holds of clips no newer than it."""
        written = (folder / "store.json").stat().st_mtime_ns
        old = [clip.clip_id for clip in clips if clip.mtime_ns <= written]
        for clip_id, row in zip(old, store.rows_of(old).tolist(), strict=True):
            if row >= 0:
                self.features[clip_id] = _reader(store, row)
            elif clip_id in store.failed:
                self.failed[clip_id] = store.failed[clip_id]

    def add_unfinished(self, left: Unfinished, clips: Sequence[_Clip]) -> None:
        """Add what a killed run found out about clips of the same time."""
        times = {clip.clip_id: clip.mtime_ns for clip in clips}
        for entry in left.entries:
            if times.get(entry.clip_id) != entry.mtime_ns:
                continue
            if entry.failed:
                self.failed.setdefault(entry.clip_id, entry.failed)
            else:
                row = left.rows[entry.clip_id]
                self.features.setdefault(entry.clip_id, _reader(left, row))

    def is_all_of(self, store: FeatureStore, clips: Sequence[_Clip]) -> bool:
        """Whether a store says of these clips all that there is to say, and of no others."""
        known = len(self.features) + len(self.failed) == len(clips)
        return known and list(self.features) == [*store.clip_ids] and self.failed == store.failed


def _reader(source: FeatureStore | Unfinished, row: int) -> Callable[[], tuple[Floats, Floats]]:
    return lambda: source.read(row)


def _fill(
    target: Unfinished,
    encoder: Encoder,
    clips: Sequence[_Clip],
    kept: _Kept,
    *,
    size: int,
    workers: int,
    report: Report,
) -> None:
    """Append the clips that are still missing, batch by batch."""
    done = len(target.entries)
    rest = clips[done:]
    todo = [c for c in rest if c.clip_id not in kept.features.keys() | kept.failed.keys()]
    report("features", done, len(clips))
    pool = ThreadPoolExecutor(workers)
    try:
        inputs = _ahead(pool, encoder, todo, 2 * size + workers)
        for start in range(0, len(rest), size):
            batch = rest[start : start + size]
            found: dict[str, tuple[Floats, Floats] | str] = {}
            fresh = []
            for clip in batch:
                if clip.clip_id in kept.features:
                    found[clip.clip_id] = kept.features[clip.clip_id]()
                elif clip.clip_id in kept.failed:
                    found[clip.clip_id] = kept.failed[clip.clip_id]
                else:
                    given = next(inputs)
                    if isinstance(given, AvbenchError):
                        found[clip.clip_id] = str(given)
                    else:
                        fresh.append((clip, given))
            encoded = encoder.encode([given for _, given in fresh]) if fresh else []
            for (clip, _), features in zip(fresh, encoded, strict=True):
                try:
                    found[clip.clip_id] = target.cast(clip.clip_id, *features)
                except NotFinite as error:
                    # In words common to all such clips.
                    found[clip.clip_id] = str(error).replace(f" of clip {clip.clip_id}", "")
            target.append((c.clip_id, c.mtime_ns, found[c.clip_id]) for c in batch)
            report("features", done + start + len(batch), len(clips))
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, encoder: Encoder, clips: Iterable[_Clip], ahead: int
) -> Iterator[Any]:
    """Read clips in threads, in order, never more than so many before they are asked for.

    Gives what an encoder reads, or why it cannot.
    """

    def read(clip: _Clip) -> Any:
        with clip.folder.opened(file_name(clip.clip_id)) as path:
            try:
                return encoder.read(path)
            except AvbenchError as error:
                return AvbenchError(str(error).replace(f"{path}: ", ""))

    waiting: deque[Future[Any]] = deque()
    for clip in clips:
        waiting.append(pool.submit(read, clip))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _clips(benchmark: Benchmark) -> list[_Clip]:
    """The clips that are there, in the manifest's order."""
    folder = places_of(benchmark).clips
    files = folder.files()
    there = [clip_id for clip_id in benchmark.manifest.clip_ids if file_name(clip_id) in files]
    if not there:
        raise AvbenchError(f"no clips in {folder}: run avbench prepare {benchmark.argument}")
    return [_Clip(clip_id, folder, files[file_name(clip_id)].mtime_ns) for clip_id in there]


def _previous(folder: Path, preset: dict[str, Any]) -> FeatureStore | None:
    """The store of an earlier run, if it is whole and its preset and precision the same."""
    try:
        store = FeatureStore.open(folder)
    except AvbenchError:
        return None
    same = store.preset_hash == hash_preset(preset) and store.dtype == HALF
    return store if same else None


def _goes_on(left: Unfinished, clips: Sequence[_Clip]) -> bool:
    """Whether going on with what was left gives the store of these clips."""
    known = [(entry.clip_id, entry.mtime_ns) for entry in left.entries]
    return known == [(clip.clip_id, clip.mtime_ns) for clip in clips[: len(known)]]
