"""The paper's tables and figures: which runs, ours beside the paper's, and what may go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from avbench.cli import main
from avbench.evaluation import reproduce as reproduction
from avbench.evaluation.apart import Job, fair_threads, run_apart
from avbench.evaluation.grid import SUITES, cells, paper
from avbench.evaluation.paper_table import Row
from avbench.evaluation.plots import plot_memory
from avbench.evaluation.result import Result
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, UsageError
from tests.helpers.processes import children_of, wait_for
from tests.helpers.runs import run_job

pytestmark = pytest.mark.slow

QUICK = {"epochs": "1"}
NAMES = {
    "finetune": "Fine-tuning",
    "lwf": "LwF",
    "icarl-nme": "iCaRL-NME",
    "icarl-fc": "iCaRL-FC",
    "ssil": "SS-IL",
    "afc-nme": "AFC-NME",
    "afc-lsc": "AFC-LSC",
    "avcil": "AV-CIL",
    "oracle": "Oracle",
}


@pytest.fixture(scope="session")
def grid(tmp_path_factory, with_features):
    """Every suite on toy-ci, all of them in one folder, each run made once."""
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVBENCH_HOME", str(folder / "home"))
        patch.setattr(reproduction, "run_apart", run_job)
        benchmark = Benchmark.load("toy-ci")
        with_features(benchmark, dim=8)
        found = {}
        for suite in SUITES:
            plan = reproduction.plan(
                suite, benchmark, seeds=[0], out=folder / "runs", settings=QUICK
            )
            found[suite] = reproduction.reproduce(plan)
    return folder, found


@pytest.fixture
def in_grid(grid, monkeypatch):
    """The command line in a copy of the grid."""
    folder, _ = grid
    monkeypatch.setenv("AVBENCH_HOME", str(folder / "home"))
    monkeypatch.setattr(reproduction, "run_apart", run_job)

    def run(*arguments: str, expect: int = 0) -> str:
        command = ["reproduce", *arguments, "--benchmark", "toy-ci", "--seeds", "0"]
        result = CliRunner().invoke(main, [*command, "--set", "epochs=1", "--workers", "1"])
        assert result.exit_code == expect, result.output
        return result.output

    return run


@pytest.mark.parametrize("suite", SUITES)
def test_each_suite(suite, grid):
    folder, found = grid
    reproduced = found[suite]
    assert [row.failure for row in reproduced.rows] == [None] * len(reproduced.rows)
    count = {"table1": 9, "table2": 24, "table3": 8, "figure4": 9, "figure6": 5}[suite]
    assert len(reproduced.rows) == count
    for path in reproduced.files:
        assert path.parent == folder / "runs"
        assert path.stat().st_size > 500
    record = json.loads((folder / "runs" / f"{suite}.json").read_text())
    assert record == reproduced.to_json()
    assert record["comparable"] is False
    page = (folder / "runs" / f"{suite}.md").read_text()
    assert "**Not comparable with the paper:** the paper has no toy-ci; filterbank" in page
    for row in reproduced.rows:
        result = Result.read(folder / "runs" / row.cell.name / "result.json")
        assert result.config["method"] == row.cell.method
        assert result.config["modality"] == row.cell.modality
        assert result.config["settings"]["epochs"] == 1
        mean = result.metric("mean_accuracy").mean
        assert f"{100 * mean:.2f}" in page
        for key, value in row.cell.settings.items():
            assert str(result.config["settings"][key]).lower() == value
    assert (f"({suite}.png)" in page) == suite.startswith("figure")


def test_suites_share_their_runs(grid):
    folder, _ = grid
    made = {path.parent.name for path in (folder / "runs").glob("*/result.json")}
    assert len(made) == 24 + 1 + 7 + 4
    assert {"avcil", "finetune-audio", "avcil,vad=false", "avcil,memory=15"} <= made


def test_the_bound_forgets_nothing_and_is_marked(grid):
    rows = {row.cell.name: row for row in grid[1]["table1"].rows}
    assert rows["oracle"].ours("average_forgetting") is None
    assert rows["oracle"].cells()[0] == "oracle (joint access)"
    assert rows["avcil"].ours("average_forgetting") is not None


def test_gaps_in_the_data_show_in_table_and_figure(grid, tmp_path):
    row = grid[1]["figure6"].rows[0]
    partial = row.result.model_copy(update={"coverage": row.result.coverage | {"test": 0.5}})
    assert Row(row.cell, partial).cells()[0] == "avcil,memory=15 (partial)"
    plot_memory([15], [partial], tmp_path / "figure.svg")
    assert "avcil (partial) on toy-ci" in (tmp_path / "figure.svg").read_text()


def test_table_3_switches_the_parts_off(grid):
    names = [cell.name for cell in cells("table3", Benchmark.load("ave-ci"))]
    assert names[0] == "avcil,i_avss=false,c_avss=false,vad=false"
    assert names[1] == "avcil,c_avss=false,vad=false"
    assert names[-1] == "avcil"
    assert len(set(names)) == 8


def test_the_papers_numbers_are_those_of_the_leaderboards():
    """Typed twice, from two places."""
    for name in ("ave-ci", "ks-ci", "vs100-ci"):
        board = json.loads(
            (Path(__file__).parents[2] / "leaderboards" / f"{name}.json").read_text()
        )
        reported = {}
        for entry in board["entries"]:
            if entry["name"].startswith("paper-"):
                key = entry["method"], entry["modality"]
                numbers = entry["mean_accuracy"], entry.get("average_forgetting")
                reported.setdefault(key, []).append(numbers)
        benchmark = Benchmark.load(name)
        for suite in ("table1", "table2"):
            for cell in cells(suite, benchmark):
                held = reported[NAMES[cell.method], cell.modality]
                assert cell.paper["mean_accuracy"] in [accuracy for accuracy, _ in held]
                if suite == "table1":
                    assert cell.paper.get("average_forgetting") == held[0][1]
        assert len(cells("table1", benchmark)) == 9
        assert len(cells("table2", benchmark)) == 24


def test_table_3_ends_with_the_method_of_table_1():
    ablation = cells("table3", Benchmark.load("ave-ci"))
    assert [cell.paper["mean_accuracy"] for cell in ablation] == [
        *(62.15, 68.38, 63.81, 63.49),
        *(69.01, 72.35, 63.95, 74.04),
    ]
    assert not any(cell.paper for cell in cells("table3", Benchmark.load("ks-ci")))
    sizes = cells("figure6", Benchmark.load("ave-ci"))
    assert [cell.name for cell in sizes if cell.paper] == ["avcil"]
    for name, listed in paper()["figure6"].items():
        assert Benchmark.load(name).spec.memory in listed


def test_differences_are_ours_minus_the_papers(grid):
    row = grid[1]["table1"].rows[0]
    beside = Row(replace(row.cell, paper={"mean_accuracy": 10.0}), row.result)
    mean = 100 * row.result.metric("mean_accuracy").mean
    assert beside.difference("mean_accuracy") == pytest.approx(mean - 10)
    assert beside.cells()[2:4] == ["10.00", f"{mean - 10:+.2f}"]
    assert beside.difference("average_forgetting") is None


def test_what_is_comparable(with_features, tmp_path):
    """Only the paper's clips, order, features and settings, and all of the clips."""
    benchmark = Benchmark.load("ave-ci")

    def why_not(name: str = "ave-ci", **changes) -> list[str]:
        return reproduction.plan(
            "table1", Benchmark.load(name), seeds=[0], out=tmp_path, **changes
        ).caveats

    assert why_not(preset="released") == []
    (no_features,) = why_not()
    assert "filterbank features" in no_features
    (variant,) = why_not("ave-ci:seed=3", preset="released")
    assert "ave-ci:seed=3 is a variant of the paper's ave-ci" in variant
    (clean,) = why_not("vs100-ci-clean", preset="released")
    assert clean == "the paper has no vs100-ci-clean"
    (changed,) = why_not(preset="released", settings={"epochs": "3"})
    assert changed == "settings are not the paper's: epochs=3"
    lost = benchmark.manifest.clip_ids[0]
    with_features(benchmark, dim=2, keep=lambda clip_id: clip_id != lost)
    *_, partial = why_not(allow_missing=True)
    assert partial.startswith("PARTIAL, clips have no features: ")


