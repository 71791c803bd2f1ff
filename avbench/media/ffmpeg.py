"""Running ffmpeg: the one place where a process is started for media."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import subprocess
from functools import cache
from typing import Any

from avbench.types import AvbenchError

# The part and the address that ffmpeg puts before a message differ from run to run.
_PREFIX = re.compile(r"^(\[[^\]]*\] )+")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


class FfmpegError(Exception):
    """Ffmpeg gave up; the message is the last line it printed."""


class FfmpegEnded(FfmpegError):  # noqa: N818 - it was not its error
    """Ffmpeg was ended from outside, such as for want of memory."""


@cache
def binary() -> str:
    """Return the ffmpeg on the PATH, or else the one that imageio-ffmpeg brings.

    Raises:
        AvbenchError: If there is neither.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg  # only where the system has no ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise AvbenchError("no ffmpeg found: install ffmpeg, or imageio-ffmpeg by pip") from error


@cache
def version() -> str:
    """Return the version of the ffmpeg that is used."""
    printed = subprocess.run(
        [binary(), "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    ).stdout.decode(errors="replace")
    return printed.removeprefix("ffmpeg version ").partition(" ")[0] or "unknown"


def run(graph: Any, *, timeout_s: float) -> None:
    """Run a graph built by ffmpeg-python to its end.

    Args:
        graph: An output of ffmpeg-python, with absolute paths.
        timeout_s: After so many seconds the process is killed.

    Raises:
        FfmpegError: If it reports any error, or takes too long.
        OSError: If the disk or a quota is full.
        AvbenchError: If there is no ffmpeg.
    """
    # Without -xerror a damaged file decodes with exit 0; without -nostdin ffmpeg may wait forever.
    settings = ["-nostdin", "-v", "error", "-xerror", "-y", "-filter_threads", "1"]
    command = [binary(), *settings, *graph.get_args()]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FfmpegError(f"no result after {timeout_s:g} s") from error
    if done.returncode:
        printed = done.stderr.decode(errors="replace")
        if done.returncode == -signal.SIGXFSZ or any(text in printed for text in _FULL):
            raise OSError(errno.ENOSPC, "No space left on device", command[-1])
        if done.returncode < 0:
            raise FfmpegEnded(f"by signal {-done.returncode}")
        lines = printed.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FfmpegError(_PREFIX.sub("", lines[-1]))
