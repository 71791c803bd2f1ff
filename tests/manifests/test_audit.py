"""Audits: the figures of the shipped benchmarks, and small cases counted by hand."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avbench.manifests.audit import Audit, audit
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.manifests.spec import shipped_names

ROOT = Path(__file__).parents[2]


def manifest_of(rows: list[tuple[str, str | None, float | None, str, str]]) -> Manifest:
    """Clips as (id, video, start, label, split), of 10 s each."""
    labels = sorted({row[3] for row in rows})
    frame = pd.DataFrame(rows, columns=["clip_id", "youtube_id", "start_s", "label", "split"])
    frame["end_s"] = frame["start_s"].astype(float) + 10
    frame["class_index"] = frame["step"] = frame["label"].map(labels.index)
    frame["source_split"] = None
    return Manifest.from_table("m", pa.Table.from_pandas(frame, preserve_index=False))


def pair(found: Audit, split: str, other: str) -> tuple[int, ...]:
    (row,) = [s for s in found.sharing if (s.split, s.other) == (split, other)]
    return row.clips, row.videos, row.same_label, row.overlapping, row.back_to_back


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "test_train", "val_train", "test_val"),
    [
        ("ave-ci", (0,) * 5, (0,) * 5, (0,) * 5),
        ("ks-ci", (0,) * 5, (0,) * 5, (0,) * 5),
        (
            "vs100-ci",
            (1627, 1627, 1625, 14, 92),
            (1671, 1671, 1670, 15, 101),
            (257, 257, 257, 2, 22),
        ),
        ("vs100-ci-clean", (0,) * 5, (1671, 1671, 1670, 15, 101), (0,) * 5),
    ],
)
def test_source_videos_shared_between_splits(name, test_train, val_train, test_val):
    found = audit(Benchmark.load(name).manifest)
    assert pair(found, "test", "train") == test_train
    assert pair(found, "val", "train") == val_train
    assert pair(found, "test", "val") == test_val


@pytest.mark.slow
def test_source_lists_and_missing_times():
    vs100 = audit(Benchmark.load("vs100-ci").manifest)
    assert vs100.source_lists["test"] == {"test": 562, "train": 4438}
    assert vs100.source_lists["train"]["test"] == 3837
    assert sum(vs100.missing_times.values()) == 0
    sounds = audit(Benchmark.load("ks-ci").manifest)
    assert sounds.missing_times == {"train": 2716, "val": 0, "test": 0}
    assert sounds.source_lists["train"] == {"test": 0, "train": 16329, "unknown": 2891, "val": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "two", "videos"),
    [("ave-ci", "vs100-ci", 89), ("ks-ci", "vs100-ci", 161), ("ave-ci", "ks-ci", 1)],
)
def test_source_videos_shared_between_benchmarks(one, two, videos):
    manifests = [Benchmark.load(name).manifest for name in (one, two)]
    there, back = audit(manifests[0], others=manifests[1:]), audit(manifests[1], others=manifests)
    assert there.overlaps[0].videos == back.overlaps[0].videos == videos


def test_a_case_counted_by_hand():
    found = audit(
        manifest_of(
            [
                ("a", "v", 0, "cat", "train"),
                ("b", "v", 5, "cat", "test"),  # overlaps a
                ("c", "v", 15, "dog", "test"),  # back to back with b, but not with any of train
                ("d", "w", 0, "cat", "train"),
                ("D", "w", 10, "cat", "test"),  # back to back with d, of its name but for case
                ("e", "u", 0, "dog", "train"),
                ("f", "u", 0, "dog", "train"),  # the very same seconds
                ("g", None, None, "dog", "val"),
                ("h", "t", None, "dog", "val"),
            ]
        )
    )
    assert pair(found, "test", "train") == (3, 2, 2, 1, 1)
    assert pair(found, "test", "test") == (2, 1, 0, 0, 2)
    assert pair(found, "train", "train") == (2, 1, 2, 2, 0)
    assert pair(found, "val", "train") == (0, 0, 0, 0, 0)
    assert (found.clips, found.videos, found.clips_without_video) == (9, 4, 1)
    assert found.duplicate_windows == 2
    assert found.case_clashes == 2
    assert found.several_labels == {"v": ["cat", "dog"]}
    assert found.missing_times == {"train": 0, "val": 1, "test": 0}
    assert found.clips_per_class["train"] == {"cat": 2, "dog": 2}
    assert [(s.train, s.val, s.test) for s in found.steps] == [(2, 0, 2), (2, 2, 1)]
    (val,) = [b for b in found.balance if b.split == "val"]
    assert (val.smallest, val.smallest_class, val.median, val.largest) == (0, "cat", 1.0, 2)
    text = found.to_markdown()
    assert "3 test clips share their source video with train, 2 of them" in text
    assert "| test | train | 3 | 2 | 2 | 1 | 1 |" in text
    assert json.loads(json.dumps(found.to_json()))["faults"] == found.faults()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["v", "w", None]),
            st.one_of(st.none(), st.integers(0, 40)),
            st.sampled_from(["cat", "dog"]),
            st.sampled_from(["train", "val", "test"]),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_sharing_agrees_with_a_comparison_of_all_pairs(rows):
    rows = [(f"clip{i}", *row) for i, row in enumerate(rows)]
    found = audit(manifest_of(rows))
    for sharing in found.sharing:
        clips, same, overlap, touch = set(), set(), set(), set()
        for one, two in product(rows, rows):
            if one[0] == two[0] or (one[4], two[4]) != (sharing.split, sharing.other):
                continue
            if one[1] is None or one[1] != two[1]:
                continue
            clips.add(one[0])
            same |= {one[0]} if one[3] == two[3] else set()
            if one[2] is not None and two[2] is not None:
                overlap |= {one[0]} if abs(one[2] - two[2]) < 10 else set()
                touch |= {one[0]} if abs(one[2] - two[2]) == 10 else set()
        assert sharing.clips == len(clips)
        assert sharing.same_label == len(same)
        assert sharing.overlapping == len(overlap)
        assert sharing.back_to_back == len(touch)


def test_a_clean_split_has_no_faults():
    rows = [(f"{c}{s}", f"{c}{s}", 0, c, s) for c in ("cat", "dog") for s in ("train", "test")]
    found = audit(manifest_of(rows))
    assert found.faults() == []
    assert "Nothing that an audit can see." in found.to_markdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_audits_in_the_docs_are_what_the_command_says(name, avbench):
    page = ROOT / "docs" / "audits" / f"{name}.md"
    assert avbench("splits", "audit", name).stdout == page.read_text(encoding="utf-8")
