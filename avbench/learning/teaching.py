"""What the teacher has to say of a step, computed once instead of at every batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from avbench.learning.network import AudioVisualNet, Pooled
from avbench.learning.residency import fits
from avbench.learning.stream import Batch, LabelledClips, Rows, Task

# Clips at a time; with maps fewer, as these take several times the memory of the tokens.
_CLIPS, _WITH_MAPS = 128, 16


class Lessons:
    """How the teacher pools the visual tokens of a step's clips and exemplars.

    The teacher is frozen and features never change, so that once is enough. All is kept but the
    spatial attention of exemplars where it would take more than a quarter of the memory: that is
    computed anew for every batch, as all is for a batch without positions.

    Args:
        teacher: The network.
        task: The step.
    """

    def __init__(self, teacher: AudioVisualNet, task: Task) -> None:
        self._teacher = teacher
        self._task = task
        self._new: Pooled | None = None
        self._old: Pooled | None = None

    @torch.no_grad()
    def pool(self, batch: Batch, *, attention: bool = False) -> Pooled:
        """Return how the teacher pools a batch, without gradients.

        Args:
            batch: B clips, of them E exemplars.
            attention: Whether to return the attention, too; of the exemplars alone, and for all
                batches of a step or none.
        """
        if len(batch.positions) == 0:
            pooled = Pooled(self._teacher.pool(batch.audio, batch.visual).visual)
            return self._attend(batch)._replace(visual=pooled.visual) if attention else pooled
        if self._new is None or self._old is None:
            self._new = self._pool_all(self._task.train, attention=False)
            self._old = self._pool_all(self._task.exemplars, attention=attention)
        new = _rows(self._new, batch.positions[: batch.current])
        old = _rows(self._old, batch.positions[batch.current :])
        if attention and old.spatial is None:
            old = self._attend(batch)
        if new.visual is None or old.visual is None:
            return Pooled(None)
        return old._replace(visual=torch.cat([new.visual, old.visual]))

    def _attend(self, batch: Batch) -> Pooled:
        assert batch.audio is not None
        assert batch.visual is not None
        audio, visual = batch.audio[batch.current :], batch.visual[batch.current :]
        starts = range(0, max(len(audio), 1), _WITH_MAPS)
        few = (slice(start, start + _WITH_MAPS) for start in starts)
        return _joined([self._teacher.pool(audio[of], visual[of], maps=True) for of in few])

    def _pool_all(self, clips: LabelledClips, *, attention: bool) -> Pooled:
        """Pool clips in their own order, so that a resumed run gets the same bits."""
        size = _WITH_MAPS if attention else _CLIPS
        parts: list[Pooled] = []
        for start in range(0, max(len(clips), 1), size):
            positions = np.arange(start, min(start + size, len(clips)))
            batch = clips.batch(positions)
            pooled = self._teacher.pool(batch.audio, batch.visual, maps=attention)
            if not attention:
                pooled = Pooled(pooled.visual)
            elif not _fits(pooled, len(clips)):
                pooled = pooled._replace(spatial=None)
            parts.append(pooled)
        return _joined(parts)


def _fits(pooled: Pooled, clips: int) -> bool:
    """Whether maps of so many clips take less than a quarter of the memory they would lie in."""
    maps = pooled.spatial
    assert maps is not None
    return fits(clips * maps[:1].numel() * maps.element_size(), maps.device)


def _rows(pooled: Pooled, positions: Rows) -> Pooled:
    return Pooled(*(None if of is None else of[torch.from_numpy(positions)] for of in pooled))


def _joined(parts: Sequence[Pooled]) -> Pooled:
    """Put together what clips were pooled to; what some have not, none has."""
    return Pooled(
        *(
            None if any(value is None for value in values) else torch.cat(values)
            for values in zip(*parts, strict=True)
        )
    )
