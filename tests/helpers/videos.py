"""Videos whose every second is known, and how people pack and serve them."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np

from avbench.media import ffmpeg

SOUND_RATE = 44_100

MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" minBufferTime="PT1S"><Period>
<AdaptationSet contentType="video" mimeType="video/mp4">{videos}</AdaptationSet>
<AdaptationSet contentType="audio" mimeType="audio/mp4"><Representation id="s" bandwidth="9"
 codecs="mp4a.40.2"><BaseURL>sound.m4a</BaseURL></Representation></AdaptationSet></Period></MPD>
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


def marks(path: Path) -> tuple[float, float]:
    """Return when a clip turns white and when its tone starts, in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        white = next(f.time for f in frames if f.to_ndarray(format="gray").mean() > 120)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.1)
            if len(loud):
                return white, frame.time + loud[0] / frame.sample_rate
    raise AssertionError("no tone")


def ffmpeg_made(path: Path, *arguments: str) -> Path:
    command = [ffmpeg.binary(), "-v", "error", "-y", *arguments, str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def packed(folder: Path, kind: str, members: dict[str, Path]) -> str:
    path = folder / f"clips.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, file in members.items():
                archive.write(file, name)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, file in members.items():
                archive.add(file, name)
    return f"archive:{path}"
