"""Boards hold what predictions prove, and nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from avbench import resources
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.metrics import AccuracyMatrix
from avbench.leaderboard.board import Board, submit
from avbench.leaderboard.entry import Entry
from avbench.manifests.spec import shipped_names
from avbench.types import AvbenchError

QUICK = {"epochs": "1"}


@pytest.fixture
def run(with_features, tmp_path):
    """A quick run of toy-ci on made-up features."""
    from avbench.manifests.benchmark import Benchmark

    benchmark = Benchmark.load("toy-ci")
    with_features(benchmark)
    out = tmp_path / "run"
    evaluate(benchmark, "finetune", seeds=[0, 1], out=out, settings=QUICK)
    return out


def edit(run, **config):
    """Change the configuration a run claims, consistently."""
    for name in ("result.json", "config.json"):
        record = json.loads((run / name).read_text())
        (record["config"] if name == "result.json" else record).update(config)
        (run / name).write_text(json.dumps(record))


@pytest.fixture
def boards(tmp_path):
    folder = tmp_path / "boards"
    folder.mkdir()
    Board("toy-ci", ()).write(folder / "toy-ci.json")
    return folder


def test_submitting_keeps_numbers_and_evidence(run, boards):
    entry = submit(run, boards, name="mine")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert entry.mean_accuracy == pytest.approx(100 * metrics["mean_accuracy"]["mean"], abs=1e-4)
    assert Board.read(boards / "toy-ci.json").entries == (entry,)
    kept = pq.read_table(boards / "predictions" / "toy-ci" / "mine.parquet")
    assert sorted(set(kept["seed"].to_pylist())) == [0, 1]
    assert set(kept.column_names) == {"seed", "step", "clip_id", "prediction"}


def test_a_name_is_taken_once(run, boards):
    submit(run, boards, name="mine")
    with pytest.raises(AvbenchError, match="has an entry 'mine'"):
        submit(run, boards, name="mine")


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b", "-rf"])
def test_hostile_names_are_refused(name, run, boards):
    with pytest.raises(AvbenchError, match="entry name"):
        submit(run, boards, name=name)
    assert [path.name for path in boards.iterdir()] == ["toy-ci.json"]


def test_an_embellished_result_is_refused(run, boards):
    record = json.loads((run / "result.json").read_text())
    record["runs"][0]["correct"][0][0] = record["runs"][0]["total"][0]
    record["runs"][0]["correct"][1][0] = record["runs"][0]["total"][0]
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="seed 0 of result.json is not what it predicted"):
        submit(run, boards, name="mine")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("access", "joint", "does not have such access"),
        ("modality", "smell", "config.modality"),
        ("method", "none", "unknown method"),
        ("fingerprint", "0", "another version"),
        ("benchmark", "toy", "no leaderboard for toy"),
        ("memory", 61, "made with 61 exemplars, but toy-ci allows 60"),
    ],
)
def test_a_run_of_something_else_is_refused(run, boards, key, value, message):
    edit(run, **{key: value})
    with pytest.raises(AvbenchError, match=message):
        submit(run, boards, name="mine")


def test_missing_files_are_refused(run, boards, tmp_path):
    with pytest.raises(AvbenchError, match="not a finished run"):
        submit(tmp_path / "nowhere", boards, name="mine")
    with pytest.raises(AvbenchError, match="no leaderboard"):
        submit(run, tmp_path / "nowhere", name="mine")


def test_predictions_of_some_clips_only_are_refused(run, boards):
    """Whatever result.json claims."""
    for seed in (0, 1):
        path = run / f"seed-{seed}" / "predictions.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.not_equal(table["clip_id"], table["clip_id"][0])), path)
    with pytest.raises(AvbenchError, match="cover 143 of 144"):
        submit(run, boards, name="mine")


def test_choosing_among_seeds_is_refused(run, boards):
    record = json.loads((run / "result.json").read_text())
    del record["runs"][0]
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="holds other seeds"):
        submit(run, boards, name="mine")


def test_a_result_at_odds_with_its_configuration_is_refused(run, boards):
    record = json.loads((run / "result.json").read_text())
    record["config"]["preset_hash"] = "0"
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match=r"config\.json differ"):
        submit(run, boards, name="mine")


@pytest.mark.parametrize(
    "change",
    [
        {"runs": []},
        {"runs": [{"seed": "x"}]},
        {"coverage": None},
        {"config": {}},
        {"config": None},
        {"format": "1"},
    ],
)
def test_a_broken_result_is_one_line(run, boards, change):
    record = json.loads((run / "result.json").read_text()) | change
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="not a result of avbench"):
        submit(run, boards, name="mine")


def test_submitting_at_once_loses_no_entry(run, boards):
    command = [sys.executable, "-m", "avbench", "submit", run, "--boards", boards, "--name"]
    started = [subprocess.Popen([*command, f"entry-{i}"], stderr=subprocess.PIPE) for i in range(4)]
    added = {f"entry-{i}" for i, process in enumerate(started) if process.wait() == 0}
    assert added
    assert {entry.name for entry in Board.read(boards / "toy-ci.json").entries} == added


def test_a_bound_reports_no_forgetting():
    matrix = AccuracyMatrix(np.array([[4, 0], [1, 4]]), np.array([5, 5]))
    config = dict.fromkeys(("method", "modality", "version", "preset", "fingerprint"), "x")
    config["preset_hash"] = "x"
    assert Entry.verified_by("a", config | {"access": "joint"}, [matrix]).average_forgetting is None
    entry = Entry.verified_by("a", config | {"access": "incremental"}, [matrix])
    assert entry.average_forgetting == pytest.approx(60)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_boards_are_canonical(name, tmp_path):
    path = resources.shipped("leaderboards") / f"{name}.json"
    Board.read(path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()
