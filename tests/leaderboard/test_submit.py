"""Submissions: from runs, predictions and bundles; what is hostile is refused in a line."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from avbench import registry, resources
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.result import Result
from avbench.evaluation.score import score
from avbench.leaderboard import decode, evidence
from avbench.leaderboard.board import Board
from avbench.leaderboard.check import check
from avbench.leaderboard.entry import preset_of
from avbench.leaderboard.submit import (
    add,
    facts_of_run,
    from_bundle,
    from_predictions,
    from_run,
    read_metadata,
    template,
    to_bundle,
)
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError
from tests.helpers.cli import AVBENCH
from tests.helpers.predictions import predictions
from tests.helpers.processes import all_wait_for_a_lock, wait_for


@pytest.fixture
def run(toy, with_features, tmp_path):
    """A quick run of toy-ci on made-up features."""
    with_features(toy)
    out = tmp_path / "run"
    evaluate(toy, "finetune", seeds=[0, 1], out=out, settings={"epochs": "1"})
    return out


@pytest.fixture
def of_run(run, about):
    """The submission that goes with the run."""
    return about(**facts_of_run(run))


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(call, message):
    with pytest.raises(AvbenchError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_run_becomes_an_entry_with_its_numbers_and_evidence(run, of_run, boards):
    place = add(from_run(run, of_run), boards)
    result = Result.read(run / "result.json")
    for name, metric in place.entry.metrics.items():
        assert metric.mean == pytest.approx(100 * result.metric(name).mean, abs=1e-4)
    assert Board.read(boards / "toy-ci.json").entries == (place.entry,)
    assert files(boards) == {"toy-ci.json", "predictions/toy-ci/mine.parquet"}
    assert place.remark == "fewer than 3 seeds"
    assert check([boards / "toy-ci.json"]).problems == ()
    kept = pq.read_table(boards / "predictions" / "toy-ci" / "mine.parquet")
    assert kept.column_names == ["seed-0", "seed-1"]
    assert len(kept) == 36 + 72 + 108 + 144


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"access": "joint"}, "access is 'incremental' in the run, 'joint' in the metadata"),
        ({"exemplars": 3}, "exemplars is 0 in the run"),
        ({"preset": "avcil"}, "preset is 'filterbank' in the run"),
        ({"coverage": 0.5}, "coverage is 1.0 in the run"),
    ],
)
def test_metadata_at_odds_with_the_run_is_refused(run, of_run, change, message):
    refused(lambda: from_run(run, of_run.model_copy(update=change)), message)


@pytest.mark.slow
def test_an_embellished_result_is_refused(run, of_run):
    record = json.loads((run / "result.json").read_text())
    for row in (0, 1):
        record["runs"][0]["correct"][row][0] = record["runs"][0]["total"][0]
    (run / "result.json").write_text(json.dumps(record))
    refused(lambda: from_run(run, of_run), "seed 0 of result.json is not what it predicted")


def test_a_run_of_mixed_code_is_refused(run, of_run):
    record = json.loads((run / "result.json").read_text())
    record["runs"][1]["environments"][2]["packages"]["torch"] = "0.1"
    (run / "result.json").write_text(json.dumps(record))
    refused(lambda: from_run(run, of_run), "differ in torch, and mixed code is not ranked: run it")


def test_choosing_among_seeds_is_refused(run, of_run):
    record = json.loads((run / "result.json").read_text())
    del record["runs"][0]
    (run / "result.json").write_text(json.dumps(record))
    about = of_run.model_copy(update={"seconds": facts_of_run(run)["seconds"]})
    refused(lambda: from_run(run, about), "holds other seeds")


def test_a_result_at_odds_with_its_configuration_is_refused(run, of_run):
    record = json.loads((run / "result.json").read_text())
    record["config"]["preset_hash"] = "0"
    (run / "result.json").write_text(json.dumps(record))
    refused(lambda: from_run(run, of_run), r"config\.json differ")


def test_predictions_of_some_clips_only_are_refused(run, of_run):
    for seed in (0, 1):
        path = run / f"seed-{seed}" / "predictions.parquet"
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.not_equal(table["clip_id"], table["clip_id"][0])), path)
    refused(lambda: from_run(run, of_run), "missing: .* predictions are missing")


def test_what_is_no_run_is_refused(about, tmp_path):
    refused(lambda: from_run(tmp_path, about()), "not a finished run")


def test_a_form_of_a_run_lacks_only_what_the_run_cannot_know(run, tmp_path):
    path = tmp_path / "entry.toml"
    path.write_text(template(facts_of_run(run)))
    empty = re.findall(r'^(\w+) = (?:""|\[\])$', path.read_text(), re.MULTILINE)
    assert empty == ["name", "method", "authors", "url", "pretraining"]
    refused(lambda: read_metadata(path), f"{path}: name: .*fill it in")
    text = path.read_text().replace('name = ""', 'name = "a"').replace("= []", '= ["A. Author"]')
    path.write_text(text.replace('url = ""', 'url = "https://example.org"').replace('""', '"x"'))
    assert from_run(run, read_metadata(path)).entry.name == "a"


@pytest.mark.parametrize(
    "text", ["", "name = ", "a = " + "[" * 9999, "x = 1979-05-27", "\x00", "seconds = nan", "é"]
)
def test_metadata_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "entry.toml").write_text(text, encoding="utf-8")
    refused(lambda: read_metadata(tmp_path / "entry.toml"), "entry.toml: ")
    refused(lambda: read_metadata(tmp_path / "none.toml"), "no file .*--init")


def test_predictions_of_another_framework(toy, about, boards, tmp_path):
    table = predictions(toy)
    pq.write_table(
        table.take(np.random.default_rng(0).permutation(len(table))), tmp_path / "p.parquet"
    )
    entry = add(from_predictions(tmp_path / "p.parquet", about()), boards).entry
    expected = score(table, toy)
    assert entry.mean_accuracy == pytest.approx(100 * expected.metric("mean_accuracy").mean)
    assert check([boards / "toy-ci.json"]).problems == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, len(t) // 3).drop_columns(["seed"]), "no column seed"),
        (lambda t: t.slice(1), "missing"),
        (lambda t: with_value(t, "clip_id", "nowhere"), "clips that are not of toy-ci"),
        (lambda t: with_value(t, "prediction", 11), "class that no step so far introduced"),
        (lambda t: t.set_column(3, "prediction", pa.array([np.nan] * len(t))), "no prediction"),
        (lambda t: t.set_column(3, "prediction", pa.array([np.inf] * len(t))), "whole numbers"),
    ],
)
def test_predictions_that_cannot_be_are_refused(toy, about, tmp_path, change, message):
    pq.write_table(change(predictions(toy)), tmp_path / "p.parquet")
    refused(lambda: from_predictions(tmp_path / "p.parquet", about()), message)


def test_labels_in_place_of_predictions_are_refused(candidate):
    refused(lambda: candidate(skill=1), "these are the labels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64}, "another version of the manifest"),
        ({"exemplars": 61}, "61 exemplars, but toy-ci allows 60"),
        ({"benchmark": "toy"}, "no leaderboard for toy"),
    ],
)
def test_submissions_of_something_else_are_refused(candidate, change, message):
    refused(lambda: candidate(**change), message)


def test_a_name_is_taken_once_and_a_copy_is_told(candidate, boards):
    add(candidate(), boards)
    refused(lambda: add(candidate(rng=1), boards), "has an entry 'mine'")
    refused(lambda: add(candidate(name="other"), boards), "other has predictions of mine")
    renamed = candidate(name="other", seeds=(7, 8, 9))
    refused(lambda: add(renamed, boards), "other has predictions of mine")
    assert files(boards) == {"toy-ci.json", "predictions/toy-ci/mine.parquet"}


def test_nothing_is_added_to_a_board_whose_history_was_changed(candidate, boards):
    add(candidate(), boards)
    path = boards / "predictions" / "toy-ci" / "mine.parquet"
    path.write_bytes(candidate(rng=5).data)
    refused(lambda: add(candidate(name="other", rng=1), boards), "mine.parquet: was changed")


def test_installed_boards_are_never_written(candidate):
    inside = Path(resources.__file__).parent / "_data" / "leaderboards"
    refused(lambda: add(candidate(), inside), "installed package")
    assert not inside.exists()


@pytest.mark.parametrize(
    "name",
    ["../x", "", "A", "a/b", "-rf", "a\n", "é", "a" * 65, "a\0", "a-", "a--b", "a_b", "a b"],
)
def test_hostile_names_are_refused(tmp_path, candidate, boards, name):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {"name": name})
    refused(lambda: from_bundle(tmp_path / "b.zip"), "entry.json: name")


@pytest.mark.parametrize("name", ["paper", "paper-mine", "papers-mine", "pa-per-mine"])
def test_only_reported_numbers_are_called_a_papers(candidate, name):
    with pytest.raises(ValidationError, match="must not begin with paper"):
        candidate(name=name)


@pytest.mark.parametrize("field", ["method", "authors", "pretraining", "preset"])
@pytest.mark.parametrize("text", ["", " a", "a\u202eb", "a\nb", "\x1b[2J", "x" * 201, None, 3])
def test_hostile_text_is_refused(tmp_path, candidate, field, text):
    to_bundle(candidate(), tmp_path / "b.zip")
    value = [text] if field == "authors" else text
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {field: value})
    refused(lambda: from_bundle(tmp_path / "b.zip"), f"entry.json: {field}")


NO_PRESETS = ["Filterbank", "FILTERBANK", " filterbank", "filter bank", "filterbank\u200b", "own"]
NO_PRESETS += ["f\u0456lterbank", "\uff46ilterbank", "filterbank-2", "f1lterbank", "avcil\u00a0"]
NO_PRESETS += ["other:", "other:Mine", "Other:mine", "other: mine", "other:my encoder", "other:a-"]
NO_PRESETS += ["other:m\u0456ne", "other:other:mine"]
NO_PRESETS += ["other:filterbank", "other:f1lterbank", "other:filter-bank", "other:avci1"]


@pytest.mark.parametrize("preset", NO_PRESETS)
def test_presets_are_of_avbench_or_declared_to_be_of_others(tmp_path, candidate, preset):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {"preset": preset})
    refused(lambda: from_bundle(tmp_path / "b.zip"), "entry.json: preset: must ")


def test_features_of_other_packages_are_declared_as_such(about):
    for preset in registry.own("encoders"):
        assert preset_of(preset) == about(preset=preset).preset == preset
    assert about(preset=preset_of("My_Encoder.v2")).preset == "other:my-encoder-v2"


@pytest.mark.parametrize(
    "value", ["", "ab", "AB" * 32, "ab" * 31 + "a", "ab" * 33, " " + "ab" * 32]
)
def test_hashes_are_whole(tmp_path, candidate, value):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {"preset_hash": value})
    refused(lambda: from_bundle(tmp_path / "b.zip"), "preset_hash: must be the 64 lowercase digits")


LOOK_ALIKE = ["\u0410V-CIL", "\ufb01netune", "\uff21", "\u3164", "\u2800", "-", "..."]


@pytest.mark.parametrize("field", ["method", "pretraining"])
@pytest.mark.parametrize("text", LOOK_ALIKE)
def test_texts_that_look_like_others_or_like_nothing_are_refused(tmp_path, candidate, field, text):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {field: text})
    refused(lambda: from_bundle(tmp_path / "b.zip"), f"entry.json: {field}: must ")


@pytest.mark.parametrize(
    "author",
    [
        "W\u0435iguo Pian",  # a Cyrillic letter
        "\uff37eiguo Pian",
        "\u3164",
        "\u115f",
        "A\u034f. Author",
        "\u2800",
        "...",
        "A. Author\u2044",
    ],
)
def test_authors_that_look_like_others_or_like_nothing_are_refused(tmp_path, candidate, author):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {"authors": [author]})
    refused(lambda: from_bundle(tmp_path / "b.zip"), "entry.json: authors.0: must ")


@pytest.mark.parametrize(
    "author",
    ["Jörg Müller", "Łukasz O'Brien-García", "Иван Иванов", "佐藤ひかり", "अमित", "김민수"],
)
def test_people_are_called_as_they_are(about, author):
    assert about(authors=(author,)).authors == (author,)


@pytest.mark.parametrize(
    "url",
    [
        "https://arxiv.org@evil.org/abs/2308.11073",
        "https://user:word@example.org",
        "https://arxiv.org%2fabs@evil.org",
        "https://arxiv.org\\@evil.org",
        "https://@example.org",
        "https://localhost/paper",
        "https://2130706433/",
        "https://example-.org",
        "https://-example.org",
        "https://example.org.",
        "https://\u0430rxiv.org",
        "https://xn--rxiv-5na.org",
        "ftp://example.org",
        "https://",
    ],
)
def test_addresses_that_lead_elsewhere_than_they_seem_to_are_refused(tmp_path, candidate, url):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", entry=lambda entry: entry | {"url": url})
    refused(lambda: from_bundle(tmp_path / "b.zip"), "entry.json: url: must ")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "https://medium.com/@a/b?c=@d#e",
        "https://Git.Example-1.org:8080/a_(b)",
    ],
)
def test_addresses_may_be_long(about, url):
    assert about(url=url).url == url


@pytest.mark.parametrize("name", ["av-cll", "avci1", "avc-il", "avcil"])
def test_names_that_look_alike_are_on_a_board_once(candidate, boards, name):
    add(candidate(name="av-cil"), boards)
    message = "has an entry|looks like"
    refused(lambda: add(candidate(name=name, rng=1), boards), message)
    assert len(Board.read(boards / "toy-ci.json").entries) == 1


def test_bundles_go_round_to_the_byte(tmp_path, candidate, boards):
    for name in ("a.zip", "b.zip"):
        to_bundle(candidate(), tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert from_bundle(tmp_path / "a.zip") == candidate()


def bomb():
    return b"\0" * 200_000_000


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../x": b""}, "nothing else"),
        ({"/etc/x": b""}, "nothing else"),
        ({"entry.json": b"{}"}, "nothing else"),
        ({}, "nothing else"),
        ({"entry.json": bomb, "predictions.parquet": b""}, "entry.json unfolds to more"),
        ({"entry.json": b"{}", "predictions.parquet": bomb}, "parquet unfolds to more"),
        ({"entry.json": b"{}", "predictions.parquet": b""}, "entry.json: name: .*more"),
        ({"entry.json": b"[" * 50_000, "predictions.parquet": b""}, "entry.json: "),
    ],
)
def test_hostile_bundles_are_refused(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data() if callable(data) else data)
    refused(lambda: from_bundle(tmp_path / "b.zip"), message)
    assert files(tmp_path) == {"b.zip"}


def test_members_that_ask_for_memory_to_unfold_are_refused(tmp_path, candidate):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("entry.json", "{}")
        archive.writestr("predictions.parquet", b"")
    refused(lambda: from_bundle(tmp_path / "b.zip"), "must be stored or deflated")


def test_a_decoder_that_dies_is_a_line_and_the_next_file_gets_another(candidate, monkeypatch, toy):
    made, layout = candidate(), evidence.Layout(toy)
    parse = partial(evidence.parse, made.data, layout, "it")
    decode._running().process.kill()  # by anything, before the file came
    decode._running().process.wait()
    parse()
    decode._running.cache_clear()
    monkeypatch.setattr(decode.sys, "executable", shutil.which("false"))
    refused(parse, "it: not predictions of toy-ci: not decoded within 512 MiB and 20 s")
    monkeypatch.undo()
    parse()


def test_members_given_twice_are_refused(tmp_path, candidate):
    to_bundle(candidate(), tmp_path / "b.zip")
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "b.zip", "a") as archive,
    ):
        archive.writestr("entry.json", "{}")
    refused(lambda: from_bundle(tmp_path / "b.zip"), "nothing else")


def table_bytes(columns, **options):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"PAR1" * 3, "not predictions of toy-ci"),
        (lambda: b"", "not predictions of toy-ci"),
        (lambda: table_bytes({"seed-0": [0.5] * 360}), "int16"),
        (lambda: table_bytes({"seed-0": [np.nan] * 360}), "int16"),
        (lambda: table_bytes({"x": small([0] * 360)}), "columns must be"),
        (lambda: table_bytes({"seed-00": small([0] * 360)}), "columns must be"),
        (
            lambda: table_bytes({"seed-1": small([0] * 360), "seed-0": small([0] * 360)}),
            "ascending",
        ),
        (lambda: table_bytes({f"seed-{i}": small([0] * 360) for i in range(101)}), "at most 100"),
        (lambda: table_bytes({"seed-0": small([0] * 359)}), "359 rows, but there must be 360"),
        (lambda: table_bytes({"seed-0": small([None] * 360)}), "no prediction for some clips"),
        (lambda: table_bytes({"seed-0": small([11] * 360)}), "predicts class 11 in row 1"),
        (lambda: table_bytes({"seed-0": small([-1] * 360)}), "predicts class -1 in row 1"),
        (lambda: table_bytes({"seed-0": small([0] * 360)}, row_group_size=10), "row groups"),
        (lambda: huge_page(), "malloc of size 2147483"),  # noqa: PLW0108
        # Tiny on disk, a billion rows in its own account.
        (lambda: billion_rows(), "1,000,000,000 rows, but there must be 360"),  # noqa: PLW0108
    ],
)
def test_hostile_predictions_are_refused(tmp_path, candidate, data, message):
    to_bundle(candidate(), tmp_path / "b.zip")
    rewrite(tmp_path / "b.zip", parquet=data())
    refused(lambda: from_bundle(tmp_path / "b.zip"), message)


def small(values):
    return pa.array(values, pa.int16())


def billion_rows():
    """A file of no more than its metadata: many row groups, each claiming many rows."""
    data = bytearray(table_bytes({"seed-0": small([0] * 360)}, compression="zstd"))
    # The row count in Thrift's compact form: zigzag varints, of equal length once padded.
    old, new = varint(2 * 360, 5), varint(2 * 10**9, 5)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    short = varint(2 * 360, 2)
    tail = bytes(data[footer:-8]).replace(short, new)
    assert new in tail
    assert old != new
    return bytes(data[:footer]) + tail + len(tail).to_bytes(4, "little") + b"PAR1"


def huge_page():
    """A file whose page says that it unfolds to 2 GB, and whose metadata know nothing of it."""
    values = np.random.default_rng(0).integers(0, 12, 360)
    data = table_bytes({"seed-0": small(values)}, use_dictionary=False, compression="zstd")
    column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    # Behind the page's type, a whole number in Thrift's compact form (0x15), comes its size.
    assert data[4:7] == b"\x15\x00\x15"
    data = data[:7] + varint(2 * (2**31 - 1), 5) + data[9:]
    # The account of the column: unfolded size and size on disk (0x16), which is three more now.
    sizes = [column.total_uncompressed_size, column.total_compressed_size]
    there = b"".join(b"\x16" + varint(2 * size, 2) for size in sizes)
    more = b"".join(b"\x16" + varint(2 * size, 2) for size in (sizes[0], sizes[1] + 3))
    assert data.count(there) == 1
    return data.replace(there, more)


def varint(value, length):
    parts = [(value >> (7 * i)) & 0x7F for i in range(length)]
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


def with_value(table, name, value):
    column = table[name].to_pylist()
    column[0] = value
    return table.set_column(table.column_names.index(name), name, pa.array(column))


def rewrite(path, *, entry=None, parquet=None):
    """Change what a bundle holds."""
    with zipfile.ZipFile(path) as archive:
        said, data = archive.read("entry.json"), archive.read("predictions.parquet")
    if entry:
        said = json.dumps(entry(json.loads(said))).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("entry.json", said)
        archive.writestr("predictions.parquet", data if parquet is None else parquet)


def damaged(data, random):
    """Change, cut and insert bytes."""
    target = bytearray(data)
    for _ in range(random.integers(1, 4)):
        start = int(random.integers(len(target)))
        match random.integers(3):
            case 0:
                target[start] = int(random.integers(256))
            case 1:
                del target[start : start + int(random.integers(1, 40))]
            case 2:
                target[start:start] = random.bytes(int(random.integers(1, 10)))
    return bytes(target)


ODD = [None, True, -1, 0, 2**70, 1e308, 0.5, [], {}, [[]], ["a", None], {"name": 1}, "x" * 9999]
ODD += ["", "../../x", "/etc/x", "a/b", "\x00", "=1+1", "<script>", "\u202e", "\ud800", "mine"]


def odd_record(said, random):
    """Change, drop and add fields."""
    record = json.loads(said)
    for _ in range(random.integers(1, 3)):
        key = str(random.choice([*record, "kind", "repeats", "metrics"]))
        if random.integers(4) == 0:
            record.pop(key, None)
        else:
            record[key] = ODD[random.integers(len(ODD))]
    return json.dumps(record).encode()


def odd_table(data, random):
    """Write other columns, types, values, row groups and encodings."""
    table = pq.read_table(io.BytesIO(data))
    name, column = table.column_names[0], table.column(0).to_numpy()
    other = {
        0: lambda: {name: pa.array(column).cast(str(random.choice(["int8", "int32", "float"])))},
        1: lambda: {name: small([*column[:-1].tolist(), int(random.choice([-1, 11, 12, 32767]))])},
        2: lambda: {name: small(column[: random.integers(361)])},
        3: lambda: {
            str(random.choice(["x", "seed--1", "seed-01", "seed-2147483648"])): small(column)
        },
        4: lambda: {name: small([None, *column[1:].tolist()])},
        5: lambda: {f"seed-{i}": small(column) for i in range(random.integers(1, 130))},
        6: lambda: {name: pa.array([column.tolist()] * 360)},
        7: lambda: {name: small(random.permutation(column))},
    }[int(random.integers(8))]()
    options = {
        "row_group_size": int(random.choice([1, 100, 10**6])),
        "compression": str(random.choice(["none", "snappy", "gzip", "brotli", "lz4", "zstd"])),
        "use_dictionary": bool(random.integers(2)),
        "data_page_version": str(random.choice(["1.0", "2.0"])),
        "data_page_size": int(random.choice([1, 10**6])),
    }
    return table_bytes(other, **options)


def odd_zip(members, random):
    """Pack members with others, by other names, in other ways."""
    names = ["../x", "/x", "entry.json/", "ENTRY.JSON", "entry.json\\", "predictions.parquet", "é"]
    packed = list(members.items())
    match random.integers(3):
        case 0:
            packed.append((names[random.integers(len(names))], b"x"))
        case 1:
            packed[random.integers(2)] = (names[random.integers(len(names))], b"{}")
        case 2:
            packed = packed[:1] * int(random.integers(2))
    sink = io.BytesIO()
    way = int(random.choice([zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "w", way) as archive:
        warnings.simplefilter("ignore")  # of names given twice
        for name, data in packed:
            archive.writestr(name, data)
    return sink.getvalue()


def fuzzed(bundle, random):
    """Damage a bundle in one of many ways."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    said, data = members["entry.json"], members["predictions.parquet"]
    match random.integers(6):
        case 0:
            return damaged(bundle, random)
        case 1:
            return odd_zip(members, random)
        case 2:
            said = damaged(said, random)
        case 3:
            said = odd_record(said, random)
        case 4:
            data = damaged(data, random)
        case 5:
            data = odd_table(data, random)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("entry.json", said)
        archive.writestr("predictions.parquet", data)
    return sink.getvalue()


