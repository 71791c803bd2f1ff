"""Renders the clips of toy-ci: real MP4 files, made on the spot from nothing but their ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile
from avbench.media.sources.toy_looks import FPS, LOOKS, SIZE, Array, background, film
from avbench.media.sources.toy_sounds import RATE, SOUNDS, noise, play
from avbench.types import UsageError

LEAD_S = 0.5
"""What a rendered video shows before the clip starts: another scene, quiet."""
_TAIL_S = 0.2
_LEAD_LEVEL = 0.003
_AAC_SAMPLES = 1024


class RenderSource:
    """Videos of one thing that looks and sounds, for labels such as `disk thud`.

    The same clip id and label give the same bytes. Each video is longer than its clip, as a video
    from the web would be.

    Args:
        spec: The benchmark.
        argument: Nothing.
        network: Not used.

    Raises:
        UsageError: If there is an argument.
    """

    by_label = True

    def __init__(
        self,
        spec: BenchmarkSpec,
        argument: str | None,
        network: Network,  # noqa: ARG002
    ) -> None:
        if argument is not None:
            raise UsageError("source render: takes no argument: write just render")
        self._clip_s = spec.clip_seconds

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Render a clip's video.

        Raises:
            ClipUnavailable: If its label is not a look and a sound.
        """
        look, _, sound = clip.label.partition(" ")
        if look not in LOOKS or sound not in SOUNDS:
            detail = f"{clip.label!r} is not a look and a sound"
            raise ClipUnavailable("cannot be rendered", permanent=True, detail=detail)
        seed = hashlib.sha256(f"toy-ci\n{clip.clip_id}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(seed, np.uint32))

        shown_s = self._clip_s + _TAIL_S
        samples, loudness = play(sound, shown_s, rng)
        at = (np.arange(round(shown_s * FPS)) * RATE / FPS).astype(int)
        frames = film(look, loudness[at], rng)
        lead = (np.clip(background(rng), 0, 1) * 255).astype(np.uint8)
        frames = np.concatenate([np.stack([lead] * round(LEAD_S * FPS)), frames])
        samples = np.concatenate([noise(LEAD_S, rng) * np.float32(_LEAD_LEVEL), samples])
        path = scratch / "rendered.mp4"
        _encode(path, frames, samples)
        return SourceFile(path, LEAD_S)


def _encode(path: Path, frames: np.ndarray, samples: Array) -> None:
    """Write frames (n, height, width, 3) and samples (n,) as H.264 and AAC."""
    same_bytes = {"fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", container_options=same_bytes) as container:
        quick = {"preset": "ultrafast", "crf": "16", "flags": "+bitexact"}
        video = container.add_stream("libx264", rate=FPS, options=quick)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        fast = {"aac_coder": "fast", "flags": "+bitexact"}
        audio = container.add_stream("aac", rate=RATE, options=fast)
        audio.codec_context.layout = "mono"
        audio.bit_rate = 64_000
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        for at in range(0, len(samples), _AAC_SAMPLES):
            part = samples[None, at : at + _AAC_SAMPLES]
            sound = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = RATE, at
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
