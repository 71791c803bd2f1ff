"""Whatever is altered is found; what was there before stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from avbench import resources
from avbench.leaderboard.board import Board, BoardFile
from avbench.leaderboard.check import check, check_pages
from avbench.leaderboard.entry import Reported, Verified
from avbench.leaderboard.history import Base
from avbench.leaderboard.render import render
from avbench.leaderboard.submit import add, to_bundle
from avbench.types import AvbenchError

SHIPPED = resources.shipped("leaderboards")
FORMAT_2 = Path(__file__).with_name("toy-ci-format-2.json")


@pytest.fixture
def path(boards, candidate):
    """A board of two entries."""
    add(candidate(), boards)
    add(candidate(name="second", rng=1), boards)
    return boards / "toy-ci.json"


def messages(path, **options):
    return [problem.message for problem in check([path], **options).problems]


def test_nothing_altered_is_nothing_found(path):
    found = check([path], workers=2)
    assert found.problems == ()
    assert found.verified == 2


def leaves(record, at=()):
    """Every number and text of a record, with its place."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


SAID = {
    "method": "M",
    "modality": "audio",
    "access": "incremental",
    "source": "S",
    "url": "https://example.org",
    "mean_accuracy": 9.0,
    "average_forgetting": 1.0,
    "seeds": 3,
}
OTHERWISE = {"modality": "visual", "access": "joint", "preset": "avcil", "name": "mine-too"}


def altered(field, value):
    """Return something else that could stand there, by the least that can be written."""
    if field in OTHERWISE:
        return OTHERWISE[field]
    if isinstance(value, str):
        return "0" * 64 if len(value) == 64 else f"{value}x"
    if isinstance(value, int):
        return value + 1
    return value - 1e-4 if value > 50 or field == "coverage" else value + 1e-4


def with_leaf(record, at, value):
    """Return a copy of a record with another leaf."""
    changed = json.loads(json.dumps(record))
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    return changed


def test_every_altered_field_is_found_by_its_digest(path, candidate):
    """Of entries verified and reported, whether or not it can be computed."""
    known = {"exemplar_bytes": 10, "stored_bytes": 20, "features_hash": "f" * 64}
    full = candidate(seconds=1.5, **known).entry
    board = Board(benchmark="toy-ci", entries=(full, Reported(name="said", **SAID)))
    record = json.loads(board.to_text())
    tried = set()
    for number, entry in enumerate(record["entries"]):
        for at, value in leaves(entry):
            if at[0] not in ("kind", "benchmark"):
                text = json.dumps(
                    with_leaf(record, ("entries", number, *at), altered(at[0], value))
                )
                (edited,) = BoardFile.parse(text.encode(), "it").edited
                assert edited in (entry["name"], "mine-too")
                tried.add(at[0])
        for field in set(entry) & {"seconds", "preset_hash", "average_forgetting", "digest"}:
            left = {k: v for k, v in entry.items() if k != field}
            text = json.dumps(record | {"entries": [left]})
            assert BoardFile.parse(text.encode(), "it").edited == (entry["name"],)
    assert tried == {*Verified.model_fields, *Reported.model_fields} - {
        "kind",
        "benchmark",
        "repeats",
    }


def test_an_entry_moved_to_another_board_is_found():
    board = Board(benchmark="ks-ci", entries=(Reported(name="said", **SAID),))
    text = board.to_text().replace("ks-ci", "ave-ci")
    assert BoardFile.parse(text.encode(), "it").edited == ("said",)


def test_no_command_goes_on_with_an_edited_entry(avbench, path, boards, candidate):
    """It would get a digest that hides the edit."""
    path.write_text(path.read_text().replace("A. Author", "B. Author", 1))
    assert "edited since avbench wrote it" in avbench("leaderboard", "render", expect=1).stderr
    with pytest.raises(AvbenchError, match="toy-ci.json: mine: edited since avbench wrote it"):
        add(candidate(name="third", rng=2), boards)
    result = avbench("leaderboard", "check", expect=1)
    assert "leaderboards/toy-ci.json: mine: edited since avbench wrote it" in result.stdout
    assert "2 entries recomputed" in result.stdout


def test_every_altered_number_is_found(path):
    """Each number of an entry that is computed, even if whoever altered it renewed the digest."""
    original = Board.read(path)
    computed = ("metrics", "accuracy_per_step", "accuracy_matrix", "seeds")
    record = json.loads(original.to_text())
    places = [at for at in leaves(record["entries"][0]) if at[0][0] in computed]
    assert len(places) > 40
    for at, value in places:
        changed = with_leaf(record, ("entries", 0, *at), altered(at[0], value))
        BoardFile.parse(json.dumps(changed).encode(), "it").board.write(path)
        assert messages(path), at
        assert check([path]).verified == 1
    original.write(path)
    assert messages(path) == []


