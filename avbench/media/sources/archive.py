"""Archives of videos, read as they are: zip, tar and compressed tar, whole or split."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.joined import JoinedFile, find_archives
from avbench.media.sources.base import ClipUnavailable, Network, Source, SourceFile
from avbench.media.sources.names import Names, Wanted, source_file, video_suffix
from avbench.types import AvbenchError, UsageError

_LARGEST = 4 << 30  # no clip's video is larger
_LARGEST_OTHER = 1 << 40  # nor any other file
_LARGEST_HEADER = 1 << 20  # of a tar: it holds a long name at most
_CHUNK = 1 << 20
_COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
# What a tar says about the next member.
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# What the readers of archives raise on damaged or hostile ones.
_FAULTS = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RecursionError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def open_archives(spec: BenchmarkSpec, argument: str | None, network: Network) -> Source:  # noqa: ARG001
    """Open the archives that a place names as one source.

    Zip and tar are read in place, at random. If any is a compressed tar, the source is a
    `StreamingSource`.

    Args:
        spec: The benchmark.
        argument: The place, as `find_archives` has it.
        network: Not used.

    Raises:
        UsageError: If there is no archive.
        AvbenchError: If one is damaged, a part is missing, or it cannot be read.
    """
    if not argument:
        raise UsageError("source archive: which one? Write archive:PATH")
    archives = [_open(file) for file in find_archives(argument)]
    streams = [archive for archive in archives if isinstance(archive, _Stream)]
    indexed = [archive for archive in archives if not isinstance(archive, _Stream)]
    if streams:
        return StreamingArchiveSource(spec, indexed, streams)
    return ArchiveSource(spec, indexed)


class ArchiveSource:
    """Archives that are read at random."""

    def __init__(self, spec: BenchmarkSpec, archives: Sequence[_Zip | _Tar]) -> None:
        self._clip_s = spec.clip_seconds
        self._names: Names[_Member] = Names("archive")
        for archive in archives:
            for member in archive.members():
                self._names.add(member.path, member)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Extract a clip's video.

        Raises:
            ClipUnavailable: If there is none, more than one, or it is damaged.
        """
        member, is_cut = self._names.find(clip)
        # No name out of an archive ever becomes a path; clips of one video share its file.
        path = scratch / f"{id(member)}{video_suffix(member.path)}"
        if not path.exists():
            member.extract(path)
        return source_file(path, clip, is_cut=is_cut, seconds=self._clip_s)


