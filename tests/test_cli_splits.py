"""`avbench splits` as a user meets it."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import SCHEMA
from avbench.manifests.spec import shipped_names
from tests.helpers.cli import one_line

SHIPPED = Path(__file__).parents[1] / "splits"


@pytest.mark.slow
def test_build_makes_every_shipped_file_anew(avbench, tmp_path):
    rows = json.loads(avbench("splits", "build", "--json").stdout)
    assert [row["benchmark"] for row in rows] == shipped_names()
    for row in rows:
        made = tmp_path / row["path"]
        assert made.read_bytes() == (SHIPPED / made.name).read_bytes()
    assert {path.name for path in SHIPPED.glob("*.parquet")} == {
        path.name for path in (tmp_path / "splits").iterdir()
    }


@pytest.mark.slow
def test_verify(avbench, tmp_path):
    assert avbench("splits", "verify").stdout.count("ok  ") == len(shipped_names())
    avbench("splits", "build", "toy-ci:steps=6", "--out", "six.parquet")
    records = json.loads(avbench("splits", "verify", "toy-ci", "six.parquet", "--json").stdout)
    assert [record["benchmark"] for record in records] == ["toy-ci", "toy-ci:steps=6"]
    table = pq.read_table(tmp_path / "six.parquet")
    labels = table["label"].to_pylist()
    column = table.schema.get_field_index("label")
    edited = table.set_column(column, table.schema.field(column), [[*labels[:-1], "edited"]])
    pq.write_table(edited, tmp_path / "six.parquet")
    error = one_line(avbench("splits", "verify", "six.parquet", expect=1))
    assert f"six.parquet: row 624, label 'edited': must be {labels[-1]!r}" in error


def test_show(avbench):
    text = avbench("splits", "show", "vs100-ci:first=50").stdout
    assert text.startswith("vs100-ci:steps=50+5x10: VGGSound100")
    assert "leaks: 1,627" in text
    assert "by elimination" in text
    assert "1     50       24,670  2,500  2,500  playing theremin; donkey, ass braying;" in text
    clips = avbench("splits", "show", "ave-ci", "--step", "2", "--split", "test").stdout
    assert clips.splitlines()[-1] == "106 clips"
    assert avbench("splits", "show", "ave-ci", "--split", "test").stdout.endswith("394 clips\n")
    rows = json.loads(
        avbench("splits", "show", "ave-ci", "--step", "2", "--split", "test", "--json").stdout
    )
    assert len(rows) == 106
    assert {(row["step"], row["split"]) for row in rows} == {(1, "test")}
    assert list(rows[0]) == SCHEMA.names
    record = json.loads(avbench("splits", "show", "ks-ci", "--json").stdout)
    assert record["fingerprint"] == Benchmark.load("ks-ci").manifest.fingerprint
    assert record["columns"]["source"]


@pytest.mark.slow
def test_audit_prints_and_exports(avbench, tmp_path):
    text = avbench("splits", "audit", "vs100-ci").stdout
    assert "1,627 test clips share their source video with train, 1,625 of them" in text
    assert "vs100-ci-clean" not in text  # it is the same clips
    record = json.loads(avbench("splits", "audit", "vs100-ci", "--out", "a.md", "--json").stdout)
    assert (tmp_path / "a.md").read_text() == text
    assert record["sharing"][0]["overlapping"] == 14
    record = json.loads(avbench("splits", "audit", "toy-ci", "--out", "a.json", "--json").stdout)
    assert record == json.loads((tmp_path / "a.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "ave-ci:sed=3"], 2, "did you mean seed"),
        (["build", "vs100-ci:steps=101"], 2, "there must be 1 to 100, the number of classes"),
        (["build", "ave-c"], 2, "did you mean ave-ci"),
        (["build", "ave-ci", "ks-ci", "--out", "x.parquet"], 2, "--out names one file"),
        (["build", "none.toml"], 2, "no benchmark file none.toml"),
        (["build", "toy-ci", "--out", "/dev/full"], 2, "end it in .parquet"),
        (["build", "toy-ci:seed=1\n"], 2, r"toy-ci:seed=1\n"),
        (["show", "ave-ci", "--step", "0"], 2, "--step"),
        (["show", "ave-ci", "--split", "dev"], 2, "'dev' is not one of"),
        (["show"], 2, "Missing argument"),
        (["verify", "ave-ci:seed=3"], 2, "name of a shipped benchmark, or a manifest file"),
        (["verify", "none.parquet"], 1, "no manifest none.parquet"),
        (["audit", "ave-ci", "--out", "a.txt"], 2, "end it in .md or .json"),
        (["show", "ave-ci", "--step", "5"], 2, "--step 5: ave-ci has 4 steps"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(avbench, tmp_path, arguments, code, message):
    assert message in one_line(avbench("splits", *arguments, expect=code))
    assert list(tmp_path.iterdir()) == []


def test_one_bad_benchmark_of_several_writes_none(avbench, tmp_path):
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1\n'
        'annotations = "b.csv"\ntest_per_class = 2\n'
    )
    (tmp_path / "b.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    error = one_line(avbench("splits", "build", "toy-ci", "b.toml", expect=1))
    assert "b.csv: row 1, label 'x': the class has 1 clips, too few to hold out 2" in error
    assert not (tmp_path / "splits").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(avbench_apart, tmp_path):
    """A limit on file size stands in for a disk that fills up while a file is written."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    build = ("splits", "build", "ave-ci", "--out", "a.parquet")
    result = avbench_apart(*build, expect=1, preexec_fn=limit)
    assert one_line(result).startswith("Error: cannot write a.parquet: the disk")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", shipped_names())
def test_others_read_the_files_without_our_help(name):
    path = SHIPPED / f"{name}.parquet"
    manifest = Benchmark.load(name).manifest
    frame = pd.read_parquet(path)
    assert list(frame.columns) == SCHEMA.names
    assert frame["clip_id"].tolist() == manifest.clip_ids
    assert pq.read_table(path).equals(manifest.table)
    steps = f"SELECT step, count(DISTINCT label) FROM '{path}' GROUP BY step ORDER BY step"
    assert duckdb.sql(steps).fetchall() == list(enumerate(manifest.classes_per_step))