def test_a_board_of_the_format_before_is_brought_into_todays_by_rendering(avbench, boards):
    shutil.copytree(SHIPPED / "predictions", boards / "predictions")
    shutil.copy(FORMAT_2, boards / "toy-ci.json")
    assert messages(boards / "toy-ci.json") == [
        "is of format 2, without digests: run avbench leaderboard render"
    ]
    assert "leaderboards/toy-ci.json" in avbench("leaderboard", "render").stdout
    assert json.loads((boards / "toy-ci.json").read_text())["format"] == 3
    assert "9 entries recomputed: all" in avbench("leaderboard", "check").stdout
    assert "toy-ci.json" not in avbench("leaderboard", "render").stdout


def test_digests_in_a_board_of_the_format_before_are_an_edit(path):
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(AvbenchError, match="mine, second: edited"):
        Board.read(path)


def test_altered_predictions_are_found_even_if_no_score_moves(path, boards, candidate):
    file = boards / "predictions" / "toy-ci" / "mine.parquet"
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    assert messages(path) == ["was changed: restore it from version control"]
    file.write_bytes(candidate(rng=9).data)
    assert messages(path) == ["was changed: restore it from version control"]
    file.unlink()
    (message,) = messages(path)
    assert message.startswith("no predictions")


def test_files_too_many_and_edits_by_hand_are_found(path, boards):
    (boards / "predictions" / "toy-ci" / "third.parquet").write_bytes(b"")
    assert messages(path) == ["belongs to no entry: remove it"]
    (boards / "predictions" / "toy-ci" / "third.parquet").unlink()
    path.write_text(path.read_text().replace('"format"', ' "format"'))
    assert messages(path) == ["is not written as avbench writes it: was it edited by hand?"]


def test_entries_made_by_hand_must_keep_the_rules_too(path):
    board = Board.read(path)
    greedy = board.entries[0].model_copy(update={"exemplars": 61})
    Board(benchmark="toy-ci", entries=(greedy, *board.entries[1:])).write(path)
    (message,) = messages(path)
    assert "made with 61 exemplars, but toy-ci allows 60" in message


def test_other_line_ends_are_an_edit(path, boards):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert messages(path) == ["is not written as avbench writes it: was it edited by hand?"]
    (boards / "README.md").write_bytes(b"\xff")
    (boards / "index.html").mkdir()
    assert len(check_pages(boards)) == 2


@pytest.mark.parametrize("place", ["predictions", "predictions/toy-ci", "toy-ci.json", "README.md"])
def test_links_lead_nowhere(path, boards, candidate, tmp_path, place):
    (boards / "README.md").touch()
    outside = tmp_path / "outside"
    (boards / place).rename(outside)
    before = sorted(outside.rglob("*"))
    (boards / place).symlink_to(outside)
    assert messages(path) == ["is a link: put what it leads to there itself"]
    with pytest.raises(AvbenchError, match=f"{place}: is a link"):
        add(candidate(name="third", rng=2), boards)
    assert sorted(outside.rglob("*")) == before


def test_one_file_of_predictions_that_is_a_link_is_found(path, boards, tmp_path):
    file = boards / "predictions" / "toy-ci" / "mine.parquet"
    file.rename(tmp_path / "mine.parquet")
    file.symlink_to(tmp_path / "mine.parquet")
    (problem,) = check([path]).problems
    assert (problem.file, problem.message) == (
        str(file),
        "is a link: put what it leads to there itself",
    )


def test_a_copy_under_a_new_name_is_found(path, boards):
    board = Board.read(path)
    copy = board.entries[0].model_copy(update={"name": "copy", "method": "Better"})
    folder = boards / "predictions" / "toy-ci"
    (folder / "copy.parquet").write_bytes((folder / "mine.parquet").read_bytes())
    board.with_entry(copy).write(path)
    (message,) = messages(path)
    assert message.startswith("mine has predictions of copy: seed 0 shares 100.0 % of its errors")
    assert messages(path) == [message]


def test_pages_that_show_something_else_are_found(path, boards):
    missing = [(problem.file, problem.message) for problem in check_pages(boards)]
    assert missing == [
        (str(boards / name), "is missing: run avbench leaderboard render")
        for name in ("README.md", "index.html")
    ]
    for name, text in render(boards).items():
        (boards / name).write_text(text)
    assert check_pages(boards) == []
    page = boards / "index.html"
    page.write_text(page.read_text().replace("second", "first", 1))
    assert [problem.file for problem in check_pages(boards)] == [str(page)]


def commit(boards):
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "Boards"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", boards, *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def committed(path, boards):
    Board.read(path).with_entry(Reported(name="said", **SAID)).write(path)
    commit(boards)
    return path


def test_additions_keep_history(committed, boards, candidate):
    add(candidate(name="third", rng=2), boards)
    assert messages(committed, base="HEAD") == []


