"""What AFC does between steps, beside its golden numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from avbench.learning.losses import nca
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup
from avbench.learning.stream import Batch, TaskStream
from avbench.learning.teaching import Lessons
from reference_methods.afc import AFCLSC, discrepancy, shares

CPU = torch.device("cpu")


@pytest.fixture
def at_second_step(tiny, with_features):
    """AFC at the start of its second step, and the step."""
    benchmark = tiny(per_class=60)
    tasks = iter(
        TaskStream(
            benchmark.manifest,
            with_features(benchmark),
            modality="audio",
            joint=False,
            memory=ExemplarMemory(12),
            device=CPU,
        )
    )
    settings = AFCLSC.Settings(epochs=5, batch_size=16, learning_rate=0.01)
    method = AFCLSC(settings, Setup(12, 8, "audio", 0, CPU, dict))
    method.learn(next(tasks))
    task = next(tasks)
    method.seed(1)
    method.start(task)
    return method, task


def test_new_proxies_are_imprinted_and_the_teachers_stay_random(at_second_step):
    method, task = at_second_step
    student, teacher = method.network.classifier, method.teacher.classifier
    assert torch.equal(student.old, teacher.old)
    assert len(student.new) == len(student.old) == 20
    features = method.features(task.train)

    def accuracy(classifier):
        new = classifier(features)[:, task.old_classes :].argmax(dim=1) + task.old_classes
        return (new.numpy() == task.train.labels).mean()

    # Centres of their clips tell the new classes apart before any training.
    assert accuracy(student) > 0.9
    assert accuracy(teacher) < accuracy(student)
    length = student.old.norm(dim=1).mean()
    assert (student.new.norm(dim=1) <= length * 1.0001).all()


def test_old_proxies_are_not_trained(at_second_step):
    method, task = at_second_step
    old, new = method.network.classifier.old.clone(), method.network.classifier.new.clone()
    optimizer = torch.optim.Adam(method.network.parameters(), lr=0.1, weight_decay=0.1)
    method.loss(next(method.batches(task)), task).backward()
    optimizer.step()
    assert torch.equal(method.network.classifier.old, old)
    assert not torch.equal(method.network.classifier.new, new)
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_one_modality_is_not_weighed(at_second_step):
    method, _ = at_second_step
    batch = Batch(torch.randn(3, 12), None, torch.tensor([0, 2, 3]), 3)
    _, importance = method.importance(batch)
    assert shares(importance).tolist() == [[1.0, 1.0, 1.0]]


def test_the_discrepancy_weighs_more_the_more_was_seen():
    """By seen over new classes, which is not the number of steps where those are unequal."""
    torch.manual_seed(0)
    method = AFCLSC(AFCLSC.Settings(lambda_disc=2.0), Setup(12, 8, "audio", 0, CPU, dict))
    method.network, method.teacher = method.new_network(6), method.new_network(6)
    batch = Batch(torch.randn(3, 12), None, torch.tensor([0, 2, 5]), 3)
    task = SimpleNamespace(step=2, classes_per_step=(2, 3, 1), seen_classes=6, old_classes=5)
    method.lessons = Lessons(method.teacher, task)
    out = method.network(batch.audio, None)
    old, importance = method.importance(batch)
    apart = discrepancy(out.stages, old, shares(importance)).item()
    alone = nca(out.logits, batch.labels, method.network.classifier.scale).item()
    found = method.loss(batch, task).item()
    assert found == pytest.approx(alone + 2 * math.sqrt(6 / 1) * apart, abs=1e-5)
