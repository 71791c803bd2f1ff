"""The protocol every method keeps: all registered ones, and cheats that each check must catch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from avbench import registry
from avbench.evaluation import protocol
from avbench.evaluation.protocol import CHECKS, Check, check_method
from avbench.learning import stream
from avbench.learning.gradient import GradientSettings
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


READS = "reads only D_t, memory and validation clips"
STASH: list[object] = []


def some(task):
    """Return sound, (3, d), of three clips of a step."""
    return task.train.features(task.train.labels.argsort()[:3])[0]


def in_a_closure():
    kept = []

    def keep(value):
        kept.append(value)

    return keep


class HoardsInAnotherForm(Honest):
    form = staticmethod(lambda sound, every: sound)

    def learn(self, task):
        super().learn(task)
        every = task.train.features(np.arange(len(task.train)))[0]
        self.hoard = self.form(some(task), every)


class HoardsElsewhere(Honest):
    where = staticmethod(lambda sound, method: None)

    def learn(self, task):
        super().learn(task)
        self.where(some(task), self)


FORMS = {
    "concatenated": lambda sound, _: torch.cat([torch.ones(7), sound.flatten(), torch.zeros(2)]),
    "scaled": lambda sound, _: 3 * sound - 1,
    "normalised": lambda sound, _: torch.nn.functional.normalize(sound),
    "standardised": lambda sound, every: (sound - every.mean(0)) / every.std(0),
    "transposed": lambda sound, _: sound.T.contiguous(),
    "rounded": lambda sound, _: (20 * sound).round().to(torch.int8),
    "as lists": lambda sound, _: sound.tolist(),
    "as one list": lambda sound, _: [[1.0, *sound.flatten().tolist()]],
    "as bytes": lambda sound, _: sound.half().numpy().tobytes(),
    "in a generator": lambda sound, _: (row for row in [sound]),
    "among objects": lambda sound, _: np.array([None, sound.numpy()], dtype=object),
    "as a parameter": lambda sound, _: torch.nn.ParameterList([sound]).requires_grad_(False),
}
PLACES = {
    "in a global": lambda sound, method: STASH.append(sound),
    "in its class": lambda sound, method: setattr(HoardsElsewhere, "stash", [sound]),
    "in a closure": lambda sound, method: CLOSURE(sound),
    "in an attribute of a function": lambda sound, method: vars(some).update(stash=sound),
    "beside the network": lambda sound, method: method.network.register_buffer(
        "stash", sound, persistent=False
    ),
}
CLOSURE = in_a_closure()


def hoarded(monkeypatch, method):
    monkeypatch.setattr(registry, "load", lambda group, name: method)
    (check,) = check_method("hoards", modality="audio", names=[READS])
    return check.failure


@pytest.mark.parametrize("form", FORMS)
def test_clips_kept_in_another_form_are_found(form, monkeypatch):
    monkeypatch.setattr(HoardsInAnotherForm, "form", staticmethod(FORMS[form]))
    if form == "in a generator":  # cannot be copied, which stops it before
        monkeypatch.setattr(HoardsInAnotherForm, "__deepcopy__", lambda s, memo: s, raising=False)
    assert "copies of 3 clips" in hoarded(monkeypatch, HoardsInAnotherForm)


@pytest.mark.parametrize("place", PLACES)
def test_clips_kept_elsewhere_are_found(place, monkeypatch):
    monkeypatch.setattr(HoardsElsewhere, "where", staticmethod(PLACES[place]))
    try:
        assert "copies of 3 clips" in hoarded(monkeypatch, HoardsElsewhere)
    finally:
        STASH.clear()
        vars(some).clear()
        CLOSURE.__closure__[0].cell_contents.clear()
        if "stash" in vars(HoardsElsewhere):
            del HoardsElsewhere.stash


def test_a_file_that_a_method_writes_is_found(monkeypatch, tmp_path):
    class Writes(Honest):
        def learn(self, task):
            super().learn(task)
            np.save(tmp_path / "hoard.npy", some(task).numpy())

    assert f"it wrote {tmp_path / 'hoard.npy'} while it learned" in hoarded(monkeypatch, Writes)


def test_what_grows_with_the_clips_is_found_in_whatever_form(monkeypatch):
    class Scrambles(Honest):
        kept = None

        def learn(self, task):
            super().learn(task)
            sound = task.train.features(np.arange(len(task.train)))[0]
            secret = torch.linalg.qr(torch.randn(16, 16))[0]
            scrambled = (sound @ secret).half()
            self.kept = scrambled if self.kept is None else torch.cat([self.kept, scrambled])

    assert hoarded(monkeypatch, Scrambles) is None
    (check,) = check_method(
        "hoards", modality="audio", names=["holds no more where there are more clips"]
    )
    assert "it holds 1280 bytes more where there are 40 more clips" in check.failure


def test_learning_from_test_clips_is_found_wherever_they_are_kept(monkeypatch):
    class Adapts(Honest):
        def learn(self, task):
            super().learn(task)
            with torch.no_grad():
                for mean in STASH:
                    self.network.classifier.bias += mean

        def validate(self, task):
            return None

        def predict(self, clips):
            STASH.append(clips.features(np.arange(len(clips)))[0].mean())
            return super().predict(clips)

    def load(group, name):
        return Adapts

    real = protocol.Run.write

    def write(*args):
        STASH.clear()  # or a second run would differ for other reasons
        real(*args)

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(protocol.Run, "write", write)
    (check,) = check_method("a", modality="audio", names=["learns nothing from test clips"])
    STASH.clear()
    assert "something else where test clips are others" in check.failure


def test_state_kept_within_a_step_that_a_kill_loses_is_found(monkeypatch):
    class Counts(Honest):
        def learn(self, task):
            Counts.batches_seen = 0
            super().learn(task)

        def loss(self, batch, task):
            Counts.batches_seen += 1
            return super().loss(batch, task) / Counts.batches_seen**0.5

    monkeypatch.setattr(registry, "load", lambda group, name: Counts)
    name = "resumes at any step with the same bytes"
    (check,) = check_method("counts", modality="audio", names=[name])
    assert "stopped in the middle of a step and taken up differs in" in check.failure


def test_the_first_traceback_is_kept(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda group, name: NeedsTwoClasses)
    checks = check_method("needs", modality="audio")
    traces = [check.traceback for check in checks if check.traceback]
    assert len(traces) == 1
    assert 'raise ValueError("one class is no choice")' in traces[0]


def test_defaults_of_a_method_stay_and_what_is_replaced_is_named(monkeypatch):
    @dataclass(frozen=True)
    class Settings(GradientSettings):
        learning_rate: float = 0.02
        epochs: int = 12

    class Own(Honest):
        def learn(self, task):
            used.append(self.settings)
            super().learn(task)

    used = []
    Own.Settings = Settings
    monkeypatch.setattr(registry, "load", lambda group, name: Own)
    name = "predicts only classes seen"
    (check,) = check_method("own", modality="audio", names=[name], settings={"drop_last": "false"})
    assert (used[0].learning_rate, used[0].epochs, used[0].batch_size) == (0.02, 12, 8)
    assert check.replaced == ("batch_size=8, not 256",)
    (check,) = check_method("own", modality="audio", names=[name], settings={"batch_size": "9"})
    assert (used[-1].batch_size, check.replaced) == (9, ())


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
        # What restore() does not bring back is missed in the middle of a step.
        Hoards: {"resumes at any step with the same bytes"},
        HoardsTokens: {"resumes at any step with the same bytes"},
        HoardsCopiedTokens: {"resumes at any step with the same bytes"},
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


def test_a_method_that_cannot_be_kept_in_the_middle_is_stopped_without(monkeypatch):
    """`evaluate --checkpoint-epochs` refuses it with a reason; nothing is lost without."""

    class Holds(Honest):
        modalities = ("audio",)

        def ready(self, task):
            self.note = Check("made in the middle of a step", "audio", None)

    monkeypatch.setattr(registry, "load", lambda group, name: Holds)
    names = ["resumes at any step with the same bytes"]
    assert [check.failure for check in check_method("holds", names=names)] == [None]


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
