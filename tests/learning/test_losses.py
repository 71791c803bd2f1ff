"""Shared losses against golden numbers of the authors' code."""

from __future__ import annotations

import pytest
import torch

from avbench.learning.losses import separated_softmax, task_distillation
from tests.helpers.golden import PRECISIONS, Step, close, labels_of, tensor


@PRECISIONS
def test_separated_softmax(golden, dtype):
    record = golden("loss_avcil.npz")
    labels, logits = labels_of(record), tensor(record["logits"], dtype)
    current, old = record["n_current"], Step(record).old_classes
    loss = separated_softmax(logits, labels, current=current, old_classes=old)
    close(loss, record["ss_ce"], dtype)
    # It is the mean over all rows of what either part is the mean of.
    assert len(labels) == current + record["n_exemplar"]
    parts = current * record["ce_current"] + record["n_exemplar"] * record["ce_previous"]
    close(loss * len(labels), parts, dtype)
    for rows, part in ((slice(current), "ce_current"), (slice(current, None), "ce_previous")):
        alone = current if part == "ce_current" else 0
        found = separated_softmax(logits[rows], labels[rows], current=alone, old_classes=old)
        close(found, record[part], dtype)


@PRECISIONS
def test_task_distillation(golden, dtype):
    record = golden("loss_avcil.npz")
    groups = [record["class_num_per_step"]] * record["step"]
    logits, teacher = tensor(record["logits"], dtype), tensor(record["old_logits"], dtype)
    loss = task_distillation(logits, teacher, groups, temperature=record["T"])
    close(loss, record["tkd_sum"], dtype)


def test_distillation_of_unequal_steps_by_hand():
    student, teacher = torch.randn(5, 9).double(), torch.randn(5, 6).double()
    expected = 0.0
    for group in (slice(0, 1), slice(1, 4), slice(4, 6)):
        p = torch.softmax(teacher[:, group] / 2, 1)
        q = torch.softmax(student[:, group] / 2, 1)
        expected += 4 * (p * (p / q).log()).sum().item() / 5
    loss = task_distillation(student, teacher, [1, 3, 2])
    assert loss.item() == pytest.approx(expected, abs=1e-12)
