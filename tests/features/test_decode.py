"""Decoding: the right pictures, and the sound where it belongs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avbench.features.decode import Decoded, at_rate, decode, frame_numbers, shown_at
from avbench.media.ffmpeg import binary
from avbench.types import AvbenchError
from tests.helpers.videos import ffmpeg_made

RED, BLUE, BLACK = (220, 30, 30), (30, 30, 220), (0, 0, 0)


def seen(path: Path, frames: int = 16) -> Decoded:
    return decode(path, frames=frames, height=32, width=48, sample_rate=8000)


def pitch(waveform: np.ndarray, rate: int = 8000) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(waveform))) * rate / len(waveform))


def test_frame_numbers_are_those_of_the_paper_s_code(golden: Callable) -> None:
    expected = golden("misc.json")["frame_numbers_1based"]
    assert {n: frame_numbers(int(n), 16) for n in expected} == expected


@pytest.mark.parametrize("count", range(1, 30))
@pytest.mark.parametrize("frames", [2, 8, 16])
def test_frame_numbers_exist_and_never_go_back(count: int, frames: int) -> None:
    numbers = frame_numbers(count, frames)
    assert len(numbers) == frames
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (1, count)


def test_pictures_are_spread_over_the_clip(write_clip: Callable, plain: Callable, tone) -> None:
    clip = seen(write_clip(plain(RED, BLUE), tone(440)))
    assert clip.pictures.shape == (16, 32, 48, 3)
    assert clip.pictures.dtype == np.uint8
    is_red = clip.pictures[..., 0].mean((1, 2)) > clip.pictures[..., 2].mean((1, 2))
    # Ten frames of each colour.
    assert is_red.tolist() == [number <= 10 for number in frame_numbers(20, 16)]
    np.testing.assert_allclose(clip.pictures[0].mean((0, 1)), RED, atol=12)


def test_a_short_clip_repeats_frames(write_clip: Callable, plain: Callable, tone) -> None:
    assert seen(write_clip(plain(RED, each=3), tone(440, 0.3))).pictures.shape[0] == 16


def test_a_tone_keeps_its_pitch(write_clip: Callable, plain: Callable, tone: Callable) -> None:
    clip = seen(write_clip(plain(RED, BLUE), tone(440)))
    assert clip.waveform.dtype == np.float32
    assert clip.sample_rate == 8000
    assert len(clip.waveform) == pytest.approx(16000, abs=1200)
    assert pitch(clip.waveform[:16000]) == pytest.approx(440, abs=1)
    assert np.abs(clip.waveform).max() == pytest.approx(0.4, abs=0.05)


def test_stereo_becomes_the_mean_of_its_channels(
    write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    same = seen(write_clip(plain(RED, BLUE), np.concatenate([tone(440), tone(440)])))
    assert np.abs(same.waveform).max() == pytest.approx(0.4, abs=0.05)
    opposite = seen(write_clip(plain(RED, BLUE), np.concatenate([tone(440), -tone(440)])))
    assert np.abs(opposite.waveform).max() < 0.05


def test_sound_that_starts_late_stays_in_its_place(
    write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    clip = seen(write_clip(plain(RED, BLUE), tone(440, 1.0), late_s=0.5))
    loud = np.flatnonzero(np.abs(clip.waveform) > 0.2)
    assert loud[0] / 8000 == pytest.approx(0.5, abs=0.07)
    assert loud[-1] / 8000 == pytest.approx(1.5, abs=0.07)


def test_sound_before_the_first_picture_is_left_out(
    write_clip: Callable, plain: Callable, tone: Callable, tmp_path: Path
) -> None:
    low_then_high = np.concatenate([tone(440, 0.5), tone(1760, 1.5)], axis=1)
    path = write_clip(plain(RED, BLUE), low_then_high)
    later = ["-itsoffset", "0.5", "-i", str(path), "-map", "1:v", "-map", "0:a", "-c", "copy"]
    clip = seen(ffmpeg_made(tmp_path / "later.mp4", "-i", str(path), *later))
    assert len(clip.waveform) / 8000 == pytest.approx(1.5, abs=0.07)
    assert pitch(clip.waveform[:4000]) == pytest.approx(1760, abs=5)


def test_a_missing_stream_is_named(write_clip: Callable, plain: Callable, tone: Callable) -> None:
    with pytest.raises(AvbenchError, match=r"clip\.mp4: it has no sound"):
        seen(write_clip(plain(RED), None))
    with pytest.raises(AvbenchError, match=r"clip\.mp4: it has no picture"):
        seen(write_clip(None, tone(440)))


def test_damage_is_an_error_that_names_the_file(
    write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    path = write_clip(plain(RED, BLUE), tone(440))
    whole = path.read_bytes()
    for damaged in (b"", b"not a video at all", whole[: len(whole) // 2], whole[:2000]):
        path.write_bytes(damaged)
        with pytest.raises(AvbenchError, match=r"clip\.mp4") as caught:
            seen(path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(AvbenchError, match=r"clip\.mp4"):
        seen(path)


def noise(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth colours that drift, so that every frame is another and B-frames pay."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 255, (frames // 4 + 2, 4, 6, 3)).astype(np.float64)
    steps = np.arange(frames) / 4
    low, part = steps.astype(int), (steps % 1)[:, None, None, None]
    mixed = coarse[low] * (1 - part) + coarse[low + 1] * part
    return mixed.repeat(height // 4, axis=1).repeat(width // 6, axis=2).astype(np.uint8)


def every_frame(path: Path, width: int, height: int) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.video[0])
        return np.stack([f.reformat(width, height, "rgb24").to_ndarray() for f in frames])


@pytest.mark.parametrize("count", [40, 77])
def test_frames_nobody_wants_are_skipped_without_a_trace(
    write_clip: Callable, tone: Callable, count: int
) -> None:
    path = write_clip(noise(count), tone(440, count / 10))
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.codec_context.skip_frame = "NONREF"
        assert len(list(container.decode(video))) < count  # there is something to skip
    expected = every_frame(path, 48, 32)[np.array(frame_numbers(count, 16)) - 1]
    np.testing.assert_array_equal(seen(path).pictures, expected)


@pytest.mark.parametrize("rate", [3, 8, 10, 25])
def test_the_clock_is_ffmpeg_s_fps_filter(
    write_clip: Callable, tone: Callable, tmp_path: Path, rate: int
) -> None:
    path = write_clip(noise(33), tone(440, 3.3))  # ten frames a second
    raw = tmp_path / "frames.rgb"
    command = f"-nostdin -v error -i {path} -vf fps={rate} -pix_fmt rgb24 -f rawvideo -y {raw}"
    subprocess.run([binary(), *command.split()], check=True)
    theirs = np.fromfile(raw, np.uint8).reshape(-1, 64, 96, 3)
    times = [Fraction(i, 10) for i in range(33)]
    begins, ticks = at_rate(times, Fraction(33, 10), rate)
    ours = every_frame(path, 96, 64)[[shown_at(tick, begins) for tick in ticks]]
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 1  # another frame differs by more than 5
    chosen = decode(path, frames=16, height=64, width=96, sample_rate=8000, rate=rate).pictures
    numbers = np.array(frame_numbers(len(theirs), 16)) - 1
    np.testing.assert_array_equal(chosen, ours[numbers])


def test_a_clock_never_has_less_than_one_frame() -> None:
    assert at_rate([Fraction(0)], Fraction(1, 25), 8) == ([0], range(1))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_cropping_keeps_the_middle_and_the_aspect_ratio(
    write_clip: Callable, tone: Callable, height: int, width: int
) -> None:
    frames = np.zeros((10, height, width, 3), np.uint8)
    frames[:, height // 2 - 16 : height // 2 + 16, width // 2 - 16 : width // 2 + 16] = 200
    clip = decode(
        write_clip(frames, tone(440, 1.0)),
        frames=16,
        height=32,
        width=32,
        sample_rate=8000,
        crop=True,
    )
    assert clip.pictures.shape == (16, 32, 32, 3)
    bright = clip.pictures[0].mean(axis=2) > 100
    # The square is half as wide as the shorter side, and still square.
    assert bright[8:24, 8:24].mean() > 0.85
    assert bright.sum() == pytest.approx(16 * 16, abs=40)


def test_two_channels_stay_apart(write_clip: Callable, plain: Callable, tone: Callable) -> None:
    path = write_clip(plain(RED, BLUE), np.concatenate([tone(440), tone(1200)]))
    left, right = decode(
        path, frames=16, height=32, width=48, sample_rate=8000, stereo=True
    ).waveform
    assert pitch(left[:16000]) == pytest.approx(440, abs=1)
    assert pitch(right[:16000]) == pytest.approx(1200, abs=1)


def test_a_file_cut_short_behind_its_header_is_found(
    write_clip: Callable, tone: Callable, tmp_path: Path
) -> None:
    whole, early = write_clip(noise(40), tone(440, 4.0)), tmp_path / "early.mp4"
    command = f"-nostdin -v error -i {whole} -c copy -movflags +faststart -y {early}"
    subprocess.run([binary(), *command.split()], check=True)
    assert seen(early).pictures.shape[0] == 16
    content = early.read_bytes()
    for size in (*(len(content) * share // 100 for share in (50, 80, 95)), len(content) - 1):
        early.write_bytes(content[:size])
        with pytest.raises(AvbenchError, match=r"early\.mp4: (cut short|damaged|cannot)"):
            seen(early)


@pytest.mark.slow
def test_bytes_that_turned_give_pictures_or_one_line(write_clip: Callable, tone: Callable) -> None:
    path = write_clip(noise(12), tone(440, 1.2))
    whole = path.read_bytes()
    header = whole.index(b"moov")
    rng = np.random.default_rng(0)
    refused = 0
    for run in range(300):
        content = bytearray(whole)
        for at in rng.integers(header if run % 2 else 0, len(whole), rng.integers(1, 8)):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            clip = decode(path, frames=16, height=32, width=32, sample_rate=8000, rate=8, crop=True)
        except AvbenchError:
            refused += 1
        else:
            assert clip.pictures.shape == (16, 32, 32, 3)
    assert 50 < refused < 300
