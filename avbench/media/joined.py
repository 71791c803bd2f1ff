"""Archives as people really have them: here or on a server, in one piece or split into parts."""

from __future__ import annotations

import io
import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from avbench.types import AvbenchError, UsageError

_ARCHIVE = re.compile(r".+\.(?:zip|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz|zst))", re.I | re.S)
# Split files end in .001, .00, .part1, .part-aa, .partaa or .aa; .gz is no such part.
_PART = re.compile(
    rf"({_ARCHIVE.pattern})(?:\.part[-_.]?(\d+|[a-z]{{2}})|\.(\d{{2,4}}|(?!gz|xz)[a-z]{{2}}))",
    re.I | re.S,
)
_READ_AHEAD = 1 << 16  # more would fetch the videos between one tar header and the next


@dataclass(frozen=True)
class JoinedFile:
    """A file, whole or in the parts it was split into.

    Attributes:
        fs: Where it is.
        name: What people call it: its path, without the mark of a part.
        parts: Paths of its parts, in order; the one path of a whole file.
    """

    fs: AbstractFileSystem
    name: str
    parts: tuple[str, ...]

    def open(self) -> BinaryIO:
        """Open it for reading and seeking; parts are joined as they are read.

        Raises:
            OSError: If it cannot be read.
        """
        if len(self.parts) == 1:
            return cast(BinaryIO, self.fs.open(self.parts[0], "rb", block_size=_READ_AHEAD))
        return cast(BinaryIO, io.BufferedReader(_Parts(self.fs, self.parts), _READ_AHEAD))


def find_archives(place: str) -> list[JoinedFile]:
    """Find archives by their names; what they hold is not looked at.

    Args:
        place: A path, or a URL that fsspec opens: of a file, of any part of a split file, of a
            split file without the mark of a part, of a folder with archives anywhere below it, or
            a pattern with wild cards.

    Returns:
        At least one, sorted by name.

    Raises:
        UsageError: If there is none.
        AvbenchError: If a part is missing, or the place cannot be read.
    """
    try:
        fs, path = url_to_fs(place)
        if fs.isfile(path):
            found = [path]
        elif fs.isdir(path):
            found = [name for name in fs.find(path) if _ARCHIVE.fullmatch(_whole(name))]
        else:
            found = [part for part in _beside(fs, path) if _whole(part) == path] or fs.glob(path)
        archives = _joined(fs, found)
    except (OSError, ValueError, ImportError) as error:
        raise AvbenchError(f"{place}: cannot be read ({error}): check the path") from error
    if not archives:
        raise UsageError(f"{place}: no archive there: check the path")
    return archives


def _joined(fs: AbstractFileSystem, paths: Iterable[str]) -> list[JoinedFile]:
    """Put every part among its siblings, whether they are among the paths or not."""
    files: dict[str, JoinedFile] = {}
    for path in sorted(paths):
        whole = _whole(path)
        if whole not in files:  # a whole file comes before its parts, and makes them needless
            parts = (path,) if whole == path else _parts(fs, whole)
            files[whole] = JoinedFile(fs, whole, parts)
    return list(files.values())


def _parts(fs: AbstractFileSystem, whole: str) -> tuple[str, ...]:
    """Return the parts of a split file, in order.

    Raises:
        AvbenchError: If one is missing.
    """
    parts = (path for path in _beside(fs, whole) if path != whole and _whole(path) == whole)
    numbered = {_number(path): path for path in parts}
    gaps = set(range(min(1, *numbered), max(numbered))) - numbered.keys()
    if gaps:
        before = numbered.get(min(gaps) - 1)
        where = f"after {posixpath.basename(before)}" if before else "at the beginning"
        raise AvbenchError(f"{whole}: a part is missing {where}: fetch it")
    return tuple(numbered[number] for number in sorted(numbered))


def _whole(path: str) -> str:
    """Return the path of the file that a part belongs to; of a whole file, its own."""
    part = _PART.fullmatch(path)
    return part[1] if part else path


def _number(path: str) -> int:
    """Return the number of a part; numbers start at 0 or 1, letters at aa, which is 1."""
    label = path.rpartition(".")[2].lower().removeprefix("part").lstrip("-_.")
    if label.isdecimal():
        return int(label)
    return 26 * (ord(label[0]) - ord("a")) + ord(label[1]) - ord("a") + 1


def _beside(fs: AbstractFileSystem, path: str) -> list[str]:
    try:
        return list(fs.ls(posixpath.dirname(path), detail=False))
    except FileNotFoundError:
        return []


class _Parts(io.RawIOBase):
    """The parts of a split file as one; only one of them is open at a time."""

    def __init__(self, fs: AbstractFileSystem, paths: tuple[str, ...]) -> None:
        self._fs = fs
        self._paths = paths
        self._ends = list(accumulate(fs.size(path) for path in paths))
        self._at = 0
        self._number = -1
        self._part: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        if base + offset < 0:
            raise OSError("seek before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect_right(self._ends, self._at)
        if number == len(self._ends):
            return 0
        if number != self._number:
            self._close_part()
            self._part = self._fs.open(self._paths[number], "rb", block_size=_READ_AHEAD)
            self._number = number
        begin = self._ends[number - 1] if number else 0
        self._part.seek(self._at - begin)
        data = self._part.read(min(len(buffer), self._ends[number] - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._close_part()
        super().close()

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part, self._number = None, -1
