"""AV-CIL: Audio-Visual Class-Incremental Learning (Pian et al., ICCV 2023).

Four losses (Eq. 14): separated softmax cross-entropy, task-wise distillation, the dual audio-visual
similarity constraint (D-AVSC, section 3.3) and visual attention distillation (VAD, section 3.4).
Where equation and the authors' code differ, the default is the code, which made the published
numbers, and a setting gives the equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.losses import (
    Variant,
    attention_distillation,
    attention_divergence,
    separated_softmax,
    task_distillation,
)
from avbench.learning.network import Output
from avbench.learning.replay import PairedReplay, PairedSettings
from avbench.learning.stream import Batch, Task
from avbench.types import Modality

Contrast = Literal["official", "supcon", "eq7"]


@dataclass(frozen=True)
class AVCILSettings(PairedSettings):
    """Settings of AV-CIL, beside those of `PairedSettings`.

    The inherited `kl_direction` holds for Eq. 9 and 10 as well as for Eq. 13.

    Attributes:
        temperature: tau of the similarity constraint (Eq. 6 and 7).
        lambda_instance: Weight of I-AVSS (Eq. 8).
        lambda_class: Weight of C-AVSS (Eq. 8).
        lambda_vad: Balance of spatial against temporal attention distillation (Eq. 11).
        i_avss: Whether I-AVSS takes part; this and the next two are the switches of Table 3.
        c_avss: Whether C-AVSS takes part.
        vad: Whether VAD takes part.
        symmetric: Whether I-AVSS also asks each sight for its own sound; the mean of both.
        class_contrast: Variant of C-AVSS, see `class_similarity`.
        vad_reduction: "paper" averages over frames and channels (Eq. 9 and 10).
    """

    temperature: float = 0.05
    lambda_instance: float = 0.1
    lambda_class: float = 1.0
    lambda_vad: float = 0.5
    i_avss: bool = True
    c_avss: bool = True
    vad: bool = True
    symmetric: bool = False
    class_contrast: Contrast = "official"
    vad_reduction: Variant = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            positive=("temperature",),
            finite=("lambda_instance", "lambda_class", "lambda_vad"),
        )


class AVCIL(PairedReplay):
    """Replay, distil scores and attention, and keep sound and sight similar."""

    Settings: ClassVar[type[Any]] = AVCILSettings
    recipes: ClassVar[Path | None] = Path(__file__).with_name("recipes.toml")
    modalities: ClassVar[tuple[Modality, ...]] = ("audio-visual",)

    def loss(self, batch: Batch, task: Task) -> Tensor:
        """Return the total loss (Eq. 14); at the first step, cross-entropy."""
        s: AVCILSettings = self.settings
        if task.step == 0:
            return F.cross_entropy(self.network(batch.audio, batch.visual).logits, batch.labels)
        old = self.taught(batch, attention=s.vad)
        paper = s.vad and s.kl_direction == "paper"
        reference = None if paper else old.spatial_reference
        out = self.network(batch.audio, batch.visual, maps=paper, reference=reference)
        loss = separated_softmax(
            out.logits, batch.labels, current=batch.current, old_classes=task.old_classes
        ) + task_distillation(
            out.logits,
            old.logits,
            task.classes_per_step[:-1],
            temperature=s.distillation_temperature,
            direction=s.kl_direction,
        )
        if s.i_avss:
            similarity = instance_similarity(out.audio, out.visual, s.temperature, s.symmetric)
            loss = loss + s.lambda_instance * similarity
        if s.c_avss:
            similarity = class_similarity(
                out.audio, out.visual, batch.labels, s.temperature, s.class_contrast
            )
            loss = loss + s.lambda_class * similarity
        return loss + self.attention_loss(out, old, batch.current) if s.vad else loss

    def attention_loss(self, out: Output, old: Output, current: int) -> Tensor:
        """Return VAD (Eq. 11) of the exemplars.

        Args:
            out: What the student says of the batch.
            old: What the teacher says; its maps are of the exemplars alone.
            current: From which row on clips are exemplars.
        """
        s: AVCILSettings = self.settings
        assert out.temporal is not None
        assert old.temporal is not None
        assert old.spatial_reference is not None
        if out.spatial is None:
            # KL(old || new) is the cross-entropy of the maps less the entropy of the old one.
            assert out.spatial_cross_entropy is not None
            assert old.spatial_entropy is not None
            spatial = out.spatial_cross_entropy - old.spatial_entropy
        else:
            reference = old.spatial_reference.read()
            spatial = attention_divergence(out.spatial[current:], reference, s.kl_direction)
        temporal = attention_divergence(out.temporal[current:], old.temporal, s.kl_direction)
        return s.lambda_vad * attention_distillation(spatial, s.vad_reduction) + (
            1 - s.lambda_vad
        ) * attention_distillation(temporal, s.vad_reduction)


def instance_similarity(
    audio: Tensor, visual: Tensor, temperature: float, symmetric: bool = False
) -> Tensor:
    """I-AVSS (Eq. 6): each clip's sound should be most similar to its own sight.

    Args:
        audio: L2-normalised, (N, d).
        visual: L2-normalised, (N, d).
        temperature: tau.
        symmetric: Whether each sight should also be most similar to its own sound; the mean of
            both directions.
    """
    similarity = audio @ visual.T / temperature
    own = torch.arange(len(audio), device=audio.device)
    loss = F.cross_entropy(similarity, own)
    return (loss + F.cross_entropy(similarity.T, own)) / 2 if symmetric else loss


def class_similarity(
    audio: Tensor, visual: Tensor, labels: Tensor, temperature: float, form: Contrast = "official"
) -> Tensor:
    """C-AVSS (Eq. 7): sound should be similar to sight of the same class.

    Args:
        audio: L2-normalised, (N, d).
        visual: L2-normalised, (N, d).
        labels: (N,).
        temperature: tau.
        form: "official" is the mean over all N * N pairs of -log softmax of the similarity, where
            pairs of different classes count as 0; "supcon" its mean over the pairs of one class;
            "eq7" the -log of the mean probability over them.
    """
    log_probability = F.log_softmax(audio @ visual.T / temperature, dim=1)
    same = labels[:, None] == labels[None, :]
    if form == "eq7":
        probability = (log_probability.exp() * same).sum(dim=1) / same.sum(dim=1)
        return -probability.log().mean()
    positives = (log_probability * same).sum(dim=1)
    if form == "supcon":
        return -(positives / same.sum(dim=1)).mean()
    return -positives.sum() / len(labels) ** 2
