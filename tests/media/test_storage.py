"""Clips and originals at addresses that fsspec opens, and workers that share no disk."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from avbench import resources
from avbench.features.encoder import open_encoder
from avbench.features.extract import extract
from avbench.manifests.benchmark import Benchmark
from avbench.media.backend import each, pool
from avbench.media.check import check_clips
from avbench.media.ledger import Ledger, Outcome
from avbench.media.places import places_of
from avbench.media.plan import plan_clips
from avbench.media.prepare import prepare_clips
from avbench.media.sources.base import Network
from avbench.media.status import status_of
from avbench.media.storage import Folder, host_scratch
from avbench.types import AvbenchError, UsageError, silent
from tests.helpers import server as serving
from tests.helpers.server import MediaServer
from tests.helpers.videos import packed

pytestmark = pytest.mark.slow

Few = Callable[..., Benchmark]
Video = Callable[..., Path]


@pytest.fixture(params=["memory", "elsewhere"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give an address that only fsspec opens."""
    kinds = {"memory": f"memory://{uuid4()}", "elsewhere": elsewhere(tmp_path)}
    monkeypatch.setenv("TMPDIR", str(tmp_path / "host"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "host").mkdir()
    return kinds[request.param]


def elsewhere(tmp_path: Path) -> str:
    """Give a place that every process can reach, but by fsspec alone."""
    (tmp_path / "bucket").mkdir(exist_ok=True)
    return f"dir::file://{tmp_path}/bucket"


def stored(address: str) -> dict[str, bytes]:
    """Return all that is at an address."""
    fs, root = fsspec.core.url_to_fs(address)
    return {path.split(root, 1)[1].lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


def ledger_of(benchmark: Benchmark) -> dict[str, tuple[object, ...]]:
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        rows = ledger.all()
    return {i: (r.status, r.source, r.request, r.attempts, r.sha256) for i, r in rows.items()}


def features_of(benchmark: Benchmark) -> dict[str, bytes]:
    store = extract(benchmark, open_encoder("filterbank", benchmark), workers=2, report=silent)
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "host").rglob("scratch-*"))