def test_no_entry_of_the_base_may_change_or_go(committed, boards, candidate):
    board = Board.read(committed)
    first, said, second = board.entries
    changed = said.model_copy(update={"mean_accuracy": 8.0})
    Board(benchmark="toy-ci", entries=(first, changed, second)).write(committed)
    assert messages(committed, base="HEAD") == ["said was changed since HEAD"]
    changed = said.model_copy(update={"source": "T"})
    Board(benchmark="toy-ci", entries=(first, changed, second)).write(committed)
    assert messages(committed, base="HEAD") == ["said was changed since HEAD"]
    Board(benchmark="toy-ci", entries=(first, second)).write(committed)
    assert messages(committed, base="HEAD") == ["said was removed since HEAD"]
    # Others' predictions and numbers, consistently.
    forged = candidate(rng=7)
    (boards / "predictions" / "toy-ci" / "mine.parquet").write_bytes(forged.data)
    Board(benchmark="toy-ci", entries=(forged.entry, said, second)).write(committed)
    assert messages(committed) == []
    assert messages(committed, base="HEAD") == ["mine was changed since HEAD"]


def test_a_base_without_boards_there_is_no_base(committed, boards):
    """Entries of boards that lie elsewhere than before are compared with nothing."""
    shutil.copytree(boards / "predictions", boards / "moved" / "predictions")
    shutil.copy(committed, boards / "moved")
    assert messages(boards / "moved" / "toy-ci.json", base="HEAD") == [
        "has no boards at HEAD: nothing was compared"
    ]


def test_entries_published_in_the_format_before_are_compared(boards):
    shutil.copytree(SHIPPED / "predictions", boards / "predictions")
    path = boards / "toy-ci.json"
    shutil.copy(FORMAT_2, path)
    commit(boards)
    board = Board.read(path)
    board.write(path)
    assert messages(path, base="HEAD") == []
    first, *others = board.entries
    changed = first.model_copy(update={"authors": ("A. Author",)})
    Board(benchmark="toy-ci", entries=(changed, *others)).write(path)
    assert messages(path) == []
    assert messages(path, base="HEAD") == ["afc-lsc was changed since HEAD"]


def test_the_base_is_read_at_the_path_that_was_typed(path, boards):
    commit(boards.parent)
    boards.rename(boards.parent / "elsewhere")
    boards.symlink_to("elsewhere")
    published = Base.of(boards, "HEAD").boards
    assert [entry.name for entry in published["toy-ci.json"]] == ["mine", "second"]
    assert Base.of(boards.parent / "elsewhere", "HEAD").boards == {}


def test_outside_a_work_tree_there_is_no_base(path):
    with pytest.raises(
        AvbenchError, match="is in no git work tree: run check --base in a checkout"
    ):
        check([path], base="HEAD")


def test_no_board_of_the_base_may_go(committed, boards):
    committed.rename(boards / "ks-ci.json")
    found = check([boards / "ks-ci.json"], base="HEAD").problems
    assert "was removed since HEAD" in [problem.message for problem in found]


@pytest.mark.parametrize("base", ["nowhere", "--help", ""])
def test_a_base_that_is_none_is_one_line(committed, base):
    with pytest.raises(AvbenchError, match="check --base") as caught:
        check([committed], base=base)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_line(avbench, boards, candidate, tmp_path):
    rows = json.loads(avbench("leaderboard", "show", "ave-ci", "--json").stdout)
    assert {row["verified"] for row in rows} == {False}
    assert {row["rank"] for row in rows} == {None}
    text = avbench("leaderboard", "show", "toy-ci").stdout
    assert text.splitlines()[2].startswith("1= ")
    to_bundle(candidate(), tmp_path / "b.zip")
    row = json.loads(avbench("submit", "b.zip", "--json").stdout)
    assert (row["rank"], row["name"]) == (None, "mine")
    avbench("leaderboard", "render")
    assert "1 entries recomputed: all" in avbench("leaderboard", "check").stdout
    (boards / "predictions" / "evil").mkdir()
    (boards / "evil.html").write_text("")
    (boards / ".lock").write_text(f"{os.getpid()} changing these leaderboards")
    lines = avbench("leaderboard", "check", expect=1).stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "leaderboards/.lock",
        "leaderboards/evil.html",
        "leaderboards/predictions/evil",
    ]
    (boards / "predictions" / "evil").rmdir()
    (boards / "evil.html").unlink()
    (boards / ".lock").unlink()
    assert "no entries on vs100-ci-clean yet" in (
        avbench("leaderboard", "show", "vs100-ci-clean").stdout
    )
    assert "no leaderboard for ks-ci:seed=3" in (
        avbench("submit", "--init", "v.toml", "--benchmark", "ks-ci:seed=3", expect=1).stderr
    )
    (boards / "README.md").write_text("")
    assert "does not show these boards" in avbench("leaderboard", "check", expect=1).stdout
    (boards / "README.md").unlink()
    assert "README.md: is missing" in avbench("leaderboard", "check", expect=1).stdout
    for arguments in ([], ["b.zip", "--predictions", "x.csv"], ["b.zip", "--metadata", "x"]):
        assert len(avbench("submit", *arguments, expect=2).stderr.splitlines()) == 1
    avbench("submit", "--init", "e.toml", "--benchmark", "ks-ci")
    assert (
        "is there already"
        in avbench("submit", "--init", "e.toml", "--benchmark", "ks-ci", expect=1).stderr
    )