# AVBENCH_FUZZ=10000 runs as many.
FUZZ = int(os.environ.get("AVBENCH_FUZZ", "400"))


@pytest.mark.slow
def test_damaged_bundles_are_taken_whole_or_refused_in_a_line(tmp_path, candidate, boards):
    to_bundle(candidate(), tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    random = np.random.default_rng(0)
    taken, refusals = 0, []
    for _ in range(FUZZ):
        (tmp_path / "b.zip").write_bytes(fuzzed(whole, random))
        try:
            place = add(from_bundle(tmp_path / "b.zip"), boards)
        except AvbenchError as error:
            refusals.append(str(error))
            continue
        taken += 1
        assert check([boards / "toy-ci.json"]).problems == ()
        evidence_file = f"predictions/toy-ci/{place.entry.name}.parquet"
        assert files(tmp_path) == {
            "whole.zip",
            "b.zip",
            "leaderboards/toy-ci.json",
            f"leaderboards/{evidence_file}",
        }
        (boards / evidence_file).unlink()
        Board(benchmark="toy-ci").write(boards / "toy-ci.json")
    assert files(tmp_path) == {"whole.zip", "b.zip", "leaderboards/toy-ci.json"}
    assert not any("\n" in line for line in refusals)
    assert 0 < taken < len(refusals)


def test_damaged_forms_are_read_whole_or_refused_in_a_line(tmp_path, about):
    facts = about().model_dump(mode="json")
    whole = template(facts).encode()
    random = np.random.default_rng(0)
    path = tmp_path / "entry.toml"
    read, refusals = 0, []
    for _ in range(FUZZ):
        path.write_bytes(damaged(whole, random))
        try:
            read_metadata(path)
            read += 1
        except AvbenchError as error:
            refusals.append(str(error))
    assert not any("\n" in line for line in refusals)
    assert all(line.startswith(str(path)) for line in refusals)
    assert min(read, len(refusals)) > FUZZ / 10


@pytest.mark.slow
def test_submitting_at_once_loses_no_entry(candidate, boards, tmp_path):
    started = []
    for i in range(3):
        to_bundle(candidate(name=f"entry-{i}", rng=i), tmp_path / f"{i}.zip")
    with resources.alone(boards, "holding them back, so that all are there at once"):
        for i in range(3):
            command = [AVBENCH, "submit", tmp_path / f"{i}.zip", "--boards", boards]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_for(lambda: all_wait_for_a_lock(started))
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    board = Board.read(boards / "toy-ci.json")
    assert [entry.name for entry in board.entries] == ["entry-0", "entry-1", "entry-2"]
    assert check([boards / "toy-ci.json"]).problems == ()


@pytest.mark.slow
def test_a_killed_submit_leaves_a_board_that_can_be_gone_on_with(candidate, boards, tmp_path):
    to_bundle(candidate(), tmp_path / "b.zip")
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from avbench.leaderboard import submit\n"
        "from avbench.leaderboard.board import Board\n"
        "def write(self, path):\n"
        "    print('reached', flush=True)\n"
        "    time.sleep(60)\n"
        "Board.write = write\n"
        "submit.add(submit.from_bundle(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "b.zip", boards]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"reached\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Board.read(boards / "toy-ci.json").entries == ()
    (left,) = check([boards / "toy-ci.json"]).problems
    assert "belongs to no entry" in left.message
    add(from_bundle(tmp_path / "b.zip"), boards)
    assert check([boards / "toy-ci.json"]).problems == ()


def test_predictions_of_vs100_stay_under_two_megabytes():
    benchmark = Benchmark.load("vs100-ci")
    table = predictions(benchmark, seeds=range(5), skill=0.5)
    measured = score(table, benchmark)
    data = evidence.to_bytes(measured)
    assert len(data) < 2_000_000
    again = evidence.parse(data, evidence.Layout(benchmark), "them")
    assert (again.predicted == measured.predicted).all()
    assert (again.outcomes.correct == measured.outcomes.correct).all()
