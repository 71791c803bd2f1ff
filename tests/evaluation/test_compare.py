"""Two runs compared: paired, honest about ties, and only where they are comparable."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from avbench.evaluation import predictions
from avbench.evaluation.compare import compare, differences, obstacles
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.metrics import METRICS, mean_accuracy
from avbench.evaluation.plots import plot_accuracy
from avbench.evaluation.result import Result
from avbench.evaluation.statistics import Estimate, Outcomes
from avbench.types import AvbenchError

QUICK = {"epochs": "10", "batch_size": "8", "learning_rate": "0.005"}


def drawn(random: np.random.Generator, difficulty, *, seeds: int, luck=0.5, steps=3) -> Outcomes:
    """Draw the outcomes of a method: clips differ in difficulty, seeds in luck."""
    task = np.arange(len(difficulty)) % steps
    lucky = random.normal(0, luck, (seeds, 1, 1))
    chance = 1 / (1 + np.exp(difficulty - lucky))
    correct = random.random((seeds, steps, len(task))) < chance
    return Outcomes(correct & (task <= np.arange(steps)[:, None]), task)


@pytest.mark.parametrize(("seeds", "luck"), [((3, 3), (0.5, 0.5)), ((5, 3), (0.5, 0.05))])
def test_equals_are_found_different_in_no_more_than_5_of_100(seeds, luck):
    """What the interval is for, with as many seeds and as much spread over them as may be."""
    random = np.random.default_rng(0)
    only = {"mean_accuracy": mean_accuracy}
    decided = []
    for _ in range(400):
        difficulty = random.normal(-1, 1, 60)
        a, b = (
            drawn(random, difficulty, seeds=s, luck=spread)
            for s, spread in zip(seeds, luck, strict=True)
        )
        decided.append(differences(a, b, only)["mean_accuracy"].better != "tie")
    assert np.mean(decided) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_methods_without_spread_over_seeds_are_told_apart_by_their_clips():
    """Equals whose seeds all agree: their spread alone would tell nearly all pairs apart."""
    random = np.random.default_rng(0)
    decided = []
    for _ in range(400):
        difficulty = random.normal(-1, 1, 60)
        a, b = (drawn(random, difficulty, seeds=1, luck=0) for _ in "ab")
        thrice = [Outcomes(np.repeat(o.correct, 3, axis=0), o.task) for o in (a, b)]
        found = differences(*thrice, {"mean_accuracy": mean_accuracy})["mean_accuracy"]
        decided.append(found.better != "tie")
        # One seed says as much of the clips.
        single = differences(a, b, {"mean_accuracy": mean_accuracy})["mean_accuracy"]
        assert single.better == found.better
    assert np.mean(decided) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_a_real_difference_is_found_whichever_run_comes_first():
    random = np.random.default_rng(1)
    difficulty = random.normal(-1, 1, 600)
    good, bad = drawn(random, difficulty - 2, seeds=5), drawn(random, difficulty + 1, seeds=5)
    first, second = differences(good, bad, METRICS), differences(bad, good, METRICS)
    assert first["mean_accuracy"].better == "A"
    assert second["mean_accuracy"].better == "B"
    assert first["mean_accuracy"].difference == -second["mean_accuracy"].difference


def test_less_forgetting_is_better():
    steps = np.arange(2)[:, None]
    task = np.arange(200) % 2
    keeps = Outcomes(np.repeat((task <= steps)[None], 2, axis=0), task)
    forgets = keeps.correct.copy()
    forgets[0, 1, 0:100:2] = forgets[1, 1, 0:104:2] = False
    found = differences(keeps, Outcomes(forgets, task), METRICS)
    assert found["average_forgetting"].difference < 0
    assert found["average_forgetting"].better == "A"
    assert found["final_forgetting"].better == "A"
    assert found["backward_transfer"].better == "A"


def test_a_difference_by_hand():
    """Welch's formula, with the variance of the clips beside those of the seeds."""
    random = np.random.default_rng(2)
    a, b = (drawn(random, random.normal(-1, 1, 90), seeds=s) for s in (4, 3))
    found = differences(a, b, METRICS)["mean_accuracy"]
    per_seed = [mean_accuracy(o.matrix()) for o in (a, b)]
    assert found.difference == pytest.approx(per_seed[0].mean() - per_seed[1].mean())
    # A clip of step i counts after the steps t >= i, as one of 30 * t clips (Eq. 15).
    weight = 1 / (30 * np.arange(1, 4)) / 3
    added = [np.einsum("stc,t->c", o.correct, weight) / len(o.correct) for o in (a, b)]
    assert added[0].sum() == pytest.approx(per_seed[0].mean())
    clips = sum(30 * (added[0] - added[1])[a.task == i].var(ddof=1) for i in range(3))
    seeds = [p.var(ddof=1) / len(p) for p in per_seed]
    variance = clips + sum(seeds)
    freedom = variance**2 / (clips**2 / 87 + seeds[0] ** 2 / 3 + seeds[1] ** 2 / 2)
    half = scipy.stats.t(freedom).ppf(0.975) * np.sqrt(variance)
    expected = found.difference - half, found.difference + half
    assert found.interval == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_what_clips_add_is_the_spread_of_a_bootstrap_over_clips(name):
    """To first order: for forgetting, a maximum over steps, within a fifth."""
    random = np.random.default_rng(1)
    outcomes = drawn(random, random.normal(-1, 1, 240), seeds=3)
    clips = Estimate.of(outcomes, METRICS[name]).clips
    expected = np.sqrt(sum(80 * clips[outcomes.task == i].var() for i in range(3)))
    by_step = [np.flatnonzero(outcomes.task == i) for i in range(3)]
    means = []
    for _ in range(1000):
        clip = np.concatenate([random.choice(of_step, len(of_step)) for of_step in by_step])
        again = Outcomes(outcomes.correct[:, :, clip], outcomes.task[clip])
        means.append(METRICS[name](again.matrix()).mean())
    assert np.std(means) == pytest.approx(expected, rel=0.2)


