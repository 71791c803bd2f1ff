"""Memory that is used again.

New memory comes in pages that the system clears first, which takes as long as reading features.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


class Lender:
    """Lends memory, and lends it again when nobody refers to it any more.

    Args:
        new: Makes memory for so many rows.
    """

    def __init__(self, new: Callable[[int], Array]) -> None:
        self._new = new
        self._free: deque[Array] = deque()

    def lend(self, count: int) -> Array:
        """Return memory for so many rows, with anything in it."""
        small = []
        memory = self._taken()
        while memory is not None and len(memory) < count:
            small.append(memory)
            memory = self._taken()
        if memory is None:
            memory = self._new(count)  # the small go: batches have grown
        else:
            self._free.extend(small)
        lent = memory[:count]
        # Tensors hold on to this very object, and graphs and views to their tensors.
        weakref.finalize(lent, self._free.append, memory)
        return lent

    def forget(self) -> None:
        """Let go of all memory that is not lent."""
        self._free.clear()

    def _taken(self) -> Array | None:
        try:
            return self._free.popleft()
        except IndexError:  # not asked before: another thread may take the last
            return None
