"""A .npy file with one row a clip: written row by row, read many rows at a time.

Rows are read into the result itself, in any order: rows that lie side by side in the file by one
call, and several calls at the same time. What was read does not stay mapped, so that it counts as
the system's cache and not as memory of this process.
"""

from __future__ import annotations

import copy
import io
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from threading import Barrier
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from avbench.types import AvbenchError

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]

_READERS = 4
# Large enough for a disk to stream, small enough for the readers to share a batch.
_AT_A_TIME = 16 << 20
# What one call of the system takes (IOV_MAX of Linux).
_ROWS_AT_A_TIME = 1024
_HEADER = 4096


class NotFinite(AvbenchError):  # noqa: N818 - a finding, not a fault
    """Features of a clip that their type cannot hold."""


class RowReader:
    """Reads rows of a .npy file.

    A copy, in this process or another, opens the file again; a forked process may go on reading.

    Args:
        fs: Where the file lies.
        path: The file, as `fs` names it.
        shape: Of the whole array.
        dtype: Of its numbers.

    Raises:
        ValueError: If it is no array, or not the one described; the message says what it is.
        OSError: If it cannot be read.
    """

    def __init__(
        self, fs: AbstractFileSystem, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._fs, self._path = fs, path
        self.shape, self.dtype = shape, dtype
        self._size = int(np.prod(shape[1:])) * dtype.itemsize
        self._start = _array_start(fs.cat_file(path, start=0, end=_HEADER), shape, dtype)
        if fs.size(path) < self._start + shape[0] * self._size:
            raise ValueError("cut short")
        self._process = os.getpid()
        self._file: int | None = None
        if isinstance(fs, LocalFileSystem):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            _pool()

    def __reduce__(self) -> tuple[Any, ...]:
        # The number of an open file means another file elsewhere, and here once this one is closed.
        return type(self), (self._fs, self._path, self.shape, self.dtype)

    def read(self, rows: Rows, out: Floats | None = None) -> Floats:
        """Read rows, in the order asked for.

        Args:
            rows: Which, (n,); one may appear twice.
            out: Where to put them, (n, *row), C-contiguous and of the same type; None for new
                memory.

        Returns:
            (n, *row).

        Raises:
            IndexError: If there is no such row.
            ValueError: If `out` does not fit.
            AvbenchError: If the file cannot be read, or has become shorter.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.shape[0]:
            raise IndexError(
                f"{self._path}: rows {rows.min()} to {rows.max()} of 0 to {self.shape[0] - 1}"
            )
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not (out.flags.c_contiguous and out.dtype == self.dtype and len(out) == len(rows)):
            raise ValueError(f"out must be {len(rows)} contiguous rows of {self.dtype}")
        content = out.view(np.uint8).reshape(len(rows), self._size)
        runs = self._runs(rows)
        read = self._read_remote if self._file is None else self._read_local
        # Handing out little takes longer than reading it.
        shares = min(_READERS, len(runs)) if content.nbytes > 1 << 20 else 1
        try:
            if shares == 1:
                read(rows, runs, content)
            else:
                jobs = [_pool().submit(read, rows, runs[i::shares], content) for i in range(shares)]
                wait(jobs)  # none may still write when an error is told
                for job in jobs:
                    job.result()
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
            raise AvbenchError(
                f"{self._path}: cannot be read ({cause}): check the disk or the connection"
            ) from error
        return out

    def _runs(self, rows: Rows) -> list[Rows]:
        """Return positions in `rows`, in runs that lie side by side in the file."""
        order = np.argsort(rows, kind="stable")
        most = min(_ROWS_AT_A_TIME, max(1, _AT_A_TIME // self._size))
        runs = np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)
        return [run[i : i + most] for run in runs for i in range(0, len(run), most)]

    def _read_local(self, rows: Rows, runs: Sequence[Rows], content: npt.NDArray[Any]) -> None:
        assert self._file is not None
        for run in runs:
            at = self._start + int(rows[run[0]]) * self._size
            left = [content[position] for position in run]
            while left:
                got = os.preadv(self._file, left, at)
                if got == 0:
                    raise OSError("cut short")
                at += got
                while left and got >= len(left[0]):
                    got -= len(left.pop(0))
                if got:
                    left[0] = left[0][got:]

    def _read_remote(self, rows: Rows, runs: Sequence[Rows], content: npt.NDArray[Any]) -> None:
        starts = [self._start + int(rows[run[0]]) * self._size for run in runs]
        ends = [start + len(run) * self._size for start, run in zip(starts, runs, strict=True)]
        if self._process != os.getpid():  # forked, where the connections are another's
            self._fs, self._process = copy.copy(self._fs), os.getpid()
        blocks = self._fs.cat_ranges([self._path] * len(runs), starts, ends)
        for run, block in zip(runs, blocks, strict=True):
            if isinstance(block, Exception):
                raise OSError(str(block) or type(block).__name__) from block
            if len(block) != len(run) * self._size:
                raise OSError("cut short, or its server answers no range requests")
            content[run] = np.frombuffer(block, np.uint8).reshape(len(run), self._size)


@cache
def _pool() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="avbench-reader")
    # Started at once: a process that is short of memory later starts no threads.
    started = Barrier(_READERS + 1)
    for _ in range(_READERS):
        pool.submit(started.wait)
    started.wait()
    return pool


# A forked process has none of the threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _array_start(head: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return where the numbers of an array begin, whose file begins with `head`."""
    file = io.BytesIO(head)
    try:
        # Unlike np.load, takes nothing but a plain array.
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format")
        found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise ValueError("cut short or not an array") from error
    if found != shape or kind != dtype or (fortran and len(shape) > 1):
        raise ValueError(f"holds {kind} {found}, not {dtype} {shape}")
    return file.tell()


class RowFile:
    """Writes a .npy file row by row: a full disk raises, where a memory map would crash.

    Args:
        path: The file, begun if it is not there.
        shape: Of one row.
        dtype: Of its numbers.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self._size = int(np.prod(shape)) * dtype.itemsize
        # Without a buffer: what a full disk refused must not be tried again when it is closed.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._start = len(self._header(0))

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def cast(self, values: npt.NDArray[Any], clip_id: str) -> Floats:
        """Return features of a clip as they will be written.

        Raises:
            NotFinite: If a value is not finite in the type of the file.
            AvbenchError: If their shape is wrong.
        """
        what = f"{self._path.stem} features of clip {clip_id}"
        if values.shape != self._shape:
            raise AvbenchError(
                f"{what}: shape {values.shape}, not {self._shape}: correct the encoder"
            )
        with np.errstate(over="ignore"):
            numbers: Floats = np.ascontiguousarray(values, dtype=self._dtype)
        if not np.isfinite(numbers).all():
            precision = {2: "half", 4: "single"}[self._dtype.itemsize]
            raise NotFinite(
                f"{what}: not finite in {precision} precision: check the clip or the encoder"
            )
        return numbers

    def write(self, row: int, numbers: Floats) -> None:
        """Write a row."""
        self._write(self._start + row * self._size, numbers.tobytes())

    def read(self, row: int) -> Floats:
        """Read a row; zeros stand for what was never written."""
        self._file.seek(self._start + row * self._size)
        content = self._file.read(self._size).ljust(self._size, b"\0")
        return np.frombuffer(content, self._dtype).reshape(self._shape)

    def seal(self, rows: int) -> None:
        """Make it an array of so many rows."""
        self._write(0, self._header(rows))
        self._file.truncate(self._start + rows * self._size)

    def _write(self, start: int, content: bytes) -> None:
        self._file.seek(start)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _header(self, rows: int) -> bytes:
        """Its length does not depend on the number of rows."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._shape)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue()