def test_outcomes_of_other_clips_are_refused():
    random = np.random.default_rng(2)
    a = drawn(random, np.zeros(9), seeds=2)
    with pytest.raises(ValueError, match="same clips"):
        differences(a, Outcomes(a.correct & False, a.task[::-1]), METRICS)


def table(rows) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(predictions.SCHEMA.names, columns, strict=True))).cast(
        predictions.SCHEMA
    )


def test_tables_are_aligned_by_clip_whatever_their_order():
    one = table([(0, "b", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1)])
    other = table([(1, "a", 1, 0), (1, "b", 0, 0), (0, "b", 0, 0)])
    outcomes = predictions.outcomes([one, other])
    assert outcomes.task.tolist() == [1, 0]  # a, b
    assert outcomes.correct.tolist() == [
        [[False, True], [True, False]],
        [[False, True], [False, True]],
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [(0, "b", 0, 0), (1, "a", 1, 1)],
        [(0, "b", 0, 0), (0, "b", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1)],
        [(0, "c", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1)],
        [(0, "b", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1), (2, "a", 1, 1)],
        [(-1, "b", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1)],
    ],
)
def test_tables_that_are_not_whole_are_refused(rows):
    whole = table([(0, "b", 0, 0), (1, "b", 0, 1), (1, "a", 1, 1)])
    with pytest.raises(AvbenchError, match="clip"):
        predictions.outcomes([whole, table(rows)])


@pytest.fixture
def runs(tiny, with_features, tmp_path):
    """Two finished runs, of the seeds 0, 1, 2 and 1, 2, 3."""
    benchmark = tiny()
    with_features(benchmark)
    for method, seeds in (("oracle", [0, 1, 2]), ("finetune", [1, 2, 3])):
        evaluate(benchmark, method, seeds=seeds, out=tmp_path / method, settings=QUICK)
    return tmp_path / "oracle", tmp_path / "finetune"


def edit(run, **changed):
    """Change what a result claims; the configuration key by key."""
    record = json.loads((run / "result.json").read_text())
    record["config"] |= changed.pop("config", {})
    (run / "result.json").write_text(json.dumps(record | changed))


@pytest.mark.slow
def test_runs_are_compared_on_all_their_seeds(runs, avbench):
    found = compare(*runs)
    accuracy = found.differences["mean_accuracy"]
    for run, mean in zip(runs, (accuracy.a, accuracy.b), strict=True):
        per_seed = []
        for seed in {"oracle": (0, 1, 2), "finetune": (1, 2, 3)}[run.name]:
            table = pq.read_table(run / f"seed-{seed}" / "predictions.parquet").to_pandas()
            right = table["label"] == table["prediction"]
            per_seed.append(right.groupby(table["step"]).mean().mean())
        assert mean == pytest.approx(np.mean(per_seed))
    assert "average_forgetting" not in found.differences  # the oracle forgets nothing
    names = [str(run) for run in runs]
    record = json.loads(avbench("compare", *names, "--json").stdout)
    assert record == json.loads(json.dumps(found.to_json()))
    assert record["differences"]["mean_accuracy"]["definition"].endswith("(Eq. 15).")
    text = avbench("compare", *names).stdout
    assert f"A: oracle (joint access), seeds 0, 1, 2, {runs[0]}" in text
    assert f"B: finetune, seeds 1, 2, 3, {runs[1]}" in text
    verdict = "a tie" if accuracy.better == "tie" else f"{accuracy.better} is better"
    assert f"By mean accuracy: {verdict}.\n" in text


