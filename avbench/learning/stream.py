"""What a method gets to see, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory, Select
from avbench.manifests.manifest import Manifest
from avbench.types import AvbenchError, Modality, Split

Rows = npt.NDArray[np.int64]


class ProtocolError(AvbenchError):
    """A method asked for something the protocol does not give it."""


class Batch(NamedTuple):
    """Features of B clips on the training device.

    Attributes:
        audio: (B, d) float32; None for a visual method.
        visual: (B, L * S, d) float32; None for an audio method.
        labels: Class indices, (B,).
        current: How many rows, the first, belong to the current step; the others are exemplars.
    """

    audio: Tensor | None
    visual: Tensor | None
    labels: Tensor
    current: int

    def followed_by(self, exemplars: Batch) -> Batch:
        """Return this batch of the current step with exemplars after it."""
        return Batch(
            _cat(self.audio, exemplars.audio),
            _cat(self.visual, exemplars.visual),
            torch.cat([self.labels, exemplars.labels]),
            current=self.current,
        )


class Clips:
    """Some clips of a feature store, without labels: all that prediction may look at.

    Args:
        store: Where features lie.
        rows: Rows of the store.
        modality: Which features may be read.
        device: Where batches go.
    """

    def __init__(
        self, store: FeatureStore, rows: Rows, modality: Modality, device: torch.device
    ) -> None:
        self._store = store
        self.rows = rows
        self._modality = modality
        self._device = device
        self._open = True

    def __len__(self) -> int:
        return len(self.rows)

    def close(self) -> None:
        """End access: the step these clips belong to is over."""
        self._open = False

    def features(self, positions: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Read features.

        Args:
            positions: Which clips, from 0.

        Returns:
            Audio (n, d) and visual (n, L * S, d), float32; None where the modality excludes it.

        Raises:
            ProtocolError: If the step these clips belong to is over.
        """
        if not self._open:
            raise ProtocolError(
                "a method read clips of an earlier step: keep exemplars in task.memory instead"
            )
        rows = self.rows[positions]
        audio = self._tensor(self._store.audio(rows)) if self._modality != "visual" else None
        visual = self._tensor(self._store.visual(rows)) if self._modality != "audio" else None
        return audio, visual

    def _tensor(self, values: npt.NDArray[np.float16]) -> Tensor:
        # Cast after the transfer: half precision is half the bytes.
        return torch.from_numpy(values).to(self._device).float()


class LabelledClips(Clips):
    """Clips with their class indices: what learning may look at.

    Args:
        store: Where features lie.
        rows: Rows of the store.
        labels: Class index of every row.
        modality: Which features may be read.
        device: Where batches go.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Rows,
        labels: Rows,
        modality: Modality,
        device: torch.device,
    ) -> None:
        super().__init__(store, rows, modality, device)
        self.labels = labels

    def batch(self, positions: Rows) -> Batch:
        """Read one batch of the current step.

        Raises:
            ProtocolError: If the step these clips belong to is over.
        """
        audio, visual = self.features(positions)
        labels = torch.from_numpy(self.labels[positions]).to(self._device)
        return Batch(audio, visual, labels, current=len(positions))


@dataclass(frozen=True)
class Task:
    """One incremental step as a method sees it.

    Attributes:
        step: From 0.
        classes_per_step: Number of classes of every step so far, this one included.
        train: D_t, the labelled clips of the new classes (of all seen classes, if the method
            declared joint access).
        val: Validation clips of all classes seen so far.
        exemplars: What the memory held when the step began, as labelled clips.
    """

    step: int
    classes_per_step: tuple[int, ...]
    train: LabelledClips
    val: LabelledClips
    exemplars: LabelledClips
    _memory: ExemplarMemory

    @property
    def seen_classes(self) -> int:
        """Number of classes seen so far, this step included."""
        return sum(self.classes_per_step)

    @property
    def old_classes(self) -> int:
        """Number of classes of earlier steps."""
        return sum(self.classes_per_step[:-1])

    def remember(self, select: Select) -> None:
        """Keep exemplars of this step's classes for the steps to come.

        Args:
            select: Given positions in `train` of one class and the number of places, chooses.

        Raises:
            ProtocolError: If more is chosen than there are places, or foreign clips are.
            ValueError: If called twice in a step.
        """
        new = range(self.old_classes, self.seen_classes)
        places = self._memory.make_room(len(new))
        for index in new:
            positions = np.flatnonzero(self.train.labels == index).tolist()
            chosen = list(select(positions, places))
            if len(chosen) > places or not set(chosen) <= set(positions):
                raise ProtocolError(
                    f"at most {places} of its own clips may be kept of class {index}"
                )
            self._memory.keep(index, self.train.rows[chosen].tolist())


class TaskStream:
    """Hands out a benchmark step by step.

    Args:
        manifest: The benchmark's clips.
        store: Features of all or some of them; clips without features are left out.
        modality: Which features may be read.
        joint: Whether D_t shall hold the clips of all seen classes (the oracle).
        memory: Where exemplars are kept.
        device: Where batches go.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: FeatureStore,
        *,
        modality: Modality,
        joint: bool,
        memory: ExemplarMemory,
        device: torch.device,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._modality: Modality = modality
        self._joint = joint
        self._memory = memory
        self._device = device
        self._store_row = store.rows_of(manifest.clip_ids)
        self._class_of_store_row = np.full(len(store), -1, dtype=np.int64)
        present = self._store_row >= 0
        self._class_of_store_row[self._store_row[present]] = manifest.class_indices[present]

    def __iter__(self) -> Iterator[Task]:
        """Yield the steps in order; the train clips of a step are closed when the next begins."""
        for step in range(len(self._manifest.classes_per_step)):
            task = Task(
                step=step,
                classes_per_step=self._manifest.classes_per_step[: step + 1],
                train=self._labelled(self._rows("train", step, only=not self._joint)),
                val=self._labelled(self._rows("val", step)),
                exemplars=self._labelled(np.asarray(self._memory.clips, dtype=np.int64)),
                _memory=self._memory,
            )
            if len(task.train) == 0:
                raise AvbenchError(f"step {step + 1} has no train clip with features: prepare them")
            yield task
            task.train.close()
            task.exemplars.close()

    def test(self, step: int) -> tuple[Clips, Rows]:
        """Return the test clips of all classes seen up to a step.

        Returns:
            The clips, without labels, and their rows in the manifest.
        """
        rows = self._select("test", step)
        return Clips(self._store, self._store_row[rows], self._modality, self._device), rows

    def _labelled(self, store_rows: Rows) -> LabelledClips:
        labels = self._class_of_store_row[store_rows]
        return LabelledClips(self._store, store_rows, labels, self._modality, self._device)

    def _rows(self, split: Split, step: int, *, only: bool = False) -> Rows:
        return self._store_row[self._select(split, step, only=only)]

    def _select(self, split: Split, step: int, *, only: bool = False) -> Rows:
        """Return manifest rows of a split up to a step (or of it only) that have features."""
        rows = self._manifest.rows(split)
        steps = self._manifest.step_of_row[rows]
        wanted = (steps == step) if only else (steps <= step)
        return rows[wanted & (self._store_row[rows] >= 0)]


def _cat(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])
