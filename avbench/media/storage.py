"""Folders of media: on a disk of this machine, or at any address that fsspec opens."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from avbench.resources import host_folder, writing
from avbench.types import AvbenchError, UsageError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*::?//|[a-z][a-z0-9+.-]*::", re.IGNORECASE)
_PARTIAL = ".partial-"
# What file systems call the time a file was last written.
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "modify", "created")


@dataclass(frozen=True)
class StoredFile:
    """A file of a folder.

    Attributes:
        size: In bytes.
        mtime_ns: When it was last written; 0 where that is not told.
    """

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Folder:
    """A folder of files.

    Attributes:
        base: A path, or an address such as s3://bucket/media.
        name: Of the folder below it.

    Raises:
        UsageError: From every method, if fsspec has no such kind of address.
        AvbenchError: From every method, if what is not on a disk of this machine cannot be reached.
        OSError: From every method, if the disk refuses.
    """

    base: str
    name: str

    def __str__(self) -> str:
        return str(self.local or f"{self.base.rstrip('/')}/{self.name}")

    @cached_property
    def local(self) -> Path | None:
        """Its path, if it is on a disk of this machine."""
        root = _local(self.base)
        return root / self.name if root else None

    @property
    def is_private(self) -> bool:
        """Whether no other process can see it."""
        if self.local:
            return False
        with self._reached() as (fs, _):
            return isinstance(fs, MemoryFileSystem)

    def files(self) -> dict[str, StoredFile]:
        """Return the files that are whole, by name; links count as what they lead to."""
        found = {}
        if self.local:
            with suppress(FileNotFoundError), os.scandir(self.local) as entries:
                for entry in entries:
                    if entry.is_file():
                        about = entry.stat()
                        found[entry.name] = StoredFile(about.st_size, about.st_mtime_ns)
            return found
        with self._reached() as (fs, path), suppress(FileNotFoundError):
            fs.invalidate_cache(path)
            for info in fs.ls(path, detail=True):
                name = info["name"].rstrip("/").rpartition("/")[2]
                if info["type"] == "file" and not name.startswith(_PARTIAL):
                    found[name] = StoredFile(int(info["size"]), _mtime_ns(info))
        return found

    def sizes(self) -> Callable[[str], int | None]:
        """Return what tells the size of a file that is whole, by name; nothing if it is not there.

        A disk is asked file by file, so that memory is not filled; elsewhere all are listed once.
        """
        root = self.local
        if root is None:
            listed = {name: file.size for name, file in self.files().items()}
            return listed.get

        def size(name: str) -> int | None:
            try:
                found = (root / name).stat()
            except FileNotFoundError:
                return None
            return found.st_size if stat.S_ISREG(found.st_mode) else None

        return size

    def put(self, file: Path, name: str) -> None:
        """Give a file of this machine a place here, whole or not at all; it may be moved."""
        if self.local:
            with writing(self.local):
                self.local.mkdir(parents=True, exist_ok=True)
                file.replace(self.local / name)
            return
        with self._reached() as (fs, path):
            fs.makedirs(path, exist_ok=True)
            fs.put_file(str(file), f"{path}/{_PARTIAL}{name}")
            fs.mv(f"{path}/{_PARTIAL}{name}", f"{path}/{name}")

    def link(self, file: Path, name: str) -> None:
        """Give a file that is somebody else's a place here: a link where there can be one."""
        if not self.local:
            self.put(file, name)
            return
        with writing(self.local):
            self.local.mkdir(parents=True, exist_ok=True)
            (self.local / name).unlink(missing_ok=True)
            (self.local / name).symlink_to(file.absolute())

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return the path of a file on this machine, of a copy in `scratch` if need be.

        Raises:
            FileNotFoundError: If it is not there.
        """
        if self.local:
            return self.local / name
        copy = scratch / name
        if not copy.exists():
            with self._reached() as (fs, path):
                fs.get_file(f"{path}/{name}", str(copy))
        return copy

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Give the path of a file on this machine, of a copy for a while if need be.

        Raises:
            FileNotFoundError: If it is not there.
        """
        if self.local:
            yield self.local / name
            return
        with host_scratch() as scratch:
            yield self.fetch(name, scratch)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if self.local:
            return (self.local / name).exists()
        with self._reached() as (fs, path):
            fs.invalidate_cache(path)
            return bool(fs.exists(f"{path}/{name}"))

    def write(self, name: str, text: str) -> None:
        """Write a small file."""
        if self.local:
            with writing(self.local):
                self.local.mkdir(parents=True, exist_ok=True)
                (self.local / name).write_text(text, encoding="utf-8")
            return
        with self._reached() as (fs, path):
            fs.makedirs(path, exist_ok=True)
            fs.pipe_file(f"{path}/{name}", text.encode())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
            return
        with self._reached() as (fs, path), suppress(FileNotFoundError):
            fs.rm_file(f"{path}/{name}")

    def move(self, name: str, to: Folder) -> None:
        """Move a file to another folder of the same base, if it is there."""
        if self.local and to.local:
            if (self.local / name).is_file():
                to.put(self.local / name, name)
            return
        with self._reached() as (fs, path), suppress(FileNotFoundError):
            target = path.removesuffix(self.name) + to.name
            fs.makedirs(target, exist_ok=True)
            fs.mv(f"{path}/{name}", f"{target}/{name}")

    def remove_if_empty(self) -> None:
        """Remove the folder, if nothing is in it."""
        with suppress(OSError, AvbenchError):
            if self.local:
                self.local.rmdir()
                return
            with self._reached() as (fs, path):
                fs.rmdir(path)

    def free_bytes(self) -> int | None:
        """Return the space left there; nothing where nobody tells."""
        if not self.local:
            return None
        place = next(p for p in (self.local, *self.local.absolute().parents) if p.is_dir())
        return shutil.disk_usage(place).free

    def sweep(self) -> None:
        """Remove what a killed run has left half-written."""
        if self.local:
            return  # it writes elsewhere
        with self._reached() as (fs, path), suppress(FileNotFoundError):
            fs.invalidate_cache(path)
            for left in fs.ls(path, detail=False):
                if left.rpartition("/")[2].startswith(_PARTIAL):
                    fs.rm_file(left)

    @contextmanager
    def _reached(self) -> Iterator[tuple[AbstractFileSystem, str]]:
        """Give the file system and the path in it, and say in one line what goes wrong there.

        Those of fsspec raise whatever their libraries do.
        """
        try:
            fs, root = url_to_fs(self.base)
            yield fs, f"{root.rstrip('/')}/{self.name}"
        except (FileNotFoundError, AvbenchError):
            raise
        except Exception as error:
            raise _unreachable(self, error) from error


