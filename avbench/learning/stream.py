"""What a method gets to see, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory, Select
from avbench.learning.picked import Lease, Picked, leased
from avbench.learning.residency import Features, Source, columns, settle
from avbench.manifests.manifest import Manifest
from avbench.manifests.variant import by_hash
from avbench.types import AvbenchError, Modality, ProtocolError, Residency, Split

Rows = npt.NDArray[np.int64]
T = TypeVar("T")


_NOWHERE: Rows = np.empty(0, dtype=np.int64)


class Batch(NamedTuple):
    """Features of B clips on the training device.

    Attributes:
        audio: (B, d) float32; None for a visual method.
        visual: (B, L * S, d), as stored, in half precision; None for an audio method. Read where
            it lies: `visual.read()` is a tensor.
        labels: Class indices, (B,).
        current: How many rows, the first, belong to the current step; the others are exemplars.
        positions: Which clips these are: positions in the step's train clips, then in its
            exemplars, (B,).
    """

    audio: Tensor | None
    visual: Picked | None
    labels: Tensor
    current: int
    positions: Rows = _NOWHERE


@dataclass(frozen=True)
class _Access:
    """What stands behind some clips handed to a method.

    Attributes:
        source: What reads the features.
        rows: Rows of the store; in class order, so they must not be seen.
        sweeps: What the sweeps of them read from.
        lease: How long what lies where it is used may be read.
    """

    source: Source
    rows: Rows
    sweeps: WeakKeyDictionary[Sweep[Any], Iterator[Any]] = field(default_factory=WeakKeyDictionary)
    lease: Lease = field(default_factory=Lease)

    def features(self, features: Features) -> Features:
        """Return features as a method gets them: sound in single precision, sight on a lease."""
        audio, visual = features
        return (
            None if audio is None else audio.float(),
            None if visual is None else leased(visual, self.lease),
        )


@dataclass
class Questions:
    """How often a method measured accuracy on validation clips in a step.

    Attributes:
        limit: How often it may; None for as often as it likes.
        asked: How often it did.
    """

    limit: int | None = None
    asked: int = 0

    def ask(self) -> None:
        """Count one more.

        Raises:
            ProtocolError: If that is one too many.
        """
        if self.asked == self.limit:
            raise ProtocolError(
                f"a method measured accuracy on validation clips more than {self.limit} times in a"
                " step: measure it at most once an epoch"
            )
        self.asked += 1


# Kept apart from what a method holds, so that no attribute or closure of it leads to features it
# may not read, to labels or to the memory; what is not here is closed.
_OPEN: WeakKeyDictionary[Clips, _Access] = WeakKeyDictionary()
_VALIDATION: WeakKeyDictionary[Validation, tuple[_Access, Rows]] = WeakKeyDictionary()
_QUESTIONS: WeakKeyDictionary[Validation, Questions] = WeakKeyDictionary()
# With the labels of D_t, which a method could change in its own copy. By `Task.train`.
_MEMORY: WeakKeyDictionary[Clips, tuple[ExemplarMemory, Rows]] = WeakKeyDictionary()


class Clips:
    """Some clips of a feature store, without labels: all that prediction may look at.

    Args:
        source: What reads their features.
        rows: Rows of the store.
    """

    def __init__(self, source: Source, rows: Rows) -> None:
        self._count = len(rows)
        _OPEN[self] = _Access(source, rows)

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """End access: what these clips were handed out for is over, and so is all that reads on."""
        if access := _OPEN.pop(self, None):
            access.lease.over = True
            access.sweeps.clear()

    @property
    def is_open(self) -> bool:
        """Whether the clips may be read."""
        return self in _OPEN

    def features(self, positions: Rows) -> Features:
        """Read features.

        Args:
            positions: Which clips, from 0.

        Returns:
            Audio (n, d) float32 and visual (n, L * S, d) as stored, in half precision, as in
            `Batch`; None where the modality excludes it.

        Raises:
            ProtocolError: If what these clips were handed out for is over.
        """
        access = _opened(self)
        return access.features(access.source.read(access.rows[positions]))

    def sweep(self, batches: Iterable[Rows]) -> Sweep[Features]:
        """Read batch after batch; from disk, the next two are read while one is used.

        Args:
            batches: Positions, as `features` takes them.

        Raises:
            ProtocolError: As `features`, also at a batch that is asked for later.
        """
        access = _opened(self)
        rows = (access.rows[part] for part in batches)
        return Sweep(self, map(access.features, access.source.sweep(rows)))


def _opened(clips: Clips) -> _Access:
    access = _OPEN.get(clips)
    if access is None:
        raise ProtocolError(
            "a method read clips of an earlier step, or ones it was only to predict:"
            " keep exemplars with task.remember"
        )
    return access


class Sweep(Iterator[T]):
    """Batch after batch of some clips, as long as they are open.

    Args:
        clips: The clips.
        batches: What is read of them.
    """

    def __init__(self, clips: Clips, batches: Iterator[T]) -> None:
        self._clips = clips
        _opened(clips).sweeps[self] = batches

    def __next__(self) -> T:
        batch: T = next(_opened(self._clips).sweeps[self])
        return batch


class LabelledClips(Clips):
    """Clips with their class indices: what learning may look at.

    Args:
        source: What reads their features.
        rows: Rows of the store.
        labels: Class index of every row.
    """

    def __init__(self, source: Source, rows: Rows, labels: Rows) -> None:
        super().__init__(source, rows)
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
        labels = torch.from_numpy(self.labels[positions]).to(_opened(self).source.device)
        return Batch(audio, visual, labels, len(positions), positions)


class Validation:
    """Validation clips: good for choosing between states of a model, not for training.

    Their features can be read while accuracy is measured, their labels never.

    Args:
        source: What reads their features.
        rows: Rows of the store.
        labels: Class index of every row.
        questions: Counts how often accuracy is measured.
    """

    def __init__(self, source: Source, rows: Rows, labels: Rows, questions: Questions) -> None:
        self._count = len(rows)
        _VALIDATION[self] = (_Access(source, rows), labels)
        _QUESTIONS[self] = questions

    def __len__(self) -> int:
        return self._count

    def accuracy(self, predict: Callable[[Clips], Rows], *, from_class: int = 0) -> float:
        """Return the share of clips that `predict` gets right; NaN without clips.

        Args:
            predict: Gives a class for every clip.
            from_class: Only clips of this class and later ones count.

        Raises:
            ProtocolError: If `predict` does not return one class a clip, the step is over, or
                accuracy was measured as often as it may be in a step.
        """
        if self not in _VALIDATION:
            raise ProtocolError("a method measured accuracy on clips of an earlier step")
        if len(self) == 0:
            return float("nan")
        _QUESTIONS[self].ask()
        access, labels = _VALIDATION[self]
        clips = Clips(access.source, access.rows)
        try:
            predicted = np.asarray(predict(clips))
        finally:
            clips.close()
        if predicted.shape != labels.shape:
            raise ProtocolError(f"predict must return {len(self)} classes, not {predicted.shape}")
        counted = labels >= from_class
        if not counted.any():
            return float("nan")
        return float((predicted == labels)[counted].mean())

    def close(self) -> None:
        """End access: the step is over."""
        _VALIDATION.pop(self, None)


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
        places: How many exemplars of each class the memory may hold at the end of this step.
    """

    step: int
    classes_per_step: tuple[int, ...]
    train: LabelledClips
    val: Validation
    exemplars: LabelledClips
    places: int

    @property
    def seen_classes(self) -> int:
        """Number of classes seen so far, this step included."""
        return sum(self.classes_per_step)

    @property
    def old_classes(self) -> int:
        """Number of classes of earlier steps."""
        return sum(self.classes_per_step[:-1])

    def batches(self, order: Iterable[tuple[Rows, Rows | None]]) -> Sweep[Batch]:
        """Read batch after batch; from disk, the next two are read while one is used.

        Args:
            order: For every batch, which train clips and which exemplars, (B,) and (E,).

        Raises:
            ProtocolError: If the step is over.
        """
        return Sweep(self.train, self._batches(order))

    @property
    def remembered(self) -> bool:
        """Whether exemplars of this step's classes were kept."""
        return self.train in _MEMORY and _MEMORY[self.train][0].holds(self.old_classes)

    def remember(self, select: Select) -> None:
        """Keep exemplars of this step's classes for the steps to come.

        Args:
            select: Given positions in `train` of one class and the number of places, chooses.

        Raises:
            ProtocolError: If the method did not declare `uses_memory`, calls it twice in a step,
                chooses more clips than there are places, or foreign ones.
        """
        if not self.train.is_open:
            raise ProtocolError(f"step {self.step + 1} is over: exemplars may be kept once a step")
        if self.train not in _MEMORY:
            raise ProtocolError("a method kept exemplars: let it declare uses_memory = True")
        memory, labels = _MEMORY[self.train]
        if memory.holds(self.old_classes):
            raise ProtocolError(f"step {self.step + 1}: exemplars may be kept once a step")
        places = memory.make_room(self.seen_classes)
        for index in range(self.old_classes, self.seen_classes):
            positions = np.flatnonzero(labels == index).tolist()
            chosen = [int(position) for position in select(positions, places)]
            if len(chosen) > places or not set(chosen) <= set(positions):
                raise ProtocolError(
                    f"at most {places} of its own clips may be kept of class {index}"
                )
            memory.keep(index, _opened(self.train).rows[chosen].tolist())

    def _batches(self, order: Iterable[tuple[Rows, Rows | None]]) -> Iterator[Batch]:
        train, exemplars = _opened(self.train), _opened(self.exemplars)
        order = [(new, _NOWHERE if old is None else old) for new, old in order]
        rows = (np.concatenate([train.rows[new], exemplars.rows[old]]) for new, old in order)
        sweep = map(train.features, train.source.sweep(rows))
        for new, old in order:
            labels = np.concatenate([self.train.labels[new], self.exemplars.labels[old]])
            yield Batch(
                *next(sweep),
                torch.from_numpy(labels).to(train.source.device),
                current=len(new),
                positions=np.concatenate([new, old]),
            )


