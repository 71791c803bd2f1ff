"""Losses that several methods share. Rows of a batch: current clips first, exemplars after."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    logits: Tensor, teacher: Tensor, classes_per_step: Sequence[int], *, temperature: float = 2.0
) -> Tensor:
    """Task-wise knowledge distillation, TKD (paper, Eq. 13, in the form of the authors' code).

    Summed over the old steps: T^2 * KL(teacher || student) of the softmax within the step's
    classes at temperature T, averaged over rows.

    Args:
        logits: Student's scores, (N, C).
        teacher: Teacher's scores of the old classes, (N, C_old).
        classes_per_step: Number of classes of every old step; adds up to C_old.
        temperature: T.
    """
    student_tasks = torch.split(logits[:, : teacher.shape[1]], list(classes_per_step), dim=1)
    teacher_tasks = torch.split(teacher, list(classes_per_step), dim=1)
    total = logits.new_zeros(())
    for new, old in zip(student_tasks, teacher_tasks, strict=True):
        total = total + F.kl_div(
            F.log_softmax(new / temperature, dim=1),
            F.log_softmax(old / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
    return temperature**2 * total
