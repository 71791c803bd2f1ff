"""YouTube's source, against a server of our own in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.ledger import Ledger
from avbench.media.prepare import prepare_clips
from avbench.media.sources import youtube
from avbench.media.sources.base import ClipUnavailable, Network, open_source
from avbench.media.sources.youtube import YoutubeSource
from avbench.types import UsageError, silent
from tests.helpers.server import MediaServer, status

Few = Callable[..., Benchmark]
Video = Callable[..., Path]

NETWORK = Network(timeout_s=5, retries=1, sleep_s=0)
ID = "-x_yABCDE09"


def clip(youtube_id: str | None, start_s: float | None = 3.0) -> Clip:
    end_s = None if start_s is None else start_s + 1
    return Clip("a", youtube_id, start_s, end_s, "disk thud", 0, 0, "train", None)


@pytest.fixture
def source(server: MediaServer, few: Few, monkeypatch: pytest.MonkeyPatch) -> YoutubeSource:
    monkeypatch.setattr(YoutubeSource, "address", server.url("/watch/{}"))
    opened = open_source("youtube", few(["a"]).spec, NETWORK)
    assert isinstance(opened, YoutubeSource)
    return opened


def test_its_address() -> None:
    assert YoutubeSource.address.format(ID) == f"https://www.youtube.com/watch?v={ID}"


def test_the_whole_video_is_downloaded_once_for_all_its_clips(
    server: MediaServer, source: YoutubeSource, video: Video, tmp_path: Path
) -> None:
    content = video(tmp_path / "v.mp4", seconds=1.5).read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    server.put(f"/watch/{ID}", content)
    for start_s in (0.0, 0.5, 3.0):
        found = source.fetch(clip(ID, start_s), scratch)
        assert (found.path.read_bytes(), found.start_s) == (content, start_s)
    assert server.requests == {f"/watch/{ID}": 2}


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (clip(None), "no YouTube id known"),
        (clip(ID, None), "no start time known"),
        (clip("-rf"), "not a YouTube id"),
        (clip("a/../../b"), "not a YouTube id"),
        (clip("$(x)"), "not a YouTube id"),
        (clip("$(rm -rf ~)"), "not a YouTube id"),
        (clip("abcdefghij\n"), "not a YouTube id"),
        (clip(f"{ID}\n"), "not a YouTube id"),
        (clip("abcdefghijé"), "not a YouTube id"),
        (clip(f"{ID}&list=PL"), "not a YouTube id"),
        (clip(""), "not a YouTube id"),
    ],
)
def test_nobody_is_asked_for_what_cannot_be(
    source: YoutubeSource,
    server: MediaServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Clip,
    reason: str,
) -> None:
    def never(self: object, url: str, scratch: Path) -> Path:
        raise AssertionError(url)

    monkeypatch.setattr(youtube.Downloader, "download", never)
    with pytest.raises(ClipUnavailable) as caught:
        source.fetch(wanted, tmp_path)
    assert (caught.value.reason, caught.value.permanent) == (reason, True)


def test_a_video_that_is_gone(source: YoutubeSource, server: MediaServer, tmp_path: Path) -> None:
    server.put(f"/watch/{ID}", b"", then=status(410))
    with pytest.raises(ClipUnavailable) as caught:
        source.fetch(clip(ID), tmp_path)
    assert (caught.value.reason, caught.value.permanent) == ("not found", True)


@pytest.mark.parametrize(("code", "asked"), [(410, 1), (403, 2)])
def test_two_clips_of_a_video_that_fails_ask_once(
    tmp_path: Path,
    server: MediaServer,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    asked: int,
) -> None:
    monkeypatch.setattr(YoutubeSource, "address", server.url("/watch/{}"))
    server.put(f"/watch/{ID}", b"", then=status(code))
    (tmp_path / "two.csv").write_text(
        f"clip_id,youtube_id,start_s,label,split\na,{ID},0,x,train\nb,{ID},1,y,train\n"
    )
    (tmp_path / "two.toml").write_text(
        'name = "two"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1.0\n'
        'sources = ["youtube"]\nannotations = "two.csv"\n'
    )
    benchmark = Benchmark.load(str(tmp_path / "two.toml"))
    done = prepare_clips(benchmark, workers=2, report=silent, network=NETWORK)
    assert [sorted(clips) for clips in done.failed.values()] == [["a", "b"]]
    assert server.requests[f"/watch/{ID}"] == asked, "no more than one clip alone would"
    with Ledger(benchmark.home / "ledger.sqlite") as ledger:
        a, b = ledger.all().values()
    assert (a.failure, a.reason, a.detail) == (b.failure, b.reason, b.detail)


def test_it_takes_no_argument(few: Few) -> None:
    with pytest.raises(UsageError, match="takes no argument"):
        YoutubeSource(few(["a"]).spec, "abc", NETWORK)
