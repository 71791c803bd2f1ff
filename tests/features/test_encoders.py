"""What every encoder owes, and what the filterbank in particular must tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from avbench.features.encoder import Encoder
from avbench.features.encoders.filterbank import FilterbankEncoder, log_mel
from avbench.features.store import hash_preset

RED, BLUE, GREY = (220, 30, 30), (30, 30, 220), (90, 90, 90)


def encoded(encoder: Encoder, path: Path) -> tuple[np.ndarray, np.ndarray]:
    (features,) = encoder.encode([encoder.read(path)])
    return features


@pytest.fixture
def encoder() -> Encoder:
    return FilterbankEncoder()


def blinking_square(grey: np.ndarray, top: int, left: int) -> np.ndarray:
    frames = grey.copy()
    frames[::2, top : top + 12, left : left + 12] = RED
    return frames


def test_shapes_scale_and_repeatability(
    encoder: Encoder, write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    path = write_clip(blinking_square(plain(GREY, each=20), 0, 0), tone(440))
    audio, visual = encoded(encoder, path)
    assert audio.shape == (encoder.dim,)
    assert visual.shape == (encoder.frames * encoder.cells, encoder.dim)
    assert audio.dtype == visual.dtype == np.float32
    assert 0.1 < audio.std() < 5
    assert 0.1 < visual.std() < 5
    again = encoded(FilterbankEncoder(), path)
    np.testing.assert_array_equal(audio, again[0])
    np.testing.assert_array_equal(visual, again[1])


def test_the_description_can_be_hashed(encoder: Encoder) -> None:
    assert encoder.describe()["name"] == encoder.name
    assert len(hash_preset(encoder.describe())) == 64


def test_a_still_and_silent_clip_is_finite(
    encoder: Encoder, write_clip: Callable, plain: Callable
) -> None:
    black = plain((0, 0, 0), each=3)
    for seconds in (0.05, 2.0):
        silence = np.zeros((1, int(16_000 * seconds)), np.float32)
        audio, visual = encoded(encoder, write_clip(black, silence))
        assert np.isfinite(audio).all()
        assert np.isfinite(visual).all()


def test_the_token_of_a_cell_says_what_is_in_it(
    encoder: Encoder, write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    grey = plain(GREY, each=20)
    _, empty = encoded(encoder, write_clip(grey, tone(440)))
    for row, column in ((0, 0), (1, 3), (4, 4)):
        frames = blinking_square(grey, row * 64 // 5 + 1, column * 64 // 5 + 1)
        _, tokens = encoded(encoder, write_clip(frames, tone(440)))
        changed = np.linalg.norm(tokens - empty, axis=1).reshape(8, 25)
        assert (changed.argmax(axis=1) == row * 5 + column).all()


def test_tokens_follow_time(
    encoder: Encoder, write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    _, tokens = encoded(encoder, write_clip(plain(RED, BLUE), tone(440)))
    tokens = tokens.reshape(8, 25, -1)
    early, late = tokens[1, 12], tokens[6, 12]
    np.testing.assert_allclose(tokens[2, 12], early, atol=0.2)
    assert np.linalg.norm(late - early) > 3


def test_sound_and_sight_do_not_mix(
    encoder: Encoder, write_clip: Callable, plain: Callable, tone: Callable
) -> None:
    low, tokens = encoded(encoder, write_clip(plain(RED), tone(300)))
    high, same_tokens = encoded(encoder, write_clip(plain(RED), tone(3000)))
    same_low, _ = encoded(encoder, write_clip(plain(BLUE), tone(300)))
    assert np.linalg.norm(high - low) > 3
    np.testing.assert_array_equal(low, same_low)
    np.testing.assert_array_equal(tokens, same_tokens)


def test_the_log_mel_spectrogram_is_kaldi_s() -> None:
    noise = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    expected = fbank(
        torch.from_numpy(noise)[None],
        sample_frequency=16_000,
        num_mel_bins=64,
        window_type="hanning",
        dither=0.0,
    )
    np.testing.assert_allclose(log_mel(noise), np.maximum(expected.numpy(), -8), atol=2e-3)
