"""What the teacher says: once a step, and the same as if it were asked at every batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from avbench.learning import residency, teaching
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup
from avbench.learning.stream import TaskStream
from reference_methods.afc import AFCNME
from reference_methods.avcil import AVCIL
from reference_methods.finetune import FineTuning
from reference_methods.icarl import ICaRLFC
from reference_methods.ssil import SSIL

CPU = torch.device("cpu")


@pytest.fixture
def second_step(tiny, with_features):
    """A method about to learn its second step, and the step."""

    def make(method_class: Any, modality: str = "audio-visual", **settings: Any) -> Any:
        benchmark = tiny()
        memory = ExemplarMemory(12)
        features = with_features(benchmark)
        stream = TaskStream(
            benchmark.manifest, features, modality=modality, joint=False, memory=memory, device=CPU
        )
        values = {"epochs": 3, "batch_size": 8} | settings
        method = method_class(method_class.Settings(**values), Setup(12, 8, modality, 0, CPU, dict))
        tasks = iter(stream)
        method.learn(next(tasks))
        return method, next(tasks), tasks

    return make


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("method_class", [AVCIL, ICaRLFC])
def test_lessons_are_what_the_teacher_says_of_the_batch(
    second_step, monkeypatch, method_class, attention, memory
):
    if memory is not None:
        monkeypatch.setattr(residency, "memory_limit", lambda: memory)
    method, task, _ = second_step(method_class)
    method.start(task)
    batches = list(method.batches(task))
    assert any(batch.current < len(batch.labels) for batch in batches)
    for batch in batches:
        found = method.taught(batch, attention=attention)
        live = method.teacher(batch.audio, batch.visual, maps=True)
        close(found.logits, live.logits)
        for one, other in zip(found.stages, live.stages, strict=True):
            close(one, other)
        if attention:
            close(found.spatial_reference.read(), live.spatial[batch.current :])
            for name in ("temporal", "spatial_entropy"):
                close(getattr(found, name), getattr(live, name)[batch.current :])


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_lessons_of_one_modality(second_step, modality):
    method, task, _ = second_step(SSIL, modality)
    method.start(task)
    for batch in method.batches(task):
        close(method.taught(batch).logits, method.teacher(batch.audio, batch.visual).logits)


@pytest.mark.parametrize("method_class", [AVCIL, AFCNME, ICaRLFC])
def test_training_is_the_same_as_without_lessons(second_step, monkeypatch, method_class):
    losses = {}
    for kept in (True, False):
        method, task, _ = second_step(method_class)
        if not kept:
            batches = method.batches
            method.batches = lambda task, b=batches: (
                batch._replace(positions=batch.positions[:0]) for batch in b(task)
            )
        method.setup.__dict__["log"] = losses.setdefault(kept, []).append
        method.learn(task)
    for one, other in zip(*losses.values(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_teacher_sees_every_clip_once_a_step(second_step, monkeypatch):
    method, task, tasks = second_step(AVCIL)
    seen = []

    def count(self, audio, visual, **options):
        if self is method.teacher:
            seen.append(len(audio))
        return pool(self, audio, visual, **options)

    pool = teaching.AudioVisualNet.pool
    monkeypatch.setattr(teaching.AudioVisualNet, "pool", count)
    method.learn(task)
    assert sum(seen) == len(task.train) + len(task.exemplars)
    assert method.lessons is None
    task = next(tasks)
    method.learn(task)
    assert sum(seen) == 2 * len(task.train) + 12 + len(task.exemplars)


def test_who_does_not_ask_pays_nothing(second_step, monkeypatch):
    method, task, _ = second_step(FineTuning)
    monkeypatch.setattr(teaching.Lessons, "pool", None)
    method.learn(task)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