class MemoryUse(NamedTuple):
    """How much the exemplar memory holds.

    Attributes:
        clips: Places filled; a clip chosen twice fills two.
        bytes: Features of its clips that the method may see, as stored; a clip chosen twice counts
            once.
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
        residency: Where a step's features lie; None to choose, see `settle`.
        mean_of_tokens: Whether the method needs but the mean of a clip's visual tokens.
        questions: How often accuracy on validation clips may be measured in a step; None for as
            often as a method likes.

    Attributes:
        residency: Where those of the last step handed out lie.
        questions: How often accuracy was measured in that step.
    """

    residency: Residency = "disk"
    questions: Questions

    def __init__(
        self,
        manifest: Manifest,
        store: FeatureStore,
        *,
        modality: Modality,
        joint: bool,
        memory: ExemplarMemory | None,
        device: torch.device,
        residency: Residency | None = None,
        mean_of_tokens: bool = False,
        questions: int | None = None,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._columns = columns(store, modality, mean_of_tokens=mean_of_tokens)
        self._joint = joint
        self._memory = memory
        self._device = device
        self._asked = residency
        self._limit = questions
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
            train = self._store_row[self._select("train", step, only=not self._joint)]
            if len(train) == 0:
                raise AvbenchError(f"step {step + 1} has no train clip with features: prepare them")
            val = self._shuffled("val", step)
            kept = np.array([] if self._memory is None else self._memory.clips, dtype=np.int64)
            read = np.concatenate([train, self._store_row[val], kept])
            source = settle(self._columns, read, self._device, self._asked)
            self.residency, self.questions = source.residency, Questions(self._limit)
            task = Task(
                step=step,
                classes_per_step=self._manifest.classes_per_step[: step + 1],
                train=self._labelled(source, train),
                val=Validation(
                    source,
                    self._store_row[val],
                    self._manifest.class_indices[val],
                    self.questions,
                ),
                exemplars=self._labelled(source, kept),
                places=self._places(step),
            )
            del source  # what it holds ends with the access to it
            if self._memory is not None:
                _MEMORY[task.train] = (self._memory, task.train.labels.copy())
            yield task
            task.train.close()
            task.val.close()
            task.exemplars.close()

    def memory_use(self) -> MemoryUse:
        """Return how much the memory holds now."""
        if self._memory is None:
            return MemoryUse(0, 0)
        clip = sum(column.bytes for column in self._columns if column is not None)
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
            The clips, without labels and in an order that depends on nothing but their ids and the
            step, and their rows in the manifest.
        """
        rows = self._shuffled("test", step)
        source = Source(self._columns, self._device, "disk")  # they are read but once
        return Clips(source, self._store_row[rows]), rows

    def _shuffled(self, split: Split, step: int) -> Rows:
        """Return the rows of `_select`, ordered by hashes of step and clip id.

        Their number, and a clip's position among them, tell nothing about its class.
        """
        row_of = {self._manifest.clip_ids[row]: row for row in self._select(split, step)}
        return np.array([row_of[clip] for clip in by_hash(step, row_of)], dtype=np.int64)

    def _places(self, step: int) -> int:
        seen = sum(self._manifest.classes_per_step[: step + 1])
        return 0 if self._memory is None else self._memory.places(seen)

    def _labelled(self, source: Source, store_rows: Rows) -> LabelledClips:
        return LabelledClips(source, store_rows, self._class_of_store_row[store_rows])

    def _select(self, split: Split, step: int, *, only: bool = False) -> Rows:
        """Return manifest rows of a split up to a step (or of it only) that have features."""
        rows = self._manifest.rows(split)
        steps = self._manifest.step_of_row[rows]
        wanted = (steps == step) if only else (steps <= step)
        return rows[wanted & (self._store_row[rows] >= 0)]
