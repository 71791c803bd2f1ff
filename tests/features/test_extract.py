"""Extraction: manifest order, no clip encoded twice for nothing, and nothing lost when killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
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
    """Encodes the name of a file and the company it is in, and remembers what it was asked for."""

    name, dim, frames, cells, batch_size = "names", 2, 2, 3, 4

    def __init__(self, version: int = 1, stop_after: int | None = None) -> None:
        self.version, self.stop_after = version, stop_after
        self.asked: list[str] = []
        self.batches: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}

    def read(self, path: Path) -> str:
        if not path.stat().st_size:
            raise AvbenchError(f"{path}: cannot be decoded")
        return path.stem

    def encode(self, clips: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(clips))
        self.asked += clips
        features = []
        for clip in clips:
            value = np.float32(sum(clip.encode()))
            features.append((np.full(2, value), np.full((6, 2), -value) + len(clips) / 8))
        return features


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


def run(benchmark: Benchmark, encoder: NameEncoder, **options: Any) -> FeatureStore:
    return extract(benchmark, encoder, **{"workers": 2, "report": silent} | options)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_every_clip_that_is_there_in_manifest_order(benchmark: Benchmark) -> None:
    seen: list[tuple[str, int, int]] = []
    encoder = NameEncoder()
    store = run(benchmark, encoder, report=lambda *progress: seen.append(progress))
    assert store.clip_ids == tuple(i for i in benchmark.manifest.clip_ids if i != "c1-002")
    assert tuple(encoder.asked) == store.clip_ids
    assert encoder.batches == [4, 4, 3]
    assert store.fingerprint == benchmark.manifest.fingerprint
    values = [sum(i.encode()) for i in store.clip_ids]
    np.testing.assert_array_equal(store.audio(np.arange(11))[:, 0], values)
    np.testing.assert_array_equal(
        store.visual(np.arange(11))[:, 5, 1], (0.5 - np.array(values)).astype(np.float16)
    )
    assert seen == [("features", n, 11) for n in (0, 4, 8, 11)]
    assert FeatureStore.of(benchmark, "names").clip_ids == store.clip_ids


def test_the_batch_size_can_be_chosen(benchmark: Benchmark) -> None:
    encoder = NameEncoder()
    run(benchmark, encoder, batch_size=6)
    assert encoder.batches == [6, 5]


def test_a_second_run_encodes_nothing(benchmark: Benchmark) -> None:
    first = run(benchmark, NameEncoder())
    written = (Path(first.place) / "store.json").stat().st_ino
    again = NameEncoder()
    assert run(benchmark, again).clip_ids == first.clip_ids
    assert not again.asked
    assert (Path(first.place) / "store.json").stat().st_ino == written


def test_only_new_and_newer_clips_are_encoded(benchmark: Benchmark) -> None:
    before = run(benchmark, NameEncoder())
    clips = benchmark.home / "clips"
    (clips / "c1-002.mp4").write_text("here now")
    os.utime(clips / "c0-000.mp4", (4e9, 4e9))
    again = NameEncoder()
    after = run(benchmark, again)
    assert sorted(again.asked) == ["c0-000", "c1-002"]
    assert len(after) == 12
    others = [clip_id for clip_id in before.clip_ids if clip_id != "c0-000"]
    np.testing.assert_array_equal(
        after.visual(after.rows_of(others)), before.visual(before.rows_of(others))
    )


def test_a_damaged_clip_that_is_touched_is_encoded_again(benchmark: Benchmark) -> None:
    before = run(benchmark, NameEncoder())
    path = Path(before.place) / "visual.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (damaged,) = before.damaged()
    (benchmark.home / "clips" / f"{damaged}.mp4").touch()
    again = NameEncoder()
    after = run(benchmark, again)
    assert again.asked == [damaged]
    assert after.damaged() == []


def test_a_clip_replaced_while_others_are_encoded_is_newer(benchmark: Benchmark) -> None:
    path = benchmark.home / "clips" / "c0-000.mp4"

    class Meddler(NameEncoder):
        def encode(self, clips: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
            os.utime(path, (1.1e9, 1.1e9))
            return super().encode(clips)

    run(benchmark, Meddler())
    again = NameEncoder()
    run(benchmark, again)
    assert again.asked == ["c0-000"]


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
    (Path(store.place) / "visual.npy").write_bytes(b"")
    again = NameEncoder()
    assert len(run(benchmark, again)) == len(again.asked) == 11


def test_clips_that_cannot_be_encoded_are_recorded_and_left_out(benchmark: Benchmark) -> None:
    clips = benchmark.home / "clips"
    for name in ("c1-001", "c0-003"):
        (clips / f"{name}.mp4").write_text("")
        os.utime(clips / f"{name}.mp4", (1e9, 1e9))
    store = run(benchmark, NameEncoder())
    assert len(store) == 9
    assert store.failed == {"c0-003": "cannot be decoded", "c1-001": "cannot be decoded"}
    assert FeatureStore.open(Path(store.place)).failed == store.failed
    assert (store.rows_of(["c1-001", "c0-003"]) == -1).all()
    before = contents(Path(store.place))

    again = NameEncoder()
    assert run(benchmark, again).failed == store.failed
    assert not again.asked
    assert contents(Path(store.place)) == before

    (clips / "c1-001.mp4").write_text("mended")
    mended = run(benchmark, again)
    assert again.asked == ["c1-001"]
    assert mended.failed == {"c0-003": "cannot be decoded"}
    assert len(mended) == 10


def test_features_that_are_not_finite_count_as_failed(benchmark: Benchmark) -> None:
    class Overflowing(NameEncoder):
        def encode(self, clips: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
            return [
                (a * (1e9 if c == "c0-001" else 1), v)
                for c, (a, v) in zip(clips, super().encode(clips), strict=True)
            ]

    store = run(benchmark, Overflowing())
    assert len(store) == 10
    assert list(store.failed) == ["c0-001"]
    assert "not finite" in store.failed["c0-001"]


def test_if_no_clip_can_be_encoded_that_is_an_error(benchmark: Benchmark) -> None:
    for path in (benchmark.home / "clips").iterdir():
        path.write_text("")
    with pytest.raises(AvbenchError, match="none of 11 clips can be encoded; c0-000: cannot be"):
        run(benchmark, NameEncoder())
    assert not (benchmark.home / "features" / "names").exists()


def test_a_run_that_stops_goes_on_where_it_was(benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, NameEncoder(stop_after=2))
    rest = NameEncoder()
    store = run(benchmark, rest)
    assert rest.batches == [3]
    resumed = contents(Path(store.place))
    assert {path.name for path in Path(store.place).parent.iterdir()} == {".lock", "names"}
    Path(store.place).rename(tmp_path / "resumed")
    assert contents(Path(run(benchmark, NameEncoder()).place)) == resumed


def test_what_was_done_is_kept_when_clips_come_and_go(benchmark: Benchmark) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, NameEncoder(stop_after=2))
    clips = benchmark.home / "clips"
    (clips / "c0-001.mp4").unlink()
    (clips / "c1-002.mp4").write_text("here now")
    with pytest.raises(KeyboardInterrupt):  # and again, while going on
        run(benchmark, NameEncoder(stop_after=1))
    (clips / "c0-004.mp4").unlink()
    rest = NameEncoder()
    store = run(benchmark, rest)
    assert store.clip_ids == tuple(
        i for i in benchmark.manifest.clip_ids if i not in ("c0-001", "c0-004")
    )
    values = [sum(i.encode()) for i in store.clip_ids]
    np.testing.assert_array_equal(store.audio(np.arange(10))[:, 0], values)
    assert len(rest.asked) <= 4
    assert {path.name for path in Path(store.place).parent.iterdir()} == {".lock", "names"}


def test_a_clip_replaced_after_a_run_that_stopped_is_encoded_again(benchmark: Benchmark) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, NameEncoder(stop_after=2))
    os.utime(benchmark.home / "clips" / "c0-001.mp4", (2e9, 2e9))
    rest = NameEncoder()
    run(benchmark, rest)
    assert "c0-001" in rest.asked
    assert len(rest.asked) == 4


@pytest.mark.parametrize("cut", [1, 40, 10**6])
def test_what_was_half_written_does_not_count(benchmark: Benchmark, cut: int) -> None:
    whole = contents(Path(run(benchmark, NameEncoder()).place))
    folder = benchmark.home / "features"
    (folder / "names").rename(benchmark.home / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, NameEncoder(stop_after=2))
    (visual,) = folder.glob(".unfinished-names-*/visual.npy")
    (journal,) = folder.glob(".unfinished-names-*.jsonl")
    if cut == 10**6:
        content = bytearray(visual.read_bytes())
        content[-3] ^= 1  # a bit that turned
        visual.write_bytes(content)
    else:
        journal.write_bytes(journal.read_bytes()[:-cut])
    rest = NameEncoder()
    store = run(benchmark, rest)
    assert rest.batches == [4, 3]
    assert contents(Path(store.place)) == whole


def test_features_of_another_preset_are_not_gone_on_with(benchmark: Benchmark) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, NameEncoder(stop_after=2))
    other = NameEncoder(version=2)
    run(benchmark, other)
    assert len(other.asked) == 11


@pytest.mark.slow
def test_clips_are_read_ahead_but_not_all_of_them(benchmark: Benchmark) -> None:
    """While a batch is encoded the next are read; memory stays bounded."""
    read: list[str] = []
    ahead: list[int] = []
    encoding = threading.Event()

    class Slow(NameEncoder):
        batch_size = 1

        def read(self, path: Path) -> str:
            read.append(path.stem)
            return path.stem

        def encode(self, clips: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
            encoding.wait(0.2)
            ahead.append(len(read) - len(self.asked) - 1)
            return super().encode(clips)

    run(benchmark, Slow(), workers=1)
    assert max(ahead) == 3  # twice the batch, and one for the worker
    assert ahead[0] > 0


def test_no_clips_say_how_to_get_them(tiny: Callable[..., Benchmark]) -> None:
    with pytest.raises(AvbenchError, match="avbench prepare"):
        run(tiny(), NameEncoder())


def test_features_in_the_wrong_folder_are_told(benchmark: Benchmark) -> None:
    store = run(benchmark, NameEncoder())
    Path(store.place).rename(Path(store.place).with_name("filterbank"))
    with pytest.raises(AvbenchError, match="holds features of preset names, not filterbank"):
        FeatureStore.of(benchmark, "filterbank")


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


KILLED = """
import sys, time
from avbench.features.encoders.filterbank import FilterbankEncoder
from avbench.features.extract import extract
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, silent

