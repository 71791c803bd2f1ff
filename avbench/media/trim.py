"""Cutting a clip out of a video, exact to the frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ffmpeg

from avbench.media.ffmpeg import FfmpegEnded, FfmpegError, run
from avbench.media.probe import TOLERANCE_S, InvalidClip, constant_rate, opened, promised_ends
from avbench.media.sources.base import ClipUnavailable

_MAX_RATE = 25
_TIMEOUT_S = 300.0


def trim(source: Path, target: Path, *, start_s: float | None, seconds: float) -> float:
    """Cut `seconds` of a video and encode them as H.264 and AAC; same input, same bytes.

    The frame rate stays the source's own, made constant, at most 25; an odd width or height loses
    a line, a rotated picture is turned upright, and more than two channels of sound become two.

    Args:
        source: The video.
        target: The MP4 to write.
        start_s: Where the clip starts in the video, in seconds; None for its beginning.
        seconds: Length of the clip; a video whose pictures or sound end earlier gives a shorter
            one.

    Returns:
        How long the video's header makes the clip, in seconds: one that is shorter has lost its
        end on the way. 0 where the header does not say.

    Raises:
        InvalidClip: If the video lacks a stream, ends before the clip starts, or is damaged.
        ClipUnavailable: If ffmpeg was ended from outside.
        OSError: If the disk is full.
    """
    with opened(source) as container:
        rate = constant_rate(container, _MAX_RATE)
        ends = promised_ends(container)
        is_stream = "mpegts" in container.format.name
    lengths = [min(end - (start_s or 0.0), seconds) for end in ends]
    if min(lengths, default=seconds) <= 0:
        what = "the video ends" if max(ends) <= (start_s or 0.0) else "pictures or sound end"
        lasting = " and ".join(f"{end:.2f} s" for end in ends)
        detail = f"pictures and sound last {lasting}, the clip starts at {start_s or 0:g} s"
        raise InvalidClip(f"{what} before the clip starts", detail, lasting=True)
    if is_stream:
        source, start_s = _seekable(source, target.with_name("seekable.mkv"), start_s)

    # Before the input, -ss seeks to a key frame and then decodes up to the exact time.
    begin = {} if start_s is None else {"ss": start_s}
    video = ffmpeg.input(str(source.absolute()), threads=1, **begin)
    frames = (
        video["v:0"]
        .filter("fps", fps=f"{rate.numerator}/{rate.denominator}", start_time=0)
        .filter("scale", "trunc(iw/2)*2", "trunc(ih/2)*2")
    )
    # first_pts keeps sound that starts late in its place.
    sound = video["a:0"].filter("aresample", **{"async": 1, "first_pts": 0})
    sound = sound.filter("aformat", channel_layouts="mono|stereo")
    encoding = {
        "t": seconds,
        "vcodec": "libx264",
        "preset": "veryfast",
        "crf": 20,
        "pix_fmt": "yuv420p",
        "acodec": "aac",
        "aac_coder": "fast",  # at this bit rate as good, at half the time
        "b:a": "128k",
        "movflags": "+faststart",
    }
    same_bytes = {
        "threads": 1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
        "flags:a": "+bitexact",
        "map_metadata": -1,
        "map_chapters": -1,
    }
    # Only as announced: a stream that ends early for any other reason has lost its end.
    one_ends_early = lengths and max(lengths) - min(lengths) > TOLERANCE_S
    until = {"shortest": None} if one_ends_early else {}
    graph = ffmpeg.output(
        frames, sound, str(target.absolute()), format="mp4", **encoding, **until, **same_bytes
    )
    _run(graph)
    return min(lengths, default=0.0)


def _seekable(source: Path, target: Path, start_s: float | None) -> tuple[Path, float]:
    """Put a transport stream, in which seeking is not exact, into a container where it is.

    Returns:
        The new file, and where the clip starts in it: its time runs from the first sound, which
        may be a little before the first picture.
    """
    streams = ffmpeg.input(str(source.absolute()))
    copied = ffmpeg.output(
        streams["v:0"], streams["a:0"], str(target.absolute()), format="matroska", c="copy"
    )
    _run(copied)
    with opened(target) as container:
        video = container.streams.video[0]
        lead_s = float((video.start_time or 0) * (video.time_base or 0))
    return target, (start_s or 0.0) + lead_s


def _run(graph: Any) -> None:
    try:
        run(graph, timeout_s=_TIMEOUT_S)
    except FfmpegEnded as error:
        raise ClipUnavailable("ffmpeg was ended", permanent=False, detail=str(error)) from error
    except FfmpegError as error:
        raise InvalidClip("cannot be cut", str(error)) from error
