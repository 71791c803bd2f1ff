"""The published feature files where people have them: in a folder, or in a zip cut into parts."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from avbench.types import AvbenchError, UsageError

AUDIO = "audio_pretrained_feature_dict.npy"
VISUAL = "visual_pretrained_feature_dict.npy"
VISUAL_HDF5 = "visual_features.h5"
NAMES = (AUDIO, VISUAL, VISUAL_HDF5)

# Deflate cannot do better than about 1 to 1,000; features come nowhere near 1 to 100.
_MOST_INFLATED = 100

_PACKED_AT_A_TIME, _STATES_APART = 2**16, 2**26


class _Sized(io.RawIOBase):
    """A file of known size that is read in any order."""

    _size: int
    _at: int

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def seekable(self) -> bool:
        """Return that it is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, as of any file."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at


class Pieces(_Sized):
    """Ranges of files, (path, start, size), read as one file after another."""

    def __init__(self, ranges: Sequence[tuple[Path, int, int]]) -> None:
        self._ranges = ranges
        self._size = sum(size for _, _, size in ranges)
        self._files = [path.open("rb", buffering=0) for path, _, _ in ranges]
        self._at = 0

    def cut(self, start: int, size: int) -> Pieces:
        """Return a range of this file as a file of its own."""
        ranges, passed = [], 0
        for path, begin, length in self._ranges:
            low, high = max(start, passed), min(start + size, passed + length)
            if low < high:
                ranges.append((path, begin + low - passed, high - low))
            passed += length
        return Pieces(ranges)

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of a range, as of any file."""
        passed = 0
        for (_, begin, length), file in zip(self._ranges, self._files, strict=True):
            if passed <= self._at < passed + length:
                inside = self._at - passed
                content = os.pread(file.fileno(), min(len(buffer), length - inside), begin + inside)
                buffer[: len(content)] = content
                self._at += len(content)
                return len(content)
            passed += length
        return 0

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        super().close()


class Inflated(_Sized):
    """A deflated file read in any order.

    Going back means inflating anew from the last of the states that are kept on the way; each
    takes some 50 kB, so that a file of 300 GB has 200 MB of them.

    Args:
        packed: What was deflated, without a header.
        size: Of what comes out.
    """

    def __init__(self, packed: io.RawIOBase, size: int) -> None:
        self._packed, self._size, self._at = packed, size, 0
        self._starts, self._states = [0], [(0, zlib.decompressobj(-zlib.MAX_WBITS))]
        self._go_back(0)

    def readinto(self, buffer: Any) -> int:
        """Read up to the end of what was inflated at a time, as of any file."""
        if self._at >= self._size:
            return 0
        nearest = bisect_right(self._starts, self._at) - 1
        if not self._begin <= self._at or self._starts[nearest] > self._begin + len(self._piece):
            self._go_back(nearest)
        while self._begin + len(self._piece) <= self._at:
            self._inflate()
        inside = self._at - self._begin
        content = self._piece[inside : inside + len(buffer)]
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        """Close what it reads from."""
        self._packed.close()
        super().close()

    def _go_back(self, number: int) -> None:
        place, state = self._states[number]
        self._begin, self._piece, self._state = self._starts[number], b"", state.copy()
        self._packed.seek(place)

    def _inflate(self) -> None:
        packed = self._packed.read(_PACKED_AT_A_TIME)
        if not packed:
            raise EOFError("it ends too early")
        self._begin += len(self._piece)
        self._piece = self._state.decompress(packed)
        if self._begin + len(self._piece) - self._starts[-1] > _STATES_APART:
            self._starts.append(self._begin + len(self._piece))
            self._states.append((self._packed.tell(), self._state.copy()))


@dataclass(frozen=True)
class Found:
    """One of the published files.

    Attributes:
        name: One of `NAMES`.
        where: What messages call it.
        open: Opens it for reading forwards.
        open_anywhere: Opens it for reading in any order.
    """

    name: str
    where: str
    open: Callable[[], BinaryIO]
    open_anywhere: Callable[[], BinaryIO]


@contextmanager
def published(files: Sequence[Path]) -> Iterator[dict[str, Found]]:
    """Find the published files, by name.

    Args:
        files: A folder that holds them somewhere, or some of them, or the parts of a zip in order.

    Raises:
        UsageError: If a path does not exist.
        AvbenchError: If the zip is damaged, or holds a name twice.
    """
    for path in files:
        if not path.exists():
            raise UsageError(f"no file or folder {path}")
    found: dict[str, Found] = {}
    for path in (file for given in files for file in loose(given)):
        _add(found, Found(path.name, str(path), _opener(path), _opener(path)))
    parts = [path for path in files if path.is_file() and path.name not in NAMES]
    if not parts:
        yield found
        return
    with Pieces([(path, 0, path.stat().st_size) for path in parts]) as joined:
        try:
            archive = zipfile.ZipFile(io.BufferedReader(joined, 2**20))
            if any(member.header_offset < 0 for member in archive.infolist()):
                raise zipfile.BadZipFile
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise AvbenchError(
                f"{parts[0]}: not a zip, or not all of its {len(parts)} part(s) in order: give"
                " every part, the first first"
            ) from error
        with archive:
            for member in archive.infolist():
                _add(found, _member(archive, joined, member))
            yield found


def loose(path: Path) -> list[Path]:
    """Return the published files that a path is or holds."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.name in NAMES and file.is_file())
    return [path] if path.name in NAMES else []


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _add(found: dict[str, Found], file: Found) -> None:
    if file.name not in NAMES:
        return
    if file.name in found:
        raise AvbenchError(
            f"{found[file.name].where} and {file.where}: which? give the files one by one"
        )
    found[file.name] = file


def _member(archive: zipfile.ZipFile, joined: Pieces, member: zipfile.ZipInfo) -> Found:
    where = f"{member.filename} of the zip"

    def check() -> None:
        if member.flag_bits & 1:
            raise AvbenchError(f"{where}: encrypted: unpack it yourself")
        if member.file_size > _MOST_INFLATED * max(member.compress_size, 1):
            raise AvbenchError(f"{where}: claims to hold {member.file_size:,} bytes: a zip bomb")

    def forwards() -> BinaryIO:
        check()
        return archive.open(member)  # type: ignore[return-value]

    def anywhere() -> BinaryIO:
        check()
        with joined.cut(member.header_offset, 30) as start:
            header = start.read() or b""
        if len(header) < 30:
            raise AvbenchError(f"{where}: the zip is damaged")
        skipped = 30 + sum(struct.unpack_from("<HH", header, 26))
        inside: io.RawIOBase = joined.cut(member.header_offset + skipped, member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            inside = Inflated(inside, member.file_size)
        elif member.compress_type != zipfile.ZIP_STORED:
            raise AvbenchError(f"{where}: compressed in a way unknown here: unpack it yourself")
        return io.BufferedReader(inside, 2**16)

    return Found(member.filename.rpartition("/")[2], where, forwards, anywhere)


def need_room(folder: Path, size: int, what: str) -> None:
    """Raise if a disk has no room for so many bytes.

    Raises:
        AvbenchError: If so.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AvbenchError(
            f"{folder}: {size / 1e9:,.1f} GB are needed to {what}, {free / 1e9:,.1f} GB are free"
        )