def test_a_place_that_is_no_disk_holds_the_same(
    tmp_path: Path, few: Few, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = few([f"c{n}" for n in range(5)], sources=("render",))
    prepare_clips(benchmark, workers=2, report=silent)
    clips = {f"few/clips/{p.name}": p.read_bytes() for p in (benchmark.home / "clips").iterdir()}
    rows, features = ledger_of(benchmark), features_of(benchmark)

    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("AVBENCH_STORAGE", remote)
    assert plan_clips(benchmark).free_bytes is None
    done = prepare_clips(benchmark, workers=2, report=silent)
    assert (done.ok, done.failed) == (5, {})
    assert stored(remote) == clips
    assert ledger_of(benchmark) == rows
    assert features_of(benchmark) == features
    assert prepare_clips(benchmark, workers=2, report=silent).already == 5
    assert status_of(benchmark).ready == 5
    assert {p.name for p in benchmark.home.iterdir()} == {"ledger.sqlite", ".lock", "features"}
    assert leftovers(tmp_path) == []


def test_originals_kept_there_are_cut_from_there(
    tmp_path: Path, server: MediaServer, video: Video, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("/v.mp4", video(tmp_path / "v.mp4", seconds=3, mark_s=0.7).read_bytes())
    (tmp_path / "two.csv").write_text(
        "clip_id,youtube_id,start_s,label,split\nv_0,v,0,a,train\nv_1,v,1,b,train\n"
    )
    (tmp_path / "two.toml").write_text(
        'name = "two"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1.0\n'
        'annotations = "two.csv"\n'
    )
    benchmark = Benchmark.load(str(tmp_path / "two.toml"))
    monkeypatch.setenv("AVBENCH_STORAGE", remote)
    options: dict[str, Any] = {
        "sources": [f"url:{server.url('/{youtube_id}.mp4')}"],
        "workers": 2,
        "report": silent,
        "network": Network(sleep_s=0),
    }
    assert prepare_clips(benchmark, **options, stage="acquire").ok == 2
    assert list(stored(remote)) == ["two/originals/videos/v.mp4"]
    asked = dict(server.requests)
    assert prepare_clips(benchmark, **options, stage="acquire").already == 2
    assert prepare_clips(benchmark, **options, stage="trim").ok == 2
    assert server.requests == asked == {"/v.mp4": 2}
    assert sorted(stored(remote)) == [
        "two/clips/v_0.mp4",
        "two/clips/v_1.mp4",
        "two/originals/videos/v.mp4",
    ]
    assert leftovers(tmp_path) == []


def test_damage_there_is_found_and_put_aside(
    few: Few, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVBENCH_STORAGE", remote)
    benchmark = few(["a", "b"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    good = stored(remote)
    fs, root = fsspec.core.url_to_fs(remote)
    fs.pipe_file(f"{root}/few/clips/a.mp4", good["few/clips/a.mp4"][:-9] + bytes(9))
    assert check_clips(benchmark, workers=1, report=silent) == (["b"], ["a"])
    assert sorted(stored(remote)) == ["few/clips/b.mp4", "few/replaced/a.mp4"]
    prepare_clips(benchmark, workers=1, report=silent)
    assert {k: v for k, v in stored(remote).items() if "clips" in k} == good
    fs.rm_file(f"{root}/few/clips/a.mp4")
    assert check_clips(benchmark, workers=1, report=silent) == (["b"], ["a"])


def test_what_a_killed_run_left_there_counts_or_is_cleared(
    few: Few, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVBENCH_STORAGE", remote)
    benchmark = few(["a", "b"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        rows: dict[str, Outcome] = ledger.all()
    (benchmark.home / "ledger.sqlite").unlink()
    places = places_of(benchmark)
    places.journal.write("a.json", json.dumps(asdict(rows["a"])))
    places.journal.write("b.json", json.dumps(asdict(rows["b"]) | {"sha256": "0" * 64}))
    places.journal.write("stop-scratch-x", "")
    places.clips.write(".partial-b.mp4", "half")
    assert set(places.clips.files()) == {"a.mp4", "b.mp4"}
    done = prepare_clips(benchmark, workers=1, report=silent)
    assert (done.already, done.ok) == (1, 1)
    assert sorted(stored(remote)) == ["few/clips/a.mp4", "few/clips/b.mp4"]


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_what_comes_as_a_stream_is_handed_over(
    tmp_path: Path, few: Few, video: Video, monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    files = {f"{name}.mp4": video(tmp_path / f"{name}.mp4", seconds=1) for name in "ab"}
    monkeypatch.setenv("AVBENCH_STORAGE", elsewhere(tmp_path))
    benchmark = few(["a", "b"])
    source = packed(tmp_path, "tar.gz", files)
    done = prepare_clips(benchmark, sources=[source], workers=2, report=silent, backend=backend)
    assert (done.ok, done.failed) == (2, {})
    assert sorted(stored(elsewhere(tmp_path))) == ["few/clips/a.mp4", "few/clips/b.mp4"]


@contextmanager
def cluster_of(hosts: list[dict[str, Any]]) -> Iterator[Any]:
    """Start a Dask cluster of one worker process for each host."""
    import distributed

    workers = {
        number: {"cls": distributed.Nanny, "options": {"nthreads": 1} | host}
        for number, host in enumerate(hosts)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False, "port": 0}}
    with distributed.SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        yield cluster


def test_workers_without_a_common_disk_of_which_one_is_killed(
    tmp_path: Path, few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = few([f"clip-{n:02d}" for n in range(24)], sources=("render",), seconds=2.0)
    prepare_clips(benchmark, workers=2, report=silent)
    rows, features = ledger_of(benchmark), features_of(benchmark)
    clips = {p.name: p.read_bytes() for p in (benchmark.home / "clips").iterdir()}

    address = elsewhere(tmp_path)
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "driver"))
    monkeypatch.setenv("AVBENCH_STORAGE", address)
    hosts = []
    for number in range(2):
        (tmp_path / f"host-{number}").mkdir()
        # All that a worker may know of the driver is what it is sent.
        env = {"TMPDIR": str(tmp_path / f"host-{number}"), "AVBENCH_HOME": "/no/such/home"}
        hosts.append({"env": env | {"AVBENCH_STORAGE": "/no/such/place"}})
    with cluster_of(hosts) as cluster:
        victim = cluster.workers[0].pid
        killed = []

        def report(what: str, done: int, total: int) -> None:
            if done >= 8 and not killed:
                # While it has a clip in hand.
                limit = time.monotonic() + 20
                while not list((tmp_path / "host-0").rglob("*.mp4")) and time.monotonic() < limit:
                    time.sleep(0.002)
                os.kill(victim, signal.SIGKILL)
                killed.append(done)

        done = prepare_clips(
            benchmark,
            workers=2,
            report=report,
            backend="dask",
            scheduler=cluster.scheduler_address,
        )
    assert killed
    assert killed[0] < 24
    assert (done.ok, done.failed) == (24, {})
    assert stored(address) == {f"few/clips/{name}": content for name, content in clips.items()}
    assert ledger_of(benchmark) == rows
    assert features_of(benchmark) == features
    assert {p.name for p in benchmark.home.iterdir()} == {"ledger.sqlite", ".lock", "features"}


def where(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_work_goes_to_the_workers_that_have_what_it_takes(
    tmp_path: Path, few: Few, server: MediaServer, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[int] = []
    most: list[int] = []
    content = video(tmp_path / "v.mp4", seconds=1).read_bytes()

    def slow(*given: Any) -> Any:
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.1)
        busy.pop()
        return serving.serve(*given)

    ids = [f"c{n}" for n in range(6)]
    for clip_id in ids:
        server.put(f"/{clip_id}.mp4", content, then=slow)
    benchmark = few(ids)
    with cluster_of([{"resources": {"youtube": 1}}, {}]) as cluster:
        address = cluster.scheduler_address
        with pool("dask", workers=2, scheduler=address):
            assert len(set(each(where, range(8)))) == 2
            assert len(set(each(where, range(8), takes="youtube"))) == 1
            assert len(set(each(where, range(8), takes="none of this name"))) == 2
        done = prepare_clips(
            benchmark,
            sources=[f"url:{server.url('/{clip_id}.mp4')}"],
            workers=2,
            report=silent,
            network=Network(sleep_s=0, downloads=2),
            backend="dask",
            scheduler=address,
        )
    assert done.ok == 6
    assert max(most) == 1, "the one worker that may download has one thread"


def test_a_cluster_without_workers(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avbench.media.backend._CONNECT_S", 0.5)
    with cluster_of([]) as cluster, pytest.raises(AvbenchError, match="has no workers"):
        prepare_clips(
            few(["a", "b"], sources=("render",)),
            workers=1,
            report=silent,
            backend="dask",
            scheduler=cluster.scheduler_address,
        )


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("nonsuch://x", UsageError, "nonsuch://x: Protocol not known: nonsuch: give a path"),
        ("memory://x", UsageError, "memory://x: lives in one process: use --backend threading"),
        ("ftp://127.0.0.1:1/x", AvbenchError, "cannot be used .*: check the address"),
    ],
)
def test_addresses_that_do_not_do(
    few: Few, monkeypatch: pytest.MonkeyPatch, address: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("AVBENCH_STORAGE", address)
    with pytest.raises(error, match=message):
        prepare_clips(
            few(["a", "b"], sources=("render",)), workers=1, report=silent, backend="loky"
        )


def test_a_path_is_no_address(few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a::b c%20d://e"
    monkeypatch.setenv("AVBENCH_STORAGE", str(odd))
    prepare_clips(few(["a", "b"], sources=("render",)), workers=1, report=silent)
    assert {p.name for p in (odd / "few").iterdir()} == {"clips"}
    assert {p.name for p in (resources.home() / "few").iterdir()} == {".lock", "ledger.sqlite"}


def test_scratch_of_a_killed_process_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with host_scratch() as ours:
        root = ours.parent
        dead = root / "scratch-dead"
        dead.mkdir()
        (dead / "half.mp4").write_bytes(b"x")
        (root / "scratch-dead.lock").touch()
        child = os.fork()
        if child == 0:  # another process, which has swept nothing yet
            from avbench.media import storage

            storage._sweep.cache_clear()
            with host_scratch():
                os._exit(0)
        os.waitpid(child, 0)
        assert not dead.exists()
        assert ours.is_dir(), "of a process that is at work"


def test_times_of_files_there(remote: str) -> None:
    folder = Folder(remote, "x")
    assert folder.files() == {}
    folder.write("a", "1")
    before = folder.files()["a"]
    time.sleep(0.02)
    folder.write("a", "2")
    after = folder.files()["a"]
    assert before.size == after.size == 1
    assert 0 < before.mtime_ns < after.mtime_ns
