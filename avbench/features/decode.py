"""From a clip's file to the pictures and the sound an encoder sees."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from avbench.types import AvbenchError


@dataclass(frozen=True)
class Decoded:
    """What was in a clip.

    Attributes:
        pictures: (frames, height, width, 3) uint8, RGB, spread over the whole clip.
        waveform: (samples,) float32, mean of all channels, starting with the first picture.
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


def decode(path: Path, *, frames: int, height: int, width: int, sample_rate: int) -> Decoded:
    """Decode the pictures and the sound of a clip.

    Args:
        path: The clip.
        frames: Pictures wanted.
        height: Of a picture, in pixels; the aspect ratio is not kept.
        width: Of a picture, in pixels.
        sample_rate: Of the waveform, in samples a second.

    Raises:
        AvbenchError: If the file is missing or corrupt, or lacks one of the two streams.
    """
    clip = _Pass(height, width, sample_rate)
    try:
        expected = clip.read(path, frames)
        if clip.seen > expected:  # The header is silent on the number.
            expected, clip = clip.seen, _Pass(height, width, sample_rate)
            clip.read(path, frames, expected)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unusable(path, "cannot be decoded") from error
    if clip.seen < expected:
        raise _unusable(path, f"cut short: {clip.seen} of {expected} frames can be decoded")
    if not clip.seen or not clip.sound:
        raise _unusable(path, f"no {'sound' if clip.seen else 'picture'} in it can be decoded")
    pictures = [clip.pictures[number] for number in frame_numbers(expected, frames)]
    return Decoded(np.stack(pictures), clip.waveform(), sample_rate)


class _Pass:
    """One pass over a file, keeping the pictures asked for and all the sound."""

    def __init__(self, height: int, width: int, sample_rate: int) -> None:
        self._height, self._width, self._sample_rate = height, width, sample_rate
        # Made once: every frame's own would compute its tables anew.
        self._reformatter = VideoReformatter()
        self._resampler = av.AudioResampler(format="fltp", rate=sample_rate)
        self._starts: dict[str, float] = {}
        self.sound: list[npt.NDArray[np.float32]] = []
        self.pictures: dict[int, npt.NDArray[np.uint8]] = {}
        self.seen = 0

    def read(self, path: Path, frames: int, expected: int | None = None) -> int:
        """Read a file of so many frames, or as many as its header says; return that number."""
        with av.open(str(path)) as container:
            if not container.streams.video or not container.streams.audio:
                missing = "sound" if container.streams.video else "picture"
                raise _unusable(path, f"it has no {missing}")
            video, audio = container.streams.video[0], container.streams.audio[0]
            # Clips are decoded side by side: a second thread for one only gets in the way.
            video.codec_context.thread_count = 1
            expected = video.frames if expected is None else expected
            wanted = set(frame_numbers(expected, frames))
            for frame in container.decode(video, audio):
                if isinstance(frame, av.AudioFrame):
                    self._keep_sound(frame)
                elif isinstance(frame, av.VideoFrame):
                    self._keep_picture(frame, wanted)
            if self.sound:
                self._keep_sound(None)
        return expected

    def _keep_picture(self, frame: av.VideoFrame, wanted: set[int]) -> None:
        self._starts.setdefault("pictures", frame.time or 0.0)
        self.seen += 1
        if self.seen in wanted:
            small = self._reformatter.reformat(frame, self._width, self._height, "rgb24")
            self.pictures[self.seen] = np.asarray(small.to_ndarray(), dtype=np.uint8)

    def _keep_sound(self, frame: av.AudioFrame | None) -> None:
        if frame is not None:
            self._starts.setdefault("sound", frame.time or 0.0)
        for part in self._resampler.resample(frame):
            # A plain mean: the resampler's own down-mix would scale it by the square root of two.
            self.sound.append(part.to_ndarray().mean(axis=0, dtype=np.float32))

    def waveform(self) -> npt.NDArray[np.float32]:
        """Return the sound from the first picture on, with silence before it if it starts later."""
        sound = np.concatenate(self.sound)
        late = round((self._starts["sound"] - self._starts["pictures"]) * self._sample_rate)
        return np.pad(sound, (late, 0)) if late >= 0 else sound[-late:]


def _unusable(path: Path, cause: str) -> AvbenchError:
    return AvbenchError(f"{path}: {cause}; delete it and fetch it again with avbench prepare")
