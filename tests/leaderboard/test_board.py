"""Boards: canonical files, the paper's rows, a published schema."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from avbench import resources
from avbench.leaderboard.board import Board, BoardFile, schema
from avbench.leaderboard.check import check, check_pages
from avbench.leaderboard.submit import add
from avbench.manifests.spec import shipped_names
from avbench.types import AvbenchError

ROOT = Path(__file__).parents[2]
SHIPPED = resources.shipped("leaderboards")
FORMAT_2 = Path(__file__).with_name("toy-ci-format-2.json")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_boards_are_canonical(name, tmp_path):
    Board.read(SHIPPED / f"{name}.json").write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (SHIPPED / f"{name}.json").read_bytes()


def test_shipped_boards_and_pages_hold_what_their_predictions_prove():
    found = check([SHIPPED / f"{name}.json" for name in shipped_names()])
    assert found.problems == ()
    assert found.verified >= 9
    assert check_pages(SHIPPED) == []


def test_every_reference_method_is_on_toy_ci_with_five_seeds():
    from avbench import registry

    entries = {entry.name: entry for entry in Board.read(SHIPPED / "toy-ci.json").entries}
    for method in registry.registered("methods"):
        assert entries[method].seeds == (0, 1, 2, 3, 4)


def test_the_papers_rows_are_as_printed():
    """Tables 1 and 2 of the paper differ in four cells: both are there, labelled."""
    rows = {
        name: {e.name: e for e in Board.read(SHIPPED / f"{name}.json").entries}
        for name in ("ave-ci", "ks-ci", "vs100-ci")
    }
    cells = {
        ("vs100-ci", "paper-icarl-nme"): (56.19, "Table 1"),
        ("vs100-ci", "paper-icarl-nme-table-2"): (56.62, "Table 2"),
        ("ks-ci", "paper-icarl-fc"): (65.54, "Table 1"),
        ("ks-ci", "paper-icarl-fc-table-2"): (65.05, "Table 2"),
        ("vs100-ci", "paper-afc-nme"): (61.41, "Table 1"),
        ("vs100-ci", "paper-afc-nme-table-2"): (61.1, "Table 2"),
        ("vs100-ci", "paper-afc-lsc"): (57.76, "Table 1"),
        ("vs100-ci", "paper-afc-lsc-table-2"): (58.15, "Table 2"),
        ("ave-ci", "paper-lwf"): (58.07, "Tables 1 and 2"),
        ("ave-ci", "paper-oracle-audio"): (63.66, "Table 2"),
        ("ave-ci", "paper-av-cil"): (74.04, "Table 1"),
        ("ks-ci", "mmal"): (78.98, "abstract"),
    }
    for (board, name), (accuracy, where) in cells.items():
        assert rows[board][name].mean_accuracy == accuracy
        assert where in rows[board][name].source
    assert rows["ave-ci"]["paper-av-cil"].average_forgetting == 7.63
    assert {board: len(entries) for board, entries in rows.items()} == {
        "ave-ci": 26,
        "ks-ci": 27,
        "vs100-ci": 29,
    }


@pytest.mark.parametrize("name", ["ave-ci", "toy-ci"])
def test_digests_follow_the_rule_in_the_docs(name):
    board = json.loads((SHIPPED / f"{name}.json").read_text())
    for entry in board["entries"]:
        digest = entry.pop("digest")
        text = json.dumps([name, entry], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert digest == hashlib.sha256(text.encode("ascii")).hexdigest()


def test_boards_of_the_format_before_stay_readable():
    """As the board of toy-ci was published, before entries had digests."""
    old = BoardFile.parse(FORMAT_2.read_bytes(), "it")
    assert (old.format, old.edited) == (2, ())
    entries = {entry.name: entry for entry in Board.read(SHIPPED / "toy-ci.json").entries}
    assert len(old.board.entries) == 9
    for entry in Board.read(FORMAT_2).entries:
        assert entries[entry.name] == entry


def test_the_published_schema_is_the_one_in_use():
    published = json.loads((ROOT / "docs" / "schema" / "leaderboard.json").read_text())
    assert published == schema()


def test_numbers_share_a_line_and_texts_stay_as_they_are(boards, candidate):
    text = "[ 1,   2 ] and [\\n 3 ]"
    add(candidate(method=text), boards)
    path = boards / "toy-ci.json"
    assert json.loads(path.read_text())["entries"][0]["method"] == text
    assert '"seeds": [0, 1, 2],\n' in path.read_text()
    assert Board.read(path).to_text() == path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b | {"more": 1}, "more"),
        (lambda b: {"benchmark": "toy-ci"} | {"entries": 3}, "entries"),
        (lambda b: b | {"entries": b["entries"] * 2}, "different names"),
        (lambda b: b | {"benchmark": "ks-ci"}, "another benchmark"),
        (lambda b: with_first(b, kind="best"), "kind"),
        (lambda b: with_first(b, exemplars="60"), "exemplars"),
        (lambda b: with_first(b, url="javascript:alert(1)"), "url"),
        (lambda b: with_first(b, metrics={}), "has a mean accuracy"),
        (lambda b: with_first(b, digest="ab"), "digest: must be the 64 lowercase digits"),
        (lambda b: with_first(b, preset="Filterbank"), "preset: must be"),
        (lambda b: with_first(b, name="paper-mine"), "name: must not begin with paper"),
        (lambda b: b | {"entries": [b["entries"][0], b["entries"][0] | {"name": "mine-"}]}, "name"),
        (
            lambda b: b | {"entries": [b["entries"][0] | {"name": "m1ne"}, b["entries"][0]]},
            "mine looks like m1ne",
        ),
    ],
)
def test_what_is_not_a_board_is_one_line(boards, candidate, change, message):
    add(candidate(), boards)
    path = boards / "toy-ci.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(AvbenchError, match=f"not a leaderboard of avbench: .*{message}") as caught:
        Board.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [1, 4, "3", None, 2.5])
def test_other_versions_are_a_line_of_their_own(boards, version):
    path = boards / "toy-ci.json"
    path.write_text(json.dumps({"format": version, "benchmark": "toy-ci", "new": 1}))
    with pytest.raises(AvbenchError, match=r"toy-ci.json: not format 3 of a leaderboard: use"):
        Board.read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "101", "null"])
def test_numbers_that_are_none_are_refused(boards, candidate, number):
    add(candidate(), boards)
    path = boards / "toy-ci.json"
    entry = Board.read(path).entries[0]
    broken = path.read_text().replace(f'"mean": {entry.mean_accuracy}', f'"mean": {number}', 1)
    assert broken != path.read_text()
    path.write_text(broken)
    with pytest.raises(AvbenchError, match="not a leaderboard"):
        Board.read(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_bytes_that_are_no_board_are_one_line(tmp_path, data):
    (tmp_path / "toy-ci.json").write_bytes(data)
    with pytest.raises(AvbenchError, match="not a leaderboard"):
        Board.read(tmp_path / "toy-ci.json")


def with_first(board, **changes):
    return board | {"entries": [board["entries"][0] | changes]}
