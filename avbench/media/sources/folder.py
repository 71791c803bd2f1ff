"""A folder of videos, as people really have them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import av

from avbench.manifests.manifest import Clip, clip_id_of
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.probe import TOLERANCE_S, opened
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile
from avbench.types import UsageError

_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"}
_TIMED = re.compile(r"(.+)_(\d{6})_(\d{6})")


class FolderSource:
    """Videos anywhere below a folder, found by their names.

    A clip may be there as `<youtube_id>_<start>_<end>` or `<youtube_id>_<start>` (seconds, six
    digits), as `<clip_id>`, or as the whole video `<youtube_id>`; or under the path its clip id was
    made from.

    Args:
        spec: The benchmark.
        argument: The folder.
        network: Not used.

    Raises:
        UsageError: If the argument is not a folder.
    """

    def __init__(
        self,
        spec: BenchmarkSpec,
        argument: str | None,
        network: Network,  # noqa: ARG002
    ) -> None:
        if not argument:
            raise UsageError("source folder: which one? Write folder:DIR")
        root = Path(argument).expanduser()
        if not root.is_dir():
            raise UsageError(f"source folder: {argument} is not a folder: check the path")
        self._clip_s = spec.clip_seconds
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_id: dict[str, list[Path]] = defaultdict(list)
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        root = root.resolve()
        for path in _videos(root):
            self._by_stem[path.stem].append(path)
            self._by_path[clip_id_of(path.relative_to(root).as_posix())].append(path)
            timed = _TIMED.fullmatch(path.stem)
            if timed:
                self._by_id[timed[1]].append(path)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        """Find a clip's file.

        Raises:
            ClipUnavailable: If there is none, or more than one.
        """
        video = clip.youtube_id or clip.clip_id
        if clip.start_s is None:
            cut = self._by_id.get(video, [])  # archives carry the times that a table lacks
        else:
            start = f"{video}_{clip.start_s:06.0f}"
            end = "" if clip.end_s is None else f"{start}_{clip.end_s:06.0f}"
            cut = self._by_stem.get(end) or self._by_stem.get(start) or []
        if cut:
            return SourceFile(_only(cut), None)
        places = (
            self._by_path.get(clip.clip_id),
            self._by_stem.get(clip.clip_id),
            self._by_stem.get(video),
        )
        for found in places:
            if found:
                return self._window(_only(found), clip)
        raise ClipUnavailable("not in the folder", permanent=False)

    def _window(self, path: Path, clip: Clip) -> SourceFile:
        """Tell a whole video from a clip already cut, which may bear the same name."""
        if clip.start_s is None:
            return SourceFile(path, None)
        with opened(path) as container:
            length_s = (container.duration or 0) / av.time_base
        fits = clip.start_s + self._clip_s <= length_s + TOLERANCE_S
        is_cut = length_s <= self._clip_s + 2 * TOLERANCE_S and not fits
        return SourceFile(path, None if is_cut else clip.start_s)


def _videos(root: Path) -> list[Path]:
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() not in _SUFFIXES:
                continue
            # A link must not lead out of the folder the user named.
            if not path.is_symlink() or path.resolve().is_relative_to(root):
                found.append(path)
    return sorted(found)


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = " and ".join(str(path) for path in paths)
        raise ClipUnavailable("more than one file in the folder", permanent=False, detail=names)
    return paths[0]
