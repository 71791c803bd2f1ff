"""AFC: Class-Incremental Learning by Knowledge Distillation with Adaptive Feature Consolidation.

Kang, Park and Han, CVPR 2022, as the AV-CIL authors run it: a classifier of local similarities
(LSC) trained by the NCA loss, proxies of new classes imprinted by k-means, and features kept close
to the teacher's in proportion to their importance: here the norm of the gradient that the teacher's
own loss has with respect to each of three features of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.classifiers import Classifier, LocalSimilarityClassifier
from avbench.learning.losses import nca
from avbench.learning.network import AudioVisualNet
from avbench.learning.replay import HerdedReplay, HerdedSettings, NearestMean
from avbench.learning.stream import Batch, Task


@dataclass(frozen=True)
class AFCSettings(HerdedSettings):
    """Settings of AFC.

    Attributes:
        lambda_disc: Weight of the discrepancy, times sqrt(seen / new classes).
        margin: Subtracted from the score of the true class. The authors subtract theirs, 0.6, from
            all scores, where it has no effect.
        n_init: How often k-means starts anew to imprint proxies.
    """

    lambda_disc: float = 0.5
    margin: float = 0.0
    n_init: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(at_least_one=("n_init",), finite=("lambda_disc", "margin"))


class AFCLSC(HerdedReplay):
    """Classify by local similarities."""

    Settings: ClassVar[type[Any]] = AFCSettings
    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")
    classifier: ClassVar[type[Classifier]] = LocalSimilarityClassifier

    def start(self, task: Task) -> None:
        """Grow before copying the teacher, whose new proxies stay random, then imprint."""
        if task.step == 0:
            super().start(task)
            return
        self.network.grow(task.seen_classes)
        self.freeze_teacher(task)
        self.imprint(task)

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return the NCA loss plus the discrepancy from the teacher's features."""
        out = self.network(batch.audio, batch.visual)
        margin = self.settings.margin
        loss = nca(out.logits, batch.labels, _lsc(self.network).scale, margin)
        if task.step == 0:
            return loss
        old, importance = self.importance(batch)
        growth = math.sqrt(task.seen_classes / task.classes_per_step[-1])
        weight: float = self.settings.lambda_disc * growth
        return loss + weight * discrepancy(out.stages, old, shares(importance))

    def importance(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the teacher's features, and how much each of a clip's matters to its loss.

        Returns:
            F features, each (B, d), and the norms of the loss's gradients, (F, B).
        """
        teacher, lessons = self.teacher, self.lessons
        assert teacher is not None
        assert lessons is not None
        pooled = lessons.pool(batch)
        with torch.enable_grad():
            # The weights are frozen: gradients need an input that asks for them.
            audio, visual = (
                None if x is None else x.detach().requires_grad_()
                for x in (batch.audio, pooled.visual)
            )
            out = teacher.classify(audio, pooled._replace(visual=visual))
            loss = nca(out.logits, batch.labels, _lsc(teacher).scale, self.settings.margin)
            gradients = torch.autograd.grad(loss, out.stages)
        norms = torch.stack([gradient.norm(dim=1) for gradient in gradients])
        return tuple(stage.detach() for stage in out.stages), norms

    @torch.no_grad()
    def imprint(self, task: Task) -> None:
        """Put the proxies of each new class at the centres of its clips' features."""
        self.network.eval()
        found = []
        for batch in self.batches(task):
            new = batch.labels >= task.old_classes
            feature = F.normalize(self.network(batch.audio, batch.visual).feature)
            found.append((feature[new], batch.labels[new] - task.old_classes))
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        n_init = self.settings.n_init
        _lsc(self.network).imprint(features, labels, n_init=n_init, seed=self.kmeans_seed())

    def kmeans_seed(self) -> int | None:
        """Return the seed of k-means at this step.

        A method of its own so that `benchmarks/parity.py` can draw as the authors' code does.
        """
        return self.random.getrandbits(32)


class AFCNME(NearestMean, AFCLSC):
    """Classify by the nearest mean of exemplars, after every epoch too."""


def _lsc(network: AudioVisualNet) -> LocalSimilarityClassifier:
    assert isinstance(network.classifier, LocalSimilarityClassifier)
    return network.classifier


def shares(importance: Tensor) -> Tensor:
    """Return importance, (F, B), as weights that add up to 1 over a clip's features.

    Of one modality there is one feature, so all weights are 1; where none matters, all are 0.
    """
    return importance / importance.sum(dim=0).clamp_min(torch.finfo(importance.dtype).tiny)


def discrepancy(new: Sequence[Tensor], old: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Importance-weighted distance of L2-normalised features of AFC.

    Args:
        new: The student's F features, each (B, d).
        old: The teacher's.
        weights: Of each for every clip, (F, B).

    Returns:
        The mean over clips, summed over features.
    """
    total = new[0].new_zeros(())
    for student, teacher, weight in zip(new, old, weights, strict=True):
        total = total + (weight * (F.normalize(student) - F.normalize(teacher)).norm(dim=1)).mean()
    return total
