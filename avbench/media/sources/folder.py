"""A folder of videos, as people really have them."""

from __future__ import annotations

import os
from pathlib import Path

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile
from avbench.media.sources.names import Names, source_file, video_suffix
from avbench.types import UsageError


class FolderSource:
    """Videos anywhere below a folder, found by their names as `Names` has it.

    Links to folders are not followed, nor links to files that lie elsewhere.

    Args:
        spec: The benchmark.
        argument: The folder, a path or an address `file://`.
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
        root = _path(argument)
        if not root.is_dir():
            raise UsageError(f"source folder: {argument} is not a folder: check the path")
        self._clip_s = spec.clip_seconds
        self._names: Names[Path] = Names("folder")
        root = root.resolve()
        videos, self._left_out = _videos(root)
        for path in videos:
            self._names.add(path.relative_to(root).as_posix(), path)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:  # noqa: ARG002
        """Find a clip's file.

        Raises:
            ClipUnavailable: If there is none, or more than one.
        """
        try:
            path, is_cut = self._names.find(clip)
        except ClipUnavailable as error:
            if self._left_out and not error.detail:
                others = f"links are not followed, such as {self._left_out[0]}: add its target as"
                error.detail = f"{others} another --source folder:DIR"
            raise
        return source_file(path, clip, is_cut=is_cut, seconds=self._clip_s)


def _path(argument: str) -> Path:
    """Return the path of a folder of this machine.

    Raises:
        UsageError: If it is an address elsewhere.
    """
    scheme, colon, path = argument.partition("://")
    if colon and scheme != "file":
        remedy = "mount it, or pack its videos and write archive:ADDRESS"
        raise UsageError(f"source folder: {argument} is not on this machine: {remedy}")
    try:
        return Path(path or argument).expanduser()
    except RuntimeError:  # the home of a user there is not
        return Path(argument)


def _videos(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the videos, and the links that were left out."""
    found, left_out = [], []
    for folder, folders, names in os.walk(root):
        left_out += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
        for name in names:
            path = Path(folder, name)
            if not video_suffix(name):
                continue
            # A link must not lead out of the folder the user named.
            if not path.is_symlink() or path.resolve().is_relative_to(root):
                found.append(path)
            else:
                left_out.append(path)
    return sorted(found), sorted(left_out)
