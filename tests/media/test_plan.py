"""What a plan says of downloads, sizes and the disk."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from avbench.cli.prepare import prepare
from avbench.features.encoder import bytes_of_clip
from avbench.features.encoders.filterbank import FilterbankEncoder
from avbench.features.extract import bytes_to_come, extract
from avbench.manifests.benchmark import Benchmark
from avbench.media.ledger import Ledger, Outcome
from avbench.media.places import request
from avbench.media.plan import Choice, Downloads, plan_clips
from avbench.media.prepare import prepare_clips
from avbench.resources import lacking_bytes
from avbench.types import silent

MIRROR = "url:https://mirror/{youtube_id}.mp4"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def pairs(tmp_path: Path) -> Benchmark:
    """Give 60 clips of 2 s, two of a video, but for the last two, whose videos nobody knows."""
    lines = ["clip_id,youtube_id,start_s,label,split"]
    lines += [f"{n:02d},video-{n // 2:05d},{2 * (n % 2)},c{n % 2},train" for n in range(58)]
    lines += ["58,,,c0,train", "59,,,c1,train"]
    (tmp_path / "b.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 2.0\n'
        'annotations = "b.csv"\nsources = ["youtube"]\n'
    )
    return Benchmark.load(str(tmp_path / "b.toml"))


def tried(benchmark: Benchmark, source: str, videos: Sequence[int], every_s: float) -> None:
    """Write what a run leaves that gave a video every so many seconds; every tenth was gone."""
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        ledger.begin(60, "")
        run = ledger._run
        for clip in benchmark.manifest:
            if clip.youtube_id and (n := int(clip.youtube_id[-5:])) in videos:
                gone = ("permanent", "private") if n % 10 == 9 else ("", "")
                status: Any = "failed" if gone[0] else "ok"
                asked = request(clip, benchmark.spec)
                ledger.record(Outcome(clip.clip_id, status, source, asked, 99, *gone, bytes=1000))
    with sqlite3.connect(benchmark.home / "ledger.sqlite") as database:
        for n in videos:
            at = f"2026-01-01T00:00:{every_s * (n - videos[0]):06.3f}+00:00"
            database.execute(
                "UPDATE clips SET updated = ? WHERE run = ? AND request LIKE ?",
                (at, run, f"video-{n:05d} %"),
            )


def test_a_video_of_two_clips_is_downloaded_once(pairs: Benchmark) -> None:
    plan = plan_clips(pairs)
    assert plan.todo == {"youtube": 60}
    assert plan.downloads == {"youtube": Downloads(31, 12.0, 0)}
    assert plan.hours(workers=1) == pytest.approx(31 * 12 / 3600)
    # Many workers download no faster; one that cuts slowly may take longer than the downloads.
    assert plan.hours(workers=64) == plan.hours(workers=1)
    assert plan_clips(pairs, choice=Choice(step=0)).downloads["youtube"].videos == 30


def test_a_source_of_unknown_pace(pairs: Benchmark) -> None:
    plan = plan_clips(pairs, sources=[MIRROR])
    assert plan.downloads == {MIRROR: Downloads(31, None, 0)}
    assert plan.hours(workers=2) == pytest.approx(60 * 2 * 0.25 / 2 / 3600)
    assert plan_clips(pairs, sources=["render"]).downloads == {}


def test_the_pace_is_measured_by_the_clock(pairs: Benchmark) -> None:
    pairs.home.mkdir(parents=True)
    tried(pairs, "youtube", range(10), 3.0)
    assert plan_clips(pairs).downloads["youtube"] == Downloads(30, 12.0, 0), "too few to tell"
    tried(pairs, "youtube", range(10, 26), 3.0)
    # Two runs gave 24 videos, the first of each with no known beginning, and refused two for good.
    (pace,) = plan_clips(pairs).downloads.values()
    assert (pace.videos, pace.measured_on) == (29, 22)
    assert pace.seconds_each == pytest.approx((27 + 45) / 22, rel=1e-3)
    assert plan_clips(pairs, sources=[MIRROR]).downloads[MIRROR].seconds_each is None
    # Waiting for a download is no work.
    assert plan_clips(pairs).seconds_measured_on == 0
    assert plan_clips(pairs).bytes_measured_on == 48


def test_the_stages_of_a_plan(pairs: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    chain = [f"folder:{tmp_path / 'videos'}", "youtube"]
    assert plan_clips(pairs, sources=chain[1:], stage="trim").left_out == 60
    assert plan_clips(pairs, sources=chain, stage="trim").todo == {chain[0]: 60}
    acquired = plan_clips(pairs, sources=chain[1:], stage="acquire")
    assert (acquired.todo, acquired.bytes) == ({"youtube": 60}, 0)
    features = plan_clips(pairs, stage="features")
    assert (features.todo, features.left_out, features.refused) == ({}, 60, 0)


def test_the_size_of_features_is_known_before_their_weights() -> None:
    assert bytes_of_clip("filterbank") == 2 * 201 * 128
    assert bytes_of_clip("avcil") == bytes_of_clip("audiomae-16k") == 2 * 1569 * 768
    assert bytes_of_clip("released") is None


def test_the_size_of_features_is_what_they_take(few: Callable[..., Benchmark]) -> None:
    benchmark = few(["a", "b", "c"], sources=("render",))
    assert bytes_to_come(benchmark, "filterbank", 3) == 3 * 2 * 201 * 128
    prepare_clips(benchmark, workers=1, report=silent)
    assert bytes_to_come(benchmark, "filterbank", 0) == 3 * 2 * 201 * 128
    extract(benchmark, FilterbankEncoder(), workers=1, report=silent)
    arrays = [benchmark.home / "features" / "filterbank" / f"{n}.npy" for n in ("audio", "visual")]
    heads = 2 * 128
    assert sum(path.stat().st_size for path in arrays) == 3 * 2 * 201 * 128 + heads
    assert bytes_to_come(benchmark, "filterbank", 0) == 0
    # A new store is written beside the old.
    assert bytes_to_come(benchmark, "filterbank", 1) == 4 * 2 * 201 * 128


def test_folders_on_one_disk_share_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    a, b = tmp_path / "a" / "b", tmp_path / "c"
    assert lacking_bytes([(a, 60), (b, 40)]) == 0
    assert lacking_bytes([(a, 60), (b, 60)]) == 20
    assert lacking_bytes([(a, 60), (Path("/proc/x"), 60)]) == 0
    assert lacking_bytes([(a, 110), (Path("/proc/x"), 120)]) == 30


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 100_000_000_000))
    command = ["vs100-ci", "--dry-run", "--preset"]
    assert "warning" not in CliRunner().invoke(prepare, [*command, "filterbank"]).output
    text = CliRunner().invoke(prepare, [*command, "avcil"]).output
    assert "49,068 videos to download in 163.6 hours (by rule of thumb)" in text
    assert "147.5 GB of avcil features" in text
    assert "warning: 139.3 GB more disk is needed" in text
    told = json.loads(CliRunner().invoke(prepare, [*command, "avcil", "--json"]).stdout)
    assert told["lacking_bytes"] == told["bytes"] + told["features_bytes"] - 100_000_000_000
