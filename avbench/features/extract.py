"""From the clips of a benchmark to its features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from avbench.features.encoder import Encoder, Floats
from avbench.features.store import FeatureStore, Rows, create, hash_preset, store_folder
from avbench.manifests.benchmark import Benchmark
from avbench.resources import alone
from avbench.types import AvbenchError, Report


def extract(
    benchmark: Benchmark, encoder: Encoder, *, workers: int, report: Report
) -> FeatureStore:
    """Encode every clip that is there, in the manifest's order.

    What an earlier run encoded is kept, unless the preset differs or the clip is newer.

    Args:
        benchmark: Whose clips; of one derived from another, those of the other.
        encoder: What encodes them.
        workers: Clips encoded at the same time, in threads.
        report: Called as clips are done.

    Raises:
        AvbenchError: If there is no clip, one cannot be encoded, or the disk refuses.
    """
    benchmark = benchmark.base
    paths = _clips(benchmark)
    folder = store_folder(benchmark, encoder.name)
    with alone(folder.parent, f"extracting features of {benchmark.name}"):
        return _extract(benchmark, encoder, folder, paths, workers, report)


def _extract(
    benchmark: Benchmark,
    encoder: Encoder,
    folder: Path,
    paths: dict[str, Path],
    workers: int,
    report: Report,
) -> FeatureStore:
    fingerprint = benchmark.manifest.fingerprint
    preset = encoder.describe() | {"clip_seconds": float(benchmark.spec.clip_seconds)}
    previous = _previous(folder, preset)
    rows = _rows_to_keep(previous, paths)
    complete = previous and np.array_equal(rows, np.arange(len(previous)))
    if previous and complete and previous.fingerprint == fingerprint:
        return previous

    run = Parallel(n_jobs=workers, backend="threading", return_as="generator")
    work = _Work(encoder, previous)
    with create(
        folder,
        preset=preset,
        fingerprint=fingerprint,
        clip_ids=list(paths),
        dim=encoder.dim,
        frames=encoder.frames,
        cells=encoder.cells,
    ) as writer:
        results = run(delayed(work)(*each) for each in zip(paths.values(), rows, strict=True))
        for row, (audio, visual) in enumerate(results):
            writer.write(row, audio, visual)
            report("features", row + 1, len(paths))
    return FeatureStore.open(folder)


@dataclass(frozen=True)
class _Work:
    """Gives the features of one clip, old or new, in a worker."""

    encoder: Encoder
    previous: FeatureStore | None

    def __call__(self, path: Path, row: int) -> tuple[Floats, Floats]:
        if self.previous is None or row < 0:
            return self.encoder.encode(path)
        one = np.array([row])
        audio, visual = self.previous.audio(one)[0], self.previous.visual(one)[0]
        return audio.astype(np.float32), visual.astype(np.float32)


def _clips(benchmark: Benchmark) -> dict[str, Path]:
    """The clips that are there, by id, in the manifest's order."""
    folder = benchmark.home / "clips"
    there = {path.name for path in folder.glob("*.mp4")}
    clip_ids = [i for i in benchmark.manifest.clip_ids if f"{i}.mp4" in there]
    if not clip_ids:
        raise AvbenchError(f"no clips in {folder}: run avbench prepare {benchmark.argument}")
    return {clip_id: folder / f"{clip_id}.mp4" for clip_id in clip_ids}


def _previous(folder: Path, preset: dict[str, Any]) -> FeatureStore | None:
    """The store of an earlier run, if it is whole and its preset the same."""
    try:
        store = FeatureStore.open(folder)
    except AvbenchError:
        return None
    return store if store.preset_hash == hash_preset(preset) else None


def _rows_to_keep(previous: FeatureStore | None, paths: dict[str, Path]) -> Rows:
    """Row of every clip in the earlier store; -1 if it is not there or older than the clip."""
    if previous is None:
        return np.full(len(paths), -1)
    written = (previous.folder / "store.json").stat().st_mtime_ns
    newer = [path.stat().st_mtime_ns > written for path in paths.values()]
    return np.where(newer, -1, previous.rows_of(list(paths)))
