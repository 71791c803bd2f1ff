"""iCaRL: Incremental Classifier and Representation Learning (Rebuffi et al., CVPR 2017).

Classification and distillation on new clips and herded exemplars together (their Algorithm 3),
herding (Algorithm 4), and prediction by the nearest mean of exemplars (Algorithm 1) or by the
classifier (iCaRL-FC). The AV-CIL authors' code, which is the default, classifies by softmax where
iCaRL does by sigmoids, and applies the sigmoid twice to the student's old scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.replay import HerdedReplay, HerdedSettings, NearestMean
from avbench.learning.stream import Batch, Task

Distillation = Literal["official", "single_sigmoid"]


@dataclass(frozen=True)
class ICaRLSettings(HerdedSettings):
    """Settings of iCaRL.

    Attributes:
        icarl_classify: "sigmoid" learns the new classes as iCaRL's paper does, each for itself.
        icarl_distill: "single_sigmoid" distils as iCaRL's paper does, with one sigmoid.
    """

    icarl_classify: Literal["softmax", "sigmoid"] = "softmax"
    icarl_distill: Distillation = "official"


class ICaRLFC(HerdedReplay):
    """Classify by the linear classifier."""

    Settings: ClassVar[type[Any]] = ICaRLSettings
    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return classification plus distillation of the old classes."""
        logits = self.network(batch.audio, batch.visual).logits
        sigmoid = self.settings.icarl_classify == "sigmoid"
        if sigmoid:
            loss = sigmoid_classification(logits, batch.labels, task.old_classes)
        else:
            loss = F.cross_entropy(logits, batch.labels)
        if task.step == 0:
            return loss
        teacher = self.taught(batch).logits
        old = logits[:, : task.old_classes]
        distillation = sigmoid_distillation(old, teacher, self.settings.icarl_distill)
        if sigmoid:
            # Algorithm 3 sums over all classes: each counts alike, old or new.
            return torch.lerp(loss, distillation, task.old_classes / task.seen_classes)
        return loss + distillation


class ICaRLNME(NearestMean, ICaRLFC):
    """Classify by the nearest mean of exemplars, after every epoch too."""


def sigmoid_classification(logits: Tensor, labels: Tensor, old_classes: int) -> Tensor:
    """Learn the new classes, each for itself (Algorithm 3, first sum).

    Args:
        logits: (B, C).
        labels: (B,).
        old_classes: How many classes, the first, take no part.

    Returns:
        Binary cross-entropy against one-hot labels, the mean over rows and new classes.
    """
    own = F.one_hot(labels, logits.shape[1]).to(logits)
    new = slice(old_classes, None)
    return F.binary_cross_entropy_with_logits(logits[:, new], own[:, new])


def sigmoid_distillation(student: Tensor, teacher: Tensor, form: Distillation) -> Tensor:
    """Distil old classes, each for itself (Algorithm 3, second sum).

    Args:
        student: Scores of the old classes, (B, C_old).
        teacher: Likewise.
        form: "official" passes the student's scores through a sigmoid before the one that turns
            them into probabilities.

    Returns:
        Binary cross-entropy against the teacher's probabilities, the mean over rows and classes.
    """
    scores = torch.sigmoid(student) if form == "official" else student
    return F.binary_cross_entropy_with_logits(scores, torch.sigmoid(teacher))
