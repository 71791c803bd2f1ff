"""What a method gets to see, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        self._rows = rows
        self._modality = modality
        self._device = device
        self._open = True

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """End access: the step these clips belong to is over."""
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether the clips may be read."""
        return self._open

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
                "a method read clips of an earlier step: keep exemplars with task.remember"
            )
        rows = self._rows[positions]
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
        # Changed in place they would no longer say which class a clip is of.
        self.labels.setflags(write=False)

    def batch(self, positions: Rows) -> Batch:
        """Read one batch of the current step.

        Args:
            positions: Which clips, from 0, (B,).

        Raises:
            ProtocolError: If the step these clips belong to is over.
        """
        audio, visual = self.features(positions)
        labels = torch.from_numpy(self.labels[positions]).to(self._device)
        return Batch(audio, visual, labels, current=len(positions))


class Validation:
    """Validation clips: good for choosing between states of a model, not for training.

    Args:
        clips: The clips.
        labels: Class index of each.
    """

    def __init__(self, clips: Clips, labels: Rows) -> None:
        self._clips = clips
        self._labels = labels

    def __len__(self) -> int:
        return len(self._clips)

    def accuracy(self, predict: Callable[[Clips], Rows], *, from_class: int = 0) -> float:
        """Return the share of clips that `predict` gets right; NaN without clips.

        Args:
            predict: Gives a class for every clip.
            from_class: Only clips of this class and later ones count.

        Raises:
            ProtocolError: If `predict` does not return one class a clip, or the step is over.
        """
        if len(self) == 0:
            return float("nan")
        predicted = np.asarray(predict(self._clips))
        if predicted.shape != self._labels.shape:
            raise ProtocolError(f"predict must return {len(self)} classes, not {predicted.shape}")
        counted = self._labels >= from_class
        if not counted.any():
            return float("nan")
        return float((predicted == self._labels)[counted].mean())

    def close(self) -> None:
        """End access: the step is over."""
        self._clips.close()


@dataclass(frozen=True)
class Task:
    """One incremental step as a method sees it.

    Attributes:
        step: From 0.
        classes_per_step: Number of classes of every step so far, this one included.
        train: D_t, the labelled clips of the new classes (of all seen classes, if the method
            declared joint access).
        val: Validation clips of all classes seen so far, to measure accuracy on.
        exemplars: What the memory held when the step began, as labelled clips.
    """

    step: int
    classes_per_step: tuple[int, ...]
    train: LabelledClips
    val: Validation
    exemplars: LabelledClips
    _memory: ExemplarMemory | None

    @property
    def seen_classes(self) -> int:
        """Number of classes seen so far, this step included."""
        return sum(self.classes_per_step)

    @property
    def old_classes(self) -> int:
        """Number of classes of earlier steps."""
        return sum(self.classes_per_step[:-1])

    @property
    def places(self) -> int:
        """How many exemplars of each class the memory may hold at the end of this step."""
        return 0 if self._memory is None else self._memory.places(self.seen_classes)

    def remember(self, select: Select) -> None:
        """Keep exemplars of this step's classes for the steps to come.

        Args:
            select: Given positions in `train` of one class and the number of places, chooses.

        Raises:
            ProtocolError: If the method did not declare `uses_memory`, calls it twice in a step,
                chooses more clips than there are places, or foreign ones.
        """
        if self._memory is None:
            raise ProtocolError("a method kept exemplars: let it declare uses_memory = True")
        if not self.train.is_open or self._memory.holds(self.old_classes):
            raise ProtocolError(f"step {self.step + 1}: exemplars may be kept once a step")
        new = range(self.old_classes, self.seen_classes)
        places = self._memory.make_room(self.seen_classes)
        for index in new:
            positions = np.flatnonzero(self.train.labels == index).tolist()
            chosen = [int(position) for position in select(positions, places)]
            if len(chosen) > places or not set(chosen) <= set(positions):
                raise ProtocolError(
                    f"at most {places} of its own clips may be kept of class {index}"
                )
            self._memory.keep(index, self.train._rows[chosen].tolist())


class MemoryUse(NamedTuple):
    """How much the exemplar memory holds.

    Attributes:
        clips: Places filled; a clip chosen twice fills two.
        bytes: Features of its clips that the method may see, in half precision; a clip chosen
            twice counts once.
    """

    clips: int
    bytes: int


class TaskStream:
    """Hands out a benchmark step by step.

    Args:
        manifest: The benchmark's clips.
        store: Features of all or some of them; clips without features are left out.
        modality: Which features may be read.
        joint: Whether D_t shall hold the clips of all seen classes (the oracle).
        memory: Where exemplars are kept; None if the method may keep none.
        device: Where batches go.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: FeatureStore,
        *,
        modality: Modality,
        joint: bool,
        memory: ExemplarMemory | None,
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
        return self.since(0)

    def since(self, first: int) -> Iterator[Task]:
        """Yield the steps from one on.

        Args:
            first: From 0.
        """
        for step in range(first, len(self._manifest.classes_per_step)):
            kept = [] if self._memory is None else self._memory.clips
            task = Task(
                step=step,
                classes_per_step=self._manifest.classes_per_step[: step + 1],
                train=self._labelled(self._rows("train", step, only=not self._joint)),
                val=Validation(*self._val(step)),
                exemplars=self._labelled(np.asarray(kept, dtype=np.int64)),
                _memory=self._memory,
            )
            if len(task.train) == 0:
                raise AvbenchError(f"step {step + 1} has no train clip with features: prepare them")
            yield task
            task.train.close()
            task.val.close()
            task.exemplars.close()

    def memory_use(self) -> MemoryUse:
        """Return how much the memory holds now."""
        if self._memory is None:
            return MemoryUse(0, 0)
        numbers = (self._modality != "visual") + (
            (self._modality != "audio") * self._store.frames * self._store.cells
        )
        clip = numbers * self._store.dim * np.dtype(np.float16).itemsize
        return MemoryUse(len(self._memory), len(set(self._memory.clips)) * clip)

    def exemplars(self) -> dict[int, list[str]]:
        """Return the ids of the clips in the memory, by class."""
        kept = {} if self._memory is None else self._memory.by_class
        return {c: [self._store.clip_ids[row] for row in rows] for c, rows in kept.items()}

    def resume(self, exemplars: Mapping[int, Sequence[str]]) -> None:
        """Fill an empty memory with what it held at the end of an earlier step.

        Args:
            exemplars: Ids of clips, by class.
        """
        if self._memory is None:
            return
        for index, clip_ids in exemplars.items():
            self._memory.keep(index, self._store.rows_of(clip_ids).tolist())

    def test(self, step: int) -> tuple[Clips, Rows]:
        """Return the test clips of all classes seen up to a step.

        Returns:
            The clips, without labels and in an order that says nothing of them, and their rows in
            the manifest.
        """
        rows = _scattered(self._select("test", step))
        return self._unlabelled(rows), rows

    def _val(self, step: int) -> tuple[Clips, Rows]:
        rows = _scattered(self._select("val", step))
        return self._unlabelled(rows), self._manifest.class_indices[rows]

    def _unlabelled(self, rows: Rows) -> Clips:
        return Clips(self._store, self._store_row[rows], self._modality, self._device)

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


def _scattered(rows: Rows) -> Rows:
    """Return rows in an order that is always the same and independent of class."""
    return np.random.Generator(np.random.PCG64(len(rows))).permutation(rows)


def _cat(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])
