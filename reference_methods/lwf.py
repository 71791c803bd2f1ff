"""LwF: Learning without Forgetting (Li and Hoiem, ECCV 2016), as the AV-CIL paper runs it.

Cross-entropy among the new classes (their Eq. 1), and distillation of the old scores on new clips
(their Eq. 2; summed over old steps here). No exemplars. The authors' script stops at the first
batch of its second step because a name is used twice; this is the loss it spells out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from avbench.learning.gradient import DistillationSettings, GradientMethod
from avbench.learning.losses import task_distillation
from avbench.learning.stream import Batch, Task


class LwF(GradientMethod):
    """Learn the new classes while the scores of old ones on the new clips stay."""

    Settings: ClassVar[type[Any]] = DistillationSettings
    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return cross-entropy over the new classes plus distillation of the old ones."""
        logits = self.network(batch.audio, batch.visual).logits
        new = F.cross_entropy(logits[:, task.old_classes :], batch.labels - task.old_classes)
        if task.step == 0:
            return new
        teacher = self.taught(batch).logits
        s: DistillationSettings = self.settings
        return new + task_distillation(
            logits,
            teacher,
            task.classes_per_step[:-1],
            temperature=s.distillation_temperature,
            direction=s.kl_direction,
        )
