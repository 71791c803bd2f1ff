"""External predictions: the same numbers as our own, and every violation, all at once."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avbench as library
from avbench.evaluation import metrics
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.metrics import METRICS
from avbench.evaluation.score import PredictionsError, describe, score
from avbench.evaluation.statistics import Summary, bootstrap
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, UsageError


def predict(benchmark: Benchmark, *, seed: int = 0, accuracy: float = 0.7) -> pd.DataFrame:
    """Make a whole table of predictions, of which so many are right."""
    manifest, random = benchmark.manifest, np.random.default_rng(seed)
    rows, parts = manifest.rows("test"), []
    for step, seen in enumerate(np.cumsum(manifest.classes_per_step)):
        here = rows[manifest.step_of_row[rows] <= step]
        guess = random.integers(seen, size=len(here))
        right = random.random(len(here)) < accuracy
        parts.append(
            pd.DataFrame(
                {
                    "step": step,
                    "clip_id": np.array(manifest.clip_ids, dtype=object)[here],
                    "prediction": np.where(right, manifest.class_indices[here], guess),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def violations(table, benchmark: Benchmark) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return count and examples of everything that is wrong, by rule."""
    with pytest.raises(PredictionsError) as caught:
        score(table, benchmark)
    found = caught.value.violations
    assert str(caught.value).count("\n") == len(found) + 1
    for violation in found:
        assert f"{violation.rule}: {violation.count:,} " in str(caught.value)
    rules = {violation.rule: (violation.count, violation.examples) for violation in found}
    assert len(rules) == len(found)
    return rules


@pytest.fixture
def benchmark(tiny):
    """Six classes in three steps: 8 test clips a step, 48 rows."""
    return tiny()


def test_a_runs_predictions_score_as_the_run(benchmark, with_features, tmp_path):
    with_features(benchmark)
    result = evaluate(
        benchmark, "finetune", seeds=[4], out=tmp_path / "run", settings={"epochs": "5"}
    )
    scored = score(tmp_path / "run" / "seed-4" / "predictions.parquet", benchmark)
    for name in METRICS:
        assert scored.metric(name).per_seed == result.metric(name).per_seed
    assert scored.fingerprint == result.config["fingerprint"]
    assert scored.to_json()["metrics"] == result.to_json()["metrics"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), accuracy=st.floats(0, 1))
def test_numbers_against_pandas(seed, accuracy):
    """Accuracy by joining and grouping, as a user would check it."""
    benchmark = Benchmark.load("toy-ci:seed=5,steps=1+2+4+5")
    table = predict(benchmark, seed=seed, accuracy=accuracy)
    truth = benchmark.manifest.table.to_pandas().set_index("clip_id")
    right = table["clip_id"].map(truth["class_index"]) == table["prediction"]
    pooled = right.groupby(table["step"]).mean()
    by_task = right.groupby([table["step"], table["clip_id"].map(truth["step"])]).mean().unstack()
    scored = score(table.sample(frac=1, random_state=seed), benchmark)
    assert scored.metric("mean_accuracy").mean == pytest.approx(pooled.mean())
    assert scored.metric("task_mean_accuracy").mean == pytest.approx(by_task.mean(axis=1).mean())
    best = by_task.cummax().shift()  # NaN where a task was not seen before
    assert scored.metric("average_forgetting").mean == pytest.approx(
        (best - by_task).mean(axis=1).mean()
    )


def test_predictions_of_the_golden_protocol(golden, tmp_path):
    record = golden("protocol.npz")
    labels, per_step = record["labels"], record["class_num_per_step"]
    classes = per_step * len(record["predictions"])
    lines = ["clip_id,label,class_index,split"]
    lines += [f"train-{c},class {c},{c},train" for c in range(classes)]
    lines += [f"clip-{n},class {c},{c},test" for n, c in enumerate(labels)]
    (tmp_path / "golden.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "golden.toml").write_text(
        f'name = "golden"\nclasses = {classes}\nclasses_per_step = {per_step}\nmemory = {classes}\n'
        'clip_seconds = 1.0\nannotations = "golden.csv"\n'
    )
    step, clip = np.nonzero(record["predictions"] >= 0)
    table = pd.DataFrame(
        {
            "step": step,
            "clip_id": [f"clip-{n}" for n in clip],
            "prediction": record["predictions"][step, clip],
        }
    )
    scored = library.score(table, benchmark=str(tmp_path / "golden.toml"))
    mean, forgetting = (scored.metric(m).mean for m in ("mean_accuracy", "average_forgetting"))
    assert mean == pytest.approx(record["eq15_mean_accuracy"], abs=1e-6)
    assert forgetting == pytest.approx(record["eq16_average_forgetting"], abs=1e-6)


