"""Videos whose every second is known, and benchmarks over them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from avbench.manifests.benchmark import Benchmark
from tests.media.server import MediaServer

SOUND_RATE = 44_100

TOML = """
name = "few"
classes = 2
classes_per_step = 1
clip_seconds = {seconds}
sources = {sources}
annotations = "few.csv"
"""


def write_video(
    path: Path,
    *,
    seconds: float,
    mark_s: float = 0.0,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    sound: str | None = "tone",
    sound_from_s: float = 0.0,
    sound_until_s: float | None = None,
    front: bool = False,
) -> Path:
    """Write a video that is black and quiet up to the mark, then white with a tone of 1 kHz.

    Key frames are five seconds apart. The sound stream may start late or end early.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if front else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("libx264", rate=fps, options={"g": str(5 * fps)})
        video.width, video.height = size
        video.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE) if sound else None
        if audio:
            audio.codec_context.layout = "mono"
        noise = np.random.default_rng(0).integers(0, 20, (size[1], size[0], 3))
        for n in range(round(seconds * fps)):
            image = noise + (200 if n / fps >= mark_s - 1e-9 else 0)
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio:
            t = np.arange(round((sound_until_s or seconds) * SOUND_RATE)) / SOUND_RATE
            tone = 0.3 * np.sin(2 * np.pi * 1000 * t) * (t >= mark_s) * (sound == "tone")
            for at in range(round(sound_from_s * SOUND_RATE), len(t), 1024):
                part = tone[None, at : at + 1024].astype(np.float32)
                block = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                block.sample_rate, block.pts = SOUND_RATE, at
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


@pytest.fixture
def video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaServer]:
    """Give a web server, short pauses, and download slots that no other run holds."""
    monkeypatch.setattr("avbench.media.sources.download._BACKOFF_S", 0.02)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with MediaServer() as server:
        yield server


@pytest.fixture
def few(tmp_path: Path) -> Callable[..., Benchmark]:
    """Make a benchmark of given clip ids, in two classes that can be rendered."""

    def make(
        clip_ids: list[str], *, sources: tuple[str, ...] = (), seconds: float = 1.0
    ) -> Benchmark:
        lines = ["clip_id,label,class_index,split"]
        for n, clip_id in enumerate(clip_ids):
            label = ("disk thud", "ring bell")[n % 2]
            lines.append(f"{clip_id},{label},{n % 2},train")
        folder = tmp_path / "benchmark"
        folder.mkdir(exist_ok=True)
        (folder / "few.csv").write_text("\n".join(lines) + "\n")
        toml = TOML.format(seconds=seconds, sources=list(sources))
        (folder / "few.toml").write_text(toml)
        return Benchmark.load(str(folder / "few.toml"))

    return make
