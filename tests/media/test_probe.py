"""Only what decodes from end to end, in sight and sound, is a clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from avbench.media.probe import InvalidClip, validate

Video = Callable[..., Path]


def test_a_good_clip(tmp_path: Path, video: Video) -> None:
    info = validate(video(tmp_path / "a.mp4", seconds=2), seconds=2)
    assert (info.frames, info.width, info.height, info.sample_rate) == (50, 64, 48, 44_100)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sound": None}, "no audio stream"),
        ({"sound": "silent"}, "silent"),
        ({"sound_until_s": 1.2}, "sound and pictures differ in length"),
    ],
)
def test_faults_of_the_sound(
    tmp_path: Path, video: Video, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidClip) as caught:
        validate(video(tmp_path / "a.mp4", seconds=2, **settings), seconds=2)
    assert caught.value.reason == reason


def test_a_truncated_clip(tmp_path: Path, video: Video) -> None:
    path = video(tmp_path / "a.mp4", seconds=4, size=(320, 240), front=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidClip) as caught:
        validate(path, seconds=4)
    assert caught.value.reason in {"frames missing", "undecodable"}


def test_a_clip_that_lost_its_last_few_frames(tmp_path: Path, video: Video) -> None:
    path = video(tmp_path / "a.mp4", seconds=4, front=True)
    with av.open(str(path)) as container:
        places = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    with path.open("r+b") as file:
        file.truncate(places[-6])
    with pytest.raises(InvalidClip) as caught:
        validate(path, seconds=4)
    assert (caught.value.reason, caught.value.detail) == ("frames missing", "94 of 100 decode")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 99])
def test_not_a_video_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InvalidClip) as caught:
        validate(path, seconds=2)
    assert caught.value.reason == "undecodable"


def test_short_is_valid_but_too_short_is_not(tmp_path: Path, video: Video) -> None:
    path = video(tmp_path / "a.mp4", seconds=0.4)
    with pytest.raises(InvalidClip, match="too short"):
        validate(path, seconds=10)
    assert validate(path, seconds=0.4).frames == 10
    assert validate(video(tmp_path / "b.mp4", seconds=1), seconds=10).video_s == 1.0
