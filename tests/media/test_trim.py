"""Cuts are exact, in sight and in sound, whatever the video is like."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from avbench.media import ffmpeg as ffmpeg_module
from avbench.media.ffmpeg import FfmpegError, run
from avbench.media.probe import InvalidClip, validate
from avbench.media.trim import trim
from tests.helpers.videos import ffmpeg_made, marks

pytestmark = pytest.mark.slow

Video = Callable[..., Path]


@pytest.mark.parametrize("start_s", [None, 0.0, 3.32, 4.96])
def test_the_cut_is_exact_between_key_frames(
    tmp_path: Path, video: Video, start_s: float | None
) -> None:
    source = video(tmp_path / "in.mp4", seconds=9, mark_s=5.6)
    trim(source, tmp_path / "out.mp4", start_s=start_s, seconds=6)
    sight, sound = marks(tmp_path / "out.mp4")
    expected = 5.6 - (start_s or 0)
    assert abs(sight - expected) <= 1 / 25
    assert abs(sound - expected) <= 0.005


def test_length_and_rate_are_the_clips(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=4, fps=10)
    trim(source, tmp_path / "out.mp4", start_s=1.0, seconds=2.0)
    info = validate(tmp_path / "out.mp4", seconds=2.0)
    assert info.frames == 20
    assert info.video_s == 2.0
    assert info.audio_s == pytest.approx(2.0, abs=0.05)
    assert info.level_db == pytest.approx(-10.5, abs=1)


def test_fast_video_is_slowed_to_25_frames_a_second(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=2, fps=50)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=1.0)
    assert validate(tmp_path / "out.mp4", seconds=1.0).frames == 25


def test_sound_that_starts_late_stays_in_its_place(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=4, mark_s=1.6, sound_from_s=1.0)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=3)
    sight, sound = marks(tmp_path / "out.mp4")
    assert abs(sight - 1.6) <= 1 / 25
    assert abs(sound - 1.6) <= 0.005
    assert validate(tmp_path / "out.mp4", seconds=3).audio_s == pytest.approx(3, abs=0.05)


def test_the_same_cut_gives_the_same_bytes(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=3)
    for name in ("a.mp4", "b.mp4"):
        trim(source, tmp_path / name, start_s=0.5, seconds=1)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_odd_sizes_are_made_even(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=1, size=(65, 49))
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=1)
    info = validate(tmp_path / "out.mp4", seconds=1)
    assert (info.width, info.height) == (64, 48)


@pytest.mark.parametrize("name", ["-rf.mp4", "two words.mp4", "🥁 50%d [a]:b.mp4"])
def test_names_that_look_like_something_else(tmp_path: Path, video: Video, name: str) -> None:
    plain = video(tmp_path / "in.mp4", seconds=1)
    source = plain.rename(tmp_path / name)
    (tmp_path / "out").mkdir()
    trim(source, tmp_path / "out" / name, start_s=None, seconds=1)
    assert validate(tmp_path / "out" / name, seconds=1).frames == 25


def test_a_relative_path_with_a_leading_dash(
    tmp_path: Path, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "in.mp4", seconds=1).rename("-in.mp4")
    trim(Path("-in.mp4"), Path("-out.mp4"), start_s=None, seconds=1)
    assert validate(Path("-out.mp4"), seconds=1).frames == 25


def test_a_video_that_ends_before_the_clip(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=2)
    with pytest.raises(InvalidClip, match="the video ends before the clip starts"):
        trim(source, tmp_path / "out.mp4", start_s=30, seconds=10)


def test_a_truncated_video_is_refused(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=6, size=(320, 240), front=True)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(InvalidClip, match="cannot be cut"):
        trim(source, tmp_path / "out.mp4", start_s=1, seconds=5)


def test_an_error_carries_the_last_line_of_ffmpeg(tmp_path: Path) -> None:
    import ffmpeg

    graph = ffmpeg.input(str(tmp_path / "none.mp4")).output(str(tmp_path / "out.mp4"))
    with pytest.raises(FfmpegError, match="No such file"):
        run(graph, timeout_s=30)


def test_a_hang_is_ended(tmp_path: Path) -> None:
    import ffmpeg

    endless = ffmpeg.input("testsrc=s=64x48", format="lavfi", re=None)
    with pytest.raises(FfmpegError, match=r"no result after 0\.5 s"):
        run(endless.output(str(tmp_path / "out.mp4")), timeout_s=0.5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_the_clips_fault() -> None:
    import ffmpeg

    some = ffmpeg.input("testsrc=s=640x480:d=1", format="lavfi")
    with pytest.raises(OSError, match="No space left"):
        run(some.output("/dev/full", format="rawvideo"), timeout_s=30)


def test_without_a_system_ffmpeg_the_bundled_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    ffmpeg_module.binary.cache_clear()
    assert Path(ffmpeg_module.binary()).is_file()
    ffmpeg_module.binary.cache_clear()


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path, video: Video) -> None:
    plain = video(tmp_path / "in.mp4", seconds=6, mark_s=3.6)
    # Every third frame of the first two seconds, then all of them.
    some = ["-vf", "select=gt(t\\,2)+not(mod(n\\,3))", "-fps_mode", "vfr", "-c:a", "copy"]
    source = ffmpeg_made(tmp_path / "vfr.mp4", "-i", str(plain), *some)
    trim(source, tmp_path / "out.mp4", start_s=1.0, seconds=4)
    sight, sound = marks(tmp_path / "out.mp4")
    info = validate(tmp_path / "out.mp4", seconds=4)
    rate = info.frames / info.video_s
    assert abs(sight - 2.6) <= 1 / rate
    assert abs(sound - 2.6) <= 0.005


def test_a_rotated_picture_is_turned_upright(tmp_path: Path, video: Video) -> None:
    plain = video(tmp_path / "in.mp4", seconds=1, size=(64, 48))
    turn = ["-display_rotation", "90", "-i", str(plain), "-c", "copy"]
    source = ffmpeg_made(tmp_path / "turned.mp4", *turn)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=1)
    info = validate(tmp_path / "out.mp4", seconds=1)
    assert (info.width, info.height) == (48, 64)


def test_surround_sound_becomes_stereo(tmp_path: Path, video: Video) -> None:
    plain = video(tmp_path / "in.mp4", seconds=2, mark_s=1)
    source = ffmpeg_made(tmp_path / "six.mp4", "-i", str(plain), "-c:v", "copy", "-ac", "6")
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=2)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].layout.name == "stereo"
    assert abs(marks(tmp_path / "out.mp4")[1] - 1) <= 0.005


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_mono_and_stereo_stay(tmp_path: Path, video: Video, layout: str) -> None:
    plain = video(tmp_path / "in.mp4", seconds=1)
    channels = str(1 + (layout == "stereo"))
    source = ffmpeg_made(tmp_path / "x.mp4", "-i", str(plain), "-c:v", "copy", "-ac", channels)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].layout.name == layout


def test_a_still_picture_is_told(tmp_path: Path, video: Video) -> None:
    grey = ["-f", "lavfi", "-i", "color=c=gray:s=64x48:d=2:r=25"]
    tone = ["-f", "lavfi", "-i", "sine=d=2", "-c:a", "aac"]
    source = ffmpeg_made(tmp_path / "still.mp4", *grey, *tone)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=2)
    assert validate(tmp_path / "out.mp4", seconds=2).still
    moving = video(tmp_path / "in.mp4", seconds=2, mark_s=1)
    trim(moving, tmp_path / "out.mp4", start_s=None, seconds=2)
    assert not validate(tmp_path / "out.mp4", seconds=2).still


def test_a_video_shorter_than_the_window_is_cut_to_its_end(tmp_path: Path, video: Video) -> None:
    source = video(tmp_path / "in.mp4", seconds=5, mark_s=4)
    trim(source, tmp_path / "out.mp4", start_s=2, seconds=10)
    info = validate(tmp_path / "out.mp4", seconds=10)
    assert info.video_s == pytest.approx(3, abs=0.1)
    assert abs(marks(tmp_path / "out.mp4")[0] - 2) <= 1 / 25


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("sight_s", "sound_s"), [(4.0, 7.0), (7.0, 4.0)])
def test_pictures_or_sound_that_end_early_end_the_clip(
    tmp_path: Path, video: Video, kind: str, sight_s: float, sound_s: float
) -> None:
    source = video(tmp_path / "in.mp4", seconds=sight_s, sound_until_s=sound_s, mark_s=2.4)
    if kind != "mp4":
        source = ffmpeg_made(tmp_path / f"in.{kind}", "-i", str(source), "-c", "copy")
    promised_s = trim(source, tmp_path / "out.mp4", start_s=1, seconds=10)
    info = validate(tmp_path / "out.mp4", seconds=10, at_least_s=promised_s)
    assert promised_s == pytest.approx(3, abs=0.2)
    assert info.video_s == pytest.approx(3, abs=0.1)
    assert info.audio_s == pytest.approx(3, abs=0.1)
    sight, sound = marks(tmp_path / "out.mp4")
    assert abs(sight - 1.4) <= 1 / 25
    assert abs(sound - 1.4) <= 0.005
    # Of a window that ends before they do, nothing is lost.
    assert trim(source, tmp_path / "out.mp4", start_s=1, seconds=2) == 2
    assert validate(tmp_path / "out.mp4", seconds=2).video_s == 2


@pytest.mark.parametrize("settings", [{"sound_until_s": 4.0}, {"seconds": 4, "sound_until_s": 9.0}])
def test_how_much_must_be_left_of_what_ends_early(
    tmp_path: Path, video: Video, settings: dict[str, float]
) -> None:
    source = video(tmp_path / "in.mp4", **{"seconds": 9, **settings})
    with pytest.raises(InvalidClip, match="s or sound end before the clip starts"):
        trim(source, tmp_path / "out.mp4", start_s=5, seconds=3)
    for start_s, enough in ((3.4, True), (3.7, False)):
        promised_s = trim(source, tmp_path / "out.mp4", start_s=start_s, seconds=3)
        if enough:
            validate(tmp_path / "out.mp4", seconds=3, at_least_s=promised_s)
        else:
            with pytest.raises(InvalidClip, match="too short"):
                validate(tmp_path / "out.mp4", seconds=3, at_least_s=promised_s)


@pytest.mark.parametrize(
    ("settings", "start_s", "reason"),
    [
        ({}, None, "shorter than the video's header says"),
        ({"mark_s": 5.0}, None, "shorter than the video's header says"),  # what is left is silent
        ({"sound_until_s": 6.0}, None, "shorter than the video's header says"),
        ({"sound_until_s": 10.0}, None, "shorter than the video's header says"),
        ({}, 6.0, "no video stream"),
    ],
)
def test_a_truncated_matroska_file_is_damaged_and_not_short(
    tmp_path: Path, video: Video, settings: dict[str, float], start_s: float | None, reason: str
) -> None:
    """Which ffmpeg reads as though it were whole."""
    plain = video(tmp_path / "in.mp4", seconds=8, size=(320, 240), **settings)
    source = ffmpeg_made(tmp_path / "in.mkv", "-i", str(plain), "-c", "copy")
    with av.open(str(source)) as container:
        kept = next(p.pos for p in container.demux(video=0) if p.pts * p.time_base >= 4)
    source.write_bytes(source.read_bytes()[:kept])
    promised_s = trim(source, tmp_path / "out.mp4", start_s=start_s, seconds=8)
    with pytest.raises(InvalidClip) as caught:
        validate(tmp_path / "out.mp4", seconds=8, at_least_s=promised_s)
    assert caught.value.reason == reason
    assert not caught.value.lasting, "it may come whole the next time"


def test_an_end_that_no_header_announces(tmp_path: Path, video: Video) -> None:
    """As of a recording that was written to a pipe."""
    for name, settings in (("even", {}), ("early", {"sound_until_s": 3.0})):
        plain = video(tmp_path / f"{name}.mp4", seconds=6, **settings)
        source = tmp_path / f"{name}.mkv"
        command = [ffmpeg_module.binary(), "-v", "error", "-i", str(plain), "-c", "copy"]
        with source.open("wb") as file:
            subprocess.run([*command, "-f", "matroska", "-"], check=True, stdout=file)
        assert trim(source, tmp_path / f"{name}-out.mp4", start_s=1, seconds=8) == 0
    assert validate(tmp_path / "even-out.mp4", seconds=8).video_s == pytest.approx(5, abs=0.1)
    with pytest.raises(InvalidClip, match="sound and pictures differ in length"):
        validate(tmp_path / "early-out.mp4", seconds=8)


@pytest.mark.parametrize(("sound", "message"), [(None, "no audio stream"), ("silence", "silent")])
def test_without_sound_there_is_no_clip(
    tmp_path: Path, video: Video, sound: str | None, message: str
) -> None:
    source = video(tmp_path / "in.mp4", seconds=2, sound=sound)
    with pytest.raises(InvalidClip, match=message):
        trim(source, tmp_path / "out.mp4", start_s=None, seconds=2)
        validate(tmp_path / "out.mp4", seconds=2)


@pytest.mark.parametrize("heard", ["first", "second"])
def test_only_the_first_track_of_sound_counts(tmp_path: Path, video: Video, heard: str) -> None:
    loud = video(tmp_path / "loud.mp4", seconds=2, mark_s=1)
    hushed = video(tmp_path / "hushed.mp4", seconds=2, sound="silence")
    tracks = [loud, hushed] if heard == "first" else [hushed, loud]
    inputs = [part for path in (loud, *tracks) for part in ("-i", str(path))]
    maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a", "-c", "copy"]
    source = ffmpeg_made(tmp_path / "two.mkv", *inputs, *maps)
    trim(source, tmp_path / "out.mp4", start_s=None, seconds=2)
    if heard == "first":
        assert abs(marks(tmp_path / "out.mp4")[1] - 1) <= 0.005
    else:
        with pytest.raises(InvalidClip, match="silent"):
            validate(tmp_path / "out.mp4", seconds=2)
