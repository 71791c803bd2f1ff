"""From any table of annotations to a manifest: selection, hold-out, order, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avbench import resources
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import annotations_path, build, build_manifest, verify
from avbench.manifests.manifest import Manifest
from avbench.manifests.spec import load_spec, shipped_names
from avbench.manifests.variant import by_hash
from avbench.types import AvbenchError


def videos(sizes: dict[str, list[int]]) -> pd.DataFrame:
    """A table of classes and how many clips each of their videos has."""
    rows = [
        {"youtube_id": f"{label}{v}", "start_s": 10 * i, "end_s": 10 * i + 10, "label": label}
        for label, counts in sizes.items()
        for v, count in enumerate(counts)
        for i in range(count)
    ]
    return pd.DataFrame(rows)


def per_class(manifest: Manifest) -> dict[str, dict[str, int]]:
    found = Counter((clip.label, clip.split) for clip in manifest)
    return {
        label: {split: found[label, split] for split in ("train", "val", "test")}
        for label in manifest.labels
    }


def splits_of_videos(manifest: Manifest) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for clip in manifest:
        found.setdefault(str(clip.youtube_id), set()).add(clip.split)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_shipped_files_are_rebuilt_to_the_byte(name, tmp_path):
    """With the pinned pyarrow; the fingerprint holds with any."""
    build(load_spec(name)).write(tmp_path / "again.parquet")
    shipped = Benchmark.load(name).manifest_path
    assert (tmp_path / "again.parquet").read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize("name", shipped_names())
def test_every_column_of_a_shipped_table_says_where_it_comes_from(name):
    spec = load_spec(name)
    path = annotations_path(spec)
    read = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
    assert list(spec.columns) == list(read(path))


def test_the_clean_benchmark_has_the_same_test_and_no_test_video_elsewhere():
    official, clean = (Benchmark.load(f"vs100-ci{x}").manifest for x in ("", "-clean"))
    frames = [m.table.to_pandas() for m in (official, clean)]
    tests = [frame[frame["split"] == "test"].reset_index(drop=True) for frame in frames]
    assert tests[0].equals(tests[1])
    assert len(tests[1]) == 5000
    videos = set(tests[1]["youtube_id"])
    kept = [frame[frame["split"] != "test"] for frame in frames]
    assert not videos & set(kept[1]["youtube_id"])
    # Nothing else is gone, and nothing has moved.
    wanted = kept[0][~kept[0]["youtube_id"].isin(videos)].reset_index(drop=True)
    assert wanted.equals(kept[1].reset_index(drop=True))
    assert clean.labels == official.labels


def test_a_hold_out_takes_exact_numbers_and_whole_videos():
    table = videos({"cat": [3, 2, 2, 1, 1, 1, 4], "dog": [2] * 9, "cow": [1] * 20})
    manifest = build_manifest(
        "pets", table, classes_per_step=1, val_per_class=2, test_per_class=4, seed=5
    )
    assert per_class(manifest) == {
        label: {"train": n - 6, "val": 2, "test": 4}
        for label, n in (("cat", 14), ("dog", 18), ("cow", 20))
    }
    assert all(len(splits) == 1 for splits in splits_of_videos(manifest).values())
    assert manifest.labels == tuple(by_hash(5, ["cat", "cow", "dog"]))
    assert manifest.seed == 5
    # The first in hash order are held out where all are alike.
    ids = [f"cow{i}" for i in range(20)]
    held = {clip.youtube_id for clip in manifest if clip.label == "cow" and clip.split == "test"}
    assert held == set(by_hash(5, ids)[:4])


def test_a_hold_out_may_take_single_clips():
    table = videos({"cat": [5, 5], "dog": [5, 5]})
    manifest = build_manifest(
        "pets",
        table,
        classes_per_step=1,
        val_per_class=1,
        test_per_class=3,
        keep_videos_together=False,
    )
    assert set(map(str, per_class(manifest).values())) == {str({"train": 6, "val": 1, "test": 3})}
    assert any(len(splits) > 1 for splits in splits_of_videos(manifest).values())


def test_videos_of_several_classes_are_never_held_out():
    table = videos({"cat": [1] * 8, "dog": [1] * 8})
    table.loc[table["youtube_id"] == "dog0", "youtube_id"] = "cat0"
    table.loc[8, "start_s"] = 5
    for seed in range(10):
        manifest = build_manifest(
            "pets", table, classes_per_step=1, test_per_class=7, val_per_class=0, seed=seed
        )
        assert {c.split for c in manifest if c.youtube_id == "cat0"} == {"train"}


def test_val_alone_is_held_out_of_the_tables_train():
    table = videos({"cat": [1] * 10, "dog": [1] * 10})
    table["split"] = ["test" if i % 5 == 0 else "train" for i in range(20)]
    manifest = build_manifest("pets", table, classes_per_step=1, val_per_class=3)
    assert set(map(str, per_class(manifest).values())) == {str({"train": 5, "val": 3, "test": 2})}
    assert all((c.start_s, c.source_split) == (0, None) for c in manifest)


def test_a_new_split_keeps_the_tables_own_as_source_split():
    table = videos({"cat": [1] * 4, "dog": [1] * 4})
    table["split"] = ["train", "test"] * 4
    manifest = build_manifest("pets", table, classes_per_step=1, test_per_class=1)
    given = dict(zip(table["youtube_id"], table["split"], strict=True))
    assert all(clip.source_split == given[clip.youtube_id] for clip in manifest)


def test_selected_classes_come_in_the_order_they_are_given():
    table = videos({x: [1] * 3 for x in "abcdef"})
    table["class_index"] = [ord(x) - ord("a") for x in table["label"]]
    manifest = build_manifest(
        "some", table, classes=["e", "a", "c"], classes_per_step=[2, 1], test_per_class=1
    )
    assert manifest.labels == ("e", "a", "c")
    assert manifest.classes_per_step == (2, 1)
    assert manifest.seed is None
    whole = build_manifest("all", table, classes_per_step=2, test_per_class=1)
    assert whole.labels == tuple("abcdef")


def test_ids_come_from_video_and_start_where_there_are_none():
    table = pd.DataFrame(
        {"youtube_id": ["-a_b", "-a_b", "c"], "start_s": [30, 30.5, 1234567], "label": ["x"] * 3}
    )
    table["split"] = ["train", "train", "test"]
    manifest = build_manifest("v", table, classes_per_step=1)
    assert set(manifest.clip_ids) == {"-a_b_000030", "-a_b_000030.500", "c_1234567"}


def test_another_seed_holds_out_others():
    table = videos({x: [1] * 30 for x in "ab"})
    prints = {
        build_manifest(
            "s", table, classes_per_step=1, test_per_class=5, val_per_class=5, seed=seed
        ).fingerprint
        for seed in range(20)
    }
    assert len(prints) == 20


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31 - 1), together=st.booleans())
def test_same_rows_same_fingerprint_in_any_order(data, seed, together):
    """Whatever the order of rows and columns, the type of file, or the rows' index."""
    classes = data.draw(st.integers(2, 5))
    sizes = {
        f"c{c}": data.draw(st.lists(st.integers(1, 3), min_size=8, max_size=12))
        for c in range(classes)
    }
    table = videos({label: [1] * 6 + counts for label, counts in sizes.items()})
    order = data.draw(st.permutations(range(len(table))))
    shuffled = table.iloc[order][data.draw(st.permutations(list(table)))]
    options = {
        "classes_per_step": data.draw(st.sampled_from([1, (classes,), (1, classes - 1)])),
        "val_per_class": data.draw(st.integers(0, 2)),
        "test_per_class": data.draw(st.integers(1, 3)),
        "seed": seed,
        "keep_videos_together": together,
    }
    one, two = (build_manifest("p", frame, **options) for frame in (table, shuffled))
    assert one.fingerprint == two.fingerprint
    held = {"val": options["val_per_class"], "test": options["test_per_class"]}
    for counts in per_class(one).values():
        assert {split: counts[split] for split in held} == held
    if together:
        assert all(len(splits) == 1 for splits in splits_of_videos(one).values())


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_same_name_same_fingerprint_for_any_order_of_the_shipped_rows(data):
    """A variant is what its name says, however the table of annotations happens to be sorted."""
    options = data.draw(
        st.sampled_from(["", ":seed=3", ":order=alphabetical", ":steps=6", ":first=6,seed=11"])
    )
    spec = load_spec(f"toy-ci{options}")
    table = pd.read_csv(resources.shipped("splits") / "annotations" / "toy-ci.csv")
    shuffled = table.iloc[data.draw(st.permutations(range(len(table))))]
    manifest = build_manifest("toy-ci", shuffled, classes_per_step=3)
    if spec.variant:
        manifest = manifest.varied(spec.name, spec.variant)
    assert manifest.fingerprint == Benchmark.load(spec.name).manifest.fingerprint


