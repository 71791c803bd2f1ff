"""Weight-free features: what a clip sounds and looks like, from filters anybody can compute.

Every number is a fixed function of one clip: nothing is learned, fitted or downloaded. The scales
below only bring each group of numbers to a magnitude of about 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avbench.features.decode import decode
from avbench.features.encoder import Floats

_RATE, _WINDOW, _HOP, _FFT = 16_000, 400, 160, 512
_MELS, _FLOOR = 64, -8.0
_RATES_HZ = (0.4, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0, 25.0)
_PICTURES, _SIDE, _GRID = 16, 80, 5
_SEED = 230811073


class FilterbankEncoder:
    """Log-mel statistics for sound; colour, edges and motion on a grid of cells for sight."""

    name = "filterbank"
    dim = 128
    frames = _PICTURES // 2
    cells = _GRID * _GRID
    batch_size = 8

    def describe(self) -> dict[str, Any]:
        """Return every choice the features depend on."""
        return {
            "name": self.name,
            "version": 1,
            "dim": self.dim,
            "projection_seed": _SEED,
            "audio": {"sample_rate": _RATE, "channels": "mean", "mels": _MELS, "floor": _FLOOR},
            "visual": {"pictures": _PICTURES, "side": _SIDE, "tubelet": 2, "grid": _GRID},
        }

    def read(self, path: Path) -> tuple[Floats, Floats]:
        """Encode one clip: there is nothing to win from batches.

        Returns:
            Audio (128,) and visual tokens (8 * 25, 128), frame by frame, of magnitude about 1.

        Raises:
            AvbenchError: If the clip cannot be decoded.
        """
        clip = decode(path, frames=_PICTURES, height=_SIDE, width=_SIDE, sample_rate=_RATE)
        sound = _project(describe_sound(clip.waveform), self.dim)
        return sound, _project(describe_sight(clip.pictures), self.dim)

    def encode(self, clips: Sequence[tuple[Floats, Floats]]) -> Sequence[tuple[Floats, Floats]]:
        """Return what `read` made."""
        return clips


def describe_sound(waveform: Floats) -> Floats:
    """Describe the spectrum of a sound, how much it varies, and how fast.

    Args:
        waveform: (samples,) at 16 kHz.

    Returns:
        (128,): cosine coefficients along the mel axis of mean, deviation, change in 50 ms and
        peaks, then how the power of slow changes spreads over their rates, in four bands.
    """
    mels = log_mel(waveform)
    change = np.abs(mels[5:] - mels[:-5]).mean(axis=0)
    middle, peak = np.quantile(mels, (0.5, 0.95), axis=0)
    parts: list[npt.NDArray[Any]] = [
        _along_mel(mels.mean(axis=0) - _FLOOR, 40) / 8,
        _along_mel(mels.std(axis=0), 24) / 3,
        _along_mel(change, 16) / 3,
        _along_mel(peak - middle, 16) / 5,
        _modulation(mels).ravel() * 3,
    ]
    return np.concatenate(parts, dtype=np.float32)


def describe_sight(pictures: npt.NDArray[np.uint8]) -> Floats:
    """Describe colour, edges and motion in every cell of every pair of pictures.

    Args:
        pictures: (16, 80, 80, 3) RGB.

    Returns:
        (8 * 25, 51): mean and deviation of brightness and two opponent colours, change of the mean
        since the pair before, colour by hue, edges by direction, the same two of what moves, and
        motion.
    """
    red, green, blue = np.moveaxis(pictures.astype(np.float32) / 255, -1, 0)
    light, red_green, yellow_blue = (red + green + blue) / 3, red - green, (red + green) / 2 - blue
    opponents = np.stack([light - 0.5, red_green, yellow_blue])
    mean = _pool(opponents)
    spread = np.sqrt(np.maximum(_pool(opponents**2) - mean**2, 0))
    since = np.diff(mean, axis=1, prepend=mean[:, :1])

    # Video stores colour at half the resolution anyway.
    red_green, yellow_blue = red_green[:, ::2, ::2], yellow_blue[:, ::2, ::2]
    hues = _lobes(red_green, yellow_blue, np.hypot(red_green, yellow_blue), 12)
    half = light.reshape(_PICTURES, _SIDE // 2, 2, _SIDE // 2, 2).mean(axis=(2, 4))
    down, across = np.gradient(half, axis=(1, 2))
    # An edge has the same direction from both sides, so its angle counts double.
    edges = _lobes(across**2 - down**2, 2 * across * down, np.hypot(across, down), 8)
    # A token is pooled with its neighbours later: only what moves tells the object from the scene.
    moved = _motion(light)
    pooled_hues, pooled_edges = _pool(hues), _pool(edges)
    mask = moved.repeat(2, axis=1).repeat(2, axis=2)
    hues *= mask
    edges *= mask
    parts = [
        mean * 4,
        spread * 16,
        since * 32,
        pooled_hues * 16,
        pooled_edges * 100,
        _pool(hues) * 200,
        _pool(edges) * 1200,
        _pool(np.stack([moved, moved**2])) * 40,
    ]
    return np.concatenate(parts, dtype=np.float32).reshape(-1, 8 * _GRID * _GRID).T


def log_mel(waveform: Floats) -> Floats:
    """Compute the log-mel spectrogram of Kaldi, Hann window and no dither, above a floor.

    Args:
        waveform: (samples,) at 16 kHz.

    Returns:
        (times, 64): natural logarithm of power, one row every 10 ms, at least eight.
    """
    # In NumPy, since torch's threads and those that encode clips side by side slow each other down.
    samples = np.pad(waveform, (0, max(0, _RATE // 10 - len(waveform))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    windows = windows - windows.mean(axis=1, keepdims=True)
    windows[:, 1:] -= np.float32(0.97) * windows[:, :-1]
    windows[:, 0] *= np.float32(0.03)
    windows *= np.hanning(_WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2
    mel = power[:, :-1] @ _mel_filters()
    return np.log(np.maximum(mel, np.float32(np.exp(_FLOOR)))).astype(np.float32)


@cache
def _mel_filters() -> Floats:
    """Triangles, evenly wide in mel from 20 Hz up to half the sample rate: (256, 64)."""
    low, high = _mel(np.array([20.0, _RATE / 2]))
    width = (high - low) / (_MELS + 1)
    bins = _mel(np.arange(_FFT // 2) * _RATE / _FFT)[:, None]
    distance = np.abs(bins - (low + width * np.arange(1, _MELS + 1))) / width
    return np.asarray(np.maximum(1 - distance, 0), dtype=np.float32)


def _mel(hertz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1127 * np.log1p(hertz / 700))


def _along_mel(curve: Floats, count: int) -> Floats:
    """First cosine coefficients of a curve (64,), coarse ones damped to the size of fine ones."""
    size = np.sqrt((1 + np.arange(count)) / _MELS) * 4
    return np.asarray(_cosines()[:count] @ curve * size, dtype=np.float32)


@cache
def _cosines() -> Floats:
    order, mel = np.arange(_MELS)[:, None], np.arange(_MELS) + 0.5
    waves = np.sqrt(2 / _MELS) * np.cos(np.pi / _MELS * order * mel)
    return np.asarray(waves, dtype=np.float32)


def _modulation(mels: Floats) -> Floats:
    """(times, 64) to (4, 8): root share of each range of rates in the power of changes."""
    bands = mels.reshape(len(mels), 4, -1).mean(axis=2)
    bands = (bands - bands.mean(axis=0)) * np.hanning(len(bands))[:, None]
    power = np.abs(np.fft.rfft(bands, 2048, axis=0)) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(2048, 0.01), _RATES_HZ)
    shares = np.add.reduceat(power, edges, axis=0)[:-1]
    # The constant keeps the rates of next to nothing at nothing.
    return np.asarray(np.sqrt(shares / (shares.sum(axis=0) + len(bands))).T)


def _motion(light: Floats) -> Floats:
    """Change of brightness in blocks of 4 x 4 pixels, the larger of before and after: (16, 20, 20).

    Blocks, because grain and compression flicker in single pixels.
    """
    blocks = light.reshape(len(light), _SIDE // 4, 4, _SIDE // 4, 4).mean(axis=(2, 4))
    change = np.abs(np.diff(blocks, axis=0))
    before, after = np.concatenate([change[:1], change]), np.concatenate([change, change[-1:]])
    return np.asarray(np.maximum(before, after))


def _lobes(x: Floats, y: Floats, weight: Floats, count: int) -> Floats:
    """Spread weights over the directions of vectors, a soft histogram: (count, *weight.shape)."""
    angles = 2 * np.pi * np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1) / count
    length = np.hypot(x, y) + np.float32(1e-6)
    lobes = np.cos(angles) * (x / length)
    lobes += np.sin(angles) * (y / length)
    np.maximum(lobes, 0, out=lobes)
    lobes **= 2
    lobes **= 2
    lobes *= weight
    return np.asarray(lobes)


def _pool(maps: Floats) -> Floats:
    """Average maps (channels, pictures, side, side) over cells of pairs: (channels, 8, 5, 5)."""
    side = maps.shape[-1]
    # Two small matrix products are several times faster than a mean over four axes.
    cells = np.kron(np.eye(_GRID, dtype=np.float32), np.ones((side // _GRID, 1), np.float32))
    summed = cells.T @ (maps @ cells)
    pairs = summed.reshape(len(maps), _PICTURES // 2, -1, _GRID, _GRID).mean(axis=2)
    return np.asarray(pairs * (_GRID / side) ** 2, dtype=np.float32)


def _project(values: Floats, dim: int) -> Floats:
    """Rotate (..., k) into (..., dim), keeping distances and the size of the numbers."""
    width = values.shape[-1]
    return np.asarray(values @ _rotation(dim)[:width] * np.float32(np.sqrt(dim / width)))


@cache
def _rotation(dim: int) -> Floats:
    noise = np.random.Generator(np.random.PCG64(_SEED)).normal(size=(dim, dim))
    rotation, triangle = np.linalg.qr(noise)
    # The signs of a QR decomposition are the library's choice.
    return np.asarray(rotation * np.sign(np.diag(triangle)), dtype=np.float32)
