"""Small real clips for the tests of features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

RATE = 16_000


@pytest.fixture
def tone() -> Callable[..., npt.NDArray[np.float32]]:
    """A sine, (1, samples)."""

    def make(hertz: float, seconds: float = 2.0) -> npt.NDArray[np.float32]:
        times = np.arange(int(seconds * RATE)) / RATE
        return (0.4 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)[None]

    return make


@pytest.fixture
def plain() -> Callable[..., npt.NDArray[np.uint8]]:
    """Frames of one colour after another, (n, 64, 64, 3)."""

    def make(*colours: tuple[int, int, int], each: int = 10) -> npt.NDArray[np.uint8]:
        frames = np.repeat(np.array(colours, np.uint8), each, axis=0)
        return np.broadcast_to(frames[:, None, None], (len(frames), 64, 64, 3)).copy()

    return make


@pytest.fixture
def write_clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes frames at 10 a second and sound (channels, samples); either may be missing."""

    def write(
        frames: npt.NDArray[np.uint8] | None,
        sound: npt.NDArray[np.float32] | None,
        *,
        late_s: float = 0.0,
        path: Path = tmp_path / "clip.mp4",
    ) -> Path:
        with av.open(str(path), "w") as container:
            if frames is not None:
                video = container.add_stream("libx264", rate=10)
                video.height, video.width = frames.shape[1:3]
                video.pix_fmt = "yuv420p"
            if sound is not None:
                layout = "mono" if len(sound) == 1 else "stereo"
                audio = container.add_stream("aac", rate=RATE, layout=layout)
            for image in () if frames is None else frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if frames is not None:
                container.mux(video.encode(None))
            for at in () if sound is None else range(0, sound.shape[1], 1024):
                part = np.ascontiguousarray(sound[:, at : at + 1024])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = RATE, at + round(late_s * RATE)
                container.mux(audio.encode(frame))
            if sound is not None:
                container.mux(audio.encode(None))
        return path

    return write