def test_a_csv_and_a_parquet_table_give_the_same(tmp_path):
    table = videos({"cat": [1] * 4, "dog": [1] * 4})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    prints = {
        build_manifest("p", t, classes_per_step=1, test_per_class=1).fingerprint
        for t in (table, tmp_path / "t.csv", tmp_path / "t.parquet")
    }
    assert len(prints) == 1


def test_the_callers_table_stays_as_it_was():
    table = videos({"cat": [1] * 4, "dog": [1] * 4})
    before = table.copy(deep=True)
    build_manifest("p", table, classes_per_step=1, test_per_class=1)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"classes": ["cat", "dgo"]}, "column label: unknown class 'dgo'; did you mean dog?"),
        ({}, {"classes": ["cat", "cat"]}, "a class is selected twice"),
        ({}, {"test_per_class": 6}, "row 1, label 'cat': the class has 6 clips, too few to hold"),
        ({}, {"test_per_class": 5, "val_per_class": 1}, "row 1, label 'cat': the class has 6"),
        ({}, {"classes_per_step": 3}, "it has 2 classes: classes_per_step = 3 must add up"),
        ({}, {"classes_per_step": [1, 2]}, "classes_per_step = [1, 2] must add up to 2"),
        ({}, {"classes_per_step": [2, 0]}, "classes_per_step = [2, 0] must"),
        ({}, {"classes_per_step": 0}, "classes_per_step = 0 must"),
        ({}, {"test_per_class": 0}, "column split is missing"),
        ({"label": None}, {}, "row 8, label: must not be empty"),
        ({"start_s": "soon"}, {}, "row 8, start_s 'soon': must be a number of seconds"),
        ({"start_s": None}, {}, "row 8, start_s: must not be empty"),
        ({"youtube_id": None}, {}, "row 8, youtube_id: must not be empty"),
        ({"youtube_id": "../x"}, {}, "row 8, clip_id '../x_000000'"),
        ({"youtube_id": "dog0"}, {}, "row 8, clip_id 'dog0_000000': appears twice, first in row 7"),
        ({"end_s": -1.0}, {}, "row 8, end_s -1.0: must be after start_s"),
    ],
)
def test_bad_input_names_table_row_and_column(tmp_path, change, options, message):
    table = videos({"cat": [1] * 6, "dog": [1] * 6}).astype(object)
    for column, value in change.items():
        table.loc[7, column] = value
    table.to_csv(tmp_path / "clips.csv", index=False)
    options = {"classes_per_step": 1, "test_per_class": 2} | options
    for given_as, origin in ((tmp_path / "clips.csv", f"{tmp_path}/clips.csv"), (table, None)):
        with pytest.raises(AvbenchError) as caught:
            build_manifest("pets", given_as, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(origin or "table of pets: ")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [{"a": 1}] * 4, "row 1, label .*: must be a text"),
        ("label", [b"\xff"] * 4, "row 1, label .*: must be a text"),
        ("label", ["x\ny"] * 4, "row 1, label .*: must not hold control characters"),
        ("youtube_id", ["a\x1b[2J", "b", "c", "d"], "row 1, youtube_id .*control characters"),
        ("start_s", pd.to_datetime(["2020-01-01"] * 4), "column start_s: must be a number"),
        ("start_s", [1j] * 4, "column start_s: must be a number of seconds, not complex"),
        ("start_s", [1e18] * 4, "row 1, start_s 1e.18: must be a number of seconds, below 1e9"),
        ("class_index", pd.array([0, None, 0, 0], "Int64"), "row 2, class_index: must be a whole"),
        ("class_index", [0, 1, 0, 0], "row 2, class_index '1': must be 0 to 0"),
    ],
)
def test_odd_columns_are_refused_in_one_line(tmp_path, column, values, message):
    table = pd.DataFrame({"clip_id": list("abcd"), "label": ["x"] * 4, "split": ["train"] * 4})
    table[column] = values
    with pytest.raises(AvbenchError, match=message):
        build_manifest("odd", table, classes_per_step=1)


