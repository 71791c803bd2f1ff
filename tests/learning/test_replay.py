"""Training with exemplars: how batches are made, what is kept, what is nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avbench.learning.herding import class_mean, herd, nearest
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup
from avbench.learning.stream import _MEMORY, _OPEN, TaskStream
from reference_methods.finetune import FineTuning
from reference_methods.icarl import ICaRLFC, ICaRLNME, ICaRLSettings
from reference_methods.ssil import SSIL

CPU = torch.device("cpu")


@pytest.fixture
def stream(tiny, with_features):
    def make(*, memory=12, **spec):
        benchmark = tiny(**spec)
        return TaskStream(
            benchmark.manifest,
            with_features(benchmark),
            modality="audio",
            joint=False,
            memory=ExemplarMemory(memory),
            device=CPU,
        )

    return make


def made(method_class, **settings):
    values = {"epochs": 1, "batch_size": 8} | settings
    return method_class(method_class.Settings(**values), Setup(12, 8, "audio", 0, CPU, dict))


def test_merged_batches_hold_every_clip_and_exemplar_once(stream):
    tasks = iter(stream())
    method = made(ICaRLFC, batch_size=6)
    method.learn(next(tasks))
    task = next(tasks)
    batches = list(method.batches(task))
    count = len(task.train) + len(task.exemplars)
    assert [len(batch.labels) for batch in batches] == [6] * (count // 6)
    new = [batch.labels[: batch.current] for batch in batches]
    old = [batch.labels[batch.current :] for batch in batches]
    assert set(torch.cat(new).tolist()) == {2, 3}
    assert set(torch.cat(old).tolist()) == {0, 1}
    rows = torch.cat([batch.audio for batch in batches])
    assert len(torch.unique(rows, dim=0)) <= len(rows) == count


def test_without_exemplars_batches_are_new_clips_alone(stream):
    task = next(iter(stream()))
    for method_class in (ICaRLFC, SSIL):
        for batch in made(method_class).batches(task):
            assert batch.current == len(batch.labels) == 8


def test_exemplars_are_herded_by_the_best_network(stream):
    tasks = iter(stream())
    method = made(ICaRLFC, epochs=3)
    task = next(tasks)
    method.learn(task)
    for index in (0, 1):
        positions = np.flatnonzero(task.train.labels == index)
        features = method.features(task.train, positions).numpy()
        expected = _OPEN[task.train].rows[positions[herd(features, 6)]].tolist()
        assert _MEMORY[task.train][0].by_class[index] == expected
    assert len(next(tasks).exemplars) == 12


def test_the_first_clips_of_each_class_may_be_kept(stream):
    tasks = iter(stream(memory=10))
    method = made(SSIL, exemplar_selection="first")
    task = next(tasks)
    method.learn(task)
    for index, rows in _MEMORY[task.train][0].by_class.items():
        positions = np.flatnonzero(task.train.labels == index)
        assert rows == _OPEN[task.train].rows[positions[:5]].tolist()


@pytest.mark.parametrize("method_class", [FineTuning, SSIL, ICaRLFC])
def test_an_epoch_may_keep_its_incomplete_batches(stream, method_class):
    """24 new clips in batches of 9, and 10 exemplars, which SS-IL takes by 4."""
    tasks = iter(stream(memory=10))
    own = {"exemplar_batch_size": 4} if method_class is SSIL else {}
    method = made(method_class, batch_size=9, drop_last=False, **own)
    first = next(tasks)
    assert [len(batch.labels) for batch in method.batches(first)] == [9, 9, 6]
    method.learn(first)
    sizes = [(batch.current, len(batch.labels)) for batch in method.batches(next(tasks))]
    if method_class is ICaRLFC:
        assert [size for _, size in sizes] == [9, 9, 9, 7]
    else:
        old = [4, 4, 2] if method_class is SSIL else [0, 0, 0]
        assert sizes == [(n, n + m) for n, m in zip([9, 9, 6], old, strict=True)]


def test_class_means_are_of_the_exemplars_kept(stream):
    """Also at the first step, when the memory is empty still."""
    tasks = iter(stream(memory=13))
    method = made(ICaRLNME, epochs=2, learning_rate=0.01)
    for _ in range(2):
        task = next(tasks)
        assert task.places == 13 // task.seen_classes
        method.learn(task)
        for index, rows in _MEMORY[task.train][0].by_class.items():
            clips = task.exemplars if index < task.old_classes else task.train
            features = method.features(
                clips, np.array([list(_OPEN[clips].rows).index(r) for r in rows])
            )
            mean = class_mean(features, task.places)
            torch.testing.assert_close(method.means[index], mean)
            assert mean.norm() > 0.5
    features = method.infer(task.train, lambda out: out.feature)
    expected = nearest(features, method.means).numpy()
    assert (method.predict(task.train) == expected).all()
    assert task.val.accuracy(method.predict) > 0.5


def test_choices_that_the_papers_make(stream):
    tasks = iter(stream(memory=40))
    settings = {"herding_replacement": False, "normalize_means": True}
    method = made(ICaRLNME, **settings)
    task = next(tasks)
    method.learn(task)
    for rows in _MEMORY[task.train][0].by_class.values():
        assert len(set(rows)) == len(rows) == 12
    torch.testing.assert_close(method.means.norm(dim=1), torch.ones(2))
    assert ICaRLSettings().herding_replacement


def test_a_memory_without_an_exemplar_of_any_class_still_trains(stream):
    """Which the evaluator refuses beforehand."""
    tasks = iter(stream(memory=1))
    method = made(SSIL)
    method.learn(next(tasks))
    task = next(tasks)
    assert len(task.exemplars) == 0
    method.learn(task)
