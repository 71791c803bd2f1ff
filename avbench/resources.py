"""Where files lie: the data shipped with the package, and the user's own data folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from avbench.types import AvbenchError

_PACKAGE = Path(__file__).resolve().parent
_NO_FOLDER = (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)  # as below /proc


def shipped(folder: str) -> Path:
    """Return the folder `splits` or `leaderboards`, from the wheel or from the checkout.

    Args:
        folder: Name of a top-level data folder of the repository.

    Raises:
        AvbenchError: If neither place has it, so the installation is broken.
    """
    for candidate in (_PACKAGE / "_data" / folder, _PACKAGE.parent / folder):
        if candidate.is_dir():
            return candidate
    raise AvbenchError(f"{folder}/ is missing from the installed package: reinstall avbench")


def home() -> Path:
    """Return the folder for clips and features: `$AVBENCH_HOME`, or `~/.cache/avbench`.

    Raises:
        AvbenchError: If it starts with the home of a user there is not.
    """
    configured = os.environ.get("AVBENCH_HOME") or "~/.cache/avbench"
    try:
        return Path(configured).expanduser()
    except RuntimeError as error:
        raise AvbenchError(f"no folder {configured}: set AVBENCH_HOME to one") from error


def memory_limit() -> int:
    """Return how many bytes of memory this process may have: the machine's, or its cgroups'."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _memory_limits():
        with suppress(OSError, ValueError):
            limits.append(int(name.read_text(encoding="ascii")))
    return min(limits)


@cache
def _memory_limits() -> list[Path]:
    """Return the files that may limit this process: of its cgroups and of all these lie in."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root = Path("/sys/fs/cgroup", controllers)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = root / group.lstrip("/")
            # Outside its container a group has a path that leads nowhere inside: then its root.
            found += [at / name for at in (folder, *folder.parents) if at.is_relative_to(root)]
    return found


def lacking_bytes(needs: Iterable[tuple[Path, int]]) -> int:
    """Return how many bytes are missing on disks for what is to be written to some folders.

    Args:
        needs: Folders, which need not be there yet, and what each will take; those on one disk
            share its space.
    """
    wanted: dict[int, int] = {}
    free: dict[int, int] = {}
    for folder, size in needs:
        place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        disk = place.stat().st_dev
        wanted[disk] = wanted.get(disk, 0) + size
        free[disk] = shutil.disk_usage(place).free
    return sum(max(0, size - free[disk]) for disk, size in wanted.items())


def storage() -> str:
    """Return where clips and originals go, a path or an address: `$AVBENCH_STORAGE`, or `home()`.

    Raises:
        AvbenchError: As `home`.
    """
    return os.environ.get("AVBENCH_STORAGE") or str(home())


def host_folder() -> Path:
    """Return a folder for what all processes of this user on this host share.

    Raises:
        AvbenchError: If it cannot be made, or belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir(), f"avbench-{os.getuid()}")
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise AvbenchError(f"{folder} belongs to somebody else: set TMPDIR to another folder")
    return folder


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what a disk can do wrong while `target` is written into one clear line.

    Raises:
        AvbenchError: If the place cannot be written to or the disk is full.
    """
    try:
        yield
    except OSError as error:
        blamed = Path(os.fsdecode(error.filename or target)).absolute()
        place = target.absolute()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = "the disk or your quota is full: free some space or choose another place"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            cause = "no permission to write there: choose another place"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
            cause = "something else of that name is in the way: choose another place"
        elif error.errno in _NO_FOLDER and blamed in (place, *place.parents):
            cause = "no folder can be made there: choose another place"
        else:
            raise
        if blamed in place.parents:
            target = blamed  # what stands in the way above is worth naming
        elif not blamed.is_relative_to(place.parent):
            raise  # not about this place
        raise AvbenchError(f"cannot write {target}: {cause}") from error


@contextmanager
def replacing(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target` and put it in place only on success.

    A reader never sees half of a file or folder; what stood there is replaced.

    Args:
        target: Where the finished file or folder shall stand.
        folder: Whether it is a folder; an empty one is yielded then.

    Yields:
        A path on the same file system, with the same suffix.

    Raises:
        AvbenchError: If the place cannot be written to, the disk is full, or a folder or device
            stands where a file shall.
    """
    if target.is_dir() and not folder:
        raise AvbenchError(f"cannot write {target}: it is a folder: give the name of a file")
    if target.exists() and not (target.is_file() or folder):
        raise AvbenchError(f"cannot write {target}: it is a device, not a file: choose another")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            temporary = scratch / target.name
            if folder:
                temporary.mkdir()
            yield temporary
            previous = scratch / "previous"
            if target.is_dir():
                os.replace(target, previous)
            try:
                os.replace(temporary, target)
            except OSError:
                if previous.is_dir():
                    os.replace(previous, target)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def alone(folder: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes off a folder, and clear what killed ones left half-written.

    The lock dies with its process. Whoever holds it may remove its file, `folder/.lock`.

    Args:
        folder: Made if it does not exist.
        doing: What is done there, for the message.
        wait: Whether to wait for another process to end, rather than to say that there is one.

    Raises:
        AvbenchError: If another process holds the lock, or the place cannot be written to.
    """
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(path, doing, wait)
    with lock:
        _note(lock, f"{os.getpid()} {doing}")
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            _note(lock, "")


def _locked(path: Path, doing: str, wait: bool) -> TextIO:
    """Return a lock file, open and locked."""
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            with lock:
                lock.seek(0)
                theirs = lock.read().partition(" ")[2] or doing
            raise AvbenchError(
                f"{path.parent}: another run is {theirs}: wait for it to end"
            ) from error
        # Its last holder may have removed the file meanwhile: others would not see this lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()


def is_held(folder: Path) -> bool:
    """Whether a process of this machine is at work on a folder, as `alone` has it."""
    try:
        process = (folder / ".lock").read_text().partition(" ")[0]
    except OSError:
        return False
    return process.isdecimal() and Path("/proc", process).exists()


def _note(lock: TextIO, text: str) -> None:
    """Write into a lock file who holds it; a full disk must not stop them."""
    with suppress(OSError):
        lock.truncate(0)
        lock.write(text)
        lock.flush()


def write_json(path: Path, record: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    with replacing(path) as temporary:
        text = json.dumps(record, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        remedy: What to do if it is corrupt, for the message.

    Raises:
        AvbenchError: If it is missing or corrupt.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AvbenchError(f"no file {path}: {remedy}") from error
    except (OSError, ValueError) as error:
        raise AvbenchError(f"{path}: not readable as JSON: {remedy}") from error
    if not isinstance(record, dict):
        raise AvbenchError(f"{path}: not a record of avbench: {remedy}")
    return record
