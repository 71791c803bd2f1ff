"""One schema: published, versioned, and strict about what it reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from avbench import registry
from avbench.evaluation import cost as costs
from avbench.evaluation import predictions
from avbench.evaluation.compare import compare
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.metrics import METRICS
from avbench.evaluation.report import report
from avbench.evaluation.result import GitState, Result, schema
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


def test_a_result_from_before_questions_were_counted_is_read(run, tmp_path):
    record = json.loads((run / "result.json").read_text())
    for step in (step for seed in record["runs"] for step in seed["cost"]):
        assert step.pop("validation_questions") > 0
    (tmp_path / "result.json").write_text(json.dumps(record))
    result = Result.read(tmp_path / "result.json")
    assert {step.validation_questions for seed in result.runs for step in seed.cost} == {None}


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        return result.runs[0].environments[-1].git

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
        assert (state.changes is None) == (name == "clean")
    # Beside tracked files, but not one of them.
    shutil.copy(tmp_path / "none" / "mine.py", tmp_path / "clean" / "other.py")
    method = f"{tmp_path / 'clean' / 'other.py'}:Mine"
    result = evaluate(benchmark, method, seeds=[0], out=tmp_path / "o", settings={"epochs": "1"})
    assert result.runs[0].environments[-1].git is None


def test_every_step_says_by_which_code_it_was_computed(run):
    for seed_run in Result.read(run / "result.json").runs:
        assert len(seed_run.environments) == 3
        for environment in seed_run.environments:
            libraries = {
                "avbench",
                "torch",
                "numpy",
                "scipy",
                "scikit-learn",
                "timm",
                "transformers",
            }
            assert libraries | {"pytest"} <= environment.packages.keys()
            assert environment.packages["torch"] == version("torch")
            assert re.fullmatch("[0-9a-f]{64}", environment.avbench_hash)
            if (ROOT / ".git").exists():
                assert environment.avbench_git.commit == git(ROOT, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tiny, with_features, tmp_path):
    """A method in a checkout, beside another file that it may use."""
    with_features(tiny())
    folder = tmp_path / "method"
    folder.mkdir()
    (folder / "helper.py").write_text("A = 1\n")
    (folder / "mine.py").write_text(
        "from reference_methods.finetune import FineTuning\n"
        "class Mine(FineTuning):\n    recipes = None\n    stop = None\n"
        "    def validate(self, task):\n"
        "        Mine.epochs = [*getattr(Mine, 'epochs', []), task.step]\n"
        "        if Mine.epochs.count(task.step) == 3 and Mine.stop == task.step:\n"
        "            raise KeyboardInterrupt\n"
        "        return super().validate(task)\n"
    )
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Add a method")
    return folder


def stopped_and_resumed(benchmark, checkout, out, step, change, monkeypatch):
    """Stop a run in the middle of a step, change something, and resume it."""
    mine = registry.load("methods", f"{checkout / 'mine.py'}:Mine")
    monkeypatch.setattr(registry, "load", lambda group, name: mine)

    def evaluated(**options):
        settings = QUICK | {"epochs": "4"}
        return evaluate(benchmark, "mine", seeds=[0], out=out, settings=settings, **options)

    mine.stop, mine.epochs = step, []
    with pytest.raises(KeyboardInterrupt):
        evaluated(checkpoint_epochs=1)
    change()
    costs._git_state.cache_clear()  # which each process asks once
    mine.stop, mine.epochs = None, []
    return evaluated(), mine.epochs


def test_a_run_resumed_with_other_code_says_so_and_is_not_ranked(
    tiny, checkout, avbench, tmp_path, monkeypatch
):
    def edit():
        (checkout / "helper.py").write_text("A = 2\n")

    edit()  # the same commit, modified before and after
    out = tmp_path / "run"

    def edit_again():
        (checkout / "helper.py").write_text("A = 3\n")

    result, epochs = stopped_and_resumed(tiny(), checkout, out, 1, edit_again, monkeypatch)
    assert result.mixed_code == ["the method's checkout"]
    assert result.label.endswith("(mixed code)")
    before, *after = result.runs[0].environments
    assert {each.git.changes for each in after} != {before.git.changes}
    # A step in the middle is not finished by other code than began it.
    assert epochs.count(1) == 4
    (group,) = report([out], tmp_path / "report")
    assert group.rows[0].standing == "not ranked"
    assert "Mixed code" in (tmp_path / "report" / "report.md").read_text()
    text = avbench("compare", out, out).stdout
    assert "Mixed code: steps or seeds of A differ in the method's checkout." in text


def test_a_run_resumed_with_the_same_code_is_as_one_that_was_not(
    tiny, checkout, tmp_path, monkeypatch
):
    def nothing():
        pass

    result, epochs = stopped_and_resumed(tiny(), checkout, tmp_path / "a", 1, nothing, monkeypatch)
    assert result.mixed_code == []
    assert epochs.count(1) == 2  # the third, in which it was stopped, and the fourth
    assert "mixed code" not in result.label


def test_a_seed_that_began_anew_with_other_code_is_not_mixed(tiny, checkout, tmp_path, monkeypatch):
    def edit():
        (checkout / "helper.py").write_text("A = 2\n")

    result, epochs = stopped_and_resumed(tiny(), checkout, tmp_path / "a", 0, edit, monkeypatch)
    assert result.mixed_code == []
    assert epochs.count(0) == 4


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"python": "3.99"}, "Python"),
        ({"avbench_hash": "f" * 64}, "avbench"),
        ({"git": None}, "the method's checkout"),
        ({"packages": {"torch": "0.1"}}, "torch"),
        ({"packages": {"only-there": "1"}, "gpu": "another"}, None),
    ],
)
def test_seeds_of_other_code_are_mixed(run, change, part):
    result = Result.read(run / "result.json")
    ours = (
        result.runs[1]
        .environments[0]
        .model_copy(update={"git": GitState(commit="c", modified=False)})
    )
    assert result.runs[0].environments[0].other_code(ours) != []
    assert ours.other_code(ours.model_copy(update=change)) == ([part] if part else [])
    record = result.to_json()
    record["runs"][1]["environments"][2] |= {"python": "3.99"}
    assert Result.model_validate(record).mixed_code == ["Python"]


def test_results_of_format_3_are_read(avbench, tmp_path):
    old = ROOT / "tests" / "golden" / "run-format-3"
    result = Result.read(old / "result.json")
    assert json.loads((old / "result.json").read_text())["format"] == 3
    assert result.seeds == [0, 3]
    assert [len(each.environments) for each in result.runs] == [1, 1]
    assert result.stored_bytes is None
    assert result.runs[0].cost[0].stored_parameters > 0
    assert result.mixed_code == []
    assert result.to_json()["format"] == 4
    assert compare(old, old).differences["mean_accuracy"].better == "tie"
    (group,) = report([old], tmp_path / "report")
    assert group.rows[0].standing == "best"
    assert f"{result.exemplar_bytes / 1e6:.1f} | - |" in (tmp_path / "report/report.md").read_text()


def test_seeds_of_an_earlier_version_are_kept(tiny, with_features, tmp_path):
    benchmark, out = tiny(), tmp_path / "run"
    with_features(benchmark)
    evaluate(benchmark, "ssil", seeds=[0], out=out, settings=QUICK)
    cost, environment = out / "seed-0" / "cost.json", out / "seed-0" / "environment.json"
    steps = json.loads(cost.read_text())["steps"]
    for step in steps:
        del step["stored_bytes"]
    cost.write_text(json.dumps({"steps": steps}))
    environment.write_text(json.dumps(json.loads(environment.read_text())["steps"][-1]))
    result = evaluate(benchmark, "ssil", seeds=[0, 1], out=out, settings=QUICK)
    assert [len(each.environments) for each in result.runs] == [1, 3]
    assert result.stored_bytes is None
    assert result.mixed_code == []


def test_numbers_are_of_the_counts_not_of_what_the_file_claims(run):
    record = json.loads((run / "result.json").read_text())
    record["metrics"]["mean_accuracy"]["mean"] = 0.99
    (run / "result.json").write_text(json.dumps(record))
    result = Result.read(run / "result.json")
    accuracy = [np.mean(r.accuracy_per_step) for r in result.runs]
    assert result.metrics["mean_accuracy"].mean == pytest.approx(np.mean(accuracy))
