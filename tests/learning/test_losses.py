"""Shared losses against golden numbers of the authors' code."""

from __future__ import annotations

import pytest
import torch

from avbench.learning.losses import separated_softmax, task_distillation


def test_separated_softmax(golden):
    record = golden("loss_avcil.npz")
    labels = torch.as_tensor([*record["labels_current"], *record["labels_exemplar"]])
    logits = torch.as_tensor(record["logits"])
    old = record["step"] * record["class_num_per_step"]
    loss = separated_softmax(logits, labels, current=record["n_current"], old_classes=old)
    assert loss.item() == pytest.approx(record["ss_ce"], abs=1e-9)


def test_task_distillation(golden):
    record = golden("loss_avcil.npz")
    groups = [record["class_num_per_step"]] * record["step"]
    logits, teacher = torch.as_tensor(record["logits"]), torch.as_tensor(record["old_logits"])
    loss = task_distillation(logits, teacher, groups, temperature=record["T"])
    assert loss.item() == pytest.approx(record["tkd_sum"], abs=1e-9)


def test_distillation_of_unequal_steps_by_hand():
    student, teacher = torch.randn(5, 9).double(), torch.randn(5, 6).double()
    expected = 0.0
    for group in (slice(0, 1), slice(1, 4), slice(4, 6)):
        p = torch.softmax(teacher[:, group] / 2, 1)
        q = torch.softmax(student[:, group] / 2, 1)
        expected += 4 * (p * (p / q).log()).sum().item() / 5
    loss = task_distillation(student, teacher, [1, 3, 2])
    assert loss.item() == pytest.approx(expected, abs=1e-12)
