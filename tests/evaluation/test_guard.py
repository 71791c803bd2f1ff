"""What a method cannot reach, change or carry over while it is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from avbench import registry
from avbench.evaluation.evaluator import evaluate
from avbench.types import AvbenchError, ProtocolError
from reference_methods.finetune import FineTuning
from tests.helpers.reach import reached

pytestmark = pytest.mark.slow

QUICK = {"epochs": "2", "batch_size": "8"}


@pytest.fixture
def run(tiny, with_features, tmp_path, monkeypatch):
    """Evaluate a class on a benchmark of three steps."""
    benchmark = tiny()
    with_features(benchmark)

    def evaluate_class(method, out="run", **options):
        monkeypatch.setattr(registry, "load", lambda group, name: method)
        options = {"seeds": [0], "settings": QUICK} | options
        return evaluate(benchmark, "mine", out=tmp_path / out, **options)

    return evaluate_class


class Honest(FineTuning):
    recipes = None


def test_nothing_a_method_is_handed_leads_to_a_file_or_a_clip_id(run, tmp_path):
    class Looks(Honest):
        def learn(self, task):
            super().learn(task)
            found.extend(reached(self.setup, task))

        def predict(self, clips):
            found.extend(reached(self.setup, clips))
            return super().predict(clips)

    found = []
    run(Looks, tensorboard=True, profile=True)
    assert len(found) > 100
    for thing in found:
        assert not isinstance(thing, Path)
        assert not hasattr(thing, "fileno")
        if isinstance(thing, str | bytes):
            text = thing if isinstance(thing, str) else thing.decode(errors="replace")
            assert str(tmp_path) not in text
            assert not text.startswith(("c0-", "c1-", "run, seed"))


def test_what_earlier_steps_leave_holds_neither_clips_nor_labels(run, tmp_path):
    class Reads(Honest):
        def learn(self, task):
            if task.step:
                (folder,) = tmp_path.glob("run/unfinished-*")
                found.append(pq.read_table(folder / f"step-{task.step}.parquet").to_pydict())
            super().learn(task)

    found = []
    run(Reads)
    assert [list(table) for table in found] == [["prediction"]] * 2
    table = pq.read_table(tmp_path / "run" / "seed-0" / "predictions.parquet").to_pandas()
    after = table[table["step"] == 0]
    assert sorted(after["prediction"]) == sorted(found[0]["prediction"])
    assert after["clip_id"].is_monotonic_increasing


@pytest.mark.parametrize("suffix", ["parquet", "safetensors", "json"])
def test_a_method_that_changes_files_of_an_earlier_step_is_stopped(suffix, run, tmp_path):
    class Rewrites(Honest):
        def learn(self, task):
            super().learn(task)
            if task.step == 2:
                (path,) = tmp_path.glob(f"run/unfinished-*/step-1.{suffix}")
                path.write_bytes(path.read_bytes().replace(b"0", b"1"))

    with pytest.raises(ProtocolError, match=rf"step-1.{suffix} was changed after its step"):
        run(Rewrites)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_a_run_is_not_taken_up_from_files_that_were_changed(suffix, run, tmp_path):
    class Stops(Honest):
        stops = True

        def learn(self, task):
            if task.step == 1 and self.stops:
                raise KeyboardInterrupt
            super().learn(task)

    with pytest.raises(KeyboardInterrupt):
        run(Stops)
    (path,) = tmp_path.glob(f"run/unfinished-*/step-1.{suffix}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    Stops.stops = False
    with pytest.raises(AvbenchError, match=rf"step-1.{suffix}: not what was written: delete"):
        run(Stops)


def learned(folder):
    return [path.read_bytes() for path in sorted(folder.glob("seed-0/step-*.safetensors"))]


def test_what_a_method_keeps_of_test_clips_is_gone_when_it_learns_on(run, tmp_path):
    class Adapts(Honest):
        def __init__(self, settings, setup):
            super().__init__(settings, setup)
            self.heard = []

        def validate(self, task):
            return None  # validation is a part of learning

        def learn(self, task):
            counts.append(len(self.heard))
            super().learn(task)
            with torch.no_grad():
                for audio in self.heard:
                    self.network.classifier.bias += audio.mean()

        def predict(self, clips):
            self.heard.append(clips.features(np.arange(len(clips)))[0])
            self.setup.log({"kept": len(self.heard)})
            self.random.random()
            return super().predict(clips)

    counts, last = [], QUICK | {"selection": "last"}
    run(Adapts, "adapts", settings=last)
    run(Honest, "honest", settings=last)
    assert counts == [0, 0, 0]
    assert learned(tmp_path / "adapts") == learned(tmp_path / "honest")


def test_a_method_that_adapts_to_test_clips_is_stopped(run):
    class Adapts(Honest):
        def validate(self, task):
            return None

        def predict(self, clips):
            with torch.no_grad():
                self.network.classifier.bias += clips.features(np.array([0]))[0].mean()
            return super().predict(clips)

    with pytest.raises(ProtocolError, match="predict changed classifier.bias at step 1: test"):
        run(Adapts)


def test_a_method_that_changes_its_original_while_it_predicts_is_stopped(run):
    originals = []

    class Adapts(Honest):
        def learn(self, task):
            super().learn(task)
            originals.append(self)

        def predict(self, clips):
            if originals:
                with torch.no_grad():
                    originals[-1].network.classifier.bias.zero_()
            return super().predict(clips)

    with pytest.raises(ProtocolError, match="predict changed classifier.bias at step 1: test"):
        run(Adapts)


def test_a_method_that_cannot_be_copied_is_told_what_to_leave_out(run):
    class Holds(Honest):
        def __init__(self, settings, setup):
            super().__init__(settings, setup)
            self.numbers = (number for number in range(3))

    with pytest.raises(AvbenchError, match="Holds cannot be copied, .*generator.*detached tensors"):
        run(Holds)


def test_what_a_method_declares_is_read_once(run, tmp_path):
    class Changes(Honest):
        def learn(self, task):
            Changes.access, Changes.uses_memory = "joint", True
            Changes.modalities = ("audio",)
            seen.append((set(task.train.labels.tolist()), task.places))
            super().learn(task)

    seen = []
    result = run(Changes, seeds=[0, 1])
    assert seen == [({0, 1}, 0), ({2, 3}, 0), ({4, 5}, 0)] * 2
    assert (result.config["access"], result.config["memory"]) == ("incremental", 0)
    assert result.config["modality"] == "audio-visual"


def test_settings_are_read_once(run):
    class Changes(Honest):
        def learn(self, task):
            learned.append(self.settings.epochs)
            super().learn(task)
            object.__setattr__(self.settings, "epochs", 9)

    learned = []
    result = run(Changes, seeds=[0, 1])
    assert learned == [2, 9, 9] * 2
    assert result.config["settings"]["epochs"] == 2


@pytest.mark.parametrize(
    ("attribute", "value"), [("access", "all"), ("modalities", ()), ("modalities", ["sound"])]
)
def test_what_a_method_declares_is_one_of_what_there_is(attribute, value, run):
    class Odd(Honest):
        pass

    setattr(Odd, attribute, value)
    with pytest.raises(AvbenchError, match=rf"mine.{attribute} must be "):
        run(Odd)


def test_a_result_says_how_often_validation_clips_were_asked(run, tmp_path):
    class Asks(Honest):
        def validate(self, task):
            super().validate(task)
            return super().validate(task)

    result = run(Asks, settings=QUICK | {"epochs": "4"})
    assert [step.validation_questions for step in result.runs[0].cost] == [8, 8, 8]
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [step["validation_questions"] for step in record["runs"][0]["cost"]] == [8, 8, 8]


def test_questions_of_a_step_that_is_taken_up_count_on(run):
    class Stops(Honest):
        stops = True

        def validate(self, task):
            accuracy = super().validate(task)
            epochs.append(task.step)
            if self.stops and epochs.count(1) == 3:
                raise KeyboardInterrupt
            return accuracy

    epochs = []
    settings = QUICK | {"epochs": "4"}
    with pytest.raises(KeyboardInterrupt):
        run(Stops, settings=settings, checkpoint_epochs=1)
    Stops.stops = False
    result = run(Stops, settings=settings)
    assert epochs.count(1) == 5  # the third was not kept
    assert [step.validation_questions for step in result.runs[0].cost] == [4, 4, 4]


def test_a_method_that_asks_for_labels_of_validation_clips_is_stopped(run):
    """Each answer tells one number; enough of them would tell every label."""

    class Extracts(Honest):
        def learn(self, task):
            super().learn(task)
            for clip in range(len(task.val)):
                for label in range(100):
                    guess = np.full(len(task.val), -1)
                    guess[clip] = label
                    task.val.accuracy(lambda _, guess=guess: guess)

    with pytest.raises(ProtocolError, match="more than 200 times in a step"):
        run(Extracts)
