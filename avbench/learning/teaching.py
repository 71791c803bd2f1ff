"""What the teacher has to say of a step, computed once instead of at every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avbench.learning.network import AudioVisualNet, Pooled
from avbench.learning.picked import Picked
from avbench.learning.residency import fits
from avbench.learning.stream import Batch, LabelledClips, Rows, Task

# Clips at a time; with maps one, as what is made beside them takes several times their memory.
_CLIPS = 128


class _Kept(NamedTuple):
    """Of a teacher's `Pooled`, what is kept; all rows are of one clip each."""

    visual: Tensor | None
    spatial: Tensor | None = None
    temporal: Tensor | None = None
    spatial_entropy: Tensor | None = None


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
        self._new: _Kept | None = None
        self._old: _Kept | None = None

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
        if attention and old.spatial_reference is None:
            old = self._attend(batch)
        if new.visual is None or old.visual is None:
            return Pooled(None)
        return old._replace(visual=torch.cat([new.visual, old.visual]))

    def _attend(self, batch: Batch) -> Pooled:
        assert batch.audio is not None
        assert batch.visual is not None
        audio, visual = batch.audio[batch.current :], batch.visual[batch.current :]

        def pool(of: slice) -> _Kept:
            return _Kept(*self._teacher.pool(audio[of], visual[of], maps=True)[:4])

        return _rows(_in_parts(pool, len(audio), 1), np.arange(len(audio)))

    def _pool_all(self, clips: LabelledClips, *, attention: bool) -> _Kept:
        """Pool clips in their own order, so that a resumed run gets the same bits."""

        def pool(of: slice) -> _Kept:
            batch = clips.batch(np.arange(of.start, of.stop))
            pooled = self._teacher.pool(batch.audio, batch.visual, maps=attention)
            if not attention:
                return _Kept(pooled.visual)
            kept = _Kept(*pooled[:4])
            return kept if _fits(kept, len(clips)) else kept._replace(spatial=None)

        return _in_parts(pool, len(clips), 1 if attention else _CLIPS)


def _in_parts(pool: Callable[[slice], _Kept], clips: int, size: int) -> _Kept:
    """Pool so many clips at a time; beside the whole, no more than one part is in memory."""
    whole: _Kept | None = None
    for start in range(0, max(clips, 1), size):
        of = slice(start, min(start + size, clips))
        part = pool(of)
        whole = whole or _Kept(
            *(None if values is None else _room(values, clips) for values in part)
        )
        for into, values in zip(whole, part, strict=True):
            if into is not None and values is not None:
                into[of] = values
        del part, values  # before the next is made
    assert whole is not None
    return whole


def _room(like: Tensor, clips: int) -> Tensor:
    return like.new_empty((clips, *like.shape[1:]))


def _fits(kept: _Kept, clips: int) -> bool:
    """Whether maps of so many clips take less than a quarter of the memory they would lie in."""
    maps = kept.spatial
    assert maps is not None
    return fits(clips * maps[:1].numel() * maps.element_size(), maps.device)


def _rows(kept: _Kept, positions: Rows) -> Pooled:
    """Return some rows; of the attention, which is large, only where they lie."""
    index = torch.from_numpy(positions)
    visual, _, temporal, entropy = (
        None if of is None else of[index] for of in kept._replace(spatial=None)
    )
    maps = None if kept.spatial is None else Picked(kept.spatial, positions)
    return Pooled(visual, None, temporal, entropy, spatial_reference=maps)
