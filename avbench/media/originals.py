"""Originals that were kept, for cutting them again."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.places import files, request, video_key
from avbench.media.sources.base import ClipUnavailable, SourceFile

KEPT = "kept"
"""What the ledger calls the source of a clip that was cut from a kept original."""

NOT_ACQUIRED = "no original yet"


class Originals:
    """The originals that were kept: whole videos by video, all others by what was asked for.

    A file's name says where the clip starts in it, so that nothing else has to be remembered.
    """

    def __init__(self, home: Path, spec: BenchmarkSpec) -> None:
        self._spec = spec
        self._folders = {kind: home / "originals" / kind for kind in ("videos", "clips")}
        # Listed once: looking for each clip would take time in the square of their number.
        self._there: dict[tuple[str, str], SourceFile] = {}
        for path in files(self._folders["videos"]):
            self._there["videos", path.stem] = SourceFile(path, 0.0)
        for path in files(self._folders["clips"]):
            key, _, start = path.stem.rpartition("@")
            with suppress(ValueError):
                start_s = None if start == "cut" else float(start)
                self._there["clips", key] = SourceFile(path, start_s)

    def has(self, clip: Clip) -> bool:
        """Whether there is the original of a clip."""
        return self._find(clip) is not None

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        """Find the original of a clip."""
        found = self._find(clip)
        if found is None:
            raise ClipUnavailable(NOT_ACQUIRED, permanent=False)
        return found

    def keep(self, clip: Clip, file: SourceFile, *, movable: bool) -> SourceFile:
        """Move a file here, or link to one that is somebody else's; say where it is now."""
        whole = clip.youtube_id is not None and file.start_s == clip.start_s is not None
        kind = "videos" if whole else "clips"
        stem = video_key(clip) if whole else self._clip_key(clip)
        folder = self._folders[kind]
        folder.mkdir(parents=True, exist_ok=True)
        old = self._there.pop((kind, stem), None)
        if old:
            old.path.unlink(missing_ok=True)
        start = "" if whole else "@cut" if file.start_s is None else f"@{file.start_s!r}"
        target = folder / f"{stem}{start}{file.path.suffix}"
        if movable:
            file.path.replace(target)
        else:
            target.unlink(missing_ok=True)
            target.symlink_to(file.path.absolute())
        self._there[kind, stem] = replace(file, path=target)
        return self._there[kind, stem]

    def _find(self, clip: Clip) -> SourceFile | None:
        own = self._there.get(("clips", self._clip_key(clip)))
        whole = self._there.get(("videos", video_key(clip)))
        if own or not whole or clip.start_s is None:
            return own
        return replace(whole, start_s=clip.start_s)

    def _clip_key(self, clip: Clip) -> str:
        asked = hashlib.sha256(request(clip, self._spec).encode()).hexdigest()[:16]
        return f"{clip.clip_id}@{asked}"
