"""The names that videos have in folders and archives, and which clip each one holds."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import av

from avbench.manifests.manifest import Clip, clip_id_of
from avbench.media.probe import TOLERANCE_S, InvalidClip, opened
from avbench.media.sources.base import ClipUnavailable, SourceFile

_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"}
_TIMED = re.compile(r"(.+)_(\d{6})_(\d{6})")

T = TypeVar("T")


def video_suffix(path: str) -> str:
    """Return the suffix of a video in lower case; empty for a file that is none.

    Args:
        path: With `/` between folders.
    """
    name = posixpath.basename(path)
    suffix = posixpath.splitext(name)[1].lower()
    # Hidden files include those that macOS puts beside every file.
    return suffix if suffix in _SUFFIXES and not name.startswith(".") else ""


class Names(Generic[T]):
    """Videos by the names that clips go by.

    A clip may be there as `<youtube_id>_<start>_<end>` or `<youtube_id>_<start>` (seconds, six
    digits), as `<clip_id>`, or as the whole video `<youtube_id>`; or under the path its clip id was
    made from.

    Args:
        place: What messages call the place where the videos are.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._videos: list[tuple[str, T]] = []
        self._by_name: dict[str, tuple[T, ...]] = {}

    def add(self, path: str, video: T) -> None:
        """Note a video.

        Args:
            path: Below the place, with `/` between folders.
            video: What stands for it, and tells people where it is as a `str`.
        """
        self._videos.append((path, video))
        for key in _keys(path):
            _note(self._by_name, key, video)

    def find(self, clip: Clip) -> tuple[T, bool]:
        """Return a clip's video, and whether its name says that it was cut already.

        Raises:
            ClipUnavailable: If there is none, or more than one.
        """
        for key, is_cut in _places(clip):
            index = self._by_path if key.startswith("/") else self._by_name
            found = index.get(key, ())
            if len(found) > 1:
                reason = f"more than one file in the {self._place}"
                raise ClipUnavailable(reason, permanent=False, detail=" and ".join(map(str, found)))
            if found:
                return found[0], is_cut
        raise ClipUnavailable(f"not in the {self._place}", permanent=False)

    @cached_property
    def _by_path(self) -> dict[str, tuple[T, ...]]:
        # Takes most of the time and is seldom needed, so it is made late.
        index: dict[str, tuple[T, ...]] = {}
        for path, video in self._videos:
            _note(index, _path_key(path), video)
        return index


class Wanted:
    """Clips by the names that their videos may have: `Names`, the other way round."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            for key in dict(_places(clip)):
                self._clips[key].append(clip)

    def held_by(self, path: str) -> Iterator[tuple[Clip, bool]]:
        """Yield the clips that a video of this name holds, and whether it was cut already."""
        keys = (*_keys(path), _path_key(path))
        clips = {clip.clip_id: clip for key in keys for clip in self._clips.get(key, ())}
        for clip in clips.values():
            yield clip, next(is_cut for key, is_cut in _places(clip) if key in keys)


def source_file(path: Path, clip: Clip, *, is_cut: bool, seconds: float) -> SourceFile:
    """Tell a whole video from a clip already cut, which may bear the same name.

    Args:
        path: The video.
        clip: The clip it holds.
        is_cut: Whether its name says that it was cut already.
        seconds: Length of a clip.
    """
    if is_cut or clip.start_s is None:
        return SourceFile(path, None)
    try:
        with opened(path) as container:
            length_s = (container.duration or 0) / av.time_base
    except InvalidClip:
        return SourceFile(path, clip.start_s)  # whoever cuts it says what is wrong
    fits = clip.start_s + seconds <= length_s + TOLERANCE_S
    looks_cut = length_s <= seconds + 2 * TOLERANCE_S and not fits
    return SourceFile(path, None if looks_cut else clip.start_s)


def _note(index: dict[str, tuple[T, ...]], key: str, video: T) -> None:
    there = index.get(key, ())
    if len(there) < 2:  # two are enough to refuse the name
        index[key] = (*there, video)


# One kind of name is never mistaken for another: its first character tells which it is.


def _keys(path: str) -> Iterator[str]:
    """Yield the names of a video, but for that of its path."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    yield f"={stem}"
    timed = _TIMED.fullmatch(stem)
    if timed:
        yield f"~{timed[1]}"


def _path_key(path: str) -> str:
    return f"/{clip_id_of(path)}"


def _places(clip: Clip) -> Iterator[tuple[str, bool]]:
    """Yield the names a clip's video may have, best first, and whether one means it was cut."""
    video = clip.youtube_id or clip.clip_id
    if clip.start_s is None:
        yield f"~{video}", True  # archives carry the times that a table lacks
    elif clip.start_s.is_integer():  # no name tells part of a second
        start = f"={video}_{clip.start_s:06.0f}"
        if clip.end_s is not None and clip.end_s.is_integer():
            yield f"{start}_{clip.end_s:06.0f}", True
        yield start, True
    yield f"/{clip.clip_id}", False
    yield f"={clip.clip_id}", False
    yield f"={video}", False