def test_every_way_of_giving_the_same_predictions(benchmark, tmp_path):
    table = predict(benchmark)
    labels = np.array(benchmark.manifest.labels, dtype=object)
    named = table.assign(prediction=labels[table["prediction"]])
    expected = score(table, benchmark).to_json()
    shuffled = table.sample(frac=1, random_state=0)[["prediction", "clip_id", "step"]]
    for same in (
        named,
        shuffled,
        named.assign(prediction=named["prediction"].astype("category")),
        table.astype({"step": "uint8", "prediction": "float32"}),
        table.astype({"step": str, "prediction": str}),
        pa.Table.from_pandas(table, preserve_index=False),
        pa.Table.from_pandas(named, preserve_index=False).replace_schema_metadata(),
        table.assign(label=[int(clip[1]) for clip in table["clip_id"]]),
        table.assign(label=[f"class {clip[1]}" for clip in table["clip_id"]]),
    ):
        assert score(same, benchmark).to_json() == expected
        frame = same if isinstance(same, pd.DataFrame) else same.to_pandas()
        frame.to_csv(tmp_path / "p.csv", index=False)
        assert score(tmp_path / "p.csv", benchmark).to_json() == expected
        frame.to_parquet(tmp_path / "p.parquet")
        assert (
            library.score(str(tmp_path / "p.parquet"), benchmark=benchmark.argument).to_json()
            == expected
        )


def test_several_seeds_give_mean_deviation_and_interval(benchmark):
    parts = {seed: predict(benchmark, seed=seed) for seed in (7, 2, 5)}
    table = pd.concat([part.assign(seed=seed) for seed, part in parts.items()])
    scored = score(table, benchmark)
    assert scored.seeds == (2, 5, 7)
    alone = [score(parts[seed], benchmark).metric("mean_accuracy").mean for seed in (2, 5, 7)]
    assert scored.metric("mean_accuracy") == Summary.of(alone)
    record = scored.to_json()
    assert [run["seed"] for run in record["runs"]] == [2, 5, 7]
    assert record["metrics"]["mean_accuracy"]["interval_95"][0] < np.mean(alone)
    low, high = np.quantile(bootstrap(scored.outcomes, METRICS, seed=0)["mean_accuracy"], [0, 1])
    assert low < np.mean(alone) < high
    single = score(parts[2], benchmark).to_json()
    assert single["runs"][0]["seed"] is None
    assert single["metrics"]["mean_accuracy"]["std"] is None


def test_confusion_from_predictions(benchmark):
    table = predict(benchmark)
    last = table[table["step"] == 2]
    label = np.array([int(clip[1]) for clip in last["clip_id"]])
    confusion = metrics.confusion_matrix(label, last["prediction"].to_numpy(), 6)
    scored = score(table, benchmark)
    assert np.diagonal(confusion).sum() == scored.matrices[0].correct[-1].sum()
    pooled = np.average(metrics.accuracy_per_class(confusion), weights=confusion.sum(axis=1))
    assert pooled == pytest.approx(scored.metric("last_accuracy").mean)


def test_variants_have_steps_of_their_own(benchmark):
    variant = Benchmark.load(f"{benchmark.argument}:seed=3,steps=6")
    table = predict(variant)
    assert len(score(table, variant).matrices[0].total) == 6
    assert {*violations(table, benchmark)} == {"wrong step", "early clip", "missing"}


def test_missing_and_duplicate_predictions_are_counted(benchmark):
    table = predict(benchmark)
    bad = pd.concat([table.drop([0, 9, 10, 47]), table.loc[[1, 1, 30]]], ignore_index=True)
    found = violations(bad, benchmark)
    assert found == {
        "missing": (
            4,
            ("step 0, clip c0-004", "step 1, clip c0-009", "step 1, clip c0-014"),
        ),
        "duplicate": (2, ("step 0, clip c0-009", "step 2, clip c1-014")),
    }


def test_missing_predictions_are_counted_per_seed(benchmark):
    table = predict(benchmark)
    both = pd.concat([table.assign(seed=1), table.drop([3]).assign(seed=2)])
    assert violations(both, benchmark) == {"missing": (1, ("seed 2, step 0, clip c0-019",))}
    # Two seeds without the column are one seed twice.
    assert violations(pd.concat([table, table]), benchmark)["duplicate"][0] == 48


