"""One schema: published, versioned, and strict about what it reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from avbench.evaluation import predictions
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.metrics import METRICS
from avbench.evaluation.result import Result, schema
from avbench.evaluation.statistics import bootstrap, percentile_interval
from avbench.types import AvbenchError

ROOT = Path(__file__).parents[2]
QUICK = {"epochs": "3", "batch_size": "8", "learning_rate": "0.005"}


@pytest.fixture
def run(tiny, with_features, tmp_path):
    benchmark = tiny()
    with_features(benchmark)
    out = tmp_path / "run"
    evaluate(benchmark, "ssil", seeds=[0, 3], out=out, settings=QUICK)
    return out


def test_the_published_schema_is_the_codes():
    assert (ROOT / "docs/schema/result.json").read_text(encoding="utf-8") == f"{schema()}\n"


def check(value, rule, defs, place="result"):
    """Check a value against the part of JSON Schema that pydantic writes for us."""
    if "$ref" in rule:
        return check(value, defs[rule["$ref"].rpartition("/")[2]], defs, place)
    if "anyOf" in rule:
        kinds = [r for r in rule["anyOf"] if (r.get("type") == "null") == (value is None)]
        assert kinds, place
        return check(value, kinds[0], defs, place)
    if "const" in rule:
        assert value == rule["const"], place
    kind = rule.get("type")
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if kind:
        assert isinstance(value, types[kind]), (place, value)
    if kind == "object" and "properties" in rule:
        assert set(value) == set(rule["properties"]) == set(rule["required"]), place
        for key, part in rule["properties"].items():
            check(value[key], part, defs, f"{place}.{key}")
    elif kind == "object" and isinstance(rule.get("additionalProperties"), dict):
        for key, part in value.items():
            check(part, rule["additionalProperties"], defs, f"{place}.{key}")
    elif kind == "array":
        for part in value:
            check(part, rule["items"], defs, f"{place}[]")
    return None


def test_a_result_is_what_the_schema_says_and_reads_back(run):
    record = json.loads((run / "result.json").read_text())
    published = json.loads(schema())
    check(record, published, published["$defs"])
    assert Result.read(run / "result.json").to_json() == record
    with pytest.raises(AssertionError):
        check(record | {"coverage": []}, published, published["$defs"])


def test_a_result_says_what_every_step_cost(run):
    for seed_run in Result.read(run / "result.json").runs:
        for step, cost in enumerate(seed_run.cost):
            weights = load_file(run / f"seed-{seed_run.seed}" / f"step-{step + 1}.safetensors")
            stored = sum(array.size for array in weights.values())
            # All of this network is trained, and nothing else is kept.
            assert cost.stored_parameters == cost.trainable_parameters == stored
            assert sum(cost.stored_bytes.values()) == sum(
                array.nbytes for array in weights.values()
            )
            assert cost.seconds > 0
            # Python with torch takes more than 50 MB; a machine has less than 10 TB.
            assert 50e6 < cost.peak_memory_bytes < 1e13
            assert cost.peak_gpu_memory_bytes is None
            assert cost.exemplars.clips == 2 * (step + 1) * (12 // (2 * step + 2))


def test_a_peak_is_of_its_step_alone(tiny, with_features, tmp_path):
    code = (
        "import numpy as np\nfrom reference_methods.finetune import FineTuning\n"
        "class Greedy(FineTuning):\n"
        "    recipes = None\n"
        "    def start(self, task):\n"
        "        super().start(task)\n"
        "        if task.step == 1:\n"
        "            np.ones(50_000_000)\n"
    )
    (tmp_path / "greedy.py").write_text(code)
    benchmark = tiny()
    with_features(benchmark)
    method = f"{tmp_path / 'greedy.py'}:Greedy"
    result = evaluate(benchmark, method, seeds=[0], out=tmp_path / "greedy", settings=QUICK)
    before, during, after = (cost.peak_memory_bytes for cost in result.runs[0].cost)
    assert during - before > 300e6
    assert during - after > 300e6


def test_intervals_over_seeds_and_clips_are_those_of_the_predictions(run):
    result = Result.read(run / "result.json")
    tables = [predictions.read(run / f"seed-{s}" / "predictions.parquet") for s in (0, 3)]
    drawn = bootstrap(predictions.outcomes(tables), METRICS, seed=result.bootstrap.seed)
    for name, values in drawn.items():
        expected = percentile_interval(values)
        assert result.bootstrap.over_seeds_and_clips_95[name] == pytest.approx(expected)
        low, high = result.metric(name).interval
        assert result.metrics[name].interval_95 == pytest.approx([low, high])


def test_one_step_has_no_forgetting_to_be_sure_of(tiny, with_features, tmp_path):
    benchmark = tiny(classes=2, classes_per_step=2)
    with_features(benchmark)
    result = evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings=QUICK)
    assert result.bootstrap.over_seeds_and_clips_95["average_forgetting"] is None
    low, high = result.bootstrap.over_seeds_and_clips_95["mean_accuracy"]
    assert low <= result.metric("mean_accuracy").mean <= high


def remove(*keys):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return change


def put(value, *keys):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(1, "format"), "avbench in format 4, but format 1: run avbench evaluate again"),
        (put("x" * 99, "format"), "but format x{20}:"),
        (remove("format"), "avbench in format 4, nor of another:"),
        (remove("config", "access"), r"\(config.access: Field required\)"),
        (put("all", "config", "access"), "config.access"),
        (put(2.0, "coverage", "test"), "coverage.test"),
        (put([], "runs"), "runs"),
        (put(-1, "runs", 0, "seed"), "runs.0.seed"),
        (put(3, "runs", 0, "seed"), "a seed is there twice"),
        (put("5", "runs", 0, "correct", 0, 0), "runs.0.correct.0.0"),
        (put(10**30, "runs", 0, "correct", 0, 0), "runs.0.correct.0.0"),
        (put(99, "runs", 0, "correct", 0, 0), "correct must lie between 0 and total"),
        (put([4, 4], "runs", 0, "correct", 1), "runs.0"),
        (put(float("nan"), "runs", 0, "cost", 0, "seconds"), "runs.0.cost.0.seconds"),
        (remove("runs", 0, "cost", 0), "one record a step"),
        (put([9, 8, 8], "runs", 0, "total"), "seeds differ in their test clips"),
        (remove("bootstrap"), "bootstrap"),
    ],
)
def test_a_damaged_result_is_one_line_that_says_where(run, change, message, tmp_path):
    record = json.loads((run / "result.json").read_text())
    change(record)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match=message) as caught:
        Result.read(path)
    assert str(caught.value).startswith(f"{path}: not a result of avbench")
    assert "\n" not in str(caught.value)


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_checkout_of_a_method_is_recorded(tiny, with_features, tmp_path):
    code = (
        "from reference_methods.finetune import FineTuning\n"
        "class Mine(FineTuning):\n    recipes = None\n"
    )
    benchmark = tiny()
    with_features(benchmark)

    def recorded(folder):
        method = f"{folder / 'mine.py'}:Mine"
        out = tmp_path / f"run-{folder.name}"
        result = evaluate(benchmark, method, seeds=[0], out=out, settings=QUICK | {"epochs": "1"})
        return result.runs[0].environment.git

    for name in ("none", "clean", "modified"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text(code)
        if name != "none":
            git(folder, "init", "-q")
            git(folder, "add", "mine.py")
            git(folder, "commit", "-q", "-m", "Add a method")
    (tmp_path / "modified" / "mine.py").write_text(f"{code}\n# changed\n")
    assert recorded(tmp_path / "none") is None
    for name in ("clean", "modified"):
        state = recorded(tmp_path / name)
        assert state.commit == git(tmp_path / name, "rev-parse", "HEAD")
        assert re.fullmatch("[0-9a-f]{40}", state.commit)
        assert state.modified == (name == "modified")
    # Beside tracked files, but not one of them.
    shutil.copy(tmp_path / "none" / "mine.py", tmp_path / "clean" / "other.py")
    method = f"{tmp_path / 'clean' / 'other.py'}:Mine"
    result = evaluate(benchmark, method, seeds=[0], out=tmp_path / "o", settings={"epochs": "1"})
    assert result.runs[0].environment.git is None


def test_numbers_are_of_the_counts_not_of_what_the_file_claims(run):
    record = json.loads((run / "result.json").read_text())
    record["metrics"]["mean_accuracy"]["mean"] = 0.99
    (run / "result.json").write_text(json.dumps(record))
    result = Result.read(run / "result.json")
    accuracy = [np.mean(r.accuracy_per_step) for r in result.runs]
    assert result.metrics["mean_accuracy"].mean == pytest.approx(np.mean(accuracy))
