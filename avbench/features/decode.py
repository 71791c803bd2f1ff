"""From a clip's file to the pictures and the sound an encoder sees."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from avbench.types import AvbenchError

if TYPE_CHECKING:
    Packet = av.Packet[Any]


@dataclass(frozen=True)
class Decoded:
    """What was in a clip.

    Attributes:
        pictures: (frames, height, width, 3) uint8, RGB, spread over the whole clip.
        waveform: (samples,) float32, mean of all channels, or (2, samples), left and right;
            starting with the first picture.
        sample_rate: Samples a second of the waveform.
    """

    pictures: npt.NDArray[np.uint8]
    waveform: npt.NDArray[np.float32]
    sample_rate: int


def frame_numbers(count: int, frames: int) -> list[int]:
    """Return which frames of a clip are looked at, from 1: the first, the last, evenly between.

    The rule of AV-CIL's code for 16 frames; a clip with too few frames repeats some.

    Args:
        count: Frames the clip has.
        frames: Frames wanted, at least 2.
    """
    between = (1 + floor((i + 1) * count / (frames - 1) + 0.5) for i in range(frames - 2))
    return [1, *(min(number, count) for number in between), count]


def at_rate(times: Sequence[Fraction], end: Fraction, rate: int) -> tuple[list[int], range]:
    """Return at which tick of a clock each frame begins to be shown, and all the ticks.

    As ffmpeg's fps filter has it; see `shown_at`.

    Args:
        times: When each frame begins to be shown, in seconds, ascending.
        end: When the last one ends.
        rate: Ticks a second.
    """
    begins = [floor(time * rate + Fraction(1, 2)) for time in times]
    ends = floor(end * rate + Fraction(1, 2))
    return begins, range(begins[0], max(begins[0] + 1, ends))


def shown_at(tick: int, begins: Sequence[int]) -> int:
    """Return which frame, from 0, is shown at a tick: the last that has begun."""
    return bisect_right(begins, tick) - 1


def decode(
    path: Path,
    *,
    frames: int,
    height: int,
    width: int,
    sample_rate: int,
    rate: int | None = None,
    crop: bool = False,
    stereo: bool = False,
) -> Decoded:
    """Decode the pictures and the sound of a clip.

    Args:
        path: The clip.
        frames: Pictures wanted.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        sample_rate: Of the waveform, in samples a second.
        rate: Choose among so many frames a second, not among all the clip has.
        crop: Keep the aspect ratio, and cut off what is too much on both sides.
        stereo: Keep two channels, not their mean.

    Raises:
        AvbenchError: If the file is missing or corrupt, or lacks one of the two streams.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video or not container.streams.audio:
                missing = "sound" if container.streams.video else "picture"
                raise _unusable(path, f"it has no {missing}")
            video, audio = container.streams.video[0], container.streams.audio[0]
            if video.codec_context is None or audio.codec_context is None:
                raise _unusable(path, "in a format unknown here")
            packets: list[Packet] = [p for p in container.demux(video, audio) if p.size]
            if any(packet.is_corrupt for packet in packets):
                raise _unusable(path, "cut short: it ends within a frame")
            seen = [packet for packet in packets if packet.stream_index == video.index]
            heard = [packet for packet in packets if packet.stream_index == audio.index]
            shown = _Shown.of(path, video, [packet for packet in seen if not packet.is_discard])
            wanted = shown.choose(frames, rate)
            size = _scaled(video.width, video.height, height, width) if crop else (width, height)
            pictures = _pictures(video, seen, set(wanted), size)
            sound, start = _sound(audio, heard, sample_rate, "stereo" if stereo else None)
    except (av.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        raise _unusable(path, "cannot be decoded") from error
    if len(pictures) < len(set(wanted)):
        lost = len(set(wanted)) - len(pictures)
        raise _unusable(path, f"damaged: {lost} of {len(set(wanted))} frames cannot be decoded")
    if sound is None:
        raise _unusable(path, "no sound in it can be decoded")
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    cut = np.stack([pictures[pts] for pts in wanted])
    late = round((start - float(shown.times[0])) * sample_rate)
    if late > (shown.end - shown.times[0]) * sample_rate:
        raise _unusable(path, "its sound starts when the pictures have ended")
    # Silence before sound that starts later than the pictures.
    sound = np.pad(sound, ((0, 0), (late, 0))) if late >= 0 else sound[:, -late:]
    return Decoded(
        cut[:, top : top + height, left : left + width],
        sound if stereo else sound.mean(axis=0, dtype=np.float32),
        sample_rate,
    )


@dataclass(frozen=True)
class _Shown:
    """When the frames of a clip are shown: their ticks, ascending, and the times, in seconds."""

    pts: list[int]
    times: list[Fraction]
    end: Fraction

    @classmethod
    def of(cls, path: Path, video: VideoStream, packets: list[Packet]) -> _Shown:
        if not packets:
            raise _unusable(path, "no picture in it can be decoded")
        if len(packets) < video.frames:  # a header without a number says 0
            raise _unusable(path, f"cut short: it holds {len(packets)} of {video.frames} frames")
        lengths = {packet.pts: packet.duration or 0 for packet in packets if packet.pts is not None}
        if len(lengths) < len(packets):
            raise _unusable(path, "its frames do not say when they are shown")
        pts, tick = sorted(lengths), video.time_base or Fraction(1)
        return cls(pts, [at * tick for at in pts], (pts[-1] + lengths[pts[-1]]) * tick)

    def choose(self, frames: int, rate: int | None) -> list[int]:
        """Return the ticks of the frames that are looked at, which may repeat."""
        if rate is None:
            return [self.pts[number - 1] for number in frame_numbers(len(self.pts), frames)]
        begins, ticks = at_rate(self.times, self.end, rate)
        numbers = frame_numbers(len(ticks), frames)
        return [self.pts[shown_at(ticks[number - 1], begins)] for number in numbers]


def _pictures(
    video: VideoStream, packets: list[Packet], wanted: set[int], size: tuple[int, int]
) -> dict[int, npt.NDArray[np.uint8]]:
    """Decode the frames wanted, scaled to (width, height), by their ticks."""
    context = video.codec_context
    # Clips are decoded side by side: a second thread for one only gets in the way.
    context.thread_count = 1
    # Made once: every frame's own would compute its tables anew.
    reformatter = VideoReformatter()
    found = {}
    for packet in [*packets, None]:
        # Nothing is lost by skipping a frame that no other refers to, and a third of the time won.
        is_wanted = packet is None or packet.pts in wanted
        context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        for frame in context.decode(packet):
            if frame.pts in wanted:
                small = reformatter.reformat(frame, *size, "rgb24")
                found[frame.pts] = np.asarray(small.to_ndarray(), dtype=np.uint8)
    return found


def _sound(
    audio: AudioStream, packets: list[Packet], rate: int, layout: str | None
) -> tuple[npt.NDArray[np.float32] | None, float]:
    """Decode all sound, (channels, samples), and say when it starts, in seconds."""
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    parts, start = [], 0.0
    decoded = [frame for packet in [*packets, None] for frame in audio.codec_context.decode(packet)]
    if decoded:
        start = decoded[0].time or 0.0
        parts = [
            part.to_ndarray() for frame in [*decoded, None] for part in resampler.resample(frame)
        ]
    return (np.concatenate(parts, axis=1) if parts else None), start


def _scaled(wide: int, high: int, height: int, width: int) -> tuple[int, int]:
    """Width and height of a picture scaled until it just covers (height, width)."""
    if wide * height > high * width:
        return height * wide // high, height
    return width, width * high // wide


def _unusable(path: Path, cause: str) -> AvbenchError:
    return AvbenchError(f"{path}: {cause}; delete it and fetch it again with avbench prepare")
