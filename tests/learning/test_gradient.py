"""The shared training loop: what an epoch is made of, which one is kept, what goes on."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import numpy as np
import pytest
import torch

from avbench.learning import attention, gradient
from avbench.learning.gradient import GradientSettings, shuffled
from avbench.learning.lending import Lender
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup, resolve_settings
from avbench.learning.network import AudioVisualNet
from avbench.learning.stream import _VALIDATION, TaskStream
from avbench.types import AvbenchError, UsageError
from reference_methods.afc import AFCNME
from reference_methods.avcil import AVCIL, AVCILSettings
from reference_methods.finetune import FineTuning
from reference_methods.oracle import Oracle

CPU = torch.device("cpu")


class Scripted(FineTuning):
    """Fine-tuning whose validation accuracy after each epoch is given."""

    script: tuple[float, ...] = (0.5, 0.7, 0.7, 0.6)

    def __init__(self, settings: Any, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.after: list[dict[str, torch.Tensor]] = []

    def learn(self, task):
        real = task.val.accuracy
        epochs = iter(self.script)

        def accuracy(predict, *, from_class):
            real(predict, from_class=from_class)
            self.after.append({k: v.clone() for k, v in self.network.state_dict().items()})
            return next(epochs)

        task.val.accuracy = accuracy
        super().learn(task)


@pytest.fixture
def tasks(tiny, with_features):
    def make(*, joint=False, memory=12, **spec):
        benchmark = tiny(**spec)
        return iter(
            TaskStream(
                benchmark.manifest,
                with_features(benchmark),
                modality="audio-visual",
                joint=joint,
                memory=ExemplarMemory(memory),
                device=CPU,
            )
        )

    return make


def setup(seed: int = 0, log=lambda record: None) -> Setup:
    return Setup(12, 8, "audio-visual", seed, CPU, log)


def equal(one, other) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_the_earliest_best_epoch_is_kept_carried_on_and_taught(tasks):
    stream = tasks()
    method = Scripted(GradientSettings(epochs=4, batch_size=8), setup())
    method.learn(next(stream))
    kept = method.state()
    assert equal(kept, method.after[1])
    assert not equal(kept, method.after[2])
    assert not equal(kept, method.after[3])
    kept = {k: v.clone() for k, v in kept.items()}
    task = next(stream)
    method.start(task)
    assert method.teacher is not None
    assert equal(method.teacher.state_dict(), kept)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    grown = method.network.state_dict()
    assert torch.equal(grown["classifier.weight"][:2], kept["classifier.weight"])
    assert torch.equal(grown["audio_proj.weight"], kept["audio_proj.weight"])


def test_without_any_hit_the_last_epoch_is_kept(tasks):
    method = Scripted(GradientSettings(epochs=4, batch_size=8), setup())
    method.script = (0.0, 0.0, 0.0, 0.0)
    method.learn(next(tasks()))
    assert equal(method.state(), method.after[-1])


def test_a_weight_that_the_last_update_made_infinite_is_told(tasks):
    class Breaks(FineTuning):
        def _train_epoch(self, task, optimizer):
            loss = super()._train_epoch(task, optimizer)
            with torch.no_grad():
                self.network.classifier.weight[0, 0] = torch.inf
            return loss

    method = Breaks(GradientSettings(epochs=4, batch_size=8), setup())
    with pytest.raises(AvbenchError, match="a weight is not finite at step 1, epoch 1: try"):
        method.learn(next(tasks()))


def test_memory_of_keys_is_kept_for_a_step_and_no_longer(tasks, monkeypatch):
    made = []
    lender = Lender(lambda size: made.append(weakref.ref(new := np.empty(size, np.uint8))) or new)
    monkeypatch.setattr(attention, "_KEYS", lender)
    method = FineTuning(GradientSettings(epochs=2, batch_size=8), setup())
    method.learn(next(tasks()))
    gc.collect()
    (keys,) = made
    assert keys() is None


def test_the_oracle_begins_anew(tasks):
    stream = tasks(joint=True)
    method = Oracle(GradientSettings(epochs=1, batch_size=8), setup())
    method.learn(next(stream))
    before = method.state()["audio_proj.weight"].clone()
    task = next(stream)
    method.start(task)
    # A grown network would have kept it.
    assert not torch.equal(method.network.audio_proj.weight, before)


def test_every_step_gets_a_new_adam_with_the_settings(tasks, monkeypatch):
    made = []
    adam = torch.optim.Adam

    def spy(parameters, **options):
        made.append(options)
        return adam(parameters, **options)

    monkeypatch.setattr(torch.optim, "Adam", spy)
    settings = GradientSettings(epochs=1, batch_size=8, learning_rate=0.01, weight_decay=0.02)
    method = FineTuning(settings, setup())
    for task in tasks():
        method.learn(task)
    assert made == [{"lr": 0.01, "weight_decay": 0.02}] * 3


def test_an_epoch_is_shuffled_and_drops_the_incomplete_batch():
    torch.manual_seed(0)
    epochs = [shuffled(26, 8) for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [8, 8, 8]
        assert len(set(np.concatenate(batches))) == 24
    assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()
    assert np.concatenate(epochs[0]).tolist() != sorted(np.concatenate(epochs[0]))
    assert [len(batch) for batch in shuffled(5, 8)] == [5]
    assert shuffled(0, 8) == []
    whole = shuffled(26, 8, drop_last=False)
    assert [len(batch) for batch in whole] == [8, 8, 8, 2]
    assert sorted(np.concatenate(whole)) == list(range(26))
    assert shuffled(0, 8, drop_last=False) == []


def test_steps_and_seeds_have_streams_of_their_own(tasks):
    orders = {}
    for seed in (0, 1):
        method = FineTuning(GradientSettings(epochs=1, batch_size=8), setup(seed))
        drawn = []
        method.start = lambda task, m=method, d=drawn: (
            d.append(torch.rand(3).tolist()),
            setattr(m, "network", m.new_network(task.seen_classes)),
        )
        for task in tasks():
            method.learn(task)
        orders[seed] = drawn
    numbers = [tuple(draw) for drawn in orders.values() for draw in drawn]
    assert len(set(numbers)) == len(numbers) == 6


def test_exemplars_come_after_new_clips_and_repeat_when_they_run_out(tasks):
    stream = tasks(memory=10, per_class=40)
    settings = AVCILSettings(epochs=1, batch_size=8, exemplar_batch_size=4)
    method = AVCIL(settings, setup())
    method.learn(next(stream))
    task = next(stream)
    assert len(task.exemplars) == 10
    batches = list(method.batches(task))
    assert len(batches) == 48 // 8
    old = []
    for batch in batches:
        assert batch.current == 8
        assert set(batch.labels[:8].tolist()) <= {2, 3}
        assert set(batch.labels[8:].tolist()) <= {0, 1}
        assert len(batch.labels) == 8 + 4
        old.append(batch.audio[8:])
    # Two full batches of ten exemplars; the same two again and again.
    assert not torch.equal(old[0], old[1])
    for number in range(2, 6):
        assert torch.equal(old[number], old[number % 2])


def test_validation_and_prediction_run_in_evaluation_mode(tasks):
    modes = []

    class Watched(FineTuning):
        def new_network(self, classes):
            network = super().new_network(classes)
            network.register_forward_hook(lambda *_: modes.append(network.training))
            return network

    method = Watched(GradientSettings(epochs=2, batch_size=24), setup())
    method.learn(next(tasks()))
    assert modes == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[b]\nfinetune = { epoch = 3 }", "did you mean epochs"),
        ("[b]\nfinetune = { epochs = { audio = 3 } }", "lacks a value for visual"),
        ("[b]\nfinetune = 3", "not a readable table of recipes"),
        ("b = 3", "not a readable table of recipes"),
        ("[b", "not a readable table of recipes"),
        ("[b]\nfinetune = { epochs = 'x' }", "settings of finetune"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, text, message):
    class Mine(FineTuning):
        recipes = tmp_path / "recipes.toml"

    Mine.recipes.write_text(text)
    with pytest.raises(AvbenchError, match=message):
        resolve_settings(Mine, "finetune", "b", "visual", {})


@dataclass(frozen=True)
class OddSettings(GradientSettings):
    table: dict[str, int] = field(default_factory=dict)
    form: Literal["plain", "fancy"] = "plain"
    limit: int | None = None


class Odd(FineTuning):
    Settings = OddSettings
    recipes = None


def test_settings_of_every_kind_from_text():
    given = {
        "epochs": "3",
        "learning_rate": "0.5",
        "milestones": "3,4",
        "temporal_audio_guidance": "False",
        "form": "fancy",
        "limit": "7",
    }
    found = resolve_settings(Odd, "odd", "b", "visual", given)
    assert found == OddSettings(
        epochs=3,
        learning_rate=0.5,
        milestones=(3, 4),
        temporal_audio_guidance=False,
        form="fancy",
        limit=7,
    )


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("table", "3,4", "can only be set in a recipe"),
        ("form", "fanci", "did you mean fancy"),
        ("limit", "many", "limit takes a whole number"),
        ("milestones", "3;4", "milestones takes whole numbers such as 50,100"),
        ("milestones", "0,50", "milestones must each be at least 1"),
        ("temporal_audio_guidance", "yes", "takes true or false"),
        ("learning_rate", "fast", "takes a number"),
        ("milestone", "3", "did you mean milestones"),
        ("momentum", "3", "unknown setting 'momentum'; known: epochs, "),
    ],
)
def test_bad_settings_are_one_line(key, text, message):
    with pytest.raises(UsageError, match=message):
        resolve_settings(Odd, "odd", "b", "visual", {key: text})


def test_milestones_divide_the_learning_rate_by_ten(golden, tasks):
    misc = golden("misc.json")
    (key,) = (key for key in misc if key.startswith("lr_per_epoch_milestones_"))
    milestones = tuple(int(m) for m in re.findall(r"\d+", key))
    record = misc[key]
    rates = []

    class Watched(FineTuning):
        def _train_epoch(self, task, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])
            return super()._train_epoch(task, optimizer)

    settings = GradientSettings(
        epochs=len(record), batch_size=8, learning_rate=record[0], milestones=milestones
    )
    Watched(settings, setup()).learn(next(tasks()))
    assert rates == pytest.approx(record)


def test_the_order_of_batches_is_the_authors(golden):
    """Given the same seed, the model they made first, and what their loaders draw beside."""
    misc = golden("misc.json")

    def iterate_over_a_loader():
        torch.empty((), dtype=torch.int64).random_()

    classes, dim = (int(n) for n in re.findall(r"\d+", misc["note"])[:2])
    torch.manual_seed(misc["seed"])
    AudioVisualNet(dim, classes, "audio")
    for expected in misc["train_batches_epoch01"]:
        iterate_over_a_loader()
        found = shuffled(misc["n_train"], misc["batch_size"])
        assert [batch.tolist() for batch in found] == expected
        iterate_over_a_loader()
    for expected in misc["paired_batches_epoch23"]:
        iterate_over_a_loader()
        iterate_over_a_loader()
        new = shuffled(misc["n_train"], misc["batch_size"])
        old = shuffled(misc["n_exemplar"], misc["exemplar_batch"])
        paired = [[a.tolist(), b.tolist()] for a, b in zip(new, cycle(old), strict=False)]
        assert paired == expected
        iterate_over_a_loader()


def test_the_epoch_kept_may_be_chosen_on_new_classes_or_be_the_last(tasks):
    stream = tasks()
    method = Scripted(GradientSettings(epochs=4, batch_size=8, selection="last"), setup())
    method.learn(next(stream))
    assert equal(method.state(), method.after[-1])
    counted = []

    class Watched(FineTuning):
        def predict(self, clips):
            # Right about old classes only, of which there are four clips each.
            counted.append(len(clips))
            return np.array([c if c < 2 else 0 for c in labels])

    task = next(stream)
    _, labels = _VALIDATION[task.val]
    method = Watched(GradientSettings(epochs=1, batch_size=8, selection="best_val_new"), setup())
    assert method.validate(task) == 0.0
    method = Watched(GradientSettings(epochs=1, batch_size=8), setup())
    assert method.validate(task) == 0.5
    assert counted == [16, 16]


def test_a_checkpoint_is_taken_up(tasks):
    for method_class in (FineTuning, Oracle, AFCNME):
        stream = tasks()
        settings = method_class.Settings(epochs=1, batch_size=8)
        method = method_class(settings, setup())
        method.learn(next(stream))
        method.learn(next(stream))
        other = method_class(settings, setup(1))
        other.restore({k: v.clone() for k, v in method.state().items()}, (2, 2))
        assert equal(other.state(), method.state())
        clips = stream.gi_frame.f_locals["self"].test(1)[0]
        assert (other.predict(clips) == method.predict(clips)).all()


def test_bfloat16_is_for_machines_that_have_it(tasks, monkeypatch):
    settings = AVCILSettings(epochs=1, batch_size=8, precision="bfloat16")
    monkeypatch.setattr(gradient, "has_amx", lambda: False)
    with pytest.raises(UsageError, match="no AMX: leave it out, or compute on a GPU"):
        AVCIL(settings, setup())
    monkeypatch.setattr(gradient, "has_amx", lambda: True)
    method = AVCIL(settings, setup())
    for task, _ in zip(tasks(), range(2), strict=False):
        method.learn(task)
    assert method.network.product == torch.bfloat16
    assert {p.dtype for p in method.network.parameters()} == {torch.float32}
