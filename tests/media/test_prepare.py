"""Preparing resumes wherever it was stopped, and never leaves half a clip."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avbench import resources
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media import make
from avbench.media.check import check_clips
from avbench.media.ledger import SHORT, Ledger, Outcome
from avbench.media.plan import plan_clips
from avbench.media.prepare import prepare_clips
from avbench.media.sources.base import ClipUnavailable, SourceFile
from avbench.media.status import status_of
from avbench.types import AvbenchError, silent
from tests.helpers.processes import wait_for

Few = Callable[..., Benchmark]
Video = Callable[..., Path]

ALONE = """
import sys
from avbench.manifests.benchmark import Benchmark
from avbench.media.prepare import prepare_clips
prepare_clips(Benchmark.load(sys.argv[1]), workers=2, report=lambda *a: None)
"""


def ledger_of(benchmark: Benchmark) -> dict[str, Outcome]:
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        return ledger.all()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_second_run_fetches_nothing(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = few(["-a", "b_c", "d"], sources=("render",))
    seen: list[tuple[str, int, int]] = []
    first = prepare_clips(benchmark, workers=2, report=lambda *a: seen.append(a))
    assert (first.ok, first.already, first.failed) == (3, 0, {})
    assert names(resources.home() / "few" / "clips") == {"-a.mp4", "b_c.mp4", "d.mp4"}
    assert [done for _, done, total in seen if total == 3] == [0, 1, 2, 3]
    rows = ledger_of(benchmark)
    assert all(len(row.sha256) == 64 and row.attempts == 1 for row in rows.values())

    monkeypatch.setattr(make, "trim", lambda *_, **__: pytest.fail("it was cut again"))
    second = prepare_clips(benchmark, workers=2, report=silent)
    assert (second.ok, second.already) == (0, 3)
    assert ledger_of(benchmark) == rows


def test_a_clip_that_was_lost_or_damaged_is_made_again(few: Few) -> None:
    benchmark = few(["a", "b", "c"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    clips = benchmark.home / "clips"
    good = (clips / "a.mp4").read_bytes()
    (clips / "a.mp4").write_bytes(good[:99])
    (clips / "b.mp4").unlink()
    again = prepare_clips(benchmark, workers=1, report=silent)
    assert (again.ok, again.already) == (2, 1)
    assert (clips / "a.mp4").read_bytes() == good
    assert ledger_of(benchmark)["a"].attempts == 2


def test_a_clip_of_another_time_is_another_clip(tmp_path: Path, few: Few, video: Video) -> None:
    video(tmp_path / "videos" / "a.mp4", seconds=6, mark_s=0.5)
    source = f"folder:{tmp_path / 'videos'}"

    def digest(benchmark: Benchmark) -> str:
        done = prepare_clips(benchmark, sources=[source], workers=1, report=silent)
        assert (done.already, done.failed) == (0, {"not in the folder": ["b"]})
        return hashlib.sha256((benchmark.home / "clips" / "a.mp4").read_bytes()).hexdigest()

    # The same id, another length; then another time. What was there is put aside.
    digests = {digest(few(["a", "b"], seconds=s)) for s in (1.0, 2.0)}
    table = tmp_path / "benchmark" / "few.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},start_s", f"{lines[1]},1.5", f"{lines[2]},"]))
    digests.add(digest(Benchmark.load(str(tmp_path / "benchmark" / "few.toml"))))
    assert len(digests) == 3
    assert names(resources.home() / "few" / "replaced") == {"a.mp4"}


def relabelled(benchmark: Benchmark, old: str, new: str) -> Benchmark:
    table = benchmark.spec.path.with_name("few.csv")
    table.write_text(table.read_text().replace(old, new))
    return Benchmark.load(str(benchmark.spec.path))


@pytest.mark.parametrize("stage", [None, "acquire"])
def test_another_label_is_another_clip_where_it_is_rendered(few: Few, stage: Any) -> None:
    benchmark = few(["a", "b", "c", "d"], sources=("render",))
    if stage:
        prepare_clips(benchmark, workers=1, report=silent, stage=stage)
    prepare_clips(benchmark, workers=1, report=silent)
    before = {p.name: p.read_bytes() for p in (benchmark.home / "clips").iterdir()}
    benchmark = relabelled(benchmark, "ring bell", "ring thud")
    assert status_of(benchmark).waiting == 2
    assert plan_clips(benchmark).todo == {"render": 2}
    assert check_clips(benchmark, workers=1, report=silent) == (["a", "c"], [])
    done = prepare_clips(benchmark, workers=1, report=silent)
    assert (done.ok, done.already, done.failed) == (2, 2, {})
    after = {p.name: p.read_bytes() for p in (benchmark.home / "clips").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"b.mp4", "d.mp4"}
    assert prepare_clips(benchmark, workers=1, report=silent).already == 4


def test_another_label_is_the_same_clip_where_it_is_found(
    tmp_path: Path, few: Few, video: Video
) -> None:
    for name in "ab":
        video(tmp_path / "videos" / f"{name}.mp4", seconds=1)
    options: dict[str, Any] = {"workers": 1, "report": silent, "keep_originals": True}
    benchmark, source = few(["a", "b"]), f"folder:{tmp_path / 'videos'}"
    prepare_clips(benchmark, sources=[source], **options)
    benchmark = relabelled(benchmark, "ring bell", "ring thud")
    assert prepare_clips(benchmark, sources=[source], **options).already == 2


def test_a_label_that_was_refused_is_asked_for_again_when_it_is_another(few: Few) -> None:
    benchmark = relabelled(few(["a", "b"], sources=("render",)), "ring bell", "no such")
    for _ in range(2):
        done = prepare_clips(benchmark, workers=1, report=silent)
        assert done.failed == {"cannot be rendered": ["b"]}
        assert plan_clips(benchmark).refused == 1
    benchmark = relabelled(benchmark, "no such", "ring bell")
    assert plan_clips(benchmark).refused == 0
    assert prepare_clips(benchmark, workers=1, report=silent).failed == {}


def test_a_clip_that_left_the_table_is_not_deleted(few: Few) -> None:
    prepare_clips(few(["a", "b"], sources=("render",)), workers=1, report=silent)
    benchmark = few(["c", "d"], sources=("render",))
    done = prepare_clips(benchmark, workers=1, report=silent)
    assert (done.ok, done.already) == (2, 0)
    assert names(benchmark.home / "clips") == {"a.mp4", "b.mp4", "c.mp4", "d.mp4"}


def test_every_failure_has_a_reason_and_stops_no_other(
    tmp_path: Path, few: Few, video: Video
) -> None:
    folder = tmp_path / "my videos 🥁"
    folder.mkdir()
    video(folder / "good.mp4", seconds=3)
    video(folder / "short.mp4", seconds=1)
    video(folder / "mute.mp4", seconds=2, sound=None)
    video(folder / "hushed.mp4", seconds=3, sound_until_s=1)
    (folder / "broken.mp4").write_bytes(b"no video")
    half = video(folder / "half.mkv", seconds=3, size=(320, 240))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    clips = ["good", "short", "hushed", "mute", "broken", "half", "missing", "none"]
    benchmark = few(clips, seconds=2.0)
    done = prepare_clips(benchmark, sources=[f"folder:{folder}"], workers=2, report=silent)
    assert done.ok == 3
    assert done.failed == {
        "not in the folder": ["missing", "none"],
        "no audio stream": ["mute"],
        "undecodable": ["broken"],
        "shorter than the video's header says": ["half"],
    }
    assert names(benchmark.home / "clips") == {"good.mp4", "short.mp4", "hushed.mp4"}
    rows = ledger_of(benchmark)
    assert (rows["short"].status, rows["short"].reason) == ("ok", SHORT)
    assert (rows["hushed"].status, rows["hushed"].reason) == ("ok", SHORT)

    video(folder / "missing.mp4", seconds=2)
    again = prepare_clips(benchmark, sources=[f"folder:{folder}"], workers=2, report=silent)
    assert (again.ok, again.already) == (1, 3)


class GoneSource:
    """Says of every clip that it is gone, and counts how often it was asked."""

    asked = 0

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        GoneSource.asked += 1
        raise ClipUnavailable("private", permanent=True)


def test_what_is_gone_for_good_is_not_asked_for_again(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "open_source", lambda *_: GoneSource())
    benchmark = few(["a", "b"])
    for source, asked in (("x", 2), ("x", 2), ("y", 4)):
        done = prepare_clips(benchmark, sources=[source], workers=1, report=silent)
        assert done.failed == {"private": ["a", "b"]}
        assert (done.ok, GoneSource.asked) == (0, asked)


def test_what_was_refused_before_counts_as_dealt_with(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "open_source", lambda *_: GoneSource())
    monkeypatch.setattr(GoneSource, "asked", 0)
    benchmark = few(["a", "b"])
    prepare_clips(benchmark, sources=["x"], workers=1, report=silent)
    seen: list[tuple[str, int, int]] = []
    prepare_clips(benchmark, sources=["x"], workers=1, report=lambda *a: seen.append(a))
    assert seen[-1][1:] == (2, 2)


@pytest.mark.slow
def test_a_killed_run_is_resumed(few: Few) -> None:
    ids = [f"clip-{n:02d}" for n in range(12)]
    benchmark = few(ids, sources=("render",))
    command = [sys.executable, "-c", ALONE, str(benchmark.spec.path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}) as running:
        clips = benchmark.home / "clips"
        wait_for(lambda: clips.is_dir() and len(names(clips)) >= 3, process=running)
        running.send_signal(signal.SIGKILL)
    killed_at = len(names(clips))
    assert 3 <= killed_at < 12
    resumed = prepare_clips(benchmark, workers=2, report=silent)
    assert resumed.ok + resumed.already == 12
    assert resumed.already >= 1
    assert names(clips) == {f"{i}.mp4" for i in ids}
    assert names(benchmark.home) == {"clips", "ledger.sqlite", ".lock"}


def test_a_second_run_at_once_is_refused(few: Few) -> None:
    benchmark = few(["a", "b"], sources=("render",))
    benchmark.home.mkdir(parents=True)
    with (benchmark.home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AvbenchError, match="another run is preparing few"):
            prepare_clips(benchmark, workers=1, report=silent)
    assert prepare_clips(benchmark, workers=1, report=silent).ok == 2


def test_a_home_that_cannot_be_written(
    tmp_path: Path, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "file"))
    benchmark = few(["a", "b"], sources=("render",))
    with pytest.raises(AvbenchError, match=r"cannot write .*file.*choose another place"):
        prepare_clips(benchmark, workers=1, report=silent)


def test_a_full_disk_ends_the_run_in_one_line(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make, "trim", full)
    benchmark = few(["a", "b", "c"], sources=("render",))
    with pytest.raises(AvbenchError, match=r"disk.* full"):
        prepare_clips(benchmark, workers=2, report=silent)
    assert names(benchmark.home / "clips") == set()
    assert "scratch" not in names(benchmark.home)


def test_without_a_source(few: Few) -> None:
    with pytest.raises(AvbenchError, match="few: no automatic source: pass --source folder:"):
        prepare_clips(few(["a", "b"]), workers=1, report=silent)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_is_one_line_and_leaves_no_scratch(
    few: Few, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    class Full:
        def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
            path = scratch / "half.mp4"
            path.write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("avbench.media.make.open_source", lambda *_: Full())
    benchmark = few(["a", "b", "c", "d"], sources=("full",))
    with pytest.raises(AvbenchError, match=r"the disk or your quota is full"):
        prepare_clips(benchmark, workers=workers, report=silent)
    assert names(benchmark.home) == {"clips", "ledger.sqlite", ".lock"}
    assert names(benchmark.home / "clips") == set()