def test_what_a_dry_run_says(in_grid, grid, tmp_path):
    out = str(tmp_path / "nothing")
    text = in_grid("table1", "--out", out, "--dry-run")
    assert "a rule of thumb, on one core" in text
    assert "9 runs in " in text
    assert not Path(out).exists()
    done = json.loads(in_grid("table1", "--out", str(grid[0] / "runs"), "--dry-run", "--json"))
    assert all(run["epochs_done"] == run["epochs"] == 4 for run in done["runs"])
    assert done["hours"] == 0
    shutil.copytree(grid[0] / "runs" / "avcil", tmp_path / "runs" / "avcil")
    middle = tmp_path / "runs" / "lwf" / "unfinished-seed-0"
    middle.mkdir(parents=True)
    (middle / "log.jsonl").write_text('{"epoch": 0}\n')
    half = json.loads(in_grid("table1", "--out", str(tmp_path / "runs"), "--dry-run", "--json"))
    basis = {run["run"]: (run["epochs_done"], run["basis"]) for run in half["runs"]}
    assert basis["avcil"] == (4, "its finished seeds")
    assert basis["lwf"] == (1, "runs of the same input")
    assert half["hours"] > 0


def test_a_dry_run_needs_no_features(monkeypatch, tmp_path):
    command = ["reproduce", "table3", "--benchmark", "ave-ci", "--dry-run"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "They cannot be made yet: no features in" in result.output
    result = CliRunner().invoke(main, [*command[:-1], "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no features in")


def test_a_failed_run_is_named_and_the_others_stand(in_grid, grid, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(grid[0] / "runs", runs)
    config = json.loads((runs / "lwf" / "config.json").read_text())
    config["settings"]["epochs"] = 7
    (runs / "lwf" / "config.json").write_text(json.dumps(config))
    output = in_grid("table1", "--out", str(runs), expect=1)
    failures = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert len(failures) == 1
    assert failures[0].startswith("FAILED lwf: ")
    assert "differs in settings" in failures[0]
    record = json.loads((runs / "table1.json").read_text())
    assert {row["run"] for row in record["rows"] if row["failure"]} == {"lwf"}
    assert all(row["ours"]["mean_accuracy"] for row in record["rows"] if not row["failure"])
    page = (runs / "table1.md").read_text()
    assert "| lwf | failed |" in page
    assert "**Failed:** lwf: " in page


def test_wrong_usage(in_grid, with_features, tmp_path):
    assert "figure6 sets memory itself" in in_grid("figure6", "--set", "memory=30", expect=2)
    assert "unknown setting 'epoch'" in in_grid("table1", "--set", "epoch=3", expect=2)
    assert "unknown preset" in in_grid("table1", "--preset", "nothing", expect=2)
    assert "--scheduler goes with" in in_grid(
        "table1", "--scheduler", "tcp://127.0.0.1:1", "--out", str(tmp_path), expect=2
    )
    with pytest.raises(UsageError, match="give different seeds"):
        reproduction.plan("table1", Benchmark.load("toy-ci"), seeds=[2**31], out=tmp_path)


def job(tmp_path, benchmark: Benchmark, **changes) -> Job:
    given = {
        "benchmark": str(benchmark.spec.path),
        "method": "finetune",
        "modality": "audio-visual",
        "seeds": (0,),
        "out": str(tmp_path / "run"),
        "preset": "filterbank",
        "settings": QUICK,
        "device": "cpu",
        "allow_missing": False,
        "home": os.environ["AVBENCH_HOME"],
        "threads": 1,
    }
    return Job(**given | changes)


@pytest.fixture
def small(tiny, with_features):
    benchmark = tiny()
    with_features(benchmark)
    return benchmark


def test_a_process_says_why_it_failed(small, tmp_path):
    out, why = run_apart(job(tmp_path, small, method="nothing"))
    assert out == str(tmp_path / "run")
    assert why.startswith("unknown method 'nothing'")
    _, why = run_apart(job(tmp_path, small, seeds=("x",)))
    assert why.startswith("ValueError: ")
    assert "Traceback" in (tmp_path / "run.log").read_text()
    assert f"(see {tmp_path / 'run.log'})" in why


def test_a_process_that_is_killed_is_one_run_that_failed(small, tmp_path):
    endless = job(tmp_path, small, settings={"epochs": "100000"})
    answers = []
    thread = threading.Thread(target=lambda: answers.append(run_apart(endless)))
    thread.start()
    mine = wait_for(lambda: children_of(os.getpid(), "avbench.evaluation.apart"))
    os.kill(mine[0], signal.SIGKILL)
    thread.join(timeout=60)
    assert "ended by signal 9, perhaps for want of memory" in answers[0][1]


@pytest.mark.parametrize(
    ("sign", "backend"), [(signal.SIGINT, "threading"), (signal.SIGKILL, "loky")]
)
def test_stopped_by_anything_it_leaves_no_process_and_goes_on(sign, backend, small, tmp_path):
    command = [sys.executable, "-m", "avbench", "reproduce", "figure6"]
    command += ["--benchmark", str(tmp_path / "tiny.toml"), "--seeds", "0", "--out", "runs"]
    # As a terminal has it, whatever the tests were started from.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--set", "epochs=300", "--workers", "2", "--backend", backend],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    runs = tmp_path / "runs"
    wait_for(lambda: list(runs.glob("*/unfinished-seed-0/step-1.json")))
    starters = [process.pid, *children_of(process.pid, "loky")]
    begun = [pid for s in starters for pid in children_of(s, "avbench.evaluation.apart")]
    assert begun
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    if sign == signal.SIGINT:
        assert process.returncode == 1
        assert said == "Error: stopped by Ctrl-C: the same command goes on from here\n"
    wait_for(lambda: not any(Path("/proc", str(pid)).exists() for pid in begun))
    plan = reproduction.plan("figure6", small, seeds=[0], out=runs, settings={"epochs": "300"})
    assert 300 <= sum(found.epochs_done for found in plan.forecasts) < 900 * len(plan.cells)


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_backends_make_the_same_runs(backend, small, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "cells", lambda suite, benchmark: cells(suite, benchmark)[:2])
    given = {"seeds": [0], "settings": QUICK}
    expected = reproduction.plan("table1", small, out=tmp_path / "expected", **given)
    monkeypatch.setattr(reproduction, "run_apart", run_job)
    in_process = reproduction.reproduce(expected)
    monkeypatch.setattr(reproduction, "run_apart", run_apart)
    plan = reproduction.plan("table1", small, out=tmp_path / "runs", **given)
    told = []
    found = reproduction.reproduce(
        plan, backend=backend, workers=2, report=lambda *progress: told.append(progress)
    )
    assert [row.cells() for row in found.rows] == [row.cells() for row in in_process.rows]
    assert told[-1] == ("epochs of 2 runs", 6, 6)


def test_two_processes_do_not_reproduce_in_one_folder(small, tmp_path):
    from avbench.resources import alone

    plan = reproduction.plan("table1", small, seeds=[0], out=tmp_path / "runs", settings=QUICK)
    with (
        alone(tmp_path / "runs", "reproducing table3 here"),
        pytest.raises(AvbenchError, match="another run is reproducing table3 here: wait"),
    ):
        reproduction.reproduce(plan)


def test_cores_are_shared(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert [fair_threads(workers) for workers in (1, 3, 9, 100)] == [8, 5, 1, 1]