def test_classes_not_seen_yet_or_not_there(benchmark):
    table = predict(benchmark)
    table.loc[[0, 1], "prediction"] = [2, 5]
    table.loc[[8, 47], "prediction"] = [6, 99]
    assert violations(table, benchmark) == {
        "unknown class": (2, ("class 6", "class 99")),
        "unseen class": (2, ("class 2 after step 0 (2 seen)", "class 5 after step 0 (2 seen)")),
    }


def test_unknown_labels_name_the_closest(benchmark):
    table = predict(benchmark)
    named = np.array(benchmark.manifest.labels, dtype=object)[table["prediction"]]
    named[[0, 20, 21]] = ["clas 1", "dog", "dog"]
    assert violations(table.assign(prediction=named), benchmark) == {
        "unknown label": (3, ("'clas 1' (did you mean 'class 1'?)", "'dog'"))
    }


def test_steps_counted_from_one_are_told(benchmark):
    table = predict(benchmark)
    found = violations(table.assign(step=table["step"] + 1), benchmark)
    assert found["wrong step"] == (24, ("step 3",))
    assert found["missing"][0] == 8 + 8 + 8


def test_clips_before_their_step(benchmark):
    table = predict(benchmark)
    early = pd.DataFrame({"step": [0, 1], "clip_id": ["c2-004", "c5-009"], "prediction": [0, 0]})
    assert violations(pd.concat([table, early]), benchmark) == {
        "early clip": (2, ("step 0, clip c2-004", "step 1, clip c5-009"))
    }


def test_clips_of_other_splits_and_of_nowhere(benchmark):
    table = predict(benchmark)
    other = pd.DataFrame({"step": 2, "clip_id": ["c0-000", "c0-003", "x"], "prediction": 0})
    assert violations(pd.concat([table, other]), benchmark) == {
        "not a test clip": (2, ("'c0-000'", "'c0-003'")),
        "unknown clip": (1, ("'x'",)),
    }


def test_labels_of_another_class_order(benchmark):
    table = predict(benchmark)
    label = np.array([int(clip[1]) for clip in table["clip_id"]])
    label[:2] = 1
    assert violations(table.assign(label=label), benchmark) == {
        "wrong label": (2, ("clip c0-004 has class 0, not 1", "clip c0-009 has class 0, not 1"))
    }


def test_values_that_are_not_there_or_not_numbers(benchmark, tmp_path):
    table = predict(benchmark).astype({"step": object, "prediction": object})
    table.loc[0, "step"] = table.loc[1, "clip_id"] = table.loc[2, "prediction"] = None
    table.to_csv(tmp_path / "p.csv", index=False)
    for source in (table, tmp_path / "p.csv"):
        with pytest.raises(PredictionsError) as caught:
            score(source, benchmark)
        assert [(v.message, v.count, v.examples) for v in caught.value.violations] == [
            ("rows have no step", 1, ("row 1",)),
            ("rows have no clip_id", 1, ("row 2",)),
            ("rows have no prediction", 1, ("row 3",)),
            (
                "of 48 predictions are missing",
                2,
                ("step 0, clip c0-004", "step 0, clip c0-009"),
            ),
        ]
    half = predict(benchmark).astype({"step": float})
    half.loc[[0, 1, 2], "step"] = [0.5, -1, np.inf]
    assert violations(half, benchmark)["not a number"] == (
        3,
        ("0.5 in row 1", "-1.0 in row 2", "inf in row 3"),
    )
    text = predict(benchmark).astype({"step": str})
    text.loc[0, "step"] = "first"
    assert violations(text, benchmark)["not a number"] == (1, ("'first' in row 1",))


def test_columns_that_are_wrong(benchmark, tmp_path):
    table = predict(benchmark)

    def columns(bad):
        with pytest.raises(PredictionsError) as caught:
            score(bad, benchmark)
        return [(v.message, v.examples) for v in caught.value.violations]

    renamed = table.rename(columns={"prediction": "pred", "step": "Step"})
    assert columns(renamed) == [
        ("columns missing", ("step", "prediction")),
        ("columns that do not belong here", ("'Step'", "'pred'")),
    ]
    twice = pd.concat([table, table[["step"]]], axis=1)
    assert columns(twice)[0] == ("columns given twice", ("step",))
    mixed = table.astype({"prediction": object})
    for odd in ("class 0", -(2**64)):
        mixed.loc[0, "prediction"] = odd
        assert columns(mixed)[0] == (
            "columns of a wrong type",
            ("prediction is of mixed types, not numbers or text",),
        )
    numbers = table.assign(clip_id=1, seed=pd.Timestamp("2020-01-01"), prediction=True)
    (message, examples) = columns(numbers)[0]
    assert message == "columns of a wrong type"
    assert [example.split()[0] for example in examples] == ["clip_id", "prediction", "seed"]
    assert columns(table.assign(seed=np.arange(len(table)) + 5000).head(5))[0][0].startswith("of ")


