"""The clips of toy-ci are real, the same every time, and ambiguous to either sense alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import build
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import load_spec
from avbench.media.probe import validate
from avbench.media.sources.base import ClipUnavailable, Network
from avbench.media.sources.render import LEAD_S, RenderSource
from avbench.media.sources.toy_looks import FPS, LOOKS, film
from avbench.media.sources.toy_sounds import RATE, SOUNDS, play

SPEC = load_spec("toy-ci")


@pytest.fixture
def clips() -> list[Clip]:
    return list(build(SPEC))


def test_every_look_and_every_sound_belongs_to_two_classes() -> None:
    pairs = [tuple(label.split()) for label in build(SPEC).labels]
    assert len(set(pairs)) == 12
    for look in LOOKS:
        assert sum(pair[0] == look for pair in pairs) == 2
    for sound in SOUNDS:
        assert sum(pair[1] == sound for pair in pairs) == 2


def test_classes_that_share_something_come_in_different_steps() -> None:
    pairs = [label.split() for label in build(SPEC).labels]
    for step in range(SPEC.steps):
        together = pairs[3 * step : 3 * step + 3]
        assert len({look for look, _ in together}) == 3
        assert len({sound for _, sound in together}) == 3


def test_the_size_of_the_benchmark(clips: list[Clip]) -> None:
    sizes = {s: sum(clip.split == s for clip in clips) for s in ("train", "val", "test")}
    assert sizes == {"train": 384, "val": 96, "test": 144}


def test_the_same_bytes_every_time(tmp_path: Path, clips: list[Clip]) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found = RenderSource(SPEC, None, Network()).fetch(clips[100], tmp_path / name)
        contents.append(found.path.read_bytes())
    assert contents[0] == contents[1]
    other = RenderSource(SPEC, None, Network()).fetch(clips[101], tmp_path)
    assert other.path.read_bytes() != contents[0]


def test_the_video_is_longer_than_its_clip_and_quiet_before_it(
    tmp_path: Path, clips: list[Clip]
) -> None:
    found = RenderSource(SPEC, None, Network()).fetch(clips[0], tmp_path)
    assert found.start_s == LEAD_S
    assert validate(found.path, seconds=2.0).video_s > LEAD_S + SPEC.clip_seconds
    with av.open(str(found.path)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    lead = sound[: round(0.8 * LEAD_S * RATE)]
    assert np.abs(lead).max() < 0.1 * np.abs(sound).max()


@pytest.mark.parametrize("look", list(LOOKS))
@pytest.mark.parametrize("sound", list(SOUNDS))
def test_the_picture_moves_to_the_sound(look: str, sound: str) -> None:
    rng = np.random.default_rng(5)
    samples, loudness = play(sound, 2.0, rng)
    assert samples.dtype == np.float32
    assert 0.05 < np.abs(samples).max() <= 1
    per_frame = loudness[:: RATE // FPS]
    frames = film(look, per_frame, rng)
    assert frames.shape == (20, 112, 112, 3)
    # The thing that sounds is the brightest change on screen.
    bright = frames.astype(float).max(axis=3)
    follows = np.corrcoef(bright.reshape(20, -1).mean(axis=1), per_frame)[0, 1]
    assert follows > 0.5


def test_a_label_that_cannot_be_rendered(tmp_path: Path, few: Callable[..., Benchmark]) -> None:
    clip = Clip("a", None, None, None, "playing theremin", 0, 0, "train", None)
    with pytest.raises(ClipUnavailable, match="not a look and a sound") as caught:
        RenderSource(few(["a"]).spec, None, Network()).fetch(clip, tmp_path)
    assert caught.value.permanent
