"""The training loop that all gradient-based methods share."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.attention import forget_keys
from avbench.learning.checkpoint import Training
from avbench.learning.classifiers import Classifier, LinearClassifier
from avbench.learning.losses import Variant
from avbench.learning.method import Setup
from avbench.learning.network import Activation, AudioVisualNet, Output
from avbench.learning.snapshot import CannotKeepError, Snapshot
from avbench.learning.stream import Batch, Clips, Rows, Task
from avbench.learning.teaching import Lessons
from avbench.types import AvbenchError, Modality, UsageError

# Only bounds memory; results do not depend on it.
_INFERENCE_BATCH = 128


@dataclass(frozen=True)
class GradientSettings:
    """Settings of the shared loop.

    Attributes:
        epochs: Epochs per step.
        batch_size: Clips of the current step per batch.
        learning_rate: Of Adam.
        weight_decay: Coupled L2 on every parameter.
        drop_last: Whether an epoch leaves out its incomplete last batch.
        milestones: The learning rate is a tenth from the end of these epochs, counted from 1.
        selection: Which epoch is kept: the best on validation clips of all seen classes, the best
            on those of the new classes, or the last.
        activation: "paper" applies tanh before fusion (Eq. 5), the authors' code ReLU.
        temporal_audio_guidance: False scores frames by sight alone (Eq. 3), unlike the code.
        precision: Of the products that attention makes of the tokens, nearly all there is to
            compute; everything else is float32. bfloat16 wants a GPU, or a CPU with AMX.
    """

    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    drop_last: bool = True
    milestones: tuple[int, ...] = ()
    selection: Literal["best_val", "best_val_new", "last"] = "best_val"
    activation: Activation = "official"
    temporal_audio_guidance: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        self.check(at_least_one=("epochs", "batch_size"), positive=("learning_rate",))
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError("weight_decay must not be negative")
        # From TOML it is a list.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if any(milestone < 1 for milestone in self.milestones):
            raise ValueError("milestones must each be at least 1")

    def check(
        self,
        *,
        at_least_one: Sequence[str] = (),
        positive: Sequence[str] = (),
        finite: Sequence[str] = (),
    ) -> None:
        """Raise ValueError if a setting of these names is not what it must be."""
        for names, holds, must in (
            (at_least_one, lambda value: value >= 1, "at least 1"),
            (positive, lambda value: 0 < value < math.inf, "positive"),
            (finite, math.isfinite, "finite"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name} must be {must}")


@dataclass(frozen=True)
class DistillationSettings(GradientSettings):
    """Settings of methods that distil the scores of each old step (`task_distillation`).

    Attributes:
        distillation_temperature: T; Eq. 13 of AV-CIL has none, which is 1.
        kl_direction: "paper" takes KL(new || old), as Eq. 13 reads.
    """

    distillation_temperature: float = 2.0
    kl_direction: Variant = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(positive=("distillation_temperature",))


class GradientMethod(ABC):
    """A method that trains the network by gradient descent; a subclass gives the loss.

    Each step starts from the best network of the step before, which also is the frozen teacher. A
    new Adam trains for a fixed number of epochs; after each, accuracy on the validation clips of
    all seen classes is measured, and the earliest best epoch is kept (as in the authors' code).

    Args:
        settings: See `Settings`.
        setup: What the evaluator says of the run.
    """

    Settings: ClassVar[type[Any]] = GradientSettings
    recipes: ClassVar[Path | None] = None
    access: ClassVar[Literal["incremental", "joint"]] = "incremental"
    modalities: ClassVar[tuple[Modality, ...]] = ("audio-visual", "audio", "visual")
    uses_memory: ClassVar[bool] = False
    # Of sight alone, its network uses the mean of a clip's tokens only, as if that were its one
    # token. A subclass whose network uses more of them says False.
    mean_of_tokens: ClassVar[bool] = True
    classifier: ClassVar[Callable[[int, int], Classifier]] = LinearClassifier

    network: AudioVisualNet
    teacher: AudioVisualNet | None
    lessons: Lessons | None

    def __init__(self, settings: Any, setup: Setup) -> None:
        if settings.precision == "bfloat16" and setup.device.type == "cpu" and not has_amx():
            raise UsageError(
                "precision=bfloat16 would be many times slower on this CPU, which has no AMX:"
                " leave it out, or compute on a GPU"
            )
        self.settings = settings
        self.setup = setup
        self.random = random.Random(setup.seed)
        self.teacher = None
        self.lessons = None

    @abstractmethod
    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            batch: B clips.
            task: The step they are from.
        """

    def seed(self, step: int) -> None:
        """Seed torch and `self.random`; each step anew, so that a run can be resumed at any."""
        digest = hashlib.sha256(f"{self.setup.seed}/{step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8]))
        self.random.seed(digest)

    def start(self, task: Task) -> None:
        """Make the step's network and teacher."""
        if task.step == 0:
            self.network = self.new_network(task.seen_classes)
            return
        self.freeze_teacher(task)
        self.network.grow(task.seen_classes)

    def freeze_teacher(self, task: Task) -> None:
        """Make a frozen copy of the network the teacher of a step."""
        self.teacher = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.lessons = Lessons(self.teacher, task)

    def taught(self, batch: Batch, *, attention: bool = False) -> Output:
        """Return what the teacher says of a batch, without gradients.

        Args:
            batch: B clips, of them E exemplars.
            attention: Whether to return attention, too; of the E exemplars alone, the spatial one
                as `spatial_reference`.
        """
        assert self.teacher is not None
        assert self.lessons is not None
        with self.setup.stopwatch("teacher"), torch.no_grad():
            pooled = self.lessons.pool(batch, attention=attention)
            return self.teacher.classify(batch.audio, pooled)

    def batches(self, task: Task) -> Iterator[Batch]:
        """Yield the batches of one epoch: D_t, shuffled."""
        s = self.settings
        order = shuffled(len(task.train), s.batch_size, drop_last=s.drop_last)
        return task.batches((positions, None) for positions in order)

    def ready(self, task: Task) -> None:
        """Do what prediction needs: called after every epoch and when the best one is back."""

    def finish(self, task: Task) -> None:
        """Do what is due at the end of a step, such as keeping exemplars."""

    def validate(self, task: Task) -> float | None:
        """Return the accuracy that decides which epoch is kept; None without validation clips."""
        new = task.old_classes if self.settings.selection == "best_val_new" else 0
        accuracy = task.val.accuracy(self.predict, from_class=new)
        return None if math.isnan(accuracy) else accuracy

    def new_network(self, classes: int) -> AudioVisualNet:
        """Make a network with random weights."""
        network = AudioVisualNet(
            self.setup.dim,
            classes,
            self.setup.modality,
            frames=self.setup.frames,
            classifier=type(self).classifier,
            activation=self.settings.activation,
            temporal_audio_guidance=self.settings.temporal_audio_guidance,
            product=torch.bfloat16 if self.settings.precision == "bfloat16" else None,
        )
        return network.to(self.setup.device)

    def learn(self, task: Task) -> None:
        """Train on one step.

        Raises:
            AvbenchError: If the loss or a weight becomes NaN or infinite, or a checkpoint in the
                middle of the step cannot keep what the method holds.
        """
        self.seed(task.step)
        self.start(task)
        optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.settings.milestones)
        weights = self.network.state_dict(keep_vars=True).values()
        beside = Snapshot(self, apart=[self.settings, self.setup, *weights])
        training = Training(self.network, optimizer, schedule, beside)
        if self.setup.checkpoint:
            training.read(self.setup.checkpoint)
        for epoch in range(training.epochs, self.settings.epochs):
            loss = self._train_epoch(task, optimizer)
            schedule.step()
            sound = all(bool(p.isfinite().all()) for p in self.network.parameters())
            if not (math.isfinite(loss) and sound):
                # The last update of an epoch shows in no loss of that epoch.
                wrong = "a weight is not finite" if math.isfinite(loss) else f"the loss is {loss}"
                raise AvbenchError(
                    f"{wrong} at step {task.step + 1}, epoch {epoch + 1}:"
                    " try a smaller learning_rate"
                )
            self.ready(task)
            with self.setup.stopwatch("validation"):
                accuracy = self.validate(task)
            self.setup.log(
                {"step": task.step, "epoch": epoch, "loss": loss, "val_accuracy": accuracy}
            )
            if self.settings.selection != "last":
                training.keep_best(accuracy or 0.0)
            training.epochs += 1
            if self.setup.checkpoint and self.setup.checkpoint.due(training.epochs):
                if task.remembered:  # which resuming would not do again
                    raise CannotKeepError(
                        "--checkpoint-epochs cannot keep a step whose exemplars were kept already:"
                        " call task.remember in finish(), or leave --checkpoint-epochs out"
                    )
                training.write(self.setup.checkpoint)
        if training.best is not None:
            self.network.load_state_dict(training.best)
            self.ready(task)
        self.lessons = None  # its memory is needed no more, nor that of keys
        forget_keys()
        self.finish(task)

    def predict(self, clips: Clips) -> npt.NDArray[np.int64]:
        """Return the class of highest score for every clip, (clips,)."""
        return self.scores(clips).argmax(dim=1).cpu().numpy()

    def scores(self, clips: Clips) -> Tensor:
        """Return the network's scores, (clips, C)."""
        return self.infer(clips, lambda out: out.logits)

    def features(self, clips: Clips, positions: Rows | None = None) -> Tensor:
        """Return what the classifier sees, L2-normalised: (n, d).

        Args:
            clips: The clips.
            positions: Which of them, (n,); None for all.
        """
        return self.infer(clips, lambda out: F.normalize(out.feature), positions)

    @torch.no_grad()
    def infer(
        self, clips: Clips, read: Callable[[Output], Tensor], positions: Rows | None = None
    ) -> Tensor:
        """Run the network in evaluation mode.

        Args:
            clips: The clips.
            read: What is wanted of the output, one row a clip.
            positions: Which of them; None for all.
        """
        self.network.eval()
        positions = np.arange(len(clips)) if positions is None else positions
        starts = range(_INFERENCE_BATCH, len(positions), _INFERENCE_BATCH)
        parts = np.split(positions, starts)
        sweep = clips.sweep(parts)
        found = []
        for _ in parts:
            with self.setup.stopwatch("loading"):
                audio, visual = next(sweep)
            found.append(read(self.network(audio, visual)))
            del audio, visual
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        """Return the network's weights."""
        return self.network.state_dict()

    def restore(self, state: dict[str, Tensor], classes_per_step: tuple[int, ...]) -> None:
        """Make the network that a checkpoint holds."""
        first, *later = accumulate(classes_per_step)
        self.network = self.new_network(first)
        for seen in later:
            self.network.grow(seen)
        self.network.load_state_dict(state)

    def _train_epoch(self, task: Task, optimizer: torch.optim.Optimizer) -> float:
        losses = []
        self.network.train()
        timed = self.setup.stopwatch
        batches = iter(self.batches(task))
        while True:
            with timed("loading"):
                batch = next(batches, None)
            if batch is None:
                break
            with timed("forward"):
                loss = self.loss(batch, task)
            with timed("backward"):
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            losses.append(loss.detach())
            del batch, loss  # or two batches would be held while the next is read
        return float(torch.stack(losses).mean())


def has_amx() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 by itself."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def shuffled(count: int, batch_size: int, *, drop_last: bool = True) -> list[npt.NDArray[np.int64]]:
    """Return positions 0..count-1 in random order, in batches.

    A batch is never larger than the set, so a small set still makes one.

    Args:
        count: Size of the set.
        batch_size: Positions a batch.
        drop_last: Whether to leave out an incomplete last batch.
    """
    size = max(1, min(batch_size, count))
    # As torch's loaders draw it, so that the order can be compared with the authors'.
    seed = int(torch.empty((), dtype=torch.int64).random_())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    end = count - size + 1 if drop_last else count
    return [order[start : start + size] for start in range(0, end, size)]
