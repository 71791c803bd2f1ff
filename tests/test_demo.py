"""The promise of the README: learning and forgetting on real media, from one command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.helpers.cli import run_apart

pytestmark = pytest.mark.slow

CHANCE = np.mean([1 / 3, 1 / 6, 1 / 9, 1 / 12])


@pytest.fixture(scope="session")
def results(once, toy_ci):
    """Run the demo once, as a user would who stopped it while clips were made."""

    def make(folder):
        home = folder / "home"
        shutil.copytree(toy_ci, home)
        shutil.rmtree(home / "toy-ci" / "features")
        for clip in sorted((home / "toy-ci" / "clips").iterdir())[:20]:
            clip.unlink()
        env = {"AVBENCH_HOME": str(home)}
        demo = run_apart("demo", "--seeds", "0", "--json", folder=folder, env=env)
        (folder / "results.json").write_text(demo.stdout)

    folder = once("demo", make)
    assert (folder / "runs" / "demo" / "accuracy.png").stat().st_size > 10_000
    found = {}
    for record in json.loads((folder / "results.json").read_text()):
        config = record["config"]
        assert [run["seed"] for run in record["runs"]] == [0]
        found[config["method"], config["modality"]] = record["metrics"]
    return found


def test_three_seeds_are_run_unless_others_are_asked_for(avbench):
    assert "[default: 0,1,2]" in avbench("demo", "--help").stdout


def accuracy(metrics) -> float:
    return metrics["mean_accuracy"]["mean"]


def forgetting(metrics) -> float:
    return metrics["average_forgetting"]["mean"]


def test_the_bounds_hold(results):
    oracle, avcil, finetune = (results[m, "audio-visual"] for m in ("oracle", "avcil", "finetune"))
    assert accuracy(oracle) > accuracy(avcil) > accuracy(finetune)
    assert forgetting(avcil) < forgetting(finetune)


def test_sight_and_sound_together_are_better_than_either(results):
    both = accuracy(results["oracle", "audio-visual"])
    assert both > accuracy(results["oracle", "audio"]) + 0.05
    assert both > accuracy(results["oracle", "visual"]) + 0.05


def test_nothing_is_at_chance_or_perfect(results):
    for metrics in results.values():
        assert CHANCE + 0.1 < accuracy(metrics) < 0.98
        assert metrics["last_accuracy"]["mean"] > 2 / 12
