"""AV-CIL: Audio-Visual Class-Incremental Learning (Pian et al., ICCV 2023).

Four losses (Eq. 14): separated softmax cross-entropy, task-wise distillation, the dual audio-visual
similarity constraint (D-AVSC, section 3.3) and visual attention distillation (VAD, section 3.4).
Where equation and the authors' code differ, this is the code, which made the published numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.gradient import GradientMethod, GradientSettings, shuffled
from avbench.learning.losses import separated_softmax, task_distillation
from avbench.learning.memory import at_random
from avbench.learning.stream import Batch, Task
from avbench.types import Modality


@dataclass(frozen=True)
class AVCILSettings(GradientSettings):
    """Settings of AV-CIL.

    Attributes:
        exemplar_batch_size: Exemplars per batch, beside `batch_size` new clips.
        temperature: tau of the similarity constraint (Eq. 6 and 7).
        lambda_instance: Weight of I-AVSS (Eq. 8).
        lambda_class: Weight of C-AVSS (Eq. 8).
        lambda_vad: Balance of spatial against temporal attention distillation (Eq. 11).
    """

    exemplar_batch_size: int = 128
    temperature: float = 0.05
    lambda_instance: float = 0.1
    lambda_class: float = 1.0
    lambda_vad: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exemplar_batch_size < 1:
            raise ValueError("exemplar_batch_size must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError("temperature must be positive")
        for name in ("lambda_instance", "lambda_class", "lambda_vad"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite")


class AVCIL(GradientMethod):
    """Replay, distil scores and attention, and keep sound and sight similar."""

    Settings: ClassVar[type[Any]] = AVCILSettings
    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")
    modalities: ClassVar[tuple[Modality, ...]] = ("audio-visual",)
    uses_memory: ClassVar[bool] = True

    def batches(self, task: Task) -> Iterator[Batch]:
        """Pair every batch of D_t with one of exemplars, which repeat when they run out."""
        if task.step == 0:
            yield from super().batches(task)
            return
        new = shuffled(len(task.train), self.settings.batch_size)
        old = shuffled(len(task.exemplars), self.settings.exemplar_batch_size)
        for current, exemplars in zip(new, cycle(old), strict=False):
            yield task.train.batch(current).followed_by(task.exemplars.batch(exemplars))

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return the total loss (Eq. 14); at the first step, cross-entropy."""
        out = self.network(batch.audio, batch.visual)
        if task.step == 0:
            return F.cross_entropy(out.logits, batch.labels)
        assert self.teacher is not None
        with torch.no_grad():
            old = self.teacher(batch.audio, batch.visual)

        s: AVCILSettings = self.settings
        ss_ce = separated_softmax(
            out.logits, batch.labels, current=batch.current, old_classes=task.old_classes
        )
        tkd = task_distillation(out.logits, old.logits, task.classes_per_step[:-1])
        i_avss = instance_similarity(out.audio, out.visual, s.temperature)
        c_avss = class_similarity(out.audio, out.visual, batch.labels, s.temperature)
        d_avsc = s.lambda_instance * i_avss + s.lambda_class * c_avss
        exemplars = slice(batch.current, None)
        spatial = attention_distillation(out.spatial[exemplars], old.spatial[exemplars])
        temporal = attention_distillation(out.temporal[exemplars], old.temporal[exemplars])
        vad = s.lambda_vad * spatial + (1 - s.lambda_vad) * temporal
        return ss_ce + tkd + d_avsc + vad

    def finish(self, task: Task) -> None:
        """Keep random exemplars of the new classes (section 3.6)."""
        task.remember(at_random(self.random))


def instance_similarity(audio: Tensor, visual: Tensor, temperature: float) -> Tensor:
    """I-AVSS (Eq. 6): each clip's sound should be most similar to its own sight.

    Args:
        audio: L2-normalised, (N, d).
        visual: L2-normalised, (N, d).
        temperature: tau.
    """
    similarity = audio @ visual.T / temperature
    return F.cross_entropy(similarity, torch.arange(len(audio), device=audio.device))


def class_similarity(audio: Tensor, visual: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """C-AVSS (Eq. 7, in the code's form): sound should be similar to sight of the same class.

    The mean over all N * N pairs of -log softmax of the similarity, where pairs of different
    classes count as 0.
    """
    log_probability = F.log_softmax(audio @ visual.T / temperature, dim=1)
    same = labels[:, None] == labels[None, :]
    return -(log_probability * same).sum() / len(labels) ** 2


def attention_distillation(new: Tensor, old: Tensor) -> Tensor:
    """VAD (Eq. 9 and 10, in the code's form): KL(old || new) of the exemplars' attention maps.

    Args:
        new: The student's maps, (exemplars, ...).
        old: The teacher's.

    Returns:
        Summed over frames and channels, averaged over exemplars.
    """
    return F.kl_div(new.log(), old, reduction="sum") / len(new)
