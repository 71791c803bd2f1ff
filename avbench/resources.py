"""Where files lie: the data shipped with the package, and the user's own data folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avbench.types import AvbenchError

_PACKAGE = Path(__file__).resolve().parent


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
    """Return the folder for clips and features: `$AVBENCH_HOME`, or `~/.cache/avbench`."""
    configured = os.environ.get("AVBENCH_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "avbench"


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what a disk can do wrong while `target` is written into one clear line.

    Raises:
        AvbenchError: If the place cannot be written to or the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = "the disk or your quota is full: free some space or choose another place"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            cause = "no permission to write there: choose another place"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            cause = "something else of that name is in the way: choose another place"
        else:
            raise
        raise AvbenchError(f"cannot write {error.filename or target}: {cause}") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` and put it in place only on success.

    Works for a file or a folder; a reader never sees half of it. An existing folder is replaced.

    Args:
        target: Where the finished file or folder shall stand.

    Yields:
        A path that does not exist yet, on the same file system, with the same suffix.

    Raises:
        AvbenchError: If the place cannot be written to or the disk is full.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            temporary = scratch / target.name
            yield temporary
            if target.is_dir():
                os.replace(target, scratch / "previous")
            os.replace(temporary, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
