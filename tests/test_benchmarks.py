"""The benchmarks run, and write down what they measure."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avbench import registry
from avbench.features.store import FeatureStore
from avbench.learning.method import Setup
from avbench.learning.stream import Batch
from benchmarks import breaks, plain, timing, training

ROOT = Path(__file__).parents[1]


def run(*arguments, expect=0):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.slow
def test_the_cheap_ones_run_and_are_written_down(tmp_path):
    run("prepare", "splits", "score", "training", "--quick", "--out", str(tmp_path))
    (page,) = tmp_path.iterdir()
    assert page.name.endswith("-prepare-splits-score-training-quick.md")
    text = page.read_text()
    for part in ("| processor |", "| torch |", "| avbench |", "## prepare", "## splits"):
        assert part in text
    assert "| 2,000 | " in text
    assert "| bootstrap 2 seeds of them | " in text
    assert "| vs100-ci | 61,195 | " in text
    assert "| avcil | audio-visual | tuned | " in text


def test_an_unknown_one_is_told():
    assert "no benchmark speed" in run("speed", expect=2).stderr


def test_every_place_to_break_is_there_and_its_room_has_tests():
    for fault in breaks.faults(breaks.FAULTS):
        assert (ROOT / fault["file"]).read_text().count(fault["was"]) == 1, fault
        assert breaks.tests_of(fault["room"]), fault


def test_ways_are_run_by_turns_and_compared_turn_by_turn():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in ("slow", "fast")}
    found = timing.by_turns(ways, 2)
    assert calls == ["slow", "fast"] * 3
    assert [len(samples) for samples in found.values()] == [2, 2]
    slow = [timing.Sample(2, 9), timing.Sample(8, 9), timing.Sample(3, 9)]
    fast = [timing.Sample(1, 3), timing.Sample(2, 3), timing.Sample(1, 3)]
    assert timing.ratios(slow, fast) == ["3.00 (2.00 to 4.00)", "3.00 (3.00 to 3.00)"]
    assert timing.spread([0.25]) == "0.25"


def test_rows_are_shown_as_they_come(capsys):
    def rows():
        assert capsys.readouterr().out.splitlines() == ["| a |", "| --- |"]
        yield [1]

    timing.show(["a"], rows())
    assert capsys.readouterr().out == "| 1 |\n"


def test_time_of_children_counts():
    samples: list[timing.Sample] = []
    with timing.timed(samples):
        burn = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert samples[0].cpu >= 0.3


def test_one_that_fails_is_named(monkeypatch, tmp_path, capsys):
    from benchmarks import __main__ as bench

    monkeypatch.setattr(bench, "NAMES", ("broken",))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "broken", "--out", str(tmp_path)])
    assert bench.main() == 1
    (page,) = tmp_path.iterdir()
    assert "## broken\n\nFailed with exit code 1" in page.read_text()


def test_tables_are_markdown():
    lines = timing.table(["a", "b"], [[1, "x"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | x |"]


STEP = plain.Step(old=4, per_step=2)
WAYS = [
    (name, modality)
    for name in plain.LOSSES
    for modality in registry.load("methods", name).modalities
]


@pytest.mark.parametrize(("name", "modality"), WAYS)
def test_the_plain_way_has_the_losses_and_gradients_of_ours(name, modality):
    torch.manual_seed(0)
    method_class = registry.load("methods", name)
    method = method_class(
        method_class.Settings(), Setup(12, plain.FRAMES, modality, 0, torch.device("cpu"), dict)
    )
    task = SimpleNamespace(step=2, classes_per_step=(2, 2, 2), old_classes=4, seen_classes=6)
    method.network = method.new_network(2).double()
    method.network.grow(4)
    if name == "afc-lsc":
        method.network.grow(6)
    method.freeze_teacher(task)
    if name != "afc-lsc":
        method.network.grow(6)
    with torch.no_grad():
        for weight in method.network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    current = 5 if name in plain.PAIRED else 9
    new = torch.randint(4, 6, (current,))
    old = torch.randint(0, 4, (9 - current,))
    labels = torch.randint(0, 6, (9,)) if name in plain.MERGED else torch.cat([new, old])
    audio, visual = torch.randn(9, 12).double(), torch.randn(9, plain.FRAMES * 3, 12).double()

    network, teacher = training.plain_copy(method.network), training.plain_copy(method.teacher)
    loss = plain.LOSSES[name](network, teacher, plain.Batch(audio, visual, labels, current), STEP)
    loss.backward()
    sound, sight = audio if modality != "visual" else None, visual if modality != "audio" else None
    ours = method.loss(Batch(sound, sight, labels, current), task)
    ours.backward()
    assert loss.item() == pytest.approx(ours.item(), abs=1e-9)
    gradients = {key: value.grad for key, value in network.named_parameters()}
    for key, value in method.network.named_parameters():
        torch.testing.assert_close(value.grad, gradients[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["finetune", "icarl-fc", "avcil"])
def test_the_plain_way_reads_the_features_of_ours(tmp_path, monkeypatch, name):
    """An epoch of four new clips in batches of two, and of three exemplars in batches of one."""
    monkeypatch.setenv("AVBENCH_HOME", "")
    training.lay_out(tmp_path, per_class=2, cells=1, dim=3)
    benchmark = training.load(tmp_path)
    kept = FeatureStore.of(benchmark, "speed")
    train = [benchmark.manifest.clip_ids[row] for row in benchmark.manifest.rows("train")]
    new = training.features(tmp_path, train[4:])
    old = training.features(tmp_path, train[:3])
    batches = list(plain.batches(name, new, old, 2, 1))
    count = {"finetune": 2, "icarl-fc": 3, "avcil": 2}[name]
    assert len(batches) == count
    sounds = kept.audio(np.arange(len(kept))).astype(np.float32)
    sights = kept.visual(np.arange(len(kept))).astype(np.float32)
    seen = []
    for batch in batches:
        assert batch.new == 2
        assert len(batch.labels) == (3 if name == "avcil" else 2)
        for audio, visual, label in zip(batch.audio, batch.visual, batch.labels, strict=True):
            (row,) = np.flatnonzero((sounds == audio.numpy()).all(axis=1))
            assert (sights[row] == visual.numpy()).all()
            assert training.class_of(kept.clip_ids[row]) == label
            seen.append(kept.clip_ids[row])
    assert len(set(seen)) == {"finetune": 4, "icarl-fc": 6, "avcil": 6}[name]


def test_ways_take_turns_over_the_same_epochs(tmp_path, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", "")
    training.lay_out(tmp_path, per_class=4, cells=2, dim=16)
    given = argparse.Namespace(
        method=["afc-lsc"], modality=["visual"], turns=2, batch=4, exemplars=2, way="both"
    )
    found = training.measure(given, tmp_path)
    assert len(found["ours"]) == len(found["plain"]) == 3
    assert found["clips"] == 12
    for given.way in ("ours", "plain"):
        # Of so few tokens next to none, but a peak is never below what was there before.
        assert training.measure(given, tmp_path)["memory"] > -1
