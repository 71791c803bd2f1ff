"""Boards hold what predictions prove, and nothing twice."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from avbench import resources
from avbench.evaluation.evaluator import evaluate
from avbench.leaderboard.board import Board, submit
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
    [("fingerprint", "0", "another version"), ("benchmark", "toy", "unknown benchmark")],
)
def test_a_run_of_something_else_is_refused(run, boards, key, value, message):
    record = json.loads((run / "result.json").read_text())
    record["config"][key] = value
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match=message):
        submit(run, boards, name="mine")


def test_partial_runs_and_missing_files_are_refused(run, boards, tmp_path):
    with pytest.raises(AvbenchError, match=r"result\.json"):
        submit(tmp_path / "nowhere", boards, name="mine")
    with pytest.raises(AvbenchError, match="no leaderboard"):
        submit(run, tmp_path / "nowhere", name="mine")
    record = json.loads((run / "result.json").read_text())
    record["coverage"]["test"] = 0.9
    (run / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="part of the clips"):
        submit(run, boards, name="mine")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_boards_are_canonical(name, tmp_path):
    path = resources.shipped("leaderboards") / f"{name}.json"
    Board.read(path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()
