"""Where the features of a step lie while it is learned: on the device, in memory, or on disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avbench.features.means import token_means
from avbench.features.rows import Floats, Rows
from avbench.features.store import FeatureStore
from avbench.learning.lending import Lender
from avbench.learning.picked import Picked
from avbench.resources import memory_limit
from avbench.types import AvbenchError, Modality, Residency

Features = tuple[Tensor | None, Picked | None]
"""Audio (n, d) and visual tokens (n, L * S, d) or their mean (n, 1, d), as stored; None where the
modality excludes it."""

_READ_AHEAD = 2
# Clips copied to the device at a time.
_CHUNK = 128


@dataclass(frozen=True)
class Column:
    """Features of one modality.

    Attributes:
        shape: Of one clip.
        dtype: Of the numbers.
        read: Reads rows into memory, and returns that.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Rows, Floats], Floats]

    @property
    def bytes(self) -> int:
        """Of one clip."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def empty(self, count: int) -> Floats:
        """Return memory for so many clips."""
        return np.empty((count, *self.shape), self.dtype)

    def held(self, rows: Rows) -> Column:
        """Read rows, sorted, into memory; return what reads them, and no others, from there."""
        held = self.read(rows, self.empty(len(rows)))

        def read(some: Rows, out: Floats) -> Floats:
            return np.take(held, np.searchsorted(rows, some), axis=0, out=out, mode="clip")

        return Column(self.shape, self.dtype, read)


def columns(
    store: FeatureStore, modality: Modality, *, mean_of_tokens: bool = False
) -> tuple[Column | None, Column | None]:
    """Return what of a store may be read: audio and visual tokens.

    Args:
        store: The store.
        modality: Which features may be read.
        mean_of_tokens: Whether the mean of a clip's tokens, as if it were its only token, stands
            for all of them.
    """
    audio = Column((store.dim,), store.dtype, store.audio)
    if modality == "audio":
        return audio, None
    visual = Column((store.frames * store.cells, store.dim), store.dtype, store.visual)
    if mean_of_tokens:
        visual = Column((1, store.dim), np.dtype(np.float32), token_means(store))
    return (None if modality == "visual" else audio), visual


class Source:
    """Hands out features of clips on a device.

    Args:
        of: What may be read: audio and visual tokens.
        device: Where batches go.
        residency: Where features lie.
    """

    def __init__(
        self, of: tuple[Column | None, Column | None], device: torch.device, residency: Residency
    ) -> None:
        self.residency = residency
        self.device = device
        self._columns = [None if column is None else _Lent(column, device) for column in of]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def read(self, rows: Rows) -> Features:
        """Read features of clips onto the device.

        Args:
            rows: Rows of the store, (n,).
        """
        audio, visual = (
            None if column is None else self._on_device(column.read(rows))
            for column in self._columns
        )
        return audio, None if visual is None else Picked(visual)

    def sweep(self, batches: Iterable[Rows]) -> Iterator[Features]:
        """Read batches in order; while one is used, a thread reads the next two.

        Where they would take more than an eighth of the memory, it reads fewer, or none.

        Args:
            batches: Rows of the store.
        """
        waiting: deque[Future[Features]] = deque()
        try:
            for rows in batches:
                waiting.append(_reader().submit(self.read, rows))
                while len(waiting) > self._ahead(len(rows)):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for batch in waiting:
                batch.cancel()

    def _ahead(self, clips: int) -> int:
        size = clips * sum(lent.column.bytes for lent in self._columns if lent is not None)
        return min(_READ_AHEAD, memory_limit() // (8 * max(size, 1)))

    def _on_device(self, values: Floats) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._stream is None:
            return tensor.to(self.device)
        # On a stream of its own, a copy does not wait for the batch before it.
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self.device, non_blocking=True)
        self._stream.synchronize()
        copy.record_stream(torch.cuda.default_stream(self.device))
        return copy


class _Resident(Source):
    """Hands out features that lie where they are used: nothing is copied before it is."""

    def __init__(
        self,
        of: tuple[Column | None, Column | None],
        device: torch.device,
        residency: Residency,
        rows: Rows,
    ) -> None:
        super().__init__(of, device, residency)
        self._rows = rows
        self._audio, self._visual = (None if c is None else self._load(c, rows) for c in of)

    def _load(self, column: Column, rows: Rows) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(column.read(rows, column.empty(len(rows))))
        dtype = torch.from_numpy(column.empty(0)).dtype
        held = torch.empty((len(rows), *column.shape), dtype=dtype, device=self.device)
        buffer = column.empty(_CHUNK)
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            held[start : start + len(some)] = torch.from_numpy(
                column.read(some, buffer[: len(some)])
            )
        return held

    def read(self, rows: Rows) -> Features:
        positions = np.searchsorted(self._rows, rows)
        audio, visual = (
            None if held is None else Picked(held, positions)
            for held in (self._audio, self._visual)
        )
        return None if audio is None else audio.read(), visual

    def sweep(self, batches: Iterable[Rows]) -> Iterator[Features]:
        return map(self.read, batches)


class _Lent:
    """Reads a column into memory that is used again."""

    def __init__(self, column: Column, device: torch.device) -> None:
        self.column = column
        # No method of this: a cycle would keep the memory of a step for the steps to come.
        self._lender = Lender(partial(_pinned, column) if device.type == "cuda" else column.empty)

    def read(self, rows: Rows) -> Floats:
        return self.column.read(rows, self._lender.lend(len(rows)))


def _pinned(column: Column, count: int) -> Floats:
    like = torch.from_numpy(column.empty(0))
    pinned = torch.empty((count, *column.shape), dtype=like.dtype, pin_memory=True)
    return np.asarray(pinned.numpy())


def settle(
    of: tuple[Column | None, Column | None],
    rows: Rows,
    device: torch.device,
    asked: Residency | None = None,
) -> Source:
    """Put the features of some clips where they are read fastest.

    Without being asked: on the device if they take at most half of what is free there, in memory
    if at most a quarter of what the machine or the cgroup allows, else they stay on disk.

    Args:
        of: What may be read: audio and visual tokens.
        rows: Rows of the store that will be read.
        device: Where batches go; a CPU's memory is the machine's.
        asked: Where they shall lie; None to choose.

    Raises:
        AvbenchError: If they do not fit where they shall lie, or cannot be read.
    """
    rows = np.unique(rows)
    size = len(rows) * sum(column.bytes for column in of if column is not None)
    free = _free(device) if device.type == "cuda" else 0
    if asked is None:
        asked = "device" if size <= free / 2 else "ram" if size <= memory_limit() / 4 else "disk"
    if asked == "device" and device.type == "cpu":
        asked = "ram"
    there = {"device": free, "ram": memory_limit(), "disk": size}[asked]
    if size > there and device.type in ("cpu", "cuda"):
        raise AvbenchError(
            f"a step's features take {size / 1e9:.1f} GB, more than the {there / 1e9:.1f} GB of"
            f" {asked}: choose another --residency"
        )
    if asked == "device" or (asked == "ram" and device.type == "cpu"):
        return _Resident(of, device, asked, rows)
    if asked == "ram":
        audio, visual = (None if column is None else column.held(rows) for column in of)
        return Source((audio, visual), device, "ram")
    return Source(of, device, "disk")


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes take at most a quarter of what is free of a GPU, or of the memory."""
    return size <= (_free(device) if device.type == "cuda" else memory_limit()) / 4


def _free(device: torch.device) -> int:
    """Return how many bytes torch may still have of a GPU."""
    # What an earlier step needed is kept by torch, and taken by all who ask the driver.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


@cache
def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="avbench-read-ahead")


# A forked process has no such thread.
os.register_at_fork(after_in_child=_reader.cache_clear)
