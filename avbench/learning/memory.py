"""The exemplar memory: the clips of earlier classes a method may keep."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Select = Callable[[Sequence[int], int], Sequence[int]]
"""Chooses at most m of a class's clips: (clips, m) -> clips, the most important first."""


class ExemplarMemory:
    """A fixed number of clips, shared equally by all classes seen so far (paper, section 3.1).

    Each class has floor(capacity / seen classes) places; what is left over stays unused, as in the
    authors' code. When classes are added, older ones keep the first clips of their lists.

    Args:
        capacity: Number of clips the memory may hold.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: dict[int, list[int]] = {}

    def make_room(self, seen_classes: int) -> int:
        """Shrink the lists of old classes so that new ones fit.

        Args:
            seen_classes: How many classes there will be, old and new.

        Returns:
            The number of places of each class, old or new.
        """
        places = self.places(seen_classes)
        for kept in self._kept.values():
            del kept[places:]
        return places

    def keep(self, index: int, clips: Sequence[int]) -> None:
        """Keep clips of a new class, the most important first.

        Raises:
            ValueError: If the class is in the memory already, or the clips do not fit.
        """
        if index in self._kept:
            raise ValueError(f"class {index} is in the memory already")
        if len(self) + len(clips) > self.capacity:
            raise ValueError(f"class {index}: {len(clips)} more clips exceed {self.capacity}")
        self._kept[index] = list(clips)

    def places(self, seen_classes: int) -> int:
        """Return how many places each class has once so many have been seen."""
        return self.capacity // seen_classes

    def holds(self, index: int) -> bool:
        """Return whether clips of a class were kept."""
        return index in self._kept

    @property
    def by_class(self) -> dict[int, list[int]]:
        """The clips kept of every class; one chosen twice is there twice, and fills two places."""
        return {index: list(self._kept[index]) for index in sorted(self._kept)}

    @property
    def clips(self) -> list[int]:
        """The clips kept, class by class in ascending order."""
        return [clip for index in sorted(self._kept) for clip in self._kept[index]]

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())


def at_random(rng: random.Random) -> Select:
    """Select uniformly, without replacement (SS-IL and AV-CIL, paper section 3.6)."""

    def select(clips: Sequence[int], places: int) -> Sequence[int]:
        return rng.sample(list(clips), min(len(clips), places))

    return select


def first(clips: Sequence[int], places: int) -> Sequence[int]:
    """Select the first clips in the order of the manifest (SS-IL's own code)."""
    return clips[:places]
