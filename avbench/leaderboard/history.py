"""Where a folder of boards lies in a git work tree, and what a revision has there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avbench.leaderboard.board import BoardFile
from avbench.leaderboard.entry import Entry
from avbench.types import AvbenchError

LINK = "is a link: put what it leads to there itself"


@dataclass(frozen=True)
class Base:
    """A folder of boards at a git revision.

    Attributes:
        revision: As it was given.
        boards: The entries of each board, by the name of its file.
    """

    revision: str
    boards: Mapping[str, tuple[Entry, ...]]

    @classmethod
    def of(cls, folder: Path, revision: str) -> Base:
        """Read the boards of a revision in the folder of this path; links are not followed.

        Raises:
            AvbenchError: If there is no such revision, or a board of it cannot be read.
        """
        root = work_tree(folder)
        if root is None:
            raise AvbenchError(f"{folder} is in no git work tree: run check --base in a checkout")
        name = f"{revision}^{{commit}}"
        commit = _git(root, "rev-parse", "--verify", "--end-of-options", name).decode().strip()
        inside = _absolute(folder).relative_to(root)
        listing = _git(root, "ls-tree", "--name-only", "-z", commit, f"./{inside}/")
        boards = {}
        for path in os.fsdecode(listing).split("\0"):
            if path.endswith(".json"):
                data = _git(root, "cat-file", "blob", f"{commit}:{path}")
                # What was merged with an edited entry can still be compared with, and mended.
                boards[Path(path).name] = BoardFile.parse(data, f"{path} at {revision}").board
        return cls(revision, {name: board.entries for name, board in boards.items()})


def work_tree(folder: Path) -> Path | None:
    """Return the root of the git work tree that a path leads into before any link in it.

    A path below the working directory starts in the work tree of that directory.
    """
    place = _absolute(folder)
    roots = [
        path
        for path in (place, *place.parents)
        if (path / ".git").exists() and not path.is_symlink()
    ]
    here = [path for path in roots if path.is_relative_to(Path.cwd())]
    return here[-1] if here else roots[0] if roots else None


def links(boards: Path) -> list[Path]:
    """Return the links on the way to a folder of boards, from the root of its work tree, or in it.

    They could lead anywhere, to files that no pull request shows.
    """
    root = work_tree(boards) or _absolute(boards)
    way = [path for path in (boards, *boards.parents) if root in _absolute(path).parents]
    found = [path for path in way if path.is_symlink()]
    if found:
        return found
    inside = (
        Path(folder, name)
        for folder, folders, files in os.walk(boards)
        for name in (*folders, *files)
    )
    return sorted(path for path in inside if path.is_symlink())


def refuse_links(boards: Path) -> None:
    """Refuse a folder of boards of which a part lies elsewhere.

    Raises:
        AvbenchError: If one does.
    """
    for link in links(boards):
        raise AvbenchError(f"{link}: {LINK}")


def _absolute(path: Path) -> Path:
    """Return a path from the root, with links as they are."""
    return Path(os.path.normpath(path.absolute()))


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise AvbenchError("--base needs git: install it") from error
    if result.returncode:
        why = (result.stderr.decode(errors="replace").strip().splitlines() or ["failed"])[-1]
        raise AvbenchError(f"git {arguments[0]} in {folder}: {why}: check --base")
    return result.stdout
