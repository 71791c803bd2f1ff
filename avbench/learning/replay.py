"""Training with exemplars: in batches of their own, or merged with the new clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avbench.learning.gradient import (
    DistillationSettings,
    GradientMethod,
    GradientSettings,
    shuffled,
)
from avbench.learning.herding import class_mean, herd, nearest
from avbench.learning.memory import at_random, first
from avbench.learning.network import Output
from avbench.learning.stream import Batch, Clips, Rows, Task


@dataclass(frozen=True)
class ReplaySettings(GradientSettings):
    """Settings of every method that keeps exemplars.

    Attributes:
        memory: Capacity of the exemplar memory in clips; None for the benchmark's.
    """

    memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(at_least_one=() if self.memory is None else ("memory",))


@dataclass(frozen=True)
class PairedSettings(ReplaySettings, DistillationSettings):
    """Settings of methods whose exemplars come in batches of their own.

    Attributes:
        exemplar_batch_size: Exemplars per batch, beside `batch_size` new clips.
        exemplar_selection: "first" keeps the first clips of each class, as SS-IL's own code does.
    """

    exemplar_batch_size: int = 128
    exemplar_selection: Literal["random", "first"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(at_least_one=("exemplar_batch_size",))


class PairedReplay(GradientMethod):
    """Pairs every batch of new clips with one of random exemplars (SS-IL, AV-CIL)."""

    Settings: ClassVar[type[Any]] = PairedSettings
    uses_memory: ClassVar[bool] = True

    def batches(self, task: Task) -> Iterator[Batch]:
        """Pair every batch of D_t with one of exemplars, which repeat when they run out."""
        s = self.settings
        new = shuffled(len(task.train), s.batch_size, drop_last=s.drop_last)
        old: list[Rows | None] = []
        if task.step:
            old += shuffled(len(task.exemplars), s.exemplar_batch_size, drop_last=s.drop_last)
        return task.batches(zip(new, cycle(old or [None]), strict=False))

    def finish(self, task: Task) -> None:
        """Keep exemplars of the new classes."""
        by_chance = self.settings.exemplar_selection == "random"
        task.remember(at_random(self.random) if by_chance else first)


@dataclass(frozen=True)
class HerdedSettings(ReplaySettings):
    """Settings of methods whose exemplars are herded.

    Attributes:
        herding_replacement: Whether a clip may be chosen again, as in the authors' code; iCaRL's
            paper excludes it.
        normalize_means: Whether class means have length 1, as in iCaRL's paper.
    """

    herding_replacement: bool = True
    normalize_means: bool = False


class HerdedReplay(GradientMethod):
    """Merges new clips and herded exemplars into one set (iCaRL, AFC)."""

    Settings: ClassVar[type[Any]] = HerdedSettings
    uses_memory: ClassVar[bool] = True

    def batches(self, task: Task) -> Iterator[Batch]:
        """Yield batches of D_t and exemplars together, shuffled, the new clips first in each."""
        new = len(task.train)
        s = self.settings
        count = new + len(task.exemplars)
        order = shuffled(count, s.batch_size, drop_last=s.drop_last)
        return task.batches((part[part < new], part[part >= new] - new) for part in order)

    def finish(self, task: Task) -> None:
        """Herd exemplars of the new classes."""
        with self.setup.stopwatch("herding"):
            features = self.features(task.train).cpu().numpy()
            task.remember(lambda clips, places: self.herd(features, np.array(clips), places))

    def herd(
        self, features: npt.NDArray[np.float32], clips: npt.NDArray[np.int64], places: int
    ) -> list[int]:
        """Herd clips of one new class.

        Args:
            features: The network's, of all of D_t, (clips, d).
            clips: Positions in D_t.
            places: How many to choose at most.
        """
        replacement: bool = self.settings.herding_replacement
        return [int(clips[n]) for n in herd(features[clips], places, replacement=replacement)]


class NearestMean(HerdedReplay):
    """Predicts the class whose mean of exemplars is nearest (NME)."""

    means: Tensor

    def ready(self, task: Task) -> None:
        """Compute the mean of every class from its exemplars, herding those of the new ones."""
        places, normalize = task.places, self.settings.normalize_means
        with self.setup.stopwatch("herding"):
            classes = task.exemplars.labels
            kept = [np.flatnonzero(classes == index)[:places] for index in range(task.old_classes)]
            positions = np.concatenate([np.empty(0, dtype=np.int64), *kept])
            old, new = self.features(task.exemplars, positions), self.features(task.train)
            on_cpu = new.cpu().numpy()
            means = []
            for index in range(task.seen_classes):
                if index < task.old_classes:
                    features = old[classes[positions] == index]
                else:
                    clips = np.flatnonzero(task.train.labels == index)
                    features = new[self.herd(on_cpu, clips, places)]
                means.append(class_mean(features, places, normalize=normalize))
            self.means = torch.stack(means)

    def predict(self, clips: Clips) -> npt.NDArray[np.int64]:
        """Return the class of the nearest mean for every clip, (clips,)."""

        def read(out: Output) -> Tensor:
            return nearest(out.feature, self.means)

        return self.infer(clips, read).cpu().numpy()

    def state(self) -> dict[str, Tensor]:
        """Return the network's weights and the class means."""
        return super().state() | {"class_means": self.means}

    def restore(self, state: dict[str, Tensor], classes_per_step: tuple[int, ...]) -> None:
        """Make the network and the means that a checkpoint holds."""
        self.means = state["class_means"].to(self.setup.device)
        weights = {key: value for key, value in state.items() if key != "class_means"}
        super().restore(weights, classes_per_step)