def test_an_index_that_pandas_wrote_is_no_column(benchmark, tmp_path):
    table = predict(benchmark)
    shuffled = table.sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "p.csv")
    shuffled.to_parquet(tmp_path / "p.parquet")
    for name in ("p.csv", "p.parquet"):
        assert score(tmp_path / name, benchmark).to_json() == score(table, benchmark).to_json()


def test_everything_is_listed_at_once(benchmark):
    table = predict(benchmark)
    table.loc[0, "prediction"] = 4
    table.loc[1, "clip_id"] = "x"
    table["label"] = 0
    table["seed"] = 0
    table["score"] = 0.5
    table = pd.concat([table, table.tail(1)])
    assert {*violations(table, benchmark)} == {
        "wrong columns",
        "unseen class",
        "unknown clip",
        "wrong label",
        "missing",
        "duplicate",
    }


def test_too_many_seeds_are_no_seeds(benchmark):
    table = pd.concat([predict(benchmark)] * 30, ignore_index=True)
    assert violations(table.assign(seed=table.index), benchmark) == {
        "wrong seed": (1440, ("0", "1", "2"))
    }


def test_one_step_has_no_forgetting(avbench, tmp_path):
    predict(Benchmark.load("toy-ci:steps=1")).to_parquet(tmp_path / "p.parquet")
    command = ["score", "p.parquet", "--benchmark", "toy-ci:steps=1"]
    assert "average forgetting  -  " in avbench(*command).stdout
    record = json.loads(avbench(*command, "--json").stdout)
    assert record["metrics"]["average_forgetting"]["mean"] is None


def test_an_empty_table_misses_everything(benchmark):
    empty = predict(benchmark).head(0)
    for table in (empty, empty.assign(seed=0)):
        assert violations(table, benchmark)["missing"][0] == 48
    assert violations(pd.DataFrame(), benchmark)["wrong columns"][0] == 3


def test_labels_that_are_numbers_are_ambiguous_in_csv_only(benchmark, tmp_path):
    text = (tmp_path / "tiny.csv").read_text()
    for c in range(6):
        text = text.replace(f"class {c}", str(5 - c))
    (tmp_path / "tiny.csv").write_text(text)
    digits = Benchmark.load(benchmark.argument)
    table = predict(digits)
    expected = score(table, digits).to_json()
    named = table.assign(prediction=[str(5 - index) for index in table["prediction"]])
    assert score(named, digits).to_json() == expected
    named.to_csv(tmp_path / "p.csv", index=False)
    assert violations(tmp_path / "p.csv", digits) == {"ambiguous": (1, ("prediction",))}


def test_ids_and_labels_that_csv_readers_mangle(tmp_path):
    """Ids of digits, labels that look like nulls or hold commas, a byte order mark."""
    lines = ["clip_id,label,split"]
    for label in ("null", "NA", "male, speaking", '"x"'):
        quoted = '"' + label.replace('"', '""') + '"'
        lines += [
            f"{abs(hash(label)) % 1000:04d}00{i},{quoted},{s}"
            for i, s in enumerate(("train", "test", "test"))
        ]
    (tmp_path / "odd.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "odd.toml").write_text(
        'name = "odd"\nclasses = 4\nclasses_per_step = 2\nmemory = 4\n'
        'clip_seconds = 1.0\nannotations = "odd.csv"\n'
    )
    odd = Benchmark.load(str(tmp_path / "odd.toml"))
    table = predict(odd, accuracy=1)
    named = table.assign(prediction=np.array(odd.manifest.labels, object)[table["prediction"]])
    named.to_csv(tmp_path / "p.csv", index=False, encoding="utf-8-sig")
    assert score(tmp_path / "p.csv", odd).metric("mean_accuracy").mean == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"PAR1 not", r"p.parquet: not readable as parquet .*: write it again"),
        ("p.csv", b"step,clip_id,prediction\n0,a\n", "p.csv: not readable as csv"),
        ("p.csv", b"", r"p.csv: not readable as csv .*: write it again, in UTF-8, with commas"),
        ("p.csv", b"step,clip_id,prediction\n0,\xff,1\n", "p.csv: not readable as csv"),
        ("p.csv", None, "no predictions"),
    ],
)
def test_bad_files_are_one_line(name, content, message, benchmark, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AvbenchError, match=message) as caught:
        score(tmp_path / name, benchmark)
    assert "\n" not in str(caught.value)