@contextmanager
def host_scratch() -> Iterator[Path]:
    """Give an empty folder on this host's own disk, and leave none behind.

    What killed processes have left is removed by the next one.
    """
    root = host_folder()
    _sweep(root)
    with writing(root):
        handle, name = tempfile.mkstemp(prefix="scratch-", suffix=".lock", dir=root)
        lock, folder = Path(name), Path(name).with_suffix("")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(handle)


@cache
def _sweep(root: Path) -> None:
    for lock in root.glob("scratch-*.lock"):
        with suppress(OSError), lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process has ended
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


@cache
def _local(base: str) -> Path | None:
    if not _ADDRESS.match(base):
        return Path(base)
    try:
        fs, path = url_to_fs(base)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{base}: {error}: give a path, or an address fsspec knows") from error
    except Exception as error:
        raise _unreachable(base, error) from error
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def _unreachable(place: Folder | str, error: Exception) -> AvbenchError:
    cause = next(iter(str(error).splitlines()), "") or type(error).__name__
    remedy = "check the address, your credentials and the network"
    return AvbenchError(f"{place}: cannot be used ({cause}): {remedy}")


def _mtime_ns(info: dict[str, object]) -> int:
    for key in _TIMES:
        time = info.get(key)
        if isinstance(time, datetime):
            return round(time.timestamp() * 1e9)
        if isinstance(time, int | float):
            return round(time * 1e9)
    return 0
