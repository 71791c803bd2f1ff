"""Losses that several methods share. Rows of a batch: current clips first, exemplars after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Variant = Literal["official", "paper"]


def separated_softmax(logits: Tensor, labels: Tensor, *, current: int, old_classes: int) -> Tensor:
    """Separated softmax cross-entropy, SS-CE (paper, Eq. 12).

    New clips compete among the new classes only and exemplars among the old ones only, so that
    training on new classes does not push the scores of old ones down.

    Args:
        logits: (N, C).
        labels: Class indices, (N,).
        current: How many rows, the first, are of the current step.
        old_classes: How many classes, the first, are of earlier steps.

    Returns:
        The mean over all N rows.
    """
    new = F.cross_entropy(
        logits[:current, old_classes:], labels[:current] - old_classes, reduction="sum"
    )
    old = F.cross_entropy(logits[current:, :old_classes], labels[current:], reduction="sum")
    return (new + old) / len(logits)


def task_distillation(
    logits: Tensor,
    teacher: Tensor,
    classes_per_step: Sequence[int],
    *,
    temperature: float = 2.0,
    direction: Variant = "official",
) -> Tensor:
    """Task-wise knowledge distillation, TKD (paper, Eq. 13, in the form of the authors' code).

    Summed over the old steps: T^2 * KL(teacher || student) of the softmax within the step's
    classes at temperature T, averaged over rows.

    Args:
        logits: Student's scores, (N, C).
        teacher: Teacher's scores of the old classes, (N, C_old).
        classes_per_step: Number of classes of every old step; adds up to C_old.
        temperature: T.
        direction: "paper" takes KL(student || teacher), as Eq. 13 reads.
    """
    student_tasks = torch.split(logits[:, : teacher.shape[1]], list(classes_per_step), dim=1)
    teacher_tasks = torch.split(teacher, list(classes_per_step), dim=1)
    total = logits.new_zeros(())
    for new, old in zip(student_tasks, teacher_tasks, strict=True):
        total = total + divergence(
            F.log_softmax(new / temperature, dim=1),
            F.log_softmax(old / temperature, dim=1),
            direction,
        )
    return temperature**2 * total / len(logits)


def attention_divergence(new: Tensor, old: Tensor, direction: Variant = "official") -> Tensor:
    """Kullback-Leibler divergence of every map of attention (paper, Eq. 9 and 10).

    Args:
        new: The student's maps, (exemplars, L, S, d) over cells S or (exemplars, L, d) over frames.
        old: The teacher's.
        direction: "official" for KL(old || new), "paper" for KL(new || old).

    Returns:
        (exemplars, L, d) or (exemplars, d).
    """
    if direction == "paper":
        new, old = old, new
    return F.kl_div(new.log(), old.log(), reduction="none", log_target=True).sum(dim=-2)


def attention_distillation(divergence: Tensor, reduction: Variant = "official") -> Tensor:
    """Visual attention distillation, VAD (paper, Eq. 9 and 10), from the divergence of each map.

    Args:
        divergence: (exemplars, L, d) or (exemplars, d).
        reduction: "paper" for the mean over frames and channels, "official" for their sum.

    Returns:
        The mean over exemplars.
    """
    count = divergence.numel() if reduction == "paper" else len(divergence)
    return divergence.sum() / max(count, 1)


def nca(scores: Tensor, labels: Tensor, scale: Tensor, margin: float = 0.0) -> Tensor:
    """NCA loss (PODNet and AFC), in the form of the AV-CIL authors' code.

    Args:
        scores: (B, C).
        labels: (B,).
        scale: A number, learnt.
        margin: Subtracted from the score of the true class.

    Returns:
        The mean over rows of -y + log(1 + sum of exp over the other classes), where y are scaled
        scores less their maximum.
    """
    true = F.one_hot(labels, scores.shape[1]).bool()
    y = scale * (scores - margin * true)
    y = y - y.max(dim=1, keepdim=True).values
    others = y.exp().masked_fill(true, 0).sum(dim=1)
    return (others.log1p() - y[true]).mean()


def divergence(student: Tensor, teacher: Tensor, direction: Variant) -> Tensor:
    """Kullback-Leibler divergence of distributions, summed over all of them.

    Args:
        student: Log-probabilities, of any shape.
        teacher: Log-probabilities, likewise.
        direction: "official" for KL(teacher || student), "paper" for KL(student || teacher).
    """
    if direction == "paper":
        student, teacher = teacher, student
    return F.kl_div(student, teacher, reduction="sum", log_target=True)
