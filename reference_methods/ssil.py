"""SS-IL: Separated Softmax for Incremental Learning (Ahn et al., ICCV 2021), as AV-CIL runs it.

Separated softmax and task-wise distillation (Eq. 12 and 13 of AV-CIL, which took both from here) on
batches of new clips paired with random exemplars.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from avbench.learning.losses import separated_softmax, task_distillation
from avbench.learning.replay import PairedReplay, PairedSettings
from avbench.learning.stream import Batch, Task


class SSIL(PairedReplay):
    """Let new classes compete among themselves, old ones too, and distil each step on its own."""

    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return separated softmax plus distillation; at the first step, cross-entropy."""
        logits = self.network(batch.audio, batch.visual).logits
        if task.step == 0:
            return F.cross_entropy(logits, batch.labels)
        teacher = self.taught(batch).logits
        separated = separated_softmax(
            logits, batch.labels, current=batch.current, old_classes=task.old_classes
        )
        s: PairedSettings = self.settings
        return separated + task_distillation(
            logits,
            teacher,
            task.classes_per_step[:-1],
            temperature=s.distillation_temperature,
            direction=s.kl_direction,
        )
