"""Originals that were kept, for cutting them again."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.places import Places, requests_of, video_key
from avbench.media.sources.base import ClipUnavailable, SourceFile

KEPT = "kept"
"""What the ledger calls the source of a clip that was cut from a kept original."""

NOT_ACQUIRED = "no original yet"


class Originals:
    """A source: whole videos by video, all other files by what was asked for.

    A file's name says where the clip starts in it, so that nothing else has to be remembered.
    """

    def __init__(self, places: Places, spec: BenchmarkSpec) -> None:
        self._spec = spec
        self._whole, self._cut = places.whole_originals, places.cut_originals
        # Listed once: looking for each clip would take time in the square of their number.
        self._whole_names = {Path(name).stem: name for name in sorted(self._whole.files())}
        self._cut_names: dict[str, tuple[str, float | None]] = {}
        for name in sorted(self._cut.files()):
            key, _, start = Path(name).stem.rpartition("@")
            with suppress(ValueError):
                self._cut_names[key] = name, None if start == "cut" else float(start)

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not (self._whole_names or self._cut_names)

    def has(self, clip: Clip) -> bool:
        """Whether there is the original of a clip."""
        whole = video_key(clip) in self._whole_names and clip.start_s is not None
        return whole or self.asked(clip) is not None

    def asked(self, clip: Clip) -> str | None:
        """Return what was asked for when the original of just this clip was got, if it was."""
        found = (r for r in requests_of(clip, self._spec) if _key(clip, r) in self._cut_names)
        return next(found, None)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Find the original of a clip."""
        asked = self.asked(clip)
        if asked:
            name, start_s = self._cut_names[_key(clip, asked)]
            return SourceFile(self._cut.fetch(name, scratch), start_s)
        if not self.has(clip):
            raise ClipUnavailable(NOT_ACQUIRED, permanent=False)
        name = self._whole_names[video_key(clip)]
        return SourceFile(self._whole.fetch(name, scratch), clip.start_s)

    def keep(self, clip: Clip, file: SourceFile, asked: str, *, movable: bool) -> Path | None:
        """Give a file a place here, or link to one that is somebody else's.

        Args:
            clip: The clip it was got for.
            file: The file.
            asked: What was asked for.
            movable: Whether it is ours.

        Returns:
            Where a whole video is now on this machine; nothing of another file.
        """
        path, suffix = file.path, file.path.suffix
        whole = clip.youtube_id is not None and file.start_s == clip.start_s is not None
        if whole:
            folder, name = self._whole, f"{video_key(clip)}{suffix}"
            old = self._whole_names.get(video_key(clip))
            self._whole_names[video_key(clip)] = name
        else:
            start = "cut" if file.start_s is None else repr(file.start_s)
            folder, name = self._cut, f"{_key(clip, asked)}@{start}{suffix}"
            old, _ = self._cut_names.get(_key(clip, asked), (None, None))
            self._cut_names[_key(clip, asked)] = name, file.start_s
        if old and old != name:
            folder.remove(old)
        if movable:
            folder.put(path, name)
        else:
            folder.link(path, name)
        if not whole:
            return None
        return folder.local / name if folder.local else path


def _key(clip: Clip, asked: str) -> str:
    return f"{clip.clip_id}@{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
