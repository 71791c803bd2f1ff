"""The protocol every method keeps: all registered ones, and cheats that each check must catch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avbench import registry
from avbench.evaluation import protocol
from avbench.evaluation.protocol import CHECKS, check_method
from avbench.learning import stream
from avbench.types import UsageError
from reference_methods.finetune import FineTuning
from reference_methods.ssil import SSIL

pytestmark = pytest.mark.slow

CASES = [
    (name, modality)
    for name in registry.registered("methods")
    for modality in registry.load("methods", name).modalities
]


@pytest.mark.parametrize(("method", "modality"), CASES, ids=["-".join(case) for case in CASES])
def test_registered_methods_keep_the_protocol(method, modality):
    results = check_method(method, modality=modality)
    assert [check.name for check in results] == list(CHECKS)
    assert [check for check in results if check.failure] == []


class Honest(FineTuning):
    recipes = None


class PredictsTheFuture(Honest):
    def predict(self, clips):
        return super().predict(clips) + 2


class LearnsNothing(Honest):
    def learn(self, task):
        self.start(task)


class ReadsPrivateParts(Honest):
    def learn(self, task):
        super().learn(task)
        access = stream._OPEN[task.train]
        access.source.read(access.rows[-1:] + 1)


class ReadsWhatItSaysItDoesNot(Honest):
    modalities = ("audio",)

    def learn(self, task):
        super().learn(task)
        access = stream._OPEN[task.train]
        store = access.source._columns[0].column.read.__self__
        store.visual(access.rows)


class Hoards(Honest):
    def learn(self, task):
        super().learn(task)
        self.hoard = [{"x": task.train.features(task.train.labels.argsort()[:3])[0]}]


class HoardsTokens(Hoards):
    def learn(self, task):
        super().learn(task)
        self.hoard = task.train.features(task.train.labels.argsort()[:3])[1]


class HoardsCopiedTokens(HoardsTokens):
    def learn(self, task):
        super().learn(task)
        self.hoard = self.hoard.read().double()


class DrawsElsewhere(Honest):
    def learn(self, task):
        super().learn(task)
        with torch.no_grad():
            noise = torch.Generator()
            noise.seed()
            self.network.classifier.bias += torch.rand(1, generator=noise)


class Forgets(SSIL):
    """Does not restore what it keeps beside the network."""

    recipes = None

    def learn(self, task):
        self.steps = getattr(self, "steps", 0) + 1
        super().learn(task)
        with torch.no_grad():
            self.network.classifier.bias += 0.1 * self.steps


class NeedsTwoClasses(Honest):
    def loss(self, batch, task):
        if task.classes_per_step[-1] < 2:
            raise ValueError("one class is no choice")
        return super().loss(batch, task)


@pytest.mark.parametrize(
    ("cheat", "check", "failure"),
    [
        (PredictsTheFuture, "predicts only classes seen", "outside the 2 seen"),
        (LearnsNothing, "learns above chance", "its accuracy is"),
        (ReadsPrivateParts, "reads only D_t, memory and validation clips", "read 1 clips that"),
        (ReadsWhatItSaysItDoesNot, "reads only D_t, memory and validation clips", "read visual"),
        (Hoards, "reads only D_t, memory and validation clips", "copies of 3 clips"),
        (HoardsTokens, "reads only D_t, memory and validation clips", "copies of 3 clips"),
        (HoardsCopiedTokens, "reads only D_t, memory and validation clips", "copies of 3 clips"),
        (DrawsElsewhere, "same seed, same bytes", "differs in"),
        (Forgets, "resumes at any step with the same bytes", "differs in"),
        (
            NeedsTwoClasses,
            "survives one-class and unequal steps, and a class with one clip",
            "ValueError: one class is no choice",
        ),
    ],
)
def test_a_cheat_is_caught(cheat, check, failure, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda group, name: cheat)
    modality = cheat.modalities[0]
    results = {c.name: c.failure for c in check_method("cheat", modality=modality)}
    assert failure in results[check]
    # And by nothing else, but what follows from it.
    others = {name for name, found in results.items() if found} - {check}
    assert others <= {
        LearnsNothing: set(),
        PredictsTheFuture: set(CHECKS),
        DrawsElsewhere: {"resumes at any step with the same bytes"},
    }.get(cheat, set())


def test_drawing_from_the_global_generators_is_no_cheat(monkeypatch):
    """They are seeded anew at every step."""

    class Draws(Honest):
        modalities = ("audio",)

        def learn(self, task):
            super().learn(task)
            with torch.no_grad():
                self.network.classifier.bias += np.random.rand() * torch.rand(1)  # noqa: NPY002

    monkeypatch.setattr(registry, "load", lambda group, name: Draws)
    names = ["same seed, same bytes", "resumes at any step with the same bytes"]
    assert [check.failure for check in check_method("draws", names=names)] == [None, None]


def test_knowing_test_labels_is_caught(monkeypatch):
    """A method that had them would score where there is nothing to learn."""

    class Knows(Honest):
        def predict(self, clips):
            manifest = made_last["manifest"]
            ids = [made_last["ids"][row] for row in stream._OPEN[clips].rows]
            index_of = dict(zip(manifest.clip_ids, manifest.class_indices, strict=True))
            return torch.tensor([index_of[i] for i in ids]).numpy()

    made_last = {}
    world = protocol._world

    def remembered(*args, **kwargs):
        made = world(*args, **kwargs)
        made_last.update(manifest=made.benchmark.manifest, ids=made.store.clip_ids)
        return made

    monkeypatch.setattr(protocol, "_world", remembered)
    monkeypatch.setattr(registry, "load", lambda group, name: Knows)
    (check,) = check_method("knows", modality="audio", names=["guesses where labels mean nothing"])
    assert "it knows test labels" in check.failure


def test_settings_and_modality_can_be_chosen():
    name = "predicts only classes seen"
    (check,) = check_method("ssil", modality="audio", names=[name], settings={"epochs": "1"})
    assert (check.modality, check.failure) == ("audio", None)
    with pytest.raises(UsageError, match="takes audio-visual, not audio"):
        check_method("avcil", modality="audio")
    with pytest.raises(UsageError, match="did you mean epochs"):
        check_method("ssil", settings={"epoch": "1"})