@pytest.mark.parametrize(
    "text",
    [
        "clip_id,label,split,note\n"
        + "".join(f"c{i},x,train,{i}\n" for i in range(10))
        + "d,x,test,!\n",
        "clip_id,label,split,index,step,level_0\na,x,train,9,9,9\nb,x,test,9,9,9\n",
        "clip_id,label,split,youtube_id\na, x ,train ,\nb,x, test,\n",
        "\ufeffclip_id,label,split\r\na,x,train\r\nb,x,test\r\n",
    ],
)
def test_what_is_no_business_of_ours_does_no_harm(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    manifest = build_manifest("t", tmp_path / "t.csv", classes_per_step=1)
    assert manifest.labels == ("x",)
    assert {clip.youtube_id for clip in manifest} == {None}


def test_metadata_of_pandas_are_not_needed(tmp_path):
    table = pa.table({"clip_id": ["a", "b"], "label": ["x", "x"], "split": ["train", "test"]})
    for metadata in ("{}", "[]", '{"index_columns": 5}'):
        pq.write_table(table.replace_schema_metadata({"pandas": metadata}), tmp_path / "t.parquet")
        assert len(build_manifest("t", tmp_path / "t.parquet", classes_per_step=1)) == 2


def test_columns_that_are_there_twice_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("clip_id,label,label,split\na,x,y,train\n")
    with pytest.raises(AvbenchError, match="t.csv: column label is there twice"):
        build_manifest("t", tmp_path / "t.csv", classes_per_step=1)
    frame = pd.DataFrame([["a", "x", "y", "train"]], columns=["clip_id", "label", "label", "split"])
    with pytest.raises(AvbenchError, match="column label is there twice"):
        build_manifest("t", frame, classes_per_step=1)


def test_dropping_test_videos_never_empties_a_class():
    table = pd.DataFrame(
        {"clip_id": list("abcd"), "youtube_id": list("vvww"), "label": list("xyyy")}
    ).assign(split=["train", "test", "train", "train"])
    with pytest.raises(AvbenchError, match="row 1, label 'x': no train clip of the class is left"):
        build_manifest("t", table, classes_per_step=1, drop_test_videos=True)


def test_a_val_hold_out_takes_no_video_that_is_in_the_tables_test():
    table = pd.DataFrame(
        {
            "clip_id": list("abcdef"),
            "youtube_id": ["v0", "v0", "v1", "v2", "v3", "v4"],
            "label": "x",
            "split": ["test", "train", "train", "train", "train", "test"],
        }
    )
    for seed in range(20):
        manifest = build_manifest("t", table, classes_per_step=1, val_per_class=1, seed=seed)
        assert splits_of_videos(manifest)["v0"] == {"test", "train"}


def test_clips_without_a_video_stand_alone():
    table = pd.DataFrame({"clip_id": ["a", "b", "c", "v"], "label": "x"})
    table["youtube_id"] = [None, "", " ", "a"]  # one of them named as a clip is
    manifest = build_manifest("t", table, classes_per_step=1, test_per_class=1)
    assert [clip.split for clip in manifest].count("test") == 1
    by_seed = {
        next(
            c.clip_id
            for c in build_manifest("t", table, classes_per_step=1, test_per_class=1, seed=seed)
            if c.split == "test"
        )
        for seed in range(40)
    }
    assert by_seed == {"a", "b", "c", "v"}


def test_a_source_split_that_is_there_is_kept_by_a_new_split():
    table = videos({"cat": [1] * 4, "dog": [1] * 4})
    table["split"], table["source_split"] = "test", "val"
    manifest = build_manifest("pets", table, classes_per_step=1, test_per_class=1)
    assert {clip.source_split for clip in manifest} == {"val"}


def test_fractions_of_a_millisecond_do_not_count():
    table = videos({"cat": [1] * 4})
    one, two = (
        build_manifest("t", table.assign(end_s=end), classes_per_step=1, test_per_class=1)
        for end in (0.3, 0.1 + 0.2)
    )
    assert one.table.equals(two.table)


def test_rows_are_counted_in_the_table_also_where_classes_are_left_out():
    table = videos({"cat": [1] * 6, "dog": [1] * 6})
    table.loc[9, "youtube_id"] = "dog0"
    with pytest.raises(AvbenchError, match=r"row 10, clip_id .*, first in row 7"):
        build_manifest("p", table, classes=["dog"], classes_per_step=1, test_per_class=1)


def test_a_hold_out_that_no_whole_videos_make_is_refused():
    table = videos({"cat": [2, 2, 2]})
    with pytest.raises(AvbenchError, match="test_per_class = 3 .*keep_videos_together = false"):
        build_manifest("p", table, classes_per_step=1, test_per_class=3)
    assert build_manifest(
        "p", table, classes_per_step=1, test_per_class=3, keep_videos_together=False
    )


def edited(path: Path, column: str, row: int, value: object) -> None:
    """Edit a manifest by hand, keeping its metadata."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", "val", "row 5, split 'val': must be 'train'"),
        ("start_s", 3.25, "row 5, start_s 3.25: must be 30.0"),
        ("label", "Cat", "row 5, label 'Cat': must be 'Acoustic guitar'"),
        ("youtube_id", None, "row 5, youtube_id None: must be "),
        ("clip_id", "../x", "row 5, clip_id '../x': the benchmark has no such clip"),
        ("step", 3, "row 5, step 3: must be 0"),
    ],
)
def test_an_edited_manifest_is_told_by_row_and_column(tmp_path, column, value, message):
    path = tmp_path / "edited.parquet"
    build(load_spec("ave-ci")).write(path)
    edited(path, column, 4, value)
    with pytest.raises(AvbenchError) as caught:
        verify(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(AvbenchError, match="edited.parquet"):
        Manifest.read(path)


def test_missing_doubled_and_shuffled_rows_are_told(tmp_path):
    path = tmp_path / "m.parquet"
    build(load_spec("toy-ci")).write(path)
    table = pq.read_table(path)
    for rows, message in (
        (np.arange(1, len(table)), "'disk-thud-000': it is missing"),
        (np.r_[0, np.arange(len(table))], "row 2, clip_id 'disk-thud-000': appears twice"),
        (np.arange(len(table))[::-1], "rows not in canonical order"),
    ):
        pq.write_table(table.take(pa.array(rows)), path)
        with pytest.raises(AvbenchError, match=message):
            verify(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {}}, "metadata counts: not what its rows give"),
        ({"seed": 7}, "metadata seed: not what its rows give"),
        ({"class_order": ["x"]}, "metadata class_order"),
        ({"fingerprint": "0" * 64}, "metadata fingerprint"),
        ({"name": "toy-ci:steps=4"}, "'toy-ci:steps=4': not a benchmark or variant of avbench"),
        ({"name": "toy-ci:foo=1"}, "not a benchmark or variant of avbench"),
        ({"name": "toy-ci:../../etc.toml"}, "not a benchmark or variant of avbench"),
        ({"name": "toy\nok  vs100-ci"}, "not a manifest of avbench"),
        ({"seed": "x"}, "not a manifest of avbench"),
        ({"format": 2}, "not a manifest of avbench"),
    ],
)
def test_edited_metadata_are_told(tmp_path, change, message):
    path = tmp_path / "m.parquet"
    build(load_spec("toy-ci")).write(path)
    table = pq.read_table(path)
    info = json.loads(table.schema.metadata[b"avbench"]) | change
    pq.write_table(table.replace_schema_metadata({b"avbench": json.dumps(info)}), path)
    with pytest.raises(AvbenchError, match=message) as caught:
        verify(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_columns_of_other_types_are_told(tmp_path):
    path = tmp_path / "m.parquet"
    build(load_spec("toy-ci")).write(path)
    table = pq.read_table(path)
    lists = pa.array([[i] for i in range(len(table))])
    pq.write_table(table.set_column(0, "clip_id", lists), path)
    with pytest.raises(AvbenchError, match="column clip_id: its type is"):
        verify(path)
    pq.write_table(table.append_column("label", table["label"]), path)
    with pytest.raises(AvbenchError, match="columns .*: not those of a manifest"):
        verify(path)
    with pytest.raises(AvbenchError, match="column label is there twice"):
        Manifest.read(path)
    deep = table.replace_schema_metadata({b"avbench": b"[" * 100_000})
    pq.write_table(deep, path)
    with pytest.raises(AvbenchError, match="not a manifest of avbench"):
        verify(path)


def test_a_manifest_of_another_benchmark_is_checked_against_itself(tmp_path):
    path = tmp_path / "pets.parquet"
    table = videos({"cat": [1] * 4, "dog": [1] * 4})
    build_manifest("pets", table, classes_per_step=1, test_per_class=1).write(path)
    assert verify(path)[1] is False
    edited(path, "end_s", 0, 11.0)
    with pytest.raises(AvbenchError, match="fingerprint"):
        verify(path)


def test_shared_clips_must_be_the_same_clips(tmp_path):
    rows = Benchmark.load("ave-ci").manifest.table.to_pandas()
    rows = rows[rows["label"].isin(["Cat", "Bus"])].drop(columns=["class_index", "step"])
    toml = (
        'name = "cats"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 10\n'
        'annotations = "cats.csv"\nclips_of = "ave-ci"\n'
    )
    (tmp_path / "cats.toml").write_text(toml)
    rows.to_csv(tmp_path / "cats.csv", index=False)
    cats = Benchmark.load(str(tmp_path / "cats.toml"))
    assert len(cats.manifest) == len(rows)
    assert cats.home == Benchmark.load("ave-ci").home
    (tmp_path / "short.toml").write_text(toml.replace("clip_seconds = 10", "clip_seconds = 9"))
    with pytest.raises(AvbenchError, match="clip_seconds must be that of ave-ci"):
        Benchmark.load(str(tmp_path / "short.toml"))
    rows.assign(end_s=rows["end_s"] - 1).to_csv(tmp_path / "cats.csv", index=False)
    with pytest.raises(AvbenchError, match="ave-ci has no such clip of this video and time"):
        _ = Benchmark.load(str(tmp_path / "cats.toml")).manifest


def test_a_toml_may_select_and_hold_out(tmp_path):
    videos({x: [2, 1, 1, 1, 1, 1] for x in "abcd"}).to_csv(tmp_path / "all.csv", index=False)
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = ["c", "a"]\nclasses_per_step = 1\nclip_seconds = 10\n'
        'annotations = "all.csv"\nval_per_class = 1\ntest_per_class = 2\nseed = 4\n'
    )
    benchmark = Benchmark.load(str(tmp_path / "b.toml"))
    assert benchmark.manifest.labels == ("c", "a")
    assert benchmark.spec.classes == 2
    assert per_class(benchmark.manifest)["a"] == {"train": 4, "val": 1, "test": 2}
    # Another class order is not another split.
    other = Benchmark.load(f"{tmp_path}/b.toml:seed=9").manifest
    columns = ["clip_id", "split"]
    assert (
        other.table.select(columns)
        .sort_by("clip_id")
        .equals(benchmark.manifest.table.select(columns).sort_by("clip_id"))
    )


def test_a_table_without_class_order_gets_one_by_seed(tmp_path):
    labels = [f"class {i}" for i in range(6)]
    lines = ["path,label,split"]
    lines += [f"some dir/{n}{i}.mp4,{x},train" for n, x in enumerate(labels) for i in range(3)]
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    text = (
        'name = "b"\nclasses = 6\nclasses_per_step = [4, 2]\nclip_seconds = 1\n'
        'annotations = "clips.csv"\n'
    )
    orders = set()
    for seed in range(4):
        (tmp_path / "b.toml").write_text(f"{text}seed = {seed}\n")
        orders.add(build(load_spec(str(tmp_path / "b.toml"))).labels)
    assert len(orders) == 4
    (tmp_path / "b.toml").write_text(text)
    manifest = build(load_spec(str(tmp_path / "b.toml")))
    assert manifest.labels == tuple(by_hash(0, labels))
    assert manifest.classes_per_step == (4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,x\n", "column split is missing"),
        ("label,split\nx,train\n", "column clip_id is missing"),
        ("path,label,split\na.mp4,,train\n", "row 1, label: must not be empty"),
        ("path,label,split\na b.mp4,x,train\na_b.mkv,y,train\n", "appears twice"),
        ("path,label,split\na.mp4,x,train\n", "it has 1 classes"),
        ("clip_id,label,split,class_index\na,x,train,0\nb,y,train,5\n", "must be 0 to 1"),
        ("clip_id,label,split,class_index\na,x,train,0\nb,y,train,\n", "must be a whole number"),
        ("clip_id,label,split,class_index\na,x,train,0\nb,y,train,.5\n", "must be a whole number"),
        ("clip_id,label,split,class_index\na,x,train,0\nb,y,train,inf\n", "must be a whole number"),
        ("clip_id,label,split,class_index\na,x,train,0\nb,y,train,z\n", "must be a whole number"),
        (f"clip_id,label,split,class_index\na,x,train,0\nb,y,train,{10**30}\n", "must be 0 to 1"),
        (
            "path,label,split\nb,c.mp4,y,train\na.mp4,x,train\n",
            "row 1: more fields than the header: put quotes",
        ),
        ("path,label,split\na.mp4,x,train\nb,c.mp4,y,train\n", "line 3, saw 4"),
        ("path;label;split\na.mp4;x;train\n", "a CSV needs commas"),
        ("path,label,split\n,x,train\n", "row 1, path: must not be empty"),
        ("clip_id,label,split,end_s\na,x,train,inf\nb,y,train,1\n", "number of seconds"),
        ("", "not a readable table"),
        ("\x00\xff", "column clip_id is missing"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    (tmp_path / "clips.csv").write_text(text)
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1\n'
        'annotations = "clips.csv"\n'
    )
    with pytest.raises(AvbenchError) as caught:
        build(load_spec(str(tmp_path / "b.toml")))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split,\na.mp4,x,train,\nb.mp4,y,train,\n",
        "path, label, split\na.mp4, x, train\nb.mp4, y, train\n",
        "path,label,split,source_split,orig_split\na.mp4,x,train,val,z\nb.mp4,y,train,val,z\n",
    ],
)
def test_tables_as_people_write_them(tmp_path, text):
    (tmp_path / "clips.CSV").write_text(text)
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1\n'
        'annotations = "clips.CSV"\n'
    )
    manifest = build(load_spec(str(tmp_path / "b.toml")))
    assert set(manifest.clip_ids) == {"a", "b"}
    assert set(manifest.labels) == {"x", "y"}


def test_labels_that_look_like_nothing_are_labels(tmp_path):
    (tmp_path / "clips.csv").write_text("path,label,split\na.mp4,NA,train\nb.mp4,007,train\n")
    (tmp_path / "b.toml").write_text(
        'name = "b"\nclasses = 2\nclasses_per_step = 1\nclip_seconds = 1\n'
        'annotations = "clips.csv"\n'
    )
    assert set(build(load_spec(str(tmp_path / "b.toml"))).labels) == {"NA", "007"}
