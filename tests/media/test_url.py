"""Addresses made from a template, and what stands there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    SourceFile,
    goes_by_label,
    open_source,
)
from avbench.media.sources.url import UrlSource
from avbench.types import UsageError
from tests.helpers.server import MediaServer

Few = Callable[..., Benchmark]
Video = Callable[..., Path]

NETWORK = Network(timeout_s=5, retries=1, sleep_s=0)


def clip(
    youtube_id: str | None = "-x_y",
    start_s: float | None = 3.0,
    *,
    clip_id: str = "-x_y_000003",
    label: str = "disk thud",
) -> Clip:
    end_s = None if start_s is None else start_s + 1
    return Clip(clip_id, youtube_id, start_s, end_s, label, 0, 0, "train", None)


@pytest.fixture
def fetch(server: MediaServer, few: Few, tmp_path: Path) -> Callable[..., SourceFile]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def run(template: str, wanted: Clip) -> SourceFile:
        return UrlSource(few(["a"]).spec, server.url(template), NETWORK).fetch(wanted, scratch)

    return run


@pytest.fixture
def content(video: Video, tmp_path: Path) -> Callable[[float], bytes]:
    return lambda seconds: video(tmp_path / "v.mp4", seconds=seconds).read_bytes()


def test_it_is_registered(few: Few) -> None:
    source = open_source("url:http://x.org/{clip_id}:80", few(["a"]).spec, NETWORK)
    assert isinstance(source, UrlSource)


def test_only_a_template_with_a_label_goes_by_it(few: Few) -> None:
    for template, expected in (("{label}/{clip_id}", True), ("{clip_id}", False)):
        source = open_source(f"url:http://x.org/{template}", few(["a"]).spec, NETWORK)
        assert goes_by_label(source) == expected


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/{youtube_id}.mp4", "/-x_y.mp4"),
        ("/{youtube_id}_{start}_{end}.mp4", "/-x_y_30_31.mp4"),
        ("/{label}/{clip_id}.mp4", "/a%2Fb%20%3F%26%C3%A9/-x_y_000003.mp4"),
        ("/{{}}{youtube_id}.mp4", "/%7B%7D-x_y.mp4"),
    ],
)
def test_addresses(
    server: MediaServer,
    fetch: Callable[..., SourceFile],
    content: Callable[[float], bytes],
    template: str,
    path: str,
) -> None:
    server.put(path, content(1))
    fetch(template, clip(start_s=30.0, label="a/b ?&é"))
    assert set(server.requests) == {path}


@pytest.mark.parametrize("value", ["x?y=1#z", "a/../../b", "$(reboot)", "-rf", "%2e%2e", "a b"])
def test_hostile_ids_change_nothing_but_their_place(
    server: MediaServer, fetch: Callable[..., SourceFile], value: str
) -> None:
    with pytest.raises(ClipUnavailable, match="not found"):
        fetch("/in/{youtube_id}/end", clip(value))
    (path,) = server.requests
    assert path.startswith("/in/")
    assert path.endswith("/end")
    assert path.count("/") == 3


@pytest.mark.parametrize(("start", "path"), [(12.5, "/-x_y_12.5"), (1e7, "/-x_y_10000000")])
def test_seconds_are_written_plainly(
    server: MediaServer, fetch: Callable[..., SourceFile], start: float, path: str
) -> None:
    with pytest.raises(ClipUnavailable, match="not found"):
        fetch("/{youtube_id}_{start}", clip(start_s=start))
    assert set(server.requests) == {path}


@pytest.mark.parametrize(
    ("template", "seconds", "start_s"),
    [
        ("/{youtube_id}.mp4", 6, 3.0),
        ("/{youtube_id}.mp4", 1.5, 3.0),  # it is the whole video, whatever its length
        ("/{youtube_id}_{start}.mp4", 1, None),
        ("/{youtube_id}.mp4?t={start}", 6, 3.0),
        ("/{clip_id}.mp4", 1, None),
        ("/{clip_id}.mp4", 6, 3.0),
    ],
)
def test_whole_videos_are_cut_and_cut_ones_are_not(
    server: MediaServer,
    fetch: Callable[..., SourceFile],
    content: Callable[[float], bytes],
    template: str,
    seconds: float,
    start_s: float | None,
) -> None:
    whole = content(seconds)
    for path in ("/-x_y.mp4", "/-x_y_3.mp4", "/-x_y_000003.mp4"):
        server.put(path, whole)
    found = fetch(template, clip())
    assert found.start_s == start_s
    assert found.path.read_bytes() == whole


def test_the_clips_of_a_video_share_its_download(
    server: MediaServer, fetch: Callable[..., SourceFile], content: Callable[[float], bytes]
) -> None:
    server.put("/-x_y.mp4", content(6))
    first, second = (fetch("/{youtube_id}.mp4", clip(start_s=start)) for start in (1.0, 4.0))
    assert (first.path, first.start_s, second.start_s) == (second.path, 1.0, 4.0)
    assert server.requests == {"/-x_y.mp4": 2}


def test_a_clip_of_unknown_times_may_have_an_address(
    server: MediaServer, fetch: Callable[..., SourceFile], content: Callable[[float], bytes]
) -> None:
    server.put("/-x_y_000003.mp4", content(1))
    assert fetch("/{clip_id}.mp4", clip(None, None)).start_s is None


@pytest.mark.parametrize(
    ("template", "wanted", "reason"),
    [
        ("/{youtube_id}", clip(None), "no YouTube id known"),
        ("/{youtube_id}", clip(start_s=None), "no start time known"),
        ("/{youtube_id}_{start}", clip(start_s=None), "no start time known"),
        ("/{clip_id}_{end}", clip(start_s=None), "no end time known"),
    ],
)
def test_what_an_address_needs_and_is_not_known(
    server: MediaServer,
    fetch: Callable[..., SourceFile],
    template: str,
    wanted: Clip,
    reason: str,
) -> None:
    with pytest.raises(ClipUnavailable) as caught:
        fetch(template, wanted)
    assert (caught.value.reason, caught.value.permanent) == (reason, True)
    assert not server.requests


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "which address"),
        ("", "which address"),
        ("ftp://x.org/{clip_id}", r"not an address by http\(s\)"),
        ("file:///etc/{clip_id}", r"not an address by http\(s\)"),
        ("x.org/{clip_id}", r"not an address by http\(s\)"),
        ("http://x.org/{id}", "known: youtube_id, start|did you mean"),
        ("http://x.org/{}", "known: youtube_id, start, end, label, clip_id"),
        ("http://x.org/{clip_id.__class__}", "did you mean clip_id"),
        ("http://x.org/{clip_id:>9999999}", "without a format"),
        ("http://x.org/{clip_id!r}", "without a format"),
        ("http://x.org/{clip_id", "expected '}'"),
        ("http://x.org/a.mp4", "the same for many clips"),
        ("http://x.org/{label}.mp4", "the same for many clips"),
    ],
)
def test_templates_that_are_none(few: Few, template: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UrlSource(few(["a"]).spec, template, NETWORK)
