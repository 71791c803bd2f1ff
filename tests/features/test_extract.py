"""Extraction: manifest order, and no clip encoded twice for nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avbench.features.encoders.filterbank import FilterbankEncoder
from avbench.features.extract import extract
from avbench.features.store import FeatureStore
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, silent


class NameEncoder:
    """Encodes the name of a file, and remembers which it was asked for."""

    name, dim, frames, cells = "names", 2, 2, 3

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.asked: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}

    def encode(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        if not path.stat().st_size:
            raise AvbenchError(f"{path}: cannot be decoded")
        self.asked.append(path.stem)
        value = np.float32(sum(path.stem.encode()))
        return np.full(2, value), np.full((6, 2), -value)


@pytest.fixture
def benchmark(tiny: Callable[..., Benchmark]) -> Benchmark:
    """Twelve clips, of which the files of all but one are there."""
    made = tiny(classes=2, classes_per_step=1, per_class=6)
    clips = made.home / "clips"
    clips.mkdir(parents=True)
    for clip_id in made.manifest.clip_ids:
        (clips / f"{clip_id}.mp4").write_text("clip")
        os.utime(clips / f"{clip_id}.mp4", (1e9, 1e9))
    (clips / "c1-002.mp4").unlink()
    (clips / "stranger.mp4").write_text("not in the manifest")
    return made


def run(benchmark: Benchmark, encoder: NameEncoder) -> FeatureStore:
    return extract(benchmark, encoder, workers=2, report=silent)


def test_every_clip_that_is_there_in_manifest_order(benchmark: Benchmark) -> None:
    seen: list[tuple[str, int, int]] = []
    store = extract(
        benchmark, NameEncoder(), workers=2, report=lambda *progress: seen.append(progress)
    )
    assert store.clip_ids == tuple(i for i in benchmark.manifest.clip_ids if i != "c1-002")
    assert store.fingerprint == benchmark.manifest.fingerprint
    values = [sum(i.encode()) for i in store.clip_ids]
    np.testing.assert_array_equal(store.audio(np.arange(11))[:, 0], values)
    np.testing.assert_array_equal(store.visual(np.arange(11))[:, 5, 1], np.negative(values))
    assert seen == [("features", n, 11) for n in range(1, 12)]
    assert FeatureStore.of(benchmark, "names").clip_ids == store.clip_ids


def test_a_second_run_encodes_nothing(benchmark: Benchmark) -> None:
    first = run(benchmark, NameEncoder())
    written = (first.folder / "store.json").stat().st_ino
    again = NameEncoder()
    assert run(benchmark, again).clip_ids == first.clip_ids
    assert not again.asked
    assert (first.folder / "store.json").stat().st_ino == written


def test_only_new_and_newer_clips_are_encoded(benchmark: Benchmark) -> None:
    before = run(benchmark, NameEncoder())
    clips = benchmark.home / "clips"
    (clips / "c1-002.mp4").write_text("here now")
    os.utime(clips / "c0-000.mp4", (4e9, 4e9))
    again = NameEncoder()
    after = run(benchmark, again)
    assert sorted(again.asked) == ["c0-000", "c1-002"]
    assert len(after) == 12
    np.testing.assert_array_equal(
        after.visual(after.rows_of(before.clip_ids)), before.visual(np.arange(11))
    )


def test_another_preset_of_the_same_name_encodes_all(benchmark: Benchmark) -> None:
    run(benchmark, NameEncoder())
    again = NameEncoder(version=2)
    assert run(benchmark, again).preset["version"] == 2
    assert len(again.asked) == 11


def test_another_manifest_gives_another_store(
    benchmark: Benchmark, tiny: Callable[..., Benchmark]
) -> None:
    old = run(benchmark, NameEncoder())
    smaller = tiny(classes=2, classes_per_step=1, per_class=5)
    new = run(smaller, NameEncoder())
    assert new.fingerprint == smaller.manifest.fingerprint != old.fingerprint
    assert len(new) == 9


def test_a_damaged_store_is_made_again(benchmark: Benchmark) -> None:
    store = run(benchmark, NameEncoder())
    (store.folder / "visual.npy").write_bytes(b"")
    again = NameEncoder()
    assert len(run(benchmark, again)) == len(again.asked) == 11


def test_a_clip_that_cannot_be_encoded_is_named_and_leaves_nothing(benchmark: Benchmark) -> None:
    (benchmark.home / "clips" / "c1-001.mp4").write_text("")
    with pytest.raises(AvbenchError, match=r"c1-001\.mp4"):
        run(benchmark, NameEncoder())
    assert {path.name for path in (benchmark.home / "features").iterdir()} == {".lock"}


def test_no_clips_say_how_to_get_them(tiny: Callable[..., Benchmark]) -> None:
    with pytest.raises(AvbenchError, match="avbench prepare"):
        run(tiny(), NameEncoder())


def test_real_clips_through_the_filterbank(
    tiny: Callable[..., Benchmark], write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    benchmark = tiny(classes=2, classes_per_step=1, per_class=5)
    clips = benchmark.home / "clips"
    clips.mkdir(parents=True)
    for clip_id in benchmark.manifest.clip_ids[:3]:
        write_clip(plain((200, 20, 20)), tone(440, 1.0), path=clips / f"{clip_id}.mp4")
    store = extract(benchmark, FilterbankEncoder(), workers=2, report=silent)
    assert store.visual(np.arange(3)).shape == (3, 200, 128)
    np.testing.assert_array_equal(store.audio(np.array([0])), store.audio(np.array([2])))
