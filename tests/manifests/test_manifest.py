"""Manifests: round trip, fingerprint, order, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import build
from avbench.manifests.manifest import SCHEMA, Manifest, clip_id_of, read_summary
from avbench.manifests.spec import load_spec, shipped_names
from avbench.types import AvbenchError, UsageError


def rows(**changes: list[object]) -> pa.Table:
    columns: dict[str, list[object]] = {
        "clip_id": ["a_1", "-b", "c", "d"],
        "youtube_id": ["a", "-b", None, "d"],
        "start_s": [1.0, None, None, 0.5],
        "end_s": [2.0, None, None, 1.5],
        "label": ["cat", "dog", "cat", "dog"],
        "class_index": [0, 1, 0, 1],
        "step": [0, 1, 0, 1],
        "split": ["train", "train", "test", "test"],
        "source_split": [None, "train", None, "test"],
    }
    return pa.table(columns | changes)


def test_round_trip(tmp_path):
    manifest = Manifest.from_table("pets", rows(), seed=3)
    manifest.write(tmp_path / "pets.parquet")
    again = Manifest.read(tmp_path / "pets.parquet")
    assert again.table.equals(manifest.table)
    assert again.seed == 3
    assert read_summary(tmp_path / "pets.parquet") == manifest.summary()
    assert again.labels == ("cat", "dog")
    assert again.classes_per_step == (1, 1)
    assert next(iter(again)).clip_id == "a_1"
    assert again.table.schema.equals(SCHEMA)


def test_any_row_order_gives_the_same_fingerprint_and_bytes(tmp_path):
    table = rows()
    shuffled = table.take(pa.array([2, 0, 3, 1]))
    one, two = Manifest.from_table("pets", table), Manifest.from_table("pets", shuffled)
    assert one.fingerprint == two.fingerprint
    one.write(tmp_path / "one.parquet")
    two.write(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize("column", SCHEMA.names)
def test_every_column_counts_in_the_fingerprint(column):
    changed = {
        "clip_id": ["a_2", "-b", "c", "d"],
        "youtube_id": [None, "-b", None, "d"],
        "start_s": [1.001, None, None, 0.5],
        "end_s": [2.0, 3.0, None, 1.5],
        "label": ["cow", "dog", "cow", "dog"],
        "class_index": [1, 0, 1, 0],
        "step": [0, 0, 0, 0],
        "split": ["train", "train", "val", "test"],
        "source_split": ["", "train", None, "test"],
    }[column]
    others = {"step": [1, 0, 1, 0]} if column == "class_index" else {}
    base = Manifest.from_table("pets", rows())
    assert Manifest.from_table("pets", rows(**{column: changed}, **others)).fingerprint != (
        base.fingerprint
    )


def test_fingerprint_is_pinned():
    """A change of the definition would orphan every published result."""
    fingerprint = Manifest.from_table("pets", rows()).fingerprint
    assert fingerprint == "5f6e40b270b8391d6b668580dc1110f2923049ba45bf8698d4bef1e08e1bd77b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_id": ["a", "a", "c", "d"]}, "clip_id 'a': appears twice"),
        ({"clip_id": ["../x", "b", "c", "d"]}, "row 1, clip_id '../x'"),
        ({"clip_id": [".x", "b", "c", "d"]}, "row 1, clip_id '.x'"),
        ({"clip_id": ["$(x)", "b", "c", "d"]}, "row 1"),
        ({"clip_id": ["", "b", "c", "d"]}, "row 1"),
        ({"clip_id": [None, "b", "c", "d"]}, "must not be null"),
        ({"label": ["cat", None, "cat", "dog"]}, "row 2, label None"),
        ({"label": ["cat", "", "cat", ""]}, "must not be empty"),
        ({"label": ["cat", "dog", "cow", "dog"]}, "another name"),
        ({"label": ["cat"] * 4}, "share one label"),
        ({"split": ["train", "dev", "test", "test"]}, "row 2, split 'dev'"),
        ({"start_s": [-1.0, None, None, 0.5]}, "row 1, start_s"),
        ({"end_s": [1.0, None, None, 1.5]}, "row 1, end_s"),
        ({"class_index": [0, 2, 0, 2]}, "leaves a gap"),
        ({"class_index": [0, -1, 0, -1]}, "must not be negative"),
        ({"step": [0, 1, 1, 1]}, "in another step"),
        ({"step": [0, 2, 0, 2]}, "steps must run"),
        ({"step": [1, 0, 1, 0]}, "steps must run"),
        ({"class_index": ["x", "y", "x", "y"]}, "wrong type"),
    ],
)
def test_bad_rows_are_refused_by_row_and_column(changes, message):
    with pytest.raises(AvbenchError) as caught:
        Manifest.from_table("pets", rows(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named():
    with pytest.raises(AvbenchError, match="column label is missing"):
        Manifest.from_table("pets", rows().drop_columns(["label"]))


def test_edited_file_is_refused(tmp_path):
    path = tmp_path / "pets.parquet"
    Manifest.from_table("pets", rows()).write(path)
    table = pq.read_table(path)
    edited = table.set_column(
        table.column_names.index("split"), "split", pa.array(["train", "train", "val", "test"])
    )
    pq.write_table(edited, path)
    with pytest.raises(AvbenchError, match="fingerprint"):
        Manifest.read(path)


def test_corrupt_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 nonsense")
    for read in (Manifest.read, read_summary):
        with pytest.raises(AvbenchError, match="not a readable Parquet file"):
            read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(AvbenchError, match="not a manifest"):
        Manifest.read(path)
    with pytest.raises(AvbenchError, match="no manifest"):
        Manifest.read(tmp_path / "none.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_shipped_manifests_are_rebuilt_from_their_tables(name):
    benchmark = Benchmark.load(name)
    assert build(benchmark.spec).fingerprint == benchmark.manifest.fingerprint


@pytest.mark.parametrize(
    ("name", "clips", "classes", "steps", "memory", "test_per_step"),
    [
        ("ave-ci", (3294, 391, 394), 28, 4, 340, [104, 106, 105, 79]),
        ("ks-ci", (19220, 1947, 1958), 30, 5, 500, [372, 398, 384, 391, 413]),
        ("vs100-ci", (51195, 5000, 5000), 100, 10, 1500, [500] * 10),
    ],
)
def test_the_papers_benchmarks(name, clips, classes, steps, memory, test_per_step):
    benchmark = Benchmark.load(name)
    manifest = benchmark.manifest
    assert tuple(manifest.summary()["counts"].values()) == clips
    assert len(manifest.labels) == classes
    assert (benchmark.spec.steps, benchmark.spec.memory) == (steps, memory)
    assert np.bincount(manifest.step_of_row[manifest.rows("test")]).tolist() == test_per_step


def test_pandas_reads_a_manifest_without_our_help():
    frame = pd.read_parquet(Benchmark.load("ks-ci").manifest_path)
    assert list(frame.columns) == SCHEMA.names
    assert frame["start_s"].isna().sum() == 2716


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("classes = 6", "classes = 7"), "classes_per_step = 3 must add up to 7"),
        (("classes = 6", ""), "classes is missing"),
        (('annotations = "clips.csv"', ""), "annotations is missing"),
        (("clip_seconds = 1", 'clip_seconds = "1"'), "clip_seconds must be a number"),
        (("clip_seconds = 1", "clip_secs = 1"), "did you mean clip_seconds"),
        (('name = "b"', 'name = "../b"'), "name must be"),
        (('name = "b"', 'name = "ave-ci"'), "is a benchmark of avbench"),
        (('name = "b"', "name = b"), "not a readable TOML"),
    ],
)
def test_bad_specs_are_refused(tmp_path, change, message):
    text = (
        'name = "b"\nclasses = 6\nclasses_per_step = 3\nclip_seconds = 1\n'
        'annotations = "clips.csv"\n'
    )
    (tmp_path / "b.toml").write_text(text.replace(*change))
    with pytest.raises(AvbenchError) as caught:
        load_spec(str(tmp_path / "b.toml"))
    assert message in str(caught.value)


def test_a_file_gives_its_path_as_id():
    assert clip_id_of("dog barks/1.mp4") == "dog_barks_1"
    assert clip_id_of("ünï/-a.b.mkv") == "_n__-a.b"
    assert clip_id_of("no-suffix") == "no-suffix"
    assert clip_id_of(".") == ""


def test_unknown_benchmark_names_the_closest():
    with pytest.raises(UsageError, match="did you mean ave-ci"):
        Benchmark.load("avee-ci")
    with pytest.raises(UsageError, match="no benchmark file"):
        Benchmark.load("none.toml")
