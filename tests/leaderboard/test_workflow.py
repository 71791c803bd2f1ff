"""The workflow that judges pull requests, its own lines run on clones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avbench.leaderboard.board import Board, evidence_path
from avbench.leaderboard.render import render
from avbench.leaderboard.submit import add

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "leaderboards.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
INSTALL, CHECK = (step for step in JOB["steps"] if "run" in step)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", folder, *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def rendered(boards):
    for name, text in render(boards).items():
        (boards / name).write_text(text, encoding="utf-8")


@pytest.fixture
def proposed(boards, candidate, tmp_path):
    """A clone of a repository with two entries, on a branch."""
    add(candidate(), boards)
    add(candidate(name="second", rng=1), boards)
    rendered(boards)
    origin = tmp_path / "origin"
    origin.mkdir()
    boards.rename(origin / "leaderboards")
    git(origin, "init", "-q", "-b", "main")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "Boards")
    git(tmp_path, "clone", "-q", "origin", "proposed")
    git(tmp_path / "proposed", "switch", "-qc", "entry")
    return tmp_path / "proposed"


@pytest.fixture
def judge(proposed):
    """Commit what was changed and run the step of the workflow as GitHub does."""

    def run(*amend):
        base = git(proposed, "rev-parse", "origin/main")
        git(proposed, "add", ".")
        git(proposed, "commit", "-qm", "Proposal", "--allow-empty", *amend)
        assert CHECK["working-directory"] == "proposed"
        given = {"${{ github.event.pull_request.base.sha }}": base}
        env = {name: given.get(value, str(value)) for name, value in CHECK["env"].items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-e", "-c", CHECK["run"]],
            cwd=proposed,
            env=os.environ | {"PATH": path} | env,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_an_entry_more_passes(proposed, judge, candidate):
    add(candidate(name="third", rng=2), proposed / "leaderboards")
    rendered(proposed / "leaderboards")
    result = judge()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 entries recomputed: all as they must be" in result.stdout


def without(boards, name):
    board = Board.read(boards / "toy-ci.json")
    left = tuple(entry for entry in board.entries if entry.name != name)
    Board(benchmark="toy-ci", entries=left).write(boards / "toy-ci.json")
    (boards / "predictions" / "toy-ci" / f"{name}.parquet").unlink()


def delete(boards, _):
    without(boards, "second")


def edit(boards, candidate):
    """Worse predictions under another's name, with the numbers that follow from them."""
    without(boards, "second")
    add(candidate(name="second", rng=5, skill=0.2), boards)


def rename(boards, candidate):
    """Take over an entry."""
    without(boards, "second")
    add(candidate(name="mine-now", rng=1), boards)


def copy(boards, candidate):
    """Put another's predictions beside them under a name that comes first."""
    board = Board.read(boards / "toy-ci.json")
    mine = board.entries[0].model_copy(update={"name": "a-copy", "method": "Better"})
    folder = boards / "predictions" / "toy-ci"
    (folder / "a-copy.parquet").write_bytes((folder / "mine.parquet").read_bytes())
    board.with_entry(mine).write(boards / "toy-ci.json")


def page(boards, _):
    readme = boards / "README.md"
    readme.write_text(readme.read_text().replace("| second |", "| best |"))


def edit_by_hand(boards, _):
    """A field that no predictions prove."""
    path = boards / "toy-ci.json"
    path.write_text(path.read_text().replace("A. Author", "B. Author"))


def link_the_folder(boards, _):
    """Take an entry away in a folder that the base does not have."""
    without(boards, "second")
    rendered(boards)
    boards.rename(boards.parent / "elsewhere")
    boards.symlink_to("elsewhere")


def link_the_folder_to_the_base(boards, _):
    shutil.rmtree(boards)
    boards.symlink_to("../origin/leaderboards")


def link_a_board(boards, _):
    without(boards, "second")
    rendered(boards)
    (boards / "toy-ci.json").rename(boards.parent / "elsewhere.json")
    (boards / "toy-ci.json").symlink_to("../elsewhere.json")


