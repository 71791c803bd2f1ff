"""Runs killed at any moment: the same command ends with the same bytes."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avbench import registry
from avbench.evaluation import evaluator
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.result import Result
from avbench.types import AvbenchError, UsageError
from reference_methods.icarl import ICaRLNME
from reference_methods.ssil import SSIL
from tests.helpers.processes import wait_for

pytestmark = pytest.mark.slow

QUICK = {"epochs": "6", "batch_size": "8", "learning_rate": "0.005"}


@pytest.fixture
def benchmark(tiny, with_features):
    made = tiny()
    with_features(made)
    return made


def evidence(run: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on when it was killed."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    telling_time = {"cost.json", "environment.json", "result.json"}
    return {str(p.relative_to(run)): p.read_bytes() for p in paths if p.name not in telling_time}


def counts(run: Path) -> object:
    record = Result.read(run / "result.json").to_json()
    runs = [(r["seed"], r["correct"], r["total"], r["accuracy_per_step"]) for r in record["runs"]]
    return record["metrics"], record["bootstrap"], record["config"], runs


@pytest.mark.parametrize(
    ("method", "extra"), [("avcil", ["--checkpoint-epochs", "1"]), ("icarl-nme", [])]
)
def test_killed_at_random_moments(method, extra, benchmark, tmp_path):
    """With SIGKILL, by a real process, so that nothing is tidied up."""
    command = [sys.executable, "-m", "avbench", "evaluate", "--method", method]
    command += ["--benchmark", str(tmp_path / "tiny.toml"), "--seeds", "0..1", *extra]
    command += [part for k, v in QUICK.items() for part in ("--set", f"{k}={v}")]

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen([*command, "--out", out], cwd=tmp_path, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    moments = random.Random()
    for sign in ("unfinished-seed-0/step-1.json", "unfinished-seed-1/log.jsonl"):
        process = start("run")
        wait_for((tmp_path / "run" / sign).is_file, process=process)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
    assert start("run").wait() == 0
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")
    assert counts(tmp_path / "run") == counts(tmp_path / "whole")


class Killed(BaseException):
    """What a kill is to code that runs no handlers."""


def _calls_that_change_files(monkeypatch, at: int) -> list[str]:
    """Stop before the at-th change of a file, as a kill would; return the changes made."""
    made: list[str] = []

    def before(name, function):
        def wrapped(*args, **kwargs):
            if len(made) == at:
                raise Killed
            made.append(name)
            return function(*args, **kwargs)

        return wrapped

    for place, names in ((os, ("replace", "truncate")), (Path, ("unlink", "write_bytes"))):
        for name in names:
            monkeypatch.setattr(place, name, before(name, getattr(place, name)))
    return made


def test_killed_before_any_change_of_a_file(benchmark, tmp_path, monkeypatch):
    """Exhaustively: every rename, deletion and write of one run is the last one once."""
    settings = QUICK | {"epochs": "1"}

    def run(out, **options):
        evaluate(benchmark, "ssil", seeds=[0], out=out, settings=settings, **options)

    monkeypatch.setattr(evaluator, "plot_accuracy", lambda *_: None)
    monkeypatch.setattr(evaluator, "plot_matrix", lambda *_: None)
    run(tmp_path / "whole", checkpoint_epochs=1)
    expected = evidence(tmp_path / "whole")
    learned: list[int] = []
    learn = SSIL.learn
    for at in range(200):
        out = tmp_path / f"run-{at}"
        with monkeypatch.context() as patch:
            # What is left half-written is what a kill leaves.
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            made = _calls_that_change_files(patch, at)
            try:
                run(out, checkpoint_epochs=1)
                break
            except Killed:
                finished = [*out.glob("*seed-0/step-*.json"), *out.glob("*seed-0/predictions.*")]
        learned.clear()
        with monkeypatch.context() as patch:
            patch.setattr(
                SSIL, "learn", lambda self, task: (learned.append(task.step), learn(self, task))
            )
            patch.setattr(evaluator, "GradientMethod", SSIL)  # whose learn it is just now
            run(out, checkpoint_epochs=1)
        assert evidence(out) == expected, at
        # Finished steps are not learned again.
        names = {path.name for path in finished if ".partial-" not in str(path)}
        whole = "predictions.parquet" in names
        assert len(learned) == (0 if whole else 3 - len(names)), (at, names)
    else:
        raise AssertionError("the run never ended")
    assert made.count("replace") > 15
    assert at == len(made)


def test_a_step_in_the_middle_is_taken_up_there(benchmark, tmp_path, monkeypatch):
    def run(out, **options):
        return evaluate(benchmark, "avcil", seeds=[0], out=out, settings=QUICK, **options)

    run(tmp_path / "whole")
    trained: list[tuple[int, int]] = []
    validate = registry.load("methods", "avcil").validate

    def stop(self, task):
        trained.append((task.step, len([s for s, _ in trained if s == task.step])))
        if trained[-1] == (1, 4):
            raise KeyboardInterrupt
        return validate(self, task)

    method = registry.load("methods", "avcil")
    with monkeypatch.context() as patch:
        patch.setattr(method, "validate", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", checkpoint_epochs=2)
    trained.clear()
    monkeypatch.setattr(
        method, "validate", lambda self, task: (trained.append(task.step), validate(self, task))[1]
    )
    # The same without asking for more checkpoints.
    result = run(tmp_path / "run")
    assert trained.count(1) == 2  # epochs 5 and 6 of the 6
    assert trained.count(2) == 6
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")
    assert all(cost.seconds > 0 for cost in result.runs[0].cost)


class Tracker:
    def __init__(self):
        self.total = torch.zeros(())


class Beside(SSIL):
    """Lets state of every kind that lies beside the network decide the loss."""

    def start(self, task):
        super().start(task)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.generators = [np.random.default_rng(task.step), np.random.RandomState(task.step)]
        self.generator = torch.Generator().manual_seed(task.step)
        self.scale = nn.Parameter(torch.ones(()))
        self.own = torch.optim.SGD([self.scale], lr=0.1, momentum=0.9)
        self.recent = deque(maxlen=3)
        self.tracker = Tracker()
        self.weights, self.by_class, self.calls = np.ones(2), {}, 0

    def loss(self, batch, task):
        logits = self.network(batch.audio, batch.visual).logits
        with torch.no_grad():
            old = self.average(batch.audio, batch.visual).logits
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 0.1)
        self.calls += 1
        self.network.calls = getattr(self.network, "calls", 0) + 1
        self.by_class[int(batch.labels[0])] = logits.detach().mean()
        self.recent.append(logits.mean().item())
        self.tracker.total = self.tracker.total + 0.1
        self.weights[0] *= 1.01
        self.own.zero_grad()
        (self.scale * logits.detach().square().mean()).backward()
        self.own.step()
        drawn = sum(each.random_sample() for each in self.generators[1:])
        drawn += self.generators[0].random() + self.random.random()
        drawn += torch.rand((), generator=self.generator).item()
        held = sum(self.recent) + self.weights[0] + sum(self.by_class.values())
        held += self.calls % 5 + self.network.calls % 3 + self.tracker.total + self.scale.detach()
        weight = 1 + 0.01 * (held + drawn)
        return weight * F.cross_entropy(logits, batch.labels) + (logits - old).square().mean()

    def state(self):
        return super().state() | {"scale": self.scale}

    def restore(self, state, classes_per_step):
        state.pop("scale")
        super().restore(state, classes_per_step)


def stopped(monkeypatch, method, step, epoch):
    """Stop a method before it validates an epoch of a step, as Ctrl-C would."""
    validate, done = method.validate, []

    def stop(self, task):
        done.append(task.step)
        if task.step == step and done.count(step) == epoch:
            raise KeyboardInterrupt
        return validate(self, task)

    monkeypatch.setattr(method, "validate", stop)


def test_what_lies_beside_the_network_is_kept_in_the_middle_of_a_step(
    benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "load", lambda group, name: Beside)

    def run(out):
        options = {"seeds": [0], "settings": QUICK, "checkpoint_epochs": 2}
        evaluate(benchmark, "beside", out=tmp_path / out, **options)

    run("whole")
    for step, epoch in ((0, 3), (1, 4), (2, 6)):
        with monkeypatch.context() as patch:
            stopped(patch, Beside, step, epoch)
            with pytest.raises(KeyboardInterrupt):
                run("run")
    run("run")
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")


def test_means_are_there_for_a_step_whose_last_epoch_was_kept(benchmark, tmp_path, monkeypatch):
    settings = QUICK | {"epochs": "2", "selection": "last"}

    def run(out):
        options = {"seeds": [0], "settings": settings, "checkpoint_epochs": 2}
        evaluate(benchmark, "icarl-nme", out=tmp_path / out, **options)

    def stop(self, task):
        raise KeyboardInterrupt

    run("whole")
    with monkeypatch.context() as patch:
        patch.setattr(ICaRLNME, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run("run")
    run("run")
    assert evidence(tmp_path / "run") == evidence(tmp_path / "whole")


class Iterating(SSIL):
    def start(self, task):
        super().start(task)
        self.turns = iter(range(1000))


class Early(SSIL):
    def ready(self, task):
        if not task.remembered:
            super().finish(task)

    def finish(self, task):
        pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Iterating, r"cannot keep self.turns, a range_iterator: make it in start\(\)"),
        (Early, r"whose exemplars were kept already: call task.remember in finish\(\)"),
    ],
)
def test_what_a_checkpoint_cannot_keep_is_refused_with_a_reason(
    method, message, benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "load", lambda group, name: method)

    def run(**options):
        evaluate(benchmark, "own", seeds=[0], out=tmp_path / "run", settings=QUICK, **options)

    with pytest.raises(AvbenchError, match=message):
        run(checkpoint_epochs=2)
    run()


def test_a_damaged_checkpoint_is_one_line(benchmark, tmp_path, monkeypatch):
    method = registry.load("methods", "avcil")

    def stop(self, task):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(method, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(
                benchmark,
                "avcil",
                seeds=[0],
                out=tmp_path / "run",
                settings=QUICK,
                checkpoint_epochs=2,
            )
    kept = tmp_path / "run" / "unfinished-seed-0" / "epoch.safetensors"
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(AvbenchError, match="not a checkpoint: delete .*unfinished-seed-0"):
        evaluate(benchmark, "avcil", seeds=[0], out=tmp_path / "run", settings=QUICK)


def test_checkpoints_by_epoch_are_for_the_shared_loop(benchmark, tmp_path, monkeypatch):
    class Own(SSIL):
        def learn(self, task):
            super().learn(task)

    monkeypatch.setattr(registry, "load", lambda group, name: Own)
    with pytest.raises(UsageError, match="leave --checkpoint-epochs out"):
        evaluate(benchmark, "own", seeds=[0], out=tmp_path / "run", checkpoint_epochs=1)


def test_seeds_are_added_to_and_a_finished_run_is_left_alone(benchmark, tmp_path):
    def run(seeds, **options):
        return evaluate(
            benchmark, "ssil", seeds=seeds, out=tmp_path / "run", settings=QUICK, **options
        )

    run(range(2))
    before = evidence(tmp_path / "run")
    result = run(range(4))
    after = evidence(tmp_path / "run")
    assert {k: v for k, v in after.items() if k in before and "seed" in k} == {
        k: v for k, v in before.items() if "seed" in k
    }
    assert result.seeds == [0, 1, 2, 3]
    summary = result.metric("mean_accuracy")
    low, high = summary.interval
    assert low < summary.mean < high
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("seed-*/*")}
    again = run(range(4))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("seed-*/*")} == stamps
    assert again.to_json() == result.to_json()


def test_two_processes_in_one_directory(benchmark, tmp_path):
    command = [sys.executable, "-m", "avbench", "evaluate", "--method", "ssil"]
    command += ["--benchmark", str(tmp_path / "tiny.toml"), "--seeds", "0", "--out", "run"]
    command += ["--set", "epochs=100000", "--set", "batch_size=8"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "run" / "unfinished-seed-0").is_dir, process=first)
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert "another run is using this run directory: wait for it to end" in line
