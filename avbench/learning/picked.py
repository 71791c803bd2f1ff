"""Rows of a tensor that are read where they lie, when they are needed and a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from avbench.features.rows import Rows
from avbench.types import ProtocolError


class Lease:
    """How long rows of a tensor that others use may be read.

    Attributes:
        over: Whether that time is over.
    """

    over: bool = False


class _Held(NamedTuple):
    """What stands behind picked rows, as `Picked` takes it."""

    tensor: Tensor
    rows: Rows | None
    lease: Lease | None


# Kept apart, so that no attribute of a batch leads to clips that are not in it.
_HELD: WeakKeyDictionary[Picked, _Held] = WeakKeyDictionary()
_UNREAD = "rows that are not read yet: .read() returns a tensor"


class Picked:
    """Some rows of a tensor, such as the clips of a batch among all that lie in memory.

    Attributes:
        shape: As if the n rows were a tensor, (n, ...).
        dtype: Of the numbers.
        device: Where they are.

    Args:
        held: The tensor.
        rows: Which of its rows, in which order, (n,); None for all, if nobody else needs it.
        lease: How long they may be read; None for ever.
    """

    def __init__(self, held: Tensor, rows: Rows | None = None, lease: Lease | None = None) -> None:
        self.shape = torch.Size((len(held if rows is None else rows), *held.shape[1:]))
        self.dtype, self.device = held.dtype, held.device
        _HELD[self] = _Held(held, rows, lease)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice) -> Picked:
        if not isinstance(some, slice):  # nor be gone through one by one
            raise TypeError(f"only slices can be taken of {_UNREAD}")
        held, rows, lease = _held(self)
        return Picked(held[some]) if rows is None else Picked(held, rows[some], lease)

    def view(self, *shape: int) -> Picked:
        """Return the rows in another shape, which begins with their number, as a tensor's."""
        if shape[0] != len(self):
            raise ValueError(f"only shapes that begin with {len(self)} are views of {_UNREAD}")
        held, rows, lease = _held(self)
        return Picked(held.view(len(held), *shape[1:]), rows, lease)

    def read(self) -> Tensor:
        """Return the rows as a tensor of their own, (n, ...), which may be changed."""
        held, rows, _ = _held(self)
        return held.clone() if rows is None else _copied(held, rows)

    def __deepcopy__(self, _: object) -> Picked:
        held, rows, lease = _HELD[self]
        closed = lease is not None and lease.over
        return Picked(held, rows, lease) if closed else Picked(self.read())

    def __reduce__(self) -> tuple[type[Picked], tuple[Tensor]]:
        return Picked, (tensor(self),)  # a copy holds no clips but its own

    if not TYPE_CHECKING:  # or every attribute would be one

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"no {name} of {_UNREAD}")

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], *_: object) -> NoReturn:
        raise TypeError(f"no {function.__name__} of {_UNREAD}")


def leased(picked: Picked, lease: Lease) -> Picked:
    """Return the same rows, to be read only while a lease runs; a copy of their own stays one."""
    held, rows, _ = _held(picked)
    return picked if rows is None else Picked(held, rows, lease)


def _held(picked: Picked) -> _Held:
    held = _HELD[picked]
    if held.lease is not None and held.lease.over:
        raise ProtocolError(
            "a method read features of clips that are closed: what it learns of them, it learns"
            " while they are open"
        )
    return held


def parts_of(picked: Picked) -> tuple[Tensor, Rows | None]:
    """Return the tensor and which of its rows these are, as `Picked` takes them.

    Raises:
        ProtocolError: If their clips are closed, as from all that reads them.
    """
    return _held(picked)[:2]


def rows_of(picked: Picked, some: slice) -> Tensor:
    """Return some of the rows to be read at once: without a copy if they lie side by side."""
    held, rows, _ = _held(picked)
    if rows is None:
        return held[some]
    rows = rows[some]
    first = int(rows[0]) if len(rows) else 0
    # Of others, such as negative ones, a slice would be too short and raise nothing.
    there = 0 <= first <= len(held) - len(rows)
    if there and np.array_equal(rows, np.arange(first, first + len(rows))):
        return held[first : first + len(rows)]
    return _copied(held, rows)


def tensor(values: Tensor | Picked) -> Tensor:
    """Return what is picked as a tensor, which must not be changed, and a tensor as it is."""
    if isinstance(values, Tensor):
        return values
    held, rows, _ = _held(values)
    return held if rows is None else _copied(held, rows)


def _copied(held: Tensor, rows: Rows) -> Tensor:
    index = torch.from_numpy(rows)
    if held.is_cuda:
        index = index.pin_memory()  # or the copy would wait for all that the GPU has to do
    return held[index.to(held.device, non_blocking=True)]