def link_predictions(boards, _):
    file = boards / "predictions" / "toy-ci" / "second.parquet"
    file.rename(boards.parent / "elsewhere.parquet")
    file.symlink_to("../../../elsewhere.parquet")


def move(boards, _):
    """Begin anew where the base has nothing."""
    shutil.move(boards, boards.parent / "elsewhere")
    boards.mkdir()
    Board(benchmark="ks-ci").write(boards / "ks-ci.json")
    rendered(boards)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_by_hand, "toy-ci.json: mine: edited since avbench wrote it"),
        (link_the_folder, "leaderboards: is a link"),
        (link_the_folder_to_the_base, "leaderboards: is a link"),
        (link_a_board, "leaderboards/toy-ci.json: is a link"),
        (link_predictions, "leaderboards/predictions/toy-ci/second.parquet: is a link"),
        (move, "leaderboards/toy-ci.json: was removed since"),
        (delete, "second was removed since"),
        (edit, "second was changed since"),
        (rename, "second was removed since"),
        (copy, "a-copy has predictions of mine"),
        (page, "README.md: does not show these boards"),
    ],
)
def test_what_touches_others_fails(proposed, judge, candidate, change, message):
    boards = proposed / "leaderboards"
    change(boards, candidate)
    if change in (delete, edit, rename, copy):
        rendered(boards)
    result = judge()
    assert result.returncode == 1
    assert message in result.stdout
    assert result.stderr == ""


@pytest.mark.slow
def test_history_rewritten_below_the_base_fails(proposed, judge):
    """A branch whose own past never had the entry."""
    without(proposed / "leaderboards", "second")
    rendered(proposed / "leaderboards")
    result = judge("--amend")
    assert git(proposed, "rev-list", "--count", "HEAD") == "1"
    assert result.returncode == 1
    assert "second was removed since" in result.stdout


@pytest.mark.slow
def test_a_base_of_the_format_before_is_compared(proposed, judge, candidate):
    boards = proposed / "leaderboards"
    board = json.loads((boards / "toy-ci.json").read_text())
    for entry in board["entries"]:
        del entry["digest"]
    published = json.dumps(board | {"format": 2})
    (proposed.parent / "origin" / "leaderboards" / "toy-ci.json").write_text(published)
    git(proposed.parent / "origin", "commit", "-qam", "The format before")
    git(proposed, "fetch", "-q")
    add(candidate(name="third", rng=2), boards)
    rendered(boards)
    result = judge()
    assert result.returncode == 0, result.stdout + result.stderr
    without(boards, "second")
    rendered(boards)
    assert "second was removed since" in judge().stdout


@pytest.mark.slow
def test_code_of_the_pull_request_is_not_run(proposed, judge, candidate):
    """Not even by the processes that Python starts in its folder, as it does for many entries."""
    boards = proposed / "leaderboards"
    made, board = candidate(), Board.read(boards / "toy-ci.json")
    for number in range(17):
        name = f"third-{number:02d}"
        board = board.with_entry(made.entry.model_copy(update={"name": name}))
        evidence_path(boards, "toy-ci", name).write_bytes(made.data)
    board.write(boards / "toy-ci.json")
    for package in ("joblib", "avbench", "numpy", "json"):
        (proposed / package).mkdir()
        (proposed / package / "__init__.py").write_text("open('ran', 'w')\nraise SystemExit(0)\n")
    result = judge()
    assert result.returncode == 1
    assert "third-16 has predictions of mine" in result.stdout
    assert not (proposed / "ran").exists()


def test_what_the_workflow_names_is_there():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert (ROOT / "constraints.txt").is_file()
    assert INSTALL["run"] == "pip install --constraint judge/constraints.txt ./judge"
    template = (ROOT / ".github" / "pull_request_template.md").read_text()
    assert "avbench leaderboard check --base origin/main" in template
