"""The sounds of toy-ci: six families of repeated events, each with its envelope."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

RATE = 16_000
"""Samples per second."""

# Difficulty: raise the noise or the distractor to make sounds harder to tell apart.
SNR_DB = (-8.0, 10.0)
DISTRACTOR_CHANCE = 0.6
DISTRACTOR_DB = (-12.0, -1.0)
LEVEL_DB = (-26.0, -10.0)
EVENTS_PER_S = (1.6, 3.4)
PITCH_JITTER = 1.6  # largest factor, up or down
NOISE_TILT = (0.0, 1.2)  # 0 is white, 1 is pink


def thud(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a drum's low hit, its pitch falling."""
    phase = 2 * np.pi * (80 * pitch * t + 4 * (1 - np.exp(-t / 0.03)))
    hit: Array = np.sin(phase) * _decay(t, rng.uniform(0.07, 0.15))
    return hit


def bell(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a bell: partials in no harmonic ratio, the high ones fading first."""
    out = np.zeros_like(t)
    for n, ratio in enumerate((1.0, 2.0, 2.76, 5.4)):
        strength = rng.uniform(0.4, 1.0) / (1 + n)
        out += strength * np.sin(2 * np.pi * 520 * pitch * ratio * t) * _decay(t, 0.3 / (1 + n))
    return out


def hiss(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a burst of noise around one frequency, like steam let off."""
    noise = np.fft.rfft(rng.standard_normal(len(t), dtype=np.float32))
    octaves = np.log2(np.fft.rfftfreq(len(t), 1 / RATE) + 1) - np.log2(2200 * pitch)
    shaped = np.fft.irfft(noise * np.exp(-0.5 * (octaves / 0.6) ** 2), len(t))
    burst: Array = shaped * np.sin(np.pi * t / t[-1]) ** 2
    return burst


def chirp(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a bird's rising whistle."""
    length_s = rng.uniform(0.14, 0.24)
    inside = np.clip(t / length_s, 0, 1)
    phase = 2 * np.pi * 900 * pitch * length_s * (inside + 0.8 * inside**2)
    whistle: Array = np.sin(phase) * np.sin(np.pi * inside)
    return whistle


def buzz(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a sawtooth with vibrato, like an insect."""
    cycles = 150 * pitch * t + 0.8 * np.sin(2 * np.pi * rng.uniform(5, 8) * t)
    gate = np.clip(np.minimum(t, 0.24 - t) / 0.03, 0, 1)
    gated: Array = (2 * (cycles % 1) - 1) * gate
    return gated


def clicks(t: Array, pitch: float, rng: Rng) -> Array:
    """Return a rattle: a handful of very short clicks."""
    out = np.zeros_like(t)
    gap = rng.uniform(0.025, 0.05)
    for n in range(5):
        since = t - n * gap
        ringing = np.sin(2 * np.pi * 2600 * pitch * since) * np.exp(-np.abs(since) / 0.0025)
        out += np.where(since >= 0, ringing, 0)
    return out


SOUNDS: dict[str, Callable[[Array, float, Rng], Array]] = {
    "thud": thud,
    "bell": bell,
    "hiss": hiss,
    "chirp": chirp,
    "buzz": buzz,
    "clicks": clicks,
}


def play(name: str, seconds: float, rng: Rng) -> tuple[Array, Array]:
    """Play one sound over noise, now and then with another one faintly behind it.

    Args:
        name: One of `SOUNDS`.
        seconds: Length.
        rng: Where every choice comes from.

    Returns:
        Samples within -1 to 1, and the loudness of the named sound alone at every sample, 0 to 1.
    """
    clean = _repeat(name, seconds, rng)
    loudness = _smooth(np.abs(clean))
    mixed = clean / _rms(clean)
    if rng.random() < DISTRACTOR_CHANCE:
        other = _repeat(str(rng.choice([s for s in SOUNDS if s != name])), seconds, rng)
        mixed = mixed + other / _rms(other) * _gain(rng, DISTRACTOR_DB)
    snr_db = rng.uniform(*SNR_DB)
    mixed = mixed + noise(seconds, rng) * 10 ** (-snr_db / 20)
    mixed = mixed / _rms(mixed) * _gain(rng, LEVEL_DB)
    return np.clip(mixed, -1, 1).astype(np.float32), loudness / loudness.max()


def noise(seconds: float, rng: Rng) -> Array:
    """Return background noise of random colour, with a root mean square of 1."""
    n = round(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(n, dtype=np.float32))
    hertz = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 40)
    coloured = np.fft.irfft(spectrum * hertz ** (-rng.uniform(*NOISE_TILT) / 2), n)
    return (coloured / _rms(coloured)).astype(np.float32)


def _repeat(name: str, seconds: float, rng: Rng) -> Array:
    """Place one event again and again, at a pace of its own but not in strict time."""
    event_t = np.arange(round(0.4 * RATE), dtype=np.float32) / RATE
    pitch = PITCH_JITTER ** rng.uniform(-1, 1)
    event = SOUNDS[name](event_t, pitch, rng).astype(np.float32)
    gap = 1 / rng.uniform(*EVENTS_PER_S)
    out = np.zeros(round(seconds * RATE) + len(event), np.float32)
    at = rng.uniform(0, gap)
    while at < seconds:
        first = round(at * RATE)
        out[first : first + len(event)] += event * np.float32(rng.uniform(0.5, 1))
        at += gap * rng.uniform(0.8, 1.2)
    return out[: round(seconds * RATE)] + np.float32(1e-6)


def _decay(t: Array, seconds: float) -> Array:
    fading: Array = np.minimum(t / 0.003, 1) * np.exp(-t / seconds)
    return fading


def _smooth(values: Array) -> Array:
    width = RATE // 20
    total = np.cumsum(np.pad(values, (width // 2, width - width // 2)))
    return (total[width:] - total[:-width]).astype(np.float32) / width


def _rms(values: Array) -> np.float32:
    return np.float32(np.sqrt(np.mean(np.square(values))))


def _gain(rng: Rng, decibels: tuple[float, float]) -> np.float32:
    return np.float32(10 ** (rng.uniform(*decibels) / 20))
