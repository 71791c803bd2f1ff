"""Runs that are killed, starved and lied to: on real processes, servers and file systems."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.media.ledger import Ledger, Outcome
from avbench.media.prepare import prepare_clips
from avbench.media.sources.base import Network
from avbench.types import AvbenchError, silent
from tests.helpers import server as serving
from tests.helpers.server import MediaServer

pytestmark = pytest.mark.slow

Video = Callable[..., Path]

ALONE = """
import sys
from avbench.manifests.benchmark import Benchmark
from avbench.media.prepare import prepare_clips
from avbench.media.sources.base import Network
prepare_clips(
    Benchmark.load(sys.argv[1]),
    sources=[sys.argv[2]],
    workers=2,
    network=Network(sleep_s=0, timeout_s=5, retries=2, downloads=2),
    report=lambda *a: None,
)
"""
NETWORK = Network(sleep_s=0, timeout_s=1, retries=1, downloads=2)


def benchmark_of(folder: Path, name: str, clips: list[tuple[str, str, float]]) -> Benchmark:
    """Make a benchmark of clips of one second, as (id, video, start)."""
    folder.mkdir(exist_ok=True)
    lines = ["clip_id,youtube_id,start_s,label,split"]
    lines += [f"{i},{v},{s},{'ab'[n % 2]},train" for n, (i, v, s) in enumerate(clips)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.toml").write_text(
        f'name = "{name}"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1.0\n'
        f'annotations = "{name}.csv"\n'
    )
    return Benchmark.load(str(folder / f"{name}.toml"))


def ledger_of(benchmark: Benchmark) -> dict[str, Outcome]:
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        return ledger.all()


def clips_of(benchmark: Benchmark) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (benchmark.home / "clips").glob("*.mp4")}


def test_twenty_kills_change_nothing(tmp_path: Path, server: MediaServer, video: Video) -> None:
    # Two windows of every video, which share one download.
    kinds = [video(tmp_path / f"{n}.mp4", seconds=3, mark_s=0.2 + n / 10) for n in range(5)]
    for n in range(50):
        server.put(f"/v{n:02d}.mp4", kinds[n % 5].read_bytes())
    clips = [(f"v{n:02d}_{s}", f"v{n:02d}", float(s)) for n in range(50) for s in (0, 1)]
    source = f"url:{server.url('/{youtube_id}.mp4')}"
    calm = benchmark_of(tmp_path / "toml", "calm", clips)
    whole = prepare_clips(calm, sources=[source], workers=2, network=NETWORK, report=silent)
    assert (whole.ok, whole.failed) == (100, {})
    assert set(server.requests.values()) == {2}, "yt-dlp asks what there is, then for it"

    server.requests.clear()
    shaken = benchmark_of(tmp_path / "toml", "shaken", clips)
    command = [sys.executable, "-c", ALONE, str(shaken.spec.path), source]
    rng, seen, kills = random.Random(0), [], 0
    while kills < 20:
        before = len(list((shaken.home / "clips").glob("*"))) if seen else 0
        with subprocess.Popen(command) as running:
            # Somewhere in the next few clips, wherever they are between the network and the disk.
            # Near the end at once, so that there is always something left to kill.
            early = before < 80
            target, limit = before + early * rng.randint(0, 3), time.monotonic() + 60
            while running.poll() is None and time.monotonic() < limit:
                if len(list((shaken.home / "clips").glob("*"))) >= target > 0:
                    break
                time.sleep(0.002)
            time.sleep(early * rng.uniform(0, 0.15))
            running.send_signal(signal.SIGKILL)
        kills += 1
        seen.append((set(clips_of(shaken)), dict(server.requests)))
    assert 10 < len(seen[-1][0]) < 100, "the kills must fall into the run"
    rest = prepare_clips(shaken, sources=[source], workers=2, network=NETWORK, report=silent)
    assert rest.ok + rest.already == 100
    assert rest.already >= len(seen[-1][0])
    assert clips_of(shaken) == clips_of(calm)
    rows = ledger_of(shaken)
    assert {i: (r.status, r.sha256) for i, r in rows.items()} == {
        i: (r.status, r.sha256) for i, r in ledger_of(calm).items()
    }
    # A video of which both clips were there was never asked for again.
    for there, requests in seen:
        for n in range(50):
            if {f"v{n:02d}_0.mp4", f"v{n:02d}_1.mp4"} <= there:
                path = f"/v{n:02d}.mp4"
                assert server.requests[path] == requests[path]
    left = {path.name for path in shaken.home.iterdir()}
    assert left == {"clips", "ledger.sqlite", ".lock"}


def test_a_server_that_misbehaves(
    tmp_path: Path, server: MediaServer, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avbench.media.sources.download._BACKOFF_S", 0.05)
    good = video(
        tmp_path / "v.mp4", seconds=2, mark_s=1.0, size=(320, 240), front=True
    ).read_bytes()
    cases = {
        "good": ((), serving.serve, "ok", ""),
        "gone": ((), serving.status(404), "failed", "not found"),
        "busy": ((serving.status(429, retry_after="1"),), serving.serve, "ok", ""),
        "refused": ((), serving.status(403), "failed", "refused by the server"),
        "reset": ((serving.reset,), serving.serve, "ok", ""),
        "cut": ((), serving.truncate(lie=False), "failed", "cut off"),
        "liar": ((), serving.truncate(0.6, lie=True), "failed", "cannot be cut"),
        "page": ((), serving.instead(b"<html>no</html>", "text/html"), "failed", None),
        "noise": ((), serving.instead(os.urandom(9999), "video/mp4"), "failed", "not a video"),
        "stall": ((), serving.stall, "failed", "timed out"),
        "drip": ((), serving.drip(0.05), "failed", "too slow"),
    }
    for name, (first, then, _, _) in cases.items():
        server.put(f"/{name}.mp4", good, *first, then=then)
    benchmark = benchmark_of(tmp_path / "toml", "wild", [(name, name, 0.5) for name in cases])
    source = f"url:{server.url('/{youtube_id}.mp4')}"
    done = prepare_clips(benchmark, sources=[source], workers=4, network=NETWORK, report=silent)
    rows = ledger_of(benchmark)
    for name, (_, _, status, reason) in cases.items():
        assert (name, rows[name].status) == (name, status)
        assert reason is None or rows[name].reason == reason, rows[name]
    assert done.ok == 3
    assert set(clips_of(benchmark)) == {"good.mp4", "busy.mp4", "reset.mp4"}
    assert rows["gone"].failure == "permanent"
    assert rows["refused"].failure == "transient"
    # What is gone for good is not asked for again, unless one insists.
    for path in cases:
        server.put(f"/{path}.mp4", good)
    asked = server.requests["/gone.mp4"]
    again = prepare_clips(benchmark, sources=[source], workers=4, network=NETWORK, report=silent)
    assert again.failed.get("not found") == ["gone"]
    assert server.requests["/gone.mp4"] == asked
    last = prepare_clips(
        benchmark,
        sources=[source],
        workers=2,
        network=NETWORK,
        report=silent,
        retry_refused=True,
    )
    assert last.failed == {}
    assert len(clips_of(benchmark)) == len(cases)


def test_a_network_that_is_gone_ends_the_run(tmp_path: Path, server: MediaServer) -> None:
    clips = [(f"c{n:02d}", f"v{n:02d}", 0.0) for n in range(60)]
    for n in range(60):
        server.put(f"/v{n:02d}.mp4", b"", then=serving.status(403))
    benchmark = benchmark_of(tmp_path / "toml", "down", clips)
    source = f"url:{server.url('/{youtube_id}.mp4')}"
    network = Network(sleep_s=0, timeout_s=1, retries=0, downloads=2)
    with pytest.raises(AvbenchError, match="20 downloads in a row failed, the last with 'refused"):
        prepare_clips(benchmark, sources=[source], workers=2, network=network, report=silent)
    assert 20 <= len(ledger_of(benchmark)) < 40
    assert {path.name for path in benchmark.home.iterdir()} == {"clips", "ledger.sqlite", ".lock"}


def test_acquired_on_one_day_and_cut_on_another(
    tmp_path: Path, server: MediaServer, video: Video
) -> None:
    content = video(tmp_path / "v.mp4", seconds=3, mark_s=0.7).read_bytes()
    server.put("/v.mp4", content)
    server.put("/-w.mp4", content)
    clips = [("v_0", "v", 0.0), ("v_1", "v", 1.0), ("w", "-w", 0.5), ("x", "gone", 0.0)]
    benchmark = benchmark_of(tmp_path / "toml", "later", clips)
    source = f"url:{server.url('/{youtube_id}.mp4')}"

    def run(**options: object) -> tuple[int, int, int]:
        done = prepare_clips(
            benchmark, sources=[source], workers=2, network=NETWORK, report=silent, **options
        )
        return done.ok, done.already, sum(map(len, done.failed.values()))

    assert run(stage="acquire") == (3, 0, 1)
    assert clips_of(benchmark) == {}
    originals = benchmark.home / "originals" / "videos"
    assert sorted(path.name for path in originals.iterdir()) == ["-w.mp4", "v.mp4"]
    assert run(stage="acquire") == (0, 3, 1)
    asked = dict(server.requests)
    assert run(stage="trim") == (3, 0, 1)
    assert server.requests == asked
    # Kept originals serve a new cut too.
    (benchmark.home / "clips" / "w.mp4").unlink()
    assert run() == (1, 2, 1)
    assert server.requests["/-w.mp4"] == asked["/-w.mp4"] == 2
    assert ledger_of(benchmark)["w"].source == "kept"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "small", "size=400k") as small:
        monkeypatch.setenv("AVBENCH_HOME", str(small))
        benchmark = Benchmark.load("toy-ci")
        with pytest.raises(AvbenchError, match="the disk or your quota is full"):
            prepare_clips(benchmark, workers=2, report=silent)
        clips = clips_of(benchmark)
        assert not list(benchmark.home.glob("scratch*"))
        subprocess.run(["mount", "-o", "remount,size=3m", str(small)], check=True)
        with pytest.raises(AvbenchError, match="the disk or your quota is full"):
            prepare_clips(benchmark, workers=2, report=silent)
        # What was whole has stayed, and there is more now.
        assert clips.items() <= clips_of(benchmark).items()
        assert len(clips_of(benchmark)) > len(clips)


def test_a_target_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "fixed", "ro,size=1m") as fixed:
        monkeypatch.setenv("AVBENCH_HOME", str(fixed / "home"))
        with pytest.raises(AvbenchError, match="no permission to write there"):
            prepare_clips(Benchmark.load("toy-ci"), workers=1, report=silent)


@pytest.mark.parametrize("video_id", ["-rf", "a/../../b", "$(touch x)", "é 🥁", "x" * 300])
def test_hostile_ids_stay_ids(
    tmp_path: Path, server: MediaServer, monkeypatch: pytest.MonkeyPatch, video_id: str
) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = benchmark_of(
        tmp_path / "toml", "hostile", [("a", video_id, 0.0), ("b", video_id, 1.0)]
    )
    source = f"url:{server.url('/{youtube_id}.mp4')}"
    before = set(tmp_path.rglob("*"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))  # download slots lie there
    for asked in (source, "youtube"):
        done = prepare_clips(
            benchmark, sources=[asked], workers=1, network=NETWORK, report=silent, stage="acquire"
        )
        assert sum(map(len, done.failed.values())) == 2
    shutil.rmtree(tmp_path / "tmp")
    assert set(tmp_path.rglob("*")) == before