class Slow(FilterbankEncoder):
    batch_size = 3
    def encode(self, clips):
        print("encoding", len(clips), flush=True)
        time.sleep(float(sys.argv[2]))
        return super().encode(clips)

try:
    extract(Benchmark.load(sys.argv[1]), Slow(), workers=2, report=silent)
except AvbenchError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def films(
    tiny: Callable[..., Benchmark], write_clip: Callable, plain: Callable, tone: Callable
) -> Benchmark:
    """Twenty clips, one of which is none."""
    benchmark = tiny(classes=2, classes_per_step=1, per_class=10)
    clips = benchmark.home / "clips"
    clips.mkdir(parents=True)
    for number, clip_id in enumerate(benchmark.manifest.clip_ids):
        path = clips / f"{clip_id}.mp4"
        write_clip(plain((200, 10 * number, 20)), tone(300 + 40 * number, 1.0), path=path)
    (clips / "c0-004.mp4").write_bytes(b"not a clip")
    return benchmark


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(
    films: Benchmark, tmp_path: Path
) -> None:
    benchmark, features = films, films.home / "features"
    toml = str(benchmark.spec.path)
    command = [sys.executable, "-c", KILLED, toml]

    undisturbed = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    batches = undisturbed.stdout.count("encoding")
    whole = contents(features / "filterbank")
    assert "failed.json" in whole
    (features / "filterbank").rename(tmp_path / "whole")

    started, kills = 0, 0
    for delay in (0.05, 0.02, 0.1, 0.3):
        with subprocess.Popen([*command, "0.2"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            started += 1 + process.stdout.read().count("encoding")
            kills += process.wait() == -signal.SIGKILL
    rest = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    started += rest.stdout.count("encoding")
    assert kills == 4
    # Only the batch at work when it was killed is encoded again.
    assert started <= batches + kills
    assert contents(features / "filterbank") == whole
    assert {path.name for path in features.iterdir()} == {".lock", "filterbank"}
    failed = json.loads((features / "filterbank" / "failed.json").read_text())
    assert failed.keys() == {"c0-004"}


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(films: Benchmark, tmp_path: Path) -> None:
    features, toml = films.home / "features", str(films.spec.path)
    command = [sys.executable, "-c", KILLED, toml, "0"]
    # Of 19 clips of 51 kB each, about half fit into a file; a block has 1,024 bytes.
    limited = ["bash", "-c", 'ulimit -f 500; exec "$@"', "-", *command]
    full = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert full.stderr.strip().count("\n") == 0
    assert "the disk or your quota is full" in full.stderr
    done = full.stdout.count("encoding")
    assert 1 < done < 7
    rest = subprocess.run(command, capture_output=True, text=True, check=True)
    assert rest.stdout.count("encoding") == 7 - done + 1
    resumed = contents(features / "filterbank")
    (features / "filterbank").rename(tmp_path / "resumed")
    subprocess.run(command, capture_output=True, check=True)
    assert contents(features / "filterbank") == resumed
