"""Sources in a chain, stages apart, backends, and the plan: on real files and real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.media.check import check_clips, put_outdated_aside
from avbench.media.ffmpeg import binary
from avbench.media.ledger import Ledger, Outcome
from avbench.media.places import sha256
from avbench.media.plan import Choice, plan_clips
from avbench.media.prepare import prepare_clips
from avbench.media.sources.base import Network
from avbench.media.sources.render import LEAD_S, RenderSource
from avbench.media.sources.toy_looks import FPS
from avbench.media.sources.toy_sounds import RATE
from avbench.media.sources.youtube import YoutubeSource
from avbench.media.status import status_of
from avbench.media.trim import trim
from avbench.types import AvbenchError, UsageError, silent
from tests.helpers.processes import wait_for
from tests.helpers.server import MediaServer
from tests.helpers.videos import MPD, ffmpeg_made, marks, packed

pytestmark = pytest.mark.slow

Few = Callable[..., Benchmark]
Video = Callable[..., Path]


def ledger_of(benchmark: Benchmark) -> dict[str, Outcome]:
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        return ledger.all()


def bytes_of(benchmark: Benchmark) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (benchmark.home / "clips").iterdir()}


def test_the_first_source_that_has_a_clip_gives_it(tmp_path: Path, few: Few, video: Video) -> None:
    for folder, names in (("one", "ab"), ("two", "abcd")):
        for name in names:
            video(tmp_path / folder / f"{name}.mp4", seconds=1)
    (tmp_path / "one" / "b.mp4").write_bytes(b"broken")
    chain = [f"folder:{tmp_path / folder}" for folder in ("one", "two")]
    benchmark = few(["a", "b", "c", "e"])
    done = prepare_clips(benchmark, sources=chain, workers=2, report=silent)
    assert (done.ok, done.failed) == (3, {"not in the folder": ["e"]})
    rows = ledger_of(benchmark)
    assert [rows[i].source for i in "abce"] == [chain[0], chain[1], chain[1], chain[1]]
    assert [rows[i].attempts for i in "abce"] == [1, 2, 2, 2]


def split(source: str) -> str:
    """Split an archive into three parts, as people have them."""
    whole = Path(source.removeprefix("archive:"))
    content = whole.read_bytes()
    size = len(content) // 3 + 1
    for number in range(3):
        part = whole.with_name(f"{whole.name}.{number + 1:03d}")
        part.write_bytes(content[number * size : (number + 1) * size])
    whole.unlink()
    return source


def put_in_two(server: MediaServer, path: str, whole: Path) -> None:
    """Put a video on the server as YouTube has it: pictures and sound apart."""
    for name, stream in (("360.mp4", "v"), ("sound.m4a", "a")):
        part = whole.with_name(name)
        ffmpeg_made(part, "-i", str(whole), "-c", "copy", "-map", f"0:{stream}", "-f", "mp4")
        server.put(f"{path}/{name}", part.read_bytes())
        part.unlink()
    pictures = (
        '<Representation id="v" bandwidth="9" width="640" height="360" codecs="avc1.4d401e">'
        "<BaseURL>360.mp4</BaseURL></Representation>"
    )
    manifest = MPD.format(videos=pictures).encode()
    server.put(f"{path}/watch", manifest, kind="application/dash+xml")


FORMS = ["folder", "zip", "tar", "tar.gz", "zip in parts", "tar in parts", "tar.gz in parts"]


@pytest.mark.parametrize("kind", [*FORMS, "url", "youtube"])
def test_the_mark_comes_out_of_every_source_where_it_must(
    tmp_path: Path,
    video: Video,
    server: MediaServer,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    v, w = "-v_v_v_v_v-", "wwwwwwwwwww"
    whole = video(tmp_path / "videos" / f"{v}.mp4", seconds=9, mark_s=5.6)
    cut = video(tmp_path / "videos" / f"{w}_000007.mp4", seconds=2, mark_s=0.6)
    (tmp_path / "b.csv").write_text(
        "clip_id,youtube_id,start_s,label,split\n"
        f"early,{v},4.4,x,train\nlate,{v},5.08,y,train\ncut,{w},7,x,train\n"
    )
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 2.0\nannotations = "b.csv"\n'
    )
    if kind == "folder":
        sources = [f"folder:{tmp_path / 'videos'}"]
    elif kind == "url":
        server.put(f"/{v}.mp4", whole.read_bytes())
        server.put(f"/{w}_7.mp4", cut.read_bytes())
        sources = [
            f"url:{server.url(f'/{name}.mp4')}" for name in ("{youtube_id}_{start}", "{youtube_id}")
        ]
    elif kind == "youtube":
        monkeypatch.setattr(YoutubeSource, "address", server.url("/{}/watch"))
        put_in_two(server, f"/{v}", whole)
        other = video(tmp_path / "w.mp4", seconds=9, mark_s=7.6)
        server.put(f"/{w}/watch", other.read_bytes())
        sources = ["youtube"]
    else:
        form = kind.removesuffix(" in parts")
        members = {f"a/{whole.name}": whole, f"b/{cut.name}": cut}
        sources = [packed(tmp_path, form, members)]
        if form != kind:
            sources = [split(*sources)]
    benchmark = Benchmark.load(str(tmp_path / "b.toml"))
    network = Network(sleep_s=0, timeout_s=5, retries=0)
    done = prepare_clips(benchmark, sources=sources, workers=2, network=network, report=silent)
    assert done.failed == {}
    for clip, expected in (("early", 1.2), ("late", 0.52), ("cut", 0.6)):
        sight, sound = marks(benchmark.home / "clips" / f"{clip}.mp4")
        assert abs(sight - expected) <= 1 / 25
        assert abs(sound - expected) <= 0.005
    if kind == "youtube":
        assert server.requests[f"/{v}/sound.m4a"] == server.requests[f"/{v}/360.mp4"] == 1
    assert not list(benchmark.home.glob("scratch*"))


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return small grey pictures (n, 256) and sound (samples,) of a video."""
    with av.open(str(path)) as container:
        frames = [f.reformat(16, 16, "gray").to_ndarray() for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [f.to_ndarray()[0] for f in container.decode(audio=0)]
    return np.stack(frames).reshape(len(frames), -1).astype(float), np.concatenate(sound)


def test_a_rendered_clip_begins_where_it_must(tmp_path: Path, few: Few) -> None:
    """It has no mark, but no other place in the video looks and sounds like its beginning."""
    benchmark = few(["a", "b"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    for clip in benchmark.manifest:
        found = RenderSource(benchmark.spec, None, Network()).fetch(clip, tmp_path)
        frames, sound = decoded(found.path)
        clip_frames, clip_sound = decoded(benchmark.home / "clips" / f"{clip.clip_id}.mp4")
        places = range(len(frames) - len(clip_frames) + 1)
        apart = [np.abs(frames[n : n + len(clip_frames)] - clip_frames).mean() for n in places]
        assert np.argmin(apart) == LEAD_S * FPS
        assert sorted(apart)[1] > 2 * min(apart)
        lag = np.argmax(np.correlate(sound, clip_sound[: RATE // 2], "valid"))
        assert abs(lag / RATE - LEAD_S) <= 0.005


def test_a_stream_gives_what_it_has_and_the_next_source_the_rest(
    tmp_path: Path, few: Few, video: Video
) -> None:
    film = video(tmp_path / "v.mp4", seconds=1)
    (tmp_path / "noise").write_bytes(os.urandom(500_000))
    members = {"a.mp4": film, "b.mp4": film, "z": tmp_path / "noise", "d.mp4": film}
    source = packed(tmp_path, "tar.gz", members)
    path = tmp_path / "clips.tar.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    benchmark = few([*"abde"])
    done = prepare_clips(benchmark, sources=[source], workers=2, report=silent)
    assert done.ok == 2
    rows = ledger_of(benchmark)
    assert "clips.tar.gz" in rows["d"].detail
    video(tmp_path / "videos" / "d.mp4", seconds=1)
    chain = [source, f"folder:{tmp_path / 'videos'}"]
    done = prepare_clips(benchmark, sources=chain, workers=2, report=silent)
    assert ledger_of(benchmark)["d"].source == chain[1]
    assert "e" in done.failed["not in the folder"]


def test_a_choice_of_clips(few: Few) -> None:
    benchmark = few(["a", "b", "c", "d"], sources=("render",))
    one = Choice(step=1)
    assert one.of(benchmark) == ["b", "d"]
    assert Choice(split="val").of(benchmark) == []
    with pytest.raises(UsageError, match="few has 2 steps only"):
        Choice(step=2).of(benchmark)
    done = prepare_clips(benchmark, workers=1, report=silent, choice=Choice(step=1, limit=1))
    assert (done.ok, done.already) == (1, 0)
    assert set(bytes_of(benchmark)) == {"b.mp4"}
    done = prepare_clips(benchmark, workers=1, report=silent, choice=one)
    assert (done.ok, done.already) == (1, 1)
    # Steps are those of the variant that was asked for.
    variant = Benchmark.load(f"{benchmark.spec.path}:steps=1")
    assert Choice(step=0).of(variant) == ["a", "c", "b", "d"]


def test_the_plan_says_what_is_left_and_does_nothing(
    tmp_path: Path, few: Few, video: Video
) -> None:
    folder = f"folder:{tmp_path / 'videos'}"
    for name in "ab":
        video(tmp_path / "videos" / f"{name}.mp4", seconds=1)
    benchmark = few(["a", "b", "c", "d"])
    plan = plan_clips(benchmark, sources=[folder])
    assert (plan.clips, plan.already, plan.todo, plan.seconds_measured_on) == (4, 0, {folder: 4}, 0)
    assert plan.free_bytes > 0
    assert not benchmark.home.exists()
    prepare_clips(benchmark, sources=[folder], workers=1, report=silent)
    before = ledger_of(benchmark)
    plan = plan_clips(benchmark, sources=[folder])
    assert (plan.already, plan.todo, plan.refused) == (2, {folder: 2}, 0)
    assert (plan.bytes_measured_on, plan.seconds_measured_on) == (2, 2)
    assert plan.bytes_each == sum(map(len, bytes_of(benchmark).values())) / 2
    assert ledger_of(benchmark) == before
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        gone = before["c"]
        ledger.record(Outcome("c", "failed", folder, gone.request, 0, "permanent", "private"))
    assert plan_clips(benchmark, sources=[folder, "render"]).todo == {folder: 1, "render": 1}
    assert plan_clips(benchmark, sources=[folder]).refused == 1


def test_damaged_clips_are_found_and_made_again(few: Few) -> None:
    benchmark = few(["a", "b", "c"], sources=("render",))
    prepare_clips(benchmark, workers=2, report=silent)
    good = bytes_of(benchmark)
    path = benchmark.home / "clips" / "b.mp4"
    rotten = bytearray(good["b.mp4"])
    rotten[len(rotten) // 2] ^= 1
    path.write_bytes(rotten)  # of the same size
    assert prepare_clips(benchmark, workers=2, report=silent).already == 3
    assert check_clips(benchmark, workers=2, report=silent) == (["a", "c"], ["b"])
    assert ledger_of(benchmark)["b"].reason == "damaged"
    assert prepare_clips(benchmark, workers=2, report=silent).ok == 1
    assert bytes_of(benchmark) == good
    assert check_clips(benchmark, workers=2, report=silent) == (["a", "b", "c"], [])


def test_clips_are_looked_at_and_not_only_counted(few: Few) -> None:
    benchmark = few(["a", "b", "c"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    path = benchmark.home / "clips" / "b.mp4"
    path.write_bytes(path.read_bytes()[:-2000])
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        # As though it had been so when it was made.
        row = ledger.all()["b"]
        ledger.record(replace(row, sha256=sha256(path), bytes=path.stat().st_size))
    seen: list[tuple[str, int, int]] = []
    found = check_clips(benchmark, workers=2, report=lambda *progress: seen.append(progress))
    assert found == (["a", "c"], ["b"])
    assert seen == [("checking clips", n, 3) for n in (1, 2, 3)]
    assert ledger_of(benchmark)["b"].detail.startswith("undecodable")


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_processes_make_the_same_clips_as_threads(few: Few, backend: str) -> None:
    ids = [f"clip-{n}" for n in range(6)]
    benchmark = few(ids, sources=("render",))
    prepare_clips(benchmark, workers=2, report=silent)
    expected = bytes_of(benchmark)
    for path in benchmark.home.rglob("*"):
        if path.is_file():
            path.unlink()
    done = prepare_clips(benchmark, workers=2, report=silent, backend=backend)
    assert (done.ok, done.failed) == (6, {})
    assert bytes_of(benchmark) == expected
    assert sorted(path.name for path in benchmark.home.iterdir()) == [
        ".lock",
        "clips",
        "ledger.sqlite",
    ]


def test_a_scheduler_that_is_not_there(few: Few, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avbench.media.backend._CONNECT_S", 0.5)
    benchmark = few(["a", "b"], sources=("render",))
    with pytest.raises(UsageError, match="--scheduler goes with --backend dask"):
        prepare_clips(benchmark, workers=1, report=silent, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(AvbenchError, match="no Dask scheduler at tcp://127.0.0.1:1"):
        prepare_clips(
            benchmark, workers=1, report=silent, backend="dask", scheduler="tcp://127.0.0.1:1"
        )


def test_status_while_and_after(few: Few) -> None:
    benchmark = few(["a", "b", "c", "d"], sources=("render",))
    assert status_of(benchmark).waiting == 4
    seen = []

    def report(what: str, done: int, total: int) -> None:
        if done == 2:
            seen.append(status_of(benchmark))

    prepare_clips(benchmark, workers=1, report=report)
    assert seen[0].ready == 2
    assert seen[0].waiting == 2
    assert seen[0].rate is not None
    assert seen[0].eta_s is not None
    after = status_of(benchmark)
    assert (after.ready, after.waiting, after.failures, after.rate) == (4, 0, [], None)
    assert after.bytes == sum(map(len, bytes_of(benchmark).values()))
    assert after.last_run is not None
    assert "ffmpeg" in after.last_run.tools
    assert "yt-dlp" in after.last_run.tools


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """What a shell runs in the background is deaf to it, and so are its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_in_one_line_and_goes_on_later(few: Few) -> None:
    benchmark = few([f"clip-{n:02d}" for n in range(30)], sources=("render",), seconds=2.0)
    command = [Path(sys.executable).with_name("avbench"), "prepare", str(benchmark.spec.path)]
    with subprocess.Popen(
        [*command, "--stage", "trim"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        clips = benchmark.home / "clips"
        wait_for(lambda: clips.is_dir() and len(list(clips.iterdir())) >= 3, process=running)
        os.killpg(running.pid, signal.SIGINT)
        _, printed = running.communicate(timeout=60)
    assert running.returncode == 1
    assert printed.strip().splitlines()[-1] == (
        "Error: stopped by Ctrl-C: the same command goes on from here"
    )
    assert "Traceback" not in printed
    done = prepare_clips(benchmark, workers=2, report=silent)
    assert done.already >= 3
    assert done.ok + done.already == 30
    assert not list(benchmark.home.glob("scratch*"))


@pytest.mark.parametrize("kind", ["render", "folder", "zip", "tar.gz"])
def test_cutting_another_day_gives_the_same_bytes(
    tmp_path: Path, few: Few, video: Video, kind: str
) -> None:
    files = {f"{name}.mp4": video(tmp_path / "v" / f"{name}.mp4", seconds=2) for name in "ab"}
    source = "render" if kind == "render" else f"folder:{tmp_path / 'v'}"
    if kind in ("zip", "tar.gz"):
        source = packed(tmp_path, kind, files)
    benchmark = few(["a", "b"])
    prepare_clips(benchmark, sources=[source], workers=1, report=silent)
    direct = bytes_of(benchmark)
    for path in (benchmark.home / "clips").iterdir():
        path.unlink()
    acquired = prepare_clips(benchmark, sources=[source], workers=1, report=silent, stage="acquire")
    assert (acquired.ok, acquired.already) == (2, 0)
    assert plan_clips(benchmark, sources=[source]).todo == {"kept": 2, source: 0}
    again = prepare_clips(benchmark, sources=[source], workers=1, report=silent, stage="acquire")
    assert (again.ok, again.already) == (0, 2)
    done = prepare_clips(benchmark, sources=[source], workers=1, report=silent)
    assert done.ok == 2
    assert ledger_of(benchmark)["a"].source == "kept"
    assert bytes_of(benchmark) == direct
    assert (tmp_path / "v" / "a.mp4").is_file()


def test_originals_that_are_gone_are_acquired_again(few: Few) -> None:
    benchmark = few(["a", "b"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    # Clips that are cut already are no originals.
    for _ in range(2):
        done = prepare_clips(benchmark, workers=1, report=silent, stage="acquire")
        assert (done.ok, done.already) == (2, 0)
        shutil.rmtree(benchmark.home / "originals")


def timed(folder: Path, start_s: float, end_s: float) -> Benchmark:
    (folder / "b.csv").write_text(
        "clip_id,youtube_id,start_s,end_s,label,split\n"
        f"one,v,{start_s},{end_s},x,train\ntwo,w,0,2,y,train\n"
    )
    (folder / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 2.0\nannotations = "b.csv"\n'
    )
    return Benchmark.load(str(folder / "b.toml"))


def test_a_kept_original_serves_its_own_time_only(tmp_path: Path, video: Video) -> None:
    members = {
        "v_000005_000007.mp4": video(tmp_path / "early.mp4", seconds=2, mark_s=0.5),
        "v_000020_000022.mp4": video(tmp_path / "late.mp4", seconds=2, mark_s=1.5),
    }
    source = packed(tmp_path, "zip", members)
    for start_s, mark_s in ((5, 0.5), (20, 1.5)):
        benchmark = timed(tmp_path, start_s, start_s + 2)
        if start_s == 20:
            # The table has changed: nobody may take the old cut for the new clip.
            assert status_of(benchmark).ready == 0
            assert check_clips(benchmark, workers=1, report=silent) == ([], [])
        prepare_clips(benchmark, sources=[source], workers=1, report=silent, keep_originals=True)
        assert status_of(benchmark).ready == 1
        sight, _ = marks(benchmark.home / "clips" / "one.mp4")
        assert abs(sight - mark_s) <= 1 / 25
    timed(tmp_path, 5, 7)
    put_outdated_aside(timed(tmp_path, 5, 7))
    assert not (benchmark.home / "clips" / "one.mp4").exists()


def test_no_name_stands_for_a_part_of_a_second(tmp_path: Path, video: Video) -> None:
    video(tmp_path / "videos" / "v_000005.mp4", seconds=2, mark_s=1)
    benchmark = timed(tmp_path, 4.6, 6.6)
    source = f"folder:{tmp_path / 'videos'}"
    done = prepare_clips(benchmark, sources=[source], workers=1, report=silent)
    assert {k: sorted(v) for k, v in done.failed.items()} == {"not in the folder": ["one", "two"]}


def test_keeping_originals_does_not_break_the_chain(tmp_path: Path, few: Few, video: Video) -> None:
    video(tmp_path / "one" / "a.mp4", seconds=1, sound="silence")
    video(tmp_path / "two" / "a.mp4", seconds=1)
    chain = [f"folder:{tmp_path / name}" for name in ("one", "two")]
    benchmark = few(["a", "b"])
    for _ in range(2):
        done = prepare_clips(
            benchmark, sources=chain, workers=1, report=silent, keep_originals=True
        )
        assert done.ok == 1
        (benchmark.home / "clips" / "a.mp4").unlink()


def test_a_disk_that_cannot_be_read_damages_no_clip(
    few: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = few(["a", "b", "c"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    good = bytes_of(benchmark)

    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("avbench.media.check.sha256", broken)
        with pytest.raises(OSError, match="Input/output error"):
            check_clips(benchmark, workers=1, report=silent)
    assert bytes_of(benchmark) == good
    (benchmark.home / "clips").rename(benchmark.home / "elsewhere")
    with pytest.raises(AvbenchError, match="none of 3 clips is there: is a disk missing"):
        check_clips(benchmark, workers=1, report=silent)
    assert {row.status for row in ledger_of(benchmark).values()} == {"ok"}


def test_what_a_killed_run_left_is_looked_at_before_it_counts(few: Few) -> None:
    benchmark = few(["a", "b"], sources=("render",))
    prepare_clips(benchmark, workers=1, report=silent)
    rows, journal = ledger_of(benchmark), benchmark.home / "journal"
    journal.mkdir()
    (journal / "a.json").write_text(json.dumps(asdict(rows["a"])))  # known already
    (journal / "b.json").write_text(json.dumps(asdict(rows["b"]) | {"sha256": "0" * 64}))
    (journal / "x.json").write_text("[" * 200_000)
    (journal / "y.json").write_text('{"clip_id": 1}')
    (journal / "folder").mkdir()
    assert prepare_clips(benchmark, workers=1, report=silent).already == 2
    assert ledger_of(benchmark) == rows


def test_refusals_of_other_clips_and_sources_are_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        for clip in "ab":
            for source in ("s", "t"):
                ledger.record(Outcome(clip, "failed", source, "q", 0, "permanent", "private"))
        ledger.forget_refusals(["a"], ["s"])
        assert ledger.refused("s", "ab") == {("b", "q"): "private"}
        assert len(ledger.refused("t", "ab")) == 2


def test_a_plan_of_a_source_there_is_not(few: Few) -> None:
    for source in ("nonsuch", "folder:/no/such/folder", "folder:~nobody-of-that-name/x"):
        with pytest.raises(UsageError):
            plan_clips(few(["a", "b"]), sources=[source])


def test_a_transport_stream_is_cut_as_exactly(tmp_path: Path, video: Video) -> None:
    plain = video(tmp_path / "in.mp4", seconds=12, mark_s=8)
    stream = tmp_path / "in.ts"
    command = [binary(), "-v", "error", "-i", str(plain), "-c", "copy", "-f", "mpegts"]
    subprocess.run([*command, str(stream)], check=True, stdin=subprocess.DEVNULL)
    (tmp_path / "cut").mkdir()
    for start_s in (7.0, 6.0, 4.96):
        trim(stream, tmp_path / "cut" / "out.mp4", start_s=start_s, seconds=4)
        sight, sound = marks(tmp_path / "cut" / "out.mp4")
        assert abs(sight - (8 - start_s)) <= 1 / 25
        assert abs(sound - (8 - start_s)) <= 0.005