def test_folders_and_other_files_are_one_line(benchmark, tmp_path):
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(AvbenchError, match="d.parquet: not readable"):
        score(tmp_path / "d.parquet", benchmark)
    with pytest.raises(UsageError, match="must be a file .parquet or .csv"):
        score(tmp_path / "p.xlsx", benchmark)


def test_a_seed_in_the_path_is_no_column(benchmark, tmp_path):
    folder = tmp_path / "seed=3"
    folder.mkdir()
    predict(benchmark).to_parquet(folder / "p.parquet")
    assert score(folder / "p.parquet", benchmark).seeds == (None,)


def test_a_step_without_test_clips_is_told(benchmark, tmp_path):
    text = (tmp_path / "tiny.csv").read_text()
    kept = [line for line in text.splitlines() if not (line[1] in "01" and line.endswith(",test"))]
    (tmp_path / "tiny.csv").write_text("\n".join(kept))
    with pytest.raises(AvbenchError, match="step 1 of tiny has no test clip"):
        describe(Benchmark.load(benchmark.argument))


def test_the_contract_is_what_is_checked(benchmark):
    contract = describe(benchmark)
    assert contract["rows_per_seed"] == len(predict(benchmark)) == 48
    assert [row["clips"] for row in contract["steps"]] == [8, 16, 24]
    assert [row["classes_seen"] for row in contract["steps"]] == [2, 4, 6]
    assert {*contract["columns"]["required"]} == {*predict(benchmark).columns}


def test_the_command(avbench, benchmark, tmp_path):
    table = predict(benchmark)
    both = pd.concat([table.assign(seed=seed) for seed in (0, 1)])
    both.to_parquet(tmp_path / "p.parquet")
    command = ["score", "p.parquet", "--benchmark", "tiny.toml"]
    text = avbench(*command).stdout
    mean = 100 * score(table, benchmark).metric("mean_accuracy").mean
    assert "tiny, 2 seed(s), in %" in text
    assert f"mean accuracy       {mean:.2f}" in text
    assert "pooled over all test clips of seen classes (Eq. 15)" in text
    record = json.loads(avbench(*command, "--json").stdout)
    assert record == json.loads(json.dumps(score(both, benchmark).to_json()))
    assert not math.isnan(record["metrics"]["average_forgetting"]["interval_95"][0])


def test_the_command_lists_violations(avbench, benchmark, tmp_path):
    predict(benchmark).drop([0]).assign(x=1).to_csv(tmp_path / "p.csv", index=False)
    command = ["score", "p.csv", "--benchmark", "tiny.toml"]
    error = avbench(*command, expect=1).stderr
    assert error.splitlines() == [
        "Error: p.csv does not fit tiny:",
        "  wrong columns: 1 columns that do not belong here, such as 'x'",
        "  missing: 1 of 48 predictions are missing, such as step 0, clip c0-004",
        f"avbench score --benchmark {tmp_path}/tiny.toml --describe says what is expected",
    ]
    record = json.loads(avbench(*command, "--json", expect=1).stdout)
    assert [violation["rule"] for violation in record["violations"]] == ["wrong columns", "missing"]
    assert record["violations"][1]["examples"] == ["step 0, clip c0-004"]


def test_the_command_describes(avbench):
    text = avbench("score", "--benchmark", "ks-ci:seed=3", "--describe").stdout
    contract = describe(Benchmark.load("ks-ci:seed=3"))
    assert "Predictions of ks-ci:seed=3:" in text
    assert f"{contract['rows_per_seed']:,} rows a seed" in text
    assert "; ".join(contract["classes"]) in text
    record = avbench("score", "--benchmark", "ks-ci:seed=3", "--describe", "--json").stdout
    assert json.loads(record) == contract
    assert (
        "did you mean ks-ci"
        in avbench("score", "--benchmark", "ksci", "--describe", expect=2).stderr
    )
    assert "either a file" in avbench("score", "--benchmark", "ks-ci", expect=2).stderr


def test_neither_scoring_nor_importing_needs_torch(benchmark, tmp_path):
    import subprocess
    import sys

    predict(benchmark).to_parquet(tmp_path / "p.parquet")
    code = (
        "import sys, avbench\n"
        "assert not {'numpy', 'pandas', 'pyarrow'} & sys.modules.keys()\n"
        "print(avbench.score('p.parquet', benchmark='tiny.toml').metric('mean_accuracy').mean)\n"
        "assert not {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
    )
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = score(tmp_path / "p.parquet", benchmark).metric("mean_accuracy").mean
    assert float(result.stdout) == expected
