"""What a clip really holds, found by decoding all of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

TOLERANCE_S = 0.5
"""By how many seconds lengths may differ before it counts."""

_SILENT_DB = -80.0
# Every so many frames a small grey picture is compared with the first; coding alone changes less.
_LOOK_EVERY, _LOOK, _STILL = 10, 16, 4.0
_CLOCK = re.compile(r"(\d+):(\d+):(\d+\.?\d*)")


class InvalidClip(Exception):  # noqa: N818 - a finding, not a fault
    """A file that cannot serve as a clip.

    Attributes:
        reason: What is wrong, in words that are the same for every such file.
        detail: The particulars of this file.
        lasting: Whether it is the video that is so, and not how it was transmitted.
    """

    def __init__(self, reason: str, detail: str = "", *, lasting: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.lasting = lasting


@dataclass(frozen=True)
class ClipInfo:
    """A decoded clip.

    Attributes:
        video_s: Length of the frames that decode, in seconds.
        audio_s: Length of the sound that decodes, in seconds.
        frames: Number of frames that decode.
        width: Of a frame, in pixels.
        height: Of a frame, in pixels.
        sample_rate: Of the sound, in Hz.
        level_db: Highest sample of the sound, in dB of full scale.
        still: Whether the picture never changes.
    """

    video_s: float
    audio_s: float
    frames: int
    width: int
    height: int
    sample_rate: int
    level_db: float
    still: bool


@contextmanager
def opened(path: Path, *, lasting: bool = True) -> Iterator[InputContainer]:
    """Open a file that has both a video and an audio stream.

    Args:
        path: The file.
        lasting: Whether a stream that is missing has never been there.

    Raises:
        InvalidClip: If it lacks one, or cannot be decoded while it is open.
    """
    try:
        with av.open(str(path.absolute())) as container:
            if not container.streams.video:
                raise InvalidClip("no video stream", lasting=lasting)
            if not container.streams.audio:
                raise InvalidClip("no audio stream", lasting=lasting)
            yield container
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise InvalidClip("undecodable", getattr(error, "strerror", None) or str(error)) from error


def promised_ends(container: InputContainer) -> tuple[float, ...]:
    """Return when pictures and sound end by the file's header, in seconds from its beginning.

    Of a stream it does not speak of, when the file ends; nothing where it does not say that either.
    """
    if container.duration is None:
        return ()
    begin_s, length_s = (
        (container.start_time or 0) / av.time_base,
        container.duration / av.time_base,
    )

    def end_s(stream: VideoStream | AudioStream) -> float:
        if clock := _CLOCK.fullmatch(stream.metadata.get("DURATION", "")):  # Matroska's way
            hours, minutes, seconds = map(float, clock.groups())
            last_s = 3600 * hours + 60 * minutes + seconds
        elif stream.duration is not None and stream.time_base is not None:
            last_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        else:
            return length_s
        return min(last_s - begin_s, length_s)

    return end_s(container.streams.video[0]), end_s(container.streams.audio[0])


def validate(path: Path, *, seconds: float, at_least_s: float = 0.0) -> ClipInfo:
    """Decode a clip from end to end and measure it.

    A clip shorter than its window is valid, down to half a second: see `ClipInfo.video_s`.

    Args:
        path: The clip.
        seconds: Length of the window it was cut to.
        at_least_s: Length it must have, for the video it was cut from promises as much.

    Raises:
        InvalidClip: If it is not a clip with pictures and sound of one length.
    """
    frames = samples = 0
    peak = change = 0.0
    first: npt.NDArray[np.int16] | None = None
    # It was cut from a video that had both streams.
    with opened(path, lasting=False) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = 1  # clips run in parallel, frames need not
        rate = float(video.average_rate or 0)
        if video.duration is not None and video.time_base is not None:
            promised_s = float(video.duration * video.time_base)
        else:
            promised_s = (container.duration or 0) / av.time_base
        to_float = av.AudioResampler(format="fltp")
        for frame in container.decode(video, audio):
            if isinstance(frame, av.VideoFrame):
                if frames % _LOOK_EVERY == 0:
                    look = frame.reformat(_LOOK, _LOOK, "gray").to_ndarray().astype(np.int16)
                    first = look if first is None else first
                    change = max(change, float(np.abs(look - first).max()))
                frames += 1
            elif isinstance(frame, av.AudioFrame):
                samples += frame.samples
                for part in to_float.resample(frame):
                    peak = max(peak, float(np.abs(part.to_ndarray()).max(initial=0.0)))
        info = ClipInfo(
            video_s=frames / rate if rate else 0.0,
            audio_s=samples / audio.rate if audio.rate else 0.0,
            frames=frames,
            width=video.width,
            height=video.height,
            sample_rate=audio.rate,
            level_db=20 * math.log10(max(peak, 1e-10)),
            still=change < _STILL,
        )
    _check(info, rate=rate, promised_s=promised_s, seconds=seconds, at_least_s=at_least_s)
    return info


def constant_rate(container: InputContainer, limit: int) -> Fraction:
    """Return the video's average frames per second, at most `limit`."""
    average = container.streams.video[0].average_rate
    return min(average, Fraction(limit)) if average else Fraction(limit)


def _check(
    info: ClipInfo, *, rate: float, promised_s: float, seconds: float, at_least_s: float
) -> None:
    if info.frames == 0 or rate == 0:
        raise InvalidClip("no frames")
    lengths = f"{info.audio_s:.2f} s of sound, {info.video_s:.2f} s of pictures"
    if min(info.audio_s, info.video_s) < at_least_s - TOLERANCE_S:
        raise InvalidClip(
            "shorter than the video's header says", f"{lengths}, not {at_least_s:.2f}"
        )
    if info.video_s < min(TOLERANCE_S, seconds) - 0.5 / rate:
        raise InvalidClip("too short", f"{info.video_s:.2f} s", lasting=True)
    # A truncated file still promises its full length.
    if abs(info.frames - promised_s * rate) > 1.5:
        raise InvalidClip("frames missing", f"{info.frames} of {promised_s * rate:.0f} decode")
    if abs(info.audio_s - info.video_s) > TOLERANCE_S:
        raise InvalidClip("sound and pictures differ in length", lengths)
    if info.level_db < _SILENT_DB:
        raise InvalidClip("silent", f"peak {info.level_db:.0f} dB", lasting=True)
