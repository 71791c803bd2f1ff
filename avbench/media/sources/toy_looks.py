"""The looks of toy-ci: six shapes, and scenes in which one of them moves to a sound."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

SIZE = 112
"""Width and height of a frame, in pixels."""
FPS = 10

# Difficulty: raise the jitter, the noise or the distractors to make looks harder to tell apart.
HUE_JITTER = 0.06  # of the colour circle; neighbouring looks are 1/6 apart
RADIUS = (15.0, 24.0)
DISTRACTORS = 2
DISTRACTOR_RADIUS = (8.0, 14.0)
DISTRACTOR_LIGHT = (0.35, 0.75)
PULSE_LIGHT = 0.55  # how much darker the object is in silence
PULSE_RADIUS = 0.30  # and how much smaller
DRIFT = 8.0  # pixels per second, at most
TEXTURE = 0.16
GRAIN = 0.03


def disk(u: Array, v: Array) -> Array:
    """Return a disk; like all looks, positive inside, about 1 unit per radius."""
    return 1 - np.hypot(u, v)


def ring(u: Array, v: Array) -> Array:
    """Return a ring."""
    return 0.25 - np.abs(np.hypot(u, v) - 0.75)


def cross(u: Array, v: Array) -> Array:
    """Return a cross."""
    arms = np.maximum(0.3 - np.abs(u), 0.3 - np.abs(v))
    shape: Array = np.minimum(arms, _square(u, v))
    return shape


def triangle(u: Array, v: Array) -> Array:
    """Return a triangle."""
    shape: Array = np.minimum(v + 0.55, 0.55 - 0.5 * v - 0.866 * np.abs(u))
    return shape


def stripes(u: Array, v: Array) -> Array:
    """Return a square of stripes."""
    shape: Array = np.minimum(_waves(u), _square(u, v))
    return shape


def checker(u: Array, v: Array) -> Array:
    """Return a checkerboard."""
    shape: Array = np.minimum(np.sign(_waves(u)) * _waves(v), _square(u, v))
    return shape


LOOKS: dict[str, Callable[[Array, Array], Array]] = {
    "disk": disk,
    "ring": ring,
    "cross": cross,
    "triangle": triangle,
    "stripes": stripes,
    "checker": checker,
}


@dataclass(frozen=True)
class Thing:
    """Something on screen.

    Attributes:
        look: One of `LOOKS`.
        centre: Where it is at the beginning, in pixels (x, y).
        drift: Its speed, in pixels per second (x, y).
        radius: At its largest, in pixels.
        angle: By which it is turned, in radians.
        colour: At its brightest, red, green and blue from 0 to 1.
    """

    look: str
    centre: Array
    drift: Array
    radius: float
    angle: float
    colour: Array

    def draw(self, frame: Array, time_s: float, pulse: float) -> None:
        """Draw it on a frame (height, width, 3), between dark and small (0) and full (1)."""
        radius = self.radius * (1 - PULSE_RADIUS * (1 - pulse))
        colour = self.colour * np.float32(1 - PULSE_LIGHT * (1 - pulse))
        x, y = self.centre + self.drift * np.float32(time_s)
        # Only the square around it can change; its corners reach out by 1.3 radii.
        left, right = (int(np.clip(x + s * 1.3 * radius, 0, SIZE)) for s in (-1, 1))
        top, bottom = (int(np.clip(y + s * 1.3 * radius, 0, SIZE)) for s in (-1, 1))
        dx = (np.arange(left, right, dtype=np.float32) - x)[None, :] / radius
        dy = (np.arange(top, bottom, dtype=np.float32) - y)[:, None] / radius
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        inside = LOOKS[self.look](cos * dx + sin * dy, cos * dy - sin * dx)
        mask = np.clip(inside * radius + 0.5, 0, 1)[:, :, None]
        part = frame[top:bottom, left:right]
        part += mask * (colour - part)


def film(look: str, loudness: Array, rng: Rng) -> npt.NDArray[np.uint8]:
    """Film a scene in which one thing pulses to a sound, and others do not.

    Args:
        look: The look of the thing that sounds, one of `LOOKS`.
        loudness: Of its sound, 0 to 1, one per frame.
        rng: Where every choice comes from.

    Returns:
        Frames (n, height, width, 3), red, green and blue.
    """
    others = [str(other) for other in rng.permutation([o for o in LOOKS if o != look])]
    places = _places(1 + DISTRACTORS, rng)
    extras = [
        _thing(other, place, rng, DISTRACTOR_RADIUS, rng.uniform(*DISTRACTOR_LIGHT))
        for other, place in zip(others, places[1:], strict=False)
    ]
    sounding = _thing(look, places[0], rng, RADIUS, 1.0)
    scene = background(rng)
    grain = rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32) * GRAIN
    frames = np.empty((len(loudness), SIZE, SIZE, 3), np.uint8)
    for n, pulse in enumerate(loudness):
        frame = scene + np.roll(grain, tuple(rng.integers(0, SIZE, 2)), (0, 1))
        for extra in extras:
            extra.draw(frame, n / FPS, 1.0)
        sounding.draw(frame, n / FPS, float(pulse))
        frames[n] = np.clip(frame * 255, 0, 255)
    return frames


def background(rng: Rng) -> Array:
    """Return a softly textured, tinted backdrop (height, width, 3)."""
    coarse = rng.standard_normal((7, 7, 1)) * TEXTURE + rng.standard_normal((7, 7, 3)) * TEXTURE / 3
    at = np.linspace(0, 6, SIZE)[:, None]
    blend = np.clip(1 - np.abs(at - np.arange(7)), 0, 1)
    soft = np.einsum("yi,xj,ijc->yxc", blend, blend, coarse, optimize=True)
    tint = rng.uniform(0.2, 0.5) + rng.uniform(-0.1, 0.1, 3)
    scene: Array = np.asarray(tint + soft, np.float32)
    return scene


def _thing(look: str, place: Array, rng: Rng, radius: tuple[float, float], light: float) -> Thing:
    hue = list(LOOKS).index(look) / len(LOOKS) + rng.normal(0, HUE_JITTER)
    colour = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 0.95), rng.uniform(0.8, 1.0) * light)
    return Thing(
        look=look,
        centre=place,
        drift=rng.uniform(-DRIFT, DRIFT, 2).astype(np.float32),
        radius=rng.uniform(*radius),
        angle=rng.uniform(-0.4, 0.4),
        colour=np.asarray(colour, np.float32),
    )


def _places(count: int, rng: Rng) -> Array:
    """Spread things over the four quarters of the screen, so that they hardly overlap."""
    quarters = rng.permutation(4)[:count]
    middles = np.stack([quarters % 2, quarters // 2], axis=1) * 0.5 + 0.25
    return ((middles + rng.uniform(-0.07, 0.07, (count, 2))) * SIZE).astype(np.float32)


def _square(u: Array, v: Array) -> Array:
    shape: Array = 0.9 - np.maximum(np.abs(u), np.abs(v))
    return shape


def _waves(u: Array) -> Array:
    waves: Array = np.sin(2.5 * np.pi * u) / (2.5 * np.pi)
    return waves