@pytest.mark.slow
def test_a_run_ties_with_itself_and_one_seed_says_so(runs, avbench, tmp_path):
    _, run = runs
    same = compare(run, run)
    assert set(same.differences) == set(METRICS)
    assert {found.better for found in same.differences.values()} == {"tie"}
    shutil.copytree(run, tmp_path / "one")
    record = json.loads((run / "result.json").read_text())
    edit(tmp_path / "one", runs=record["runs"][:1])
    text = avbench("compare", str(run), str(tmp_path / "one")).stdout
    assert "says nothing of other seeds" in text


@pytest.mark.slow
def test_features_of_other_values_are_compared_with_a_warning(runs, avbench, tmp_path):
    a, b = runs
    same = avbench("compare", a, b)
    assert "Warning" not in same.stderr
    values = json.loads((a / "result.json").read_text())["config"]["features_hash"]
    assert f"values of the features: A {values[:8]}, B {values[:8]}" in same.stdout
    shutil.copytree(b, tmp_path / "other")
    edit(tmp_path / "other", config={"features_hash": "f" * 64})
    other = avbench("compare", a, tmp_path / "other")
    assert "Warning: the features of A and B differ in their values" in other.stderr
    assert f"A {values[:8]}, B ffffffff" in other.stdout
    record = json.loads(avbench("compare", a, tmp_path / "other", "--json").stdout)
    assert record["features_hash"] == {"a": values, "b": "f" * 64}


@pytest.mark.slow
def test_runs_that_are_not_comparable_are_refused_in_one_line(runs, avbench, tmp_path):
    a, b = runs
    other = {"train": 1.0, "val": 1.0, "test": 0.75}
    for changed, message in (
        ({"config": {"fingerprint": "f" * 64}}, "differ in fingerprint"),
        ({"config": {"preset": "avcil", "preset_hash": "0"}}, "preset (filterbank and avcil)"),
        ({"coverage": other}, "coverage (train 100.00 %, val 100.00 %, test 100.00 % and train"),
        ({"test_clips_hash": "f" * 64}, "differ in test clips"),
    ):
        shutil.copytree(b, tmp_path / "other")
        edit(tmp_path / "other", **changed)
        (line,) = avbench("compare", str(a), str(tmp_path / "other"), expect=1).stderr.splitlines()
        assert message in line
        shutil.rmtree(tmp_path / "other")
    assert "not a finished run" in avbench("compare", str(a), "nowhere", expect=1).stderr


@pytest.mark.slow
def test_numbers_must_follow_from_predictions(runs):
    a, b = runs
    path = b / "seed-2" / "predictions.parquet"
    good = predictions.read(path)
    wrong = (good.to_pandas()["label"] + 1) % 2
    predictions.write(path, good.set_column(3, "prediction", pa.array(wrong)))
    with pytest.raises(AvbenchError, match="seed 2 of result.json is not what it predicted"):
        compare(a, b)
    predictions.write(path, good.slice(1))
    with pytest.raises(AvbenchError, match="does not predict each clip"):
        compare(a, b)
    path.unlink()
    with pytest.raises(AvbenchError, match="no predictions"):
        compare(a, b)


@pytest.mark.slow
def test_results_that_differ_in_what_they_did_share_no_table(runs, tmp_path):
    a, b = (Result.read(run / "result.json") for run in runs)
    assert obstacles(a, b) == []
    other = a.model_copy(update={"config": a.config | {"fingerprint": "f" * 64}})
    (reason,) = obstacles(b, other)
    assert reason.startswith("fingerprint (")
    with pytest.raises(AvbenchError, match="differ in fingerprint"):
        plot_accuracy([a, b, other], tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
    partial = a.model_copy(update={"coverage": a.coverage | {"test": 0.5}})
    assert partial.partial
    assert "partial" in partial.label
    assert "partial" not in a.label
