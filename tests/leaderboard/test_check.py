"""Whatever is altered is found; what was there before stays."""

from __future__ import annotations

import json
import subprocess

import pytest

from avbench.leaderboard.board import Board
from avbench.leaderboard.check import check, check_pages
from avbench.leaderboard.entry import Reported
from avbench.leaderboard.render import render
from avbench.leaderboard.submit import add, to_bundle
from avbench.types import AvbenchError


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


def test_every_altered_number_is_found(path):
    """Each number of an entry that is computed, by the least that can be written."""
    original = Board.read(path)
    computed = ("metrics", "accuracy_per_step", "accuracy_matrix", "seeds")
    record = json.loads(original.to_text())
    places = [at for at, _ in leaves(record["entries"][0]) if at[0] in computed]
    assert len(places) > 40
    for at in places:
        changed = json.loads(original.to_text())
        holder = changed["entries"][0]
        for key in at[:-1]:
            holder = holder[key]
        holder[at[-1]] += 3 if at[0] == "seeds" else 1e-4 if holder[at[-1]] < 50 else -1e-4
        Board.parse(json.dumps(changed).encode(), "it").write(path)
        assert messages(path), at
        assert check([path]).verified == 1
    original.write(path)
    assert messages(path) == []


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


def test_links_lead_nowhere(path, boards, candidate, tmp_path):
    folder = boards / "predictions" / "toy-ci"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    (message,) = messages(path)
    assert "is a link" in message
    with pytest.raises(AvbenchError, match="toy-ci: is a link"):
        add(candidate(name="third", rng=2), boards)
    assert not (tmp_path / "outside" / "third.parquet").exists()


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
    assert check_pages(boards) == []
    for name, text in render(boards).items():
        (boards / name).write_text(text)
    assert check_pages(boards) == []
    page = boards / "index.html"
    page.write_text(page.read_text().replace("second", "first", 1))
    assert [problem.file for problem in check_pages(boards)] == [str(page)]


@pytest.fixture
def committed(path, boards):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", "-C", boards, *identity, *arguments], check=True, capture_output=True
        )

    said = {"method": "M", "modality": "audio", "source": "S", "url": "https://example.org"}
    reported = Reported(name="said", access="incremental", mean_accuracy=9, **said)
    Board.read(path).with_entry(reported).write(path)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Boards")
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
    assert (row["rank"], row["name"]) == (1, "mine")
    avbench("leaderboard", "render")
    assert "1 entries recomputed: all" in avbench("leaderboard", "check").stdout
    (boards / "predictions" / "evil").mkdir()
    (boards / "evil.html").write_text("")
    lines = avbench("leaderboard", "check", expect=1).stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [
        "leaderboards/evil.html",
        "leaderboards/predictions/evil",
    ]
    (boards / "predictions" / "evil").rmdir()
    (boards / "evil.html").unlink()
    assert "no entries on vs100-ci-clean yet" in (
        avbench("leaderboard", "show", "vs100-ci-clean").stdout
    )
    assert "no leaderboard for ks-ci:seed=3" in (
        avbench("submit", "--init", "v.toml", "--benchmark", "ks-ci:seed=3", expect=1).stderr
    )
    (boards / "README.md").write_text("")
    assert "does not show these boards" in avbench("leaderboard", "check", expect=1).stdout
    for arguments in ([], ["b.zip", "--predictions", "x.csv"], ["b.zip", "--metadata", "x"]):
        assert len(avbench("submit", *arguments, expect=2).stderr.splitlines()) == 1
    avbench("submit", "--init", "e.toml", "--benchmark", "ks-ci")
    assert (
        "is there already"
        in avbench("submit", "--init", "e.toml", "--benchmark", "ks-ci", expect=1).stderr
    )
