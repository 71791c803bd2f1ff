"""Decoding: the right pictures, and the sound where it belongs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avbench.features.decode import Decoded, decode, frame_numbers
from avbench.types import AvbenchError

GOLDEN = Path(os.environ.get("AVBENCH_GOLDEN", Path(__file__).parents[1] / "golden"))
RED, BLUE, BLACK = (220, 30, 30), (30, 30, 220), (0, 0, 0)


def seen(path: Path, frames: int = 16) -> Decoded:
    return decode(path, frames=frames, height=32, width=48, sample_rate=8000)


def pitch(waveform: np.ndarray, rate: int = 8000) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(waveform))) * rate / len(waveform))


def test_frame_numbers_are_those_of_the_paper_s_code() -> None:
    expected = json.loads((GOLDEN / "misc.json").read_text())["frame_numbers_1based"]
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
