"""Downloads from a real server that behaves as badly as real ones do."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from avbench.media import ffmpeg
from avbench.media.probe import opened, promised_ends
from avbench.media.sources import download
from avbench.media.sources.base import ClipUnavailable, Network
from avbench.media.sources.download import Downloader
from avbench.types import AvbenchError, UsageError
from tests.helpers.processes import wait_for
from tests.helpers.server import (
    Behaviour,
    Exchange,
    MediaServer,
    declare,
    drip,
    instead,
    redirect,
    reset,
    serve,
    stall,
    status,
    truncate,
)
from tests.helpers.videos import MPD, write_video

pytestmark = pytest.mark.slow

CALM = Network(timeout_s=5, retries=2, sleep_s=0)
HASTY = Network(timeout_s=0.5, retries=1, sleep_s=0)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_video(tmp_path_factory.mktemp("video") / "a.mp4", seconds=2)
    return path.read_bytes()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def refused(url: str, scratch: Path, network: Network) -> ClipUnavailable:
    """Expect a download to fail and to leave nothing behind."""
    with pytest.raises(ClipUnavailable) as caught:
        Downloader(network).download(url, scratch)
    assert list(scratch.iterdir()) == []
    return caught.value


# An address is asked for twice: for what is there, then for the video.
@pytest.mark.parametrize(
    ("behaviours", "then", "requests"),
    [
        ([], serve, 2),
        ([status(403)], serve, 3),
        ([serve, status(403)], serve, 4),
        ([status(500)], serve, 3),
        ([serve, status(503)], serve, 3),
        ([], reset, 3),
        ([serve, truncate(lie=False)], serve, 3),
        ([serve, truncate(lie=True)], serve, 4),
        ([serve, instead(b"later" * 99, "video/mp4")], serve, 4),
    ],
    ids=["good", "403", "403-late", "500", "503-late", "reset", "cut-off", "lie", "nonsense"],
)
def test_what_passes_is_tried_again(
    server: MediaServer,
    content: bytes,
    scratch: Path,
    behaviours: list[Behaviour],
    then: Behaviour,
    requests: int,
) -> None:
    url = server.put("/a.mp4", content, *behaviours, then=then)
    file = Downloader(CALM).download(url, scratch)
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert list(scratch.iterdir()) == [file]
    assert server.requests == {"/a.mp4": requests}


@pytest.mark.parametrize(
    ("then", "reason", "permanent", "requests"),
    [
        (status(404), "not found", True, 1),
        (status(410), "not found", True, 1),
        (status(403), "refused by the server", False, 3),
        (status(500), "server error", False, 3),
        (truncate(lie=False), "cut off", False, 4),
        (truncate(lie=True), "not a video", False, 6),
        (instead(b"<!DOCTYPE html><title>No</title>", "text/html"),
         "no video at this address", True, 1),
        (instead(b"\x00\x01\x02\x03" * 999, "video/mp4"), "not a video", False, 6),
        (instead(b"", "video/mp4"), "cut off", False, 6),
        (redirect("/a.mp4"), "leads nowhere", False, 15),
        (redirect("file:///etc/passwd"), "leads nowhere", False, 3),
        (declare(1 << 45), "too large", True, 1),
    ],
    ids=["404", "410", "403", "500", "cut-off", "lie", "html", "random", "empty", "circle", "file",
         "huge"],
)  # fmt: skip
def test_what_does_not_pass_is_told_apart(
    server: MediaServer,
    content: bytes,
    scratch: Path,
    then: Behaviour,
    reason: str,
    permanent: bool,
    requests: int,
) -> None:
    error = refused(server.put("/a.mp4", content, then=then), scratch, CALM)
    assert (error.reason, error.permanent) == (reason, permanent)
    assert server.requests == {"/a.mp4": requests}


@pytest.mark.parametrize(
    ("behaviours", "kind", "reason", "requests"),
    [
        ((serve, stall, stall), "video/mp4", "timed out", 3),
        ((serve, drip(0.01), serve, drip(0.01)), "video/mp4", "too slow", 4),
        ((drip(0.01), drip(0.01)), "text/html", "too slow", 2),
    ],
    ids=["stall", "drip", "drip-of-a-page"],
)
def test_what_hangs_is_given_up(
    server: MediaServer,
    content: bytes,
    scratch: Path,
    behaviours: tuple[Behaviour, ...],
    kind: str,
    reason: str,
    requests: int,
) -> None:
    url = server.put("/a.mp4", b"<html>" + content, *behaviours, kind=kind)
    assert Downloader(HASTY)._options(url, scratch)["socket_timeout"] == HASTY.timeout_s
    error = refused(url, scratch, HASTY)
    assert (error.reason, error.permanent) == (reason, False)
    assert server.requests == {"/a.mp4": requests}


def test_a_stall_is_taken_up_where_it_stopped(
    server: MediaServer, content: bytes, scratch: Path
) -> None:
    url = server.put("/a.mp4", content, serve, stall)
    assert Downloader(HASTY).download(url, scratch).read_bytes() == content
    assert server.requests == {"/a.mp4": 3}


def test_a_redirect_is_followed(server: MediaServer, content: bytes, scratch: Path) -> None:
    server.put("/b.mp4", content)
    url = server.put("/a.mp4", b"", then=redirect("/b.mp4"))
    assert Downloader(CALM).download(url, scratch).read_bytes() == content


def test_an_endless_answer_is_too_large(
    server: MediaServer, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say how long it is."""
    monkeypatch.setattr(download, "_MAX_BYTES", 1 << 20)

    def endless(exchange: Exchange) -> None:
        exchange.handler.send_response(200)
        exchange.handler.send_header("Content-Type", "video/mp4")
        exchange.handler.end_headers()
        while not exchange.closing.is_set():
            exchange.handler.wfile.write(bytes(1 << 16))

    error = refused(server.put("/a.mp4", b"", then=endless), scratch, CALM)
    assert (error.reason, error.permanent) == ("too large", True)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses this process makes, in seconds; none of them takes any time."""
    pauses: list[float] = []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        assert len(pauses) < 1000, "it waits for ever"

    monkeypatch.setattr("time.sleep", sleep)
    return pauses


def test_a_server_is_left_alone_as_long_as_it_asks(
    server: MediaServer, content: bytes, scratch: Path, slept: list[float]
) -> None:
    url = server.put("/a.mp4", content, status(429, retry_after="7"))
    Downloader(CALM).download(url, scratch)
    assert [pause for pause in slept if pause] == [7]
    assert server.requests == {"/a.mp4": 3}


def test_but_not_for_ever(
    server: MediaServer, content: bytes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_LONGEST_PAUSE_S", 0.1)
    error = refused(
        server.put("/a.mp4", content, then=status(429, retry_after="99999")), scratch, CALM
    )
    assert (error.reason, error.permanent) == ("rate limited", False)


@pytest.mark.parametrize("behaviours", [(), (serve,)], ids=["at-first", "while-downloading"])
def test_pauses_grow_and_are_the_same_every_time(
    server: MediaServer,
    content: bytes,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    behaviours: tuple[Behaviour, ...],
) -> None:
    monkeypatch.setattr(download, "_BACKOFF_S", 1.0)
    pauses: list[list[float]] = []
    for path in ("/a", "/a", "/b"):
        slept.clear()
        url = server.put(path, content, *behaviours, then=status(500))
        refused(url, scratch, Network(timeout_s=5, retries=3, sleep_s=0))
        pauses.append([pause for pause in slept if pause])
    assert pauses[0] == pauses[1] != pauses[2]
    assert [1 <= pause / 2**n < 1.5 for n, pause in enumerate(pauses[0])] == [True] * 3


def test_a_connection_refused_passes(scratch: Path, server: MediaServer) -> None:
    url = server.url("/a.mp4")
    server.__exit__(None, None, None)
    error = refused(url, scratch, CALM)
    assert (error.reason, error.permanent) == ("connection lost", False)


def test_what_is_there_is_not_downloaded_again(
    server: MediaServer, content: bytes, scratch: Path
) -> None:
    downloader = Downloader(CALM)
    one, two = server.put("/a.mp4", content), server.put("/b.mp4", content)
    first = downloader.download(one, scratch)
    assert downloader.download(one, scratch) == first
    assert downloader.download(two, scratch) != first
    assert server.requests == {"/a.mp4": 2, "/b.mp4": 2}


def test_a_rate_is_kept_and_is_not_called_slow(
    server: MediaServer, content: bytes, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MIN_RATE", 2 * len(content))
    began = time.monotonic()
    network = Network(timeout_s=0.5, retries=0, sleep_s=0, rate=len(content))
    Downloader(network).download(server.put("/a.mp4", content), scratch)
    assert time.monotonic() - began > 0.5


def test_nothing_is_printed_nor_written_to_the_home(
    server: MediaServer,
    content: bytes,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    (home / ".config" / "yt-dlp").mkdir(parents=True)
    (home / ".config" / "yt-dlp" / "config").write_text("--write-info-json\n--simulate\n")
    monkeypatch.setenv("HOME", str(home))
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    before = sorted(home.rglob("*"))
    Downloader(CALM).download(server.put("/a.mp4", content), scratch)
    with pytest.raises(ClipUnavailable):
        Downloader(CALM).download(server.url("/none.mp4"), scratch)
    assert sorted(home.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_odd_names_of_folders(server: MediaServer, content: bytes, tmp_path: Path) -> None:
    scratch = tmp_path / "50 %(id)s %d é"
    scratch.mkdir()
    file = Downloader(CALM).download(server.put("/a.mp4", content), scratch)
    assert list(scratch.iterdir()) == [file]


# Streams in pieces, and in several sizes.


def ffmpeg_run(*arguments: object) -> None:
    command = [ffmpeg.binary(), "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture
def pieces(server: MediaServer, content: bytes, tmp_path: Path) -> list[str]:
    """Put a stream in pieces on the server and return their paths."""
    folder = tmp_path / "hls"
    folder.mkdir()
    source = write_video(tmp_path / "long.mp4", seconds=12)
    playlist = folder / "list.m3u8"
    ffmpeg_run("-i", source, "-c", "copy", "-hls_time", 5, "-hls_list_size", 0, playlist)
    server.put("/list.m3u8", playlist.read_bytes(), kind="application/vnd.apple.mpegurl")
    paths = []
    for piece in sorted(folder.glob("*.ts")):
        server.put(f"/{piece.name}", piece.read_bytes(), kind="video/mp2t")
        paths.append(f"/{piece.name}")
    assert len(paths) == 3
    return paths


def test_a_stream_in_pieces_is_put_together(
    server: MediaServer, pieces: list[str], scratch: Path
) -> None:
    file = Downloader(CALM).download(server.url("/list.m3u8"), scratch)
    with av.open(str(file)) as container:
        video = container.streams.video[0]
        assert sum(1 for _ in container.decode(video)) == 12 * 25
    assert list(scratch.iterdir()) == [file]


def test_a_missing_piece_is_not_left_out(
    server: MediaServer, pieces: list[str], scratch: Path
) -> None:
    server.put(pieces[1], b"", then=status(404))
    error = refused(server.url("/list.m3u8"), scratch, CALM)
    assert (error.reason, error.permanent) == ("fragments missing", False)
    assert server.requests[pieces[0]] == 1
    assert server.requests[pieces[1]] == 1 + CALM.retries
    assert server.requests["/list.m3u8"] <= 4  # only the piece is tried again


def test_a_stream_that_still_runs_is_not_waited_for(
    server: MediaServer, pieces: list[str], scratch: Path
) -> None:
    running = server.content("/list.m3u8").replace(b"#EXT-X-ENDLIST", b"")
    url = server.put("/list.m3u8", running, kind="application/vnd.apple.mpegurl")
    error = refused(url, scratch, CALM)
    assert (error.reason, error.permanent) == ("still live", False)


def test_half_a_page_is_not_taken_for_one_without_a_video(
    server: MediaServer, content: bytes, scratch: Path
) -> None:
    server.put("/a.mp4", content)
    page = b"<!DOCTYPE html><title>Video</title>" + b" " * 2000 + b'<video src="/a.mp4"></video>'
    url = server.put("/page", page, truncate(lie=False), kind="text/html")
    assert Downloader(CALM).download(url, scratch).read_bytes() == content


@pytest.mark.parametrize("videos", [1, 2])
def test_a_page_may_hold_one_video(
    server: MediaServer, content: bytes, scratch: Path, videos: int
) -> None:
    page = "<!DOCTYPE html><title>Videos</title>"
    for number in range(videos):
        page += f'<video src="/{number}.mp4"></video>'
        server.put(f"/{number}.mp4", content)
    url = server.put("/page", page.encode(), kind="text/html")
    if videos == 1:
        assert Downloader(CALM).download(url, scratch).read_bytes() == content
        return
    error = refused(url, scratch, CALM)
    assert (error.reason, error.permanent) == ("more than one video at this address", True)


def test_sight_and_sound_of_the_right_size_are_merged(
    server: MediaServer, content: bytes, scratch: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(content)
    ffmpeg_run("-i", whole, "-c", "copy", "-an", tmp_path / "sight.mp4")
    ffmpeg_run("-i", whole, "-c", "copy", "-vn", tmp_path / "sound.m4a")
    server.put("/sound.m4a", (tmp_path / "sound.m4a").read_bytes(), kind="audio/mp4")
    videos = ""
    for height in (144, 360, 480, 1080):
        sight = (tmp_path / "sight.mp4").read_bytes()
        server.put(f"/{height}.mp4", sight)
        videos += (
            f'<Representation id="v{height}" bandwidth="{height}" width="{height * 16 // 9}"'
            f' height="{height}" codecs="avc1.4d401e"><BaseURL>{height}.mp4</BaseURL>'
            "</Representation>"
        )
    manifest = MPD.format(videos=videos).encode()
    url = server.put("/a.mpd", manifest, kind="application/dash+xml")
    file = Downloader(CALM).download(url, scratch)
    with av.open(str(file)) as container:
        assert container.streams.video
        assert container.streams.audio
    assert list(scratch.iterdir()) == [file]
    asked = {path for path in server.requests if path.endswith(".mp4")}
    assert asked == {"/360.mp4"}


@pytest.mark.parametrize(("part", "suffix"), [("sight", "mp4"), ("sound", "webm")])
def test_half_of_what_is_merged_is_not_taken_for_all(
    server: MediaServer, scratch: Path, tmp_path: Path, part: str, suffix: str
) -> None:
    """Although the server says that this is all, and the merged file has another header."""
    whole = write_video(tmp_path / "whole.mp4", seconds=4, size=(320, 240), front=True)
    coding = ["-c", "copy", "-movflags", "+faststart"]
    if suffix == "webm":  # whose header counts from 0, wherever it begins
        coding = ["-deadline", "realtime", "-cpu-used", "8", "-output_ts_offset", "2"]
    bodies = {}
    for name, without in (("sight", "-an"), ("sound", "-vn")):
        ffmpeg_run("-i", whole, without, *coding, tmp_path / f"{name}.{suffix}")
        bodies[name] = (tmp_path / f"{name}.{suffix}").read_bytes()
    paths = {"sight": "/360.mp4", "sound": "/sound.m4a"}
    pictures = '<Representation id="v" bandwidth="9" width="640" height="360" codecs="avc1.4d401e">'
    pictures += "<BaseURL>360.mp4</BaseURL></Representation>"
    manifest = MPD.format(videos=pictures).encode()
    url = server.put("/a.mpd", manifest, kind="application/dash+xml")

    for name, path in paths.items():
        server.put(path, bodies[name], *[truncate(0.6, lie=True)] * (name == part))
    file = Downloader(CALM).download(url, scratch)
    with opened(file) as container:
        assert promised_ends(container) == pytest.approx((4, 4), abs=0.1)
    assert server.requests[paths[part]] == 2
    file.unlink()

    server.put(paths[part], bodies[part], then=truncate(0.6, lie=True))
    error = refused(url, scratch, CALM)
    assert (error.reason, error.permanent) == ("cut off", False)
    assert server.requests[paths[part]] == 1 + CALM.retries


# At most so many at a time on a host.

CHILD = """
import sys, time
from pathlib import Path
from avbench.media.sources.base import Network
from avbench.media.sources.download import Downloader
downloader = Downloader(Network(timeout_s=60, retries=0, sleep_s=0))
print("ready", flush=True)
sleep = time.sleep
time.sleep = lambda pause: (pause and print("waiting", flush=True), sleep(pause))
downloader.download(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.fixture
def child(tmp_path: Path, scratch: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Download in another process, which says when it waits; it is about to begin."""

    def start(url: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, url, str(scratch)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def test_two_processes_do_not_download_at_once(
    server: MediaServer,
    content: bytes,
    child: Callable[[str], subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    ours, theirs = tmp_path / "ours", "/theirs.mp4"
    ours.mkdir()

    def start_theirs(exchange: Exchange) -> None:
        processes.append(child(server.put(theirs, content)))
        assert processes[0].stdout
        said.extend(processes[0].stdout.readline() for _ in range(5))
        counted.append(server.requests[theirs])
        serve(exchange)

    processes: list[subprocess.Popen[str]] = []
    counted: list[int] = []
    said: list[str] = []
    url = server.put("/ours.mp4", content, serve, start_theirs)
    Downloader(Network(timeout_s=30, retries=0, sleep_s=0)).download(url, ours)
    assert (said, counted) == (["waiting\n"] * 5, [0])
    assert processes[0].wait(30) == 0
    assert server.requests[theirs] == 2


def test_two_threads_download_at_once_only_if_they_may(
    server: MediaServer, content: bytes, tmp_path: Path
) -> None:
    meeting = threading.Barrier(2)

    def meet(exchange: Exchange) -> None:
        try:
            meeting.wait(1)
        except threading.BrokenBarrierError:
            status(404)(exchange)
        else:
            serve(exchange)

    def succeeds(downloads: int) -> list[bool]:
        meeting.reset()
        network = Network(timeout_s=5, retries=0, sleep_s=0, downloads=downloads)
        done = []

        def run(path: str) -> None:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            try:
                Downloader(network).download(server.put(path, content, meet), folder)
            except ClipUnavailable:
                return
            done.append(True)

        threads = [threading.Thread(target=run, args=(path,)) for path in ("/a.mp4", "/b.mp4")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done

    assert succeeds(2) == [True, True]
    server.requests.clear()
    assert succeeds(1) == []


def test_a_killed_process_holds_no_slot(
    server: MediaServer,
    content: bytes,
    child: Callable[[str], subprocess.Popen[str]],
    scratch: Path,
    request: pytest.FixtureRequest,
) -> None:
    process = child(server.put("/theirs.mp4", content, then=stall))
    wait_for(lambda: server.requests["/theirs.mp4"] >= 2, process=process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    slept = request.getfixturevalue("slept")
    Downloader(CALM).download(server.put("/ours.mp4", content), scratch)
    assert not any(slept)


def test_the_host_has_a_rest_after_each_download(
    server: MediaServer, content: bytes, scratch: Path, tmp_path: Path, slept: list[float]
) -> None:
    """After one that failed, too; nobody waits for it who has no more to download."""
    rested_before_asking: list[bool] = []

    def note(exchange: Exchange) -> None:
        rested_before_asking.append(max(slept, default=0) > 900)
        serve(exchange)

    downloader = Downloader(Network(timeout_s=5, retries=0, sleep_s=1000))
    paths = iter(["/a.mp4", "/b.mp4"])

    def rested(*, fails: bool) -> float:
        """Return how long a download waited before it began."""
        slept.clear()
        if fails:
            with pytest.raises(ClipUnavailable):
                Downloader(Network(timeout_s=5, retries=0, sleep_s=1000)).download(
                    server.url("/none.mp4"), scratch
                )
        else:
            downloader.download(server.put(next(paths), content, then=note), scratch)
        return sum(slept)

    rested(fails=True)
    (slot,) = tmp_path.rglob("download-0")
    os.utime(slot, (0, 0))  # as though the last one ended long ago
    assert rested(fails=True) == 0
    assert rested(fails=False) > 900
    os.utime(slot, (0, 0))
    assert rested(fails=False) == 0
    assert rested_before_asking == [True, True, False, False]
    assert rested(fails=True) > 900


def test_a_folder_of_slots_that_is_somebody_elses(
    server: MediaServer, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url("/a.mp4")
    downloader = Downloader(CALM)
    Path(tempfile.gettempdir(), "avbench-77777").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 77777)
    with pytest.raises(AvbenchError, match="belongs to somebody else: set TMPDIR"):
        downloader.download(url, scratch)


FULL = """
import resource, sys
from pathlib import Path
from avbench.media.sources.base import Network
from avbench.media.sources.download import Downloader
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    Downloader(Network(timeout_s=9, retries=2, sleep_s=0)).download(sys.argv[1], Path(sys.argv[2]))
except OSError as error:
    print(error.errno)
"""


def test_a_full_disk_is_no_fault_of_the_clip(
    server: MediaServer, content: bytes, scratch: Path
) -> None:
    url = server.put("/a.mp4", content)
    command = [sys.executable, "-c", FULL, url, str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.ENOSPC}\n"
    assert server.requests == {"/a.mp4": 2}
    assert list(scratch.iterdir()) == []


# What a user can get wrong.


@pytest.mark.parametrize(
    "proxy", ["nonsense", "host:80", "ftp://host:80", "http://host", "http://h:x"]
)
def test_a_proxy_that_is_none(proxy: str) -> None:
    with pytest.raises(UsageError, match=r"write SCHEME://HOST:PORT"):
        Downloader(Network(proxy=proxy))


def test_a_proxy_is_used(server: MediaServer, content: bytes, scratch: Path) -> None:
    server.put("http://nowhere.invalid/a.mp4", content)
    network = Network(timeout_s=5, retries=0, sleep_s=0, proxy=server.url(""))
    file = Downloader(network).download("http://nowhere.invalid/a.mp4", scratch)
    assert file.read_bytes() == content


COOKIES = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\ttaste\tsweet\n"


def test_cookies_are_sent_and_their_file_is_left_alone(
    server: MediaServer, content: bytes, scratch: Path, tmp_path: Path
) -> None:
    jar = tmp_path / "cookies.txt"
    jar.write_text(COOKIES)
    sent = []

    def note(exchange: Exchange) -> None:
        sent.append(exchange.handler.headers["Cookie"])
        serve(exchange)

    downloader = Downloader(Network(timeout_s=5, retries=0, sleep_s=0, cookies=jar))
    downloader.download(server.put("/a.mp4", content, then=note), scratch)
    assert sent == ["taste=sweet"] * 2
    assert jar.read_text() == COOKIES


def test_cookies_that_cannot_be_read(tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    with pytest.raises(AvbenchError, match=r"No such file .*check the path"):
        Downloader(Network(cookies=jar))
    jar.write_text('{"no": "cookies"}\n')
    with pytest.raises(AvbenchError, match=r"export them in Netscape's format") as caught:
        Downloader(Network(cookies=jar))
    assert "\n" not in str(caught.value)
    jar.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AvbenchError, match="check the path"):
        Downloader(Network(cookies=jar))


def test_a_browser_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean firefox"):
        Downloader(Network(browser="firefux"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AvbenchError, match="close it, or export its cookies to a file"):
        Downloader(Network(browser="firefox"))