class StreamingArchiveSource(ArchiveSource):
    """Archives of which some can only be read from one end to the other."""

    def __init__(
        self, spec: BenchmarkSpec, archives: Sequence[_Zip | _Tar], streams: Sequence[_Stream]
    ) -> None:
        super().__init__(spec, archives)
        self._streams = streams
        self._refused: dict[str, tuple[str, str]] = {}

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Extract a clip's video if it can be had at random, or say why `stream` did not give it.

        Raises:
            ClipUnavailable: If there is none, more than one, or it is damaged.
        """
        if clip.clip_id in self._refused:
            reason, detail = self._refused[clip.clip_id]
            raise ClipUnavailable(reason, permanent=False, detail=detail)
        return super().fetch(clip, scratch)

    def stream(self, clips: Sequence[Clip], scratch: Path) -> Iterator[tuple[Clip, SourceFile]]:
        """Give what the archives have of some clips, in the order it is stored.

        What can be had at random comes first. Of several videos that fit a clip in compressed
        archives, the first is given: whether there is another shows too late.

        Args:
            clips: The clips wanted.
            scratch: A folder for the files; whoever takes one deletes it.

        Yields:
            A clip and its file, every clip at most once.

        Raises:
            AvbenchError: If a compressed archive is damaged, after all that could be read.
        """
        self._refused.clear()
        given: set[str] = set()
        for clip, member, is_cut in self._at_random(clips):
            path = scratch / f"{clip.clip_id}{video_suffix(member.path)}"
            try:
                member.extract(path)
            except ClipUnavailable:
                continue  # fetch says why
            given.add(clip.clip_id)
            yield clip, source_file(path, clip, is_cut=is_cut, seconds=self._clip_s)
        left = Wanted([clip for clip in clips if clip.clip_id not in given])
        damaged: list[AvbenchError] = []
        for archive in self._streams:
            try:
                for clip, path, is_cut in self._pass(archive, left, given, scratch):
                    yield clip, source_file(path, clip, is_cut=is_cut, seconds=self._clip_s)
            except AvbenchError as error:
                damaged.append(error)
        if damaged:
            raise damaged[0]

    def _at_random(self, clips: Sequence[Clip]) -> list[tuple[Clip, _Member, bool]]:
        found = []
        for clip in clips:
            try:
                found.append((clip, *self._names.find(clip)))
            except ClipUnavailable:
                continue  # it may come by the stream
        return sorted(found, key=lambda item: (item[1].archive.file.name, item[1].offset))

    def _pass(
        self, archive: _Stream, wanted: Wanted, given: set[str], scratch: Path
    ) -> Iterator[tuple[Clip, Path, bool]]:
        for name, fault, content in archive.members():
            held = [item for item in wanted.held_by(name) if item[0].clip_id not in given]
            if fault:
                where = f"{name!r} in {archive.file.name}"
                self._refused.update((clip.clip_id, (fault, where)) for clip, _ in held)
                continue
            paths = [scratch / f"{clip.clip_id}{video_suffix(name)}" for clip, _ in held]
            if paths:
                _write(content, paths[0])
            for path in paths[1:]:
                shutil.copyfile(paths[0], path)
            for (clip, is_cut), path in zip(held, paths, strict=True):
                given.add(clip.clip_id)
                yield clip, path, is_cut


@dataclass(frozen=True, slots=True)
class _Member:
    """A video in an archive that is read at random.

    Attributes:
        archive: Where it is.
        path: Its name there.
        offset: Where its header (zip) or content (tar) starts.
        size: Bytes it claims to have.
        fault: Why it cannot be had; or empty.
    """

    archive: _Zip | _Tar
    path: str
    offset: int
    size: int
    fault: str

    def __str__(self) -> str:
        return f"{self.path!r} in {self.archive.file.name}"

    def extract(self, target: Path) -> None:
        """Write the video to a file.

        Raises:
            ClipUnavailable: If it cannot be had.
            OSError: If the file cannot be written.
        """
        if self.fault:
            raise ClipUnavailable(self.fault, permanent=False, detail=str(self))
        try:
            _write(self.archive.read(self), target)
        except AvbenchError as error:
            reason = "damaged in the archive"
            raise ClipUnavailable(reason, permanent=False, detail=str(error)) from error


class _Zip:
    def __init__(self, file: JoinedFile) -> None:
        self.file = file
        with _reading(file):
            # One for all threads, which it allows: each index takes time and memory.
            self._zip = zipfile.ZipFile(file.open())

    def members(self) -> Iterator[_Member]:
        for info in self._zip.infolist():
            if info.is_dir() or not video_suffix(info.filename):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer knew of none
            fault = _fault(plain=kind in (0, stat.S_IFREG), size=info.file_size)
            if info.flag_bits & 1:
                fault = "encrypted in the archive"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Of the others zipfile unpacks as much as there is into memory.
                fault = "compressed in the archive by another method than deflate"
            yield _Member(self, info.filename, info.header_offset, info.file_size, fault)

    def read(self, member: _Member) -> Iterator[bytes]:
        # A name that two members bear is refused before.
        with _reading(self.file), self._zip.open(member.path) as content:
            yield from _chunks(content, member.size)


class _Tar:
    def __init__(self, file: JoinedFile) -> None:
        self.file = file

    def members(self) -> Iterator[_Member]:
        with (
            _reading(self.file),
            self.file.open() as content,
            tarfile.open(fileobj=content, mode="r:", tarinfo=_Header, encoding="utf-8") as tar,
        ):
            for header in _videos(tar):
                name, size = header.name, header.size
                yield _Member(self, name, header.offset_data, size, _fault_of(header))

    def read(self, member: _Member) -> Iterator[bytes]:
        with _reading(self.file), self.file.open() as content:
            content.seek(member.offset)
            yield from _chunks(content, member.size)


class _Stream:
    """A compressed tar."""

    def __init__(self, file: JoinedFile, decompressed: Callable[[BinaryIO], IO[bytes]]) -> None:
        self.file = file
        self._decompressed = decompressed
        with self._opened():
            pass  # what is no tar shows in the first header

    def members(self) -> Iterator[tuple[str, str, Iterator[bytes]]]:
        """Yield name, fault and content of every video; what is not taken is skipped."""
        with self._opened() as (tar, plain):
            for header in _videos(tar):
                yield header.name, _fault_of(header), self._read(tar, header)
            while plain.read(_CHUNK):
                pass  # the checksum comes last

    @contextmanager
    def _opened(self) -> Iterator[tuple[tarfile.TarFile, IO[bytes]]]:
        with (
            _reading(self.file),
            self.file.open() as raw,
            self._decompressed(raw) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header, encoding="utf-8") as tar,
        ):
            yield tar, plain

    def _read(self, tar: tarfile.TarFile, header: tarfile.TarInfo) -> Iterator[bytes]:
        with _reading(self.file):
            content = tar.extractfile(header)
            if content:  # so it is: a file without fault
                yield from _chunks(content, header.size)


class _Header(tarfile.TarInfo):
    """The header of a member, read with less trust."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark at the end
            # Anything else would count as the end as well, and hide what comes after it.
            raise tarfile.ReadError(str(error)) from error
        if header.type in _EXTENSIONS and not 0 <= header.size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _videos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Go through the members once, remembering none."""
    while (header := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
        if not 0 <= header.size <= _LARGEST_OTHER:
            # Below 0 it would lead back, again and again; skipping too much takes forever.
            raise tarfile.ReadError(f"a member of {header.size} bytes")
        if video_suffix(header.name) and not header.isdir():
            yield header


def _fault_of(header: tarfile.TarInfo) -> str:
    return _fault(plain=header.isreg() and not header.issparse(), size=header.size)


def _fault(*, plain: bool, size: int) -> str:
    if not plain:
        return "no plain file in the archive"
    if size == 0:
        return "an empty file in the archive"
    if size > _LARGEST:
        return f"larger than {_LARGEST >> 30} GiB in the archive"
    return ""


def _open(file: JoinedFile) -> _Zip | _Tar | _Stream:
    """Open an archive by what its first bytes say it is.

    Raises:
        AvbenchError: If it is none.
    """
    with _reading(file), file.open() as content:
        start = content.read(tarfile.BLOCKSIZE)
    if start.startswith(b"PK"):
        return _Zip(file)
    for magic, decompressed in _COMPRESSIONS.items():
        if start.startswith(magic):
            return _Stream(file, decompressed)
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise AvbenchError(
            f"{file.name}: neither zip nor tar, plain or compressed with gzip, bzip2 or xz:"
            " unpack it, and use folder:DIR"
        ) from error
    return _Tar(file)


def _chunks(content: IO[bytes], size: int) -> Iterator[bytes]:
    """Read what a member claims to have, never more.

    Raises:
        EOFError: If it has less.
    """
    while size:
        chunk = content.read(min(size, _CHUNK))
        if not chunk:
            raise EOFError("it ends too early")
        size -= len(chunk)
        yield chunk


def _write(chunks: Iterator[bytes], target: Path) -> None:
    """Write a file, whole or not at all."""
    try:
        with target.open("wb") as file:
            file.writelines(chunks)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def _reading(file: JoinedFile) -> Iterator[None]:
    """Turn what a damaged or hostile archive brings about into one clear line.

    Raises:
        AvbenchError: If it cannot be read.
    """
    try:
        yield
    except _FAULTS as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "fetch it again" if len(file.parts) == 1 else "fetch it again, all its parts"
        raise AvbenchError(f"{file.name}: cannot be read ({cause}): {remedy}") from error
