"""Fine-tuning: the lower bound of the AV-CIL paper (section 4, "Baselines")."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from avbench.learning.gradient import GradientMethod
from avbench.learning.stream import Batch, Task


class FineTuning(GradientMethod):
    """Train on the new classes alone, with nothing against forgetting.

    Cross-entropy over all classes seen so far, on clips of D_t only.
    """

    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return the cross-entropy over all seen classes."""
        del task
        return F.cross_entropy(self.network(batch.audio, batch.visual).logits, batch.labels)
