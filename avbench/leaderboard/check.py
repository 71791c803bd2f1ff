"""Whether boards are what their predictions prove, and whether history stands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avbench.evaluation.score import Score
from avbench.leaderboard import evidence
from avbench.leaderboard.board import EDITED, FORMAT, Board, BoardFile, evidence_path, read_bytes
from avbench.leaderboard.copies import Errors, complaints
from avbench.leaderboard.entry import Submission, Verified
from avbench.leaderboard.history import LINK, Base, links
from avbench.leaderboard.render import render
from avbench.types import AvbenchError, Report, silent

_CHUNK = 16


@dataclass(frozen=True)
class Problem:
    """Something that is not as it must be.

    Attributes:
        file: Where.
        message: What.
    """

    file: str
    message: str


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        verified: How many entries were recomputed from their predictions and agreed.
        problems: What is wrong.
    """

    verified: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return asdict(self)


def check(
    paths: Sequence[Path], *, base: str | None = None, workers: int = 1, report: Report = silent
) -> Findings:
    """Verify boards anew: every verified entry is recomputed from the predictions beside it.

    Args:
        paths: The boards' files.
        base: A git revision; entries that it has must be unchanged.
        workers: How many processes.
        report: Called as entries are done.

    Raises:
        AvbenchError: If there is no such revision.
    """
    paths = [Path(os.path.normpath(path)) for path in paths]
    problems: list[Problem] = []
    verified = 0
    for folder in sorted({path.parent for path in paths}):
        before = None if base is None else Base.of(folder, base)
        linked = links(folder)
        problems += [Problem(str(link), LINK) for link in linked]
        for path in paths:
            if path.parent == folder and not linked:
                agreed, found = _of_board(path, before, workers, report)
                verified += agreed
                problems += found
        if before is not None:
            problems += _lost(folder, before)
    return Findings(verified, tuple(problems))


def check_pages(boards: Path) -> list[Problem]:
    """Verify that there are pages beside the boards, and that they show what the boards hold."""
    problems = []
    for name, text in render(boards).items():
        if (content := _content(boards / name)) != text.encode():
            what = "is missing" if content is None else "does not show these boards"
            problems.append(Problem(str(boards / name), f"{what}: run avbench leaderboard render"))
    return problems


def strays(boards: Path) -> list[Problem]:
    """Find what lies in a folder of boards and is of none."""
    names = {path.stem for path in boards.glob("*.json")}
    own = {"README.md", "index.html", *(f"{name}.json" for name in names)}
    found = [path for path in boards.iterdir() if path.name not in own]
    folder = boards / "predictions"
    if folder.is_dir():
        found.remove(folder)
        found += [path for path in folder.iterdir() if path.name not in names]
    return [Problem(str(path), "is of no leaderboard: remove it") for path in sorted(found)]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def errors_of(said: Submission, score: Score) -> Errors:
    """Return what an entry got wrong."""
    return Errors.of(score, len(evidence.layout_of(said.benchmark).benchmark.manifest.labels))


def broken_rule(said: Submission, score: Score) -> str:
    """Say which rule an entry breaks, whoever made it and however; nothing if it keeps them.

    Args:
        said: What is said about it.
        score: Its predictions, measured.
    """
    benchmark = evidence.layout_of(said.benchmark).benchmark
    if said.fingerprint != benchmark.manifest.fingerprint:
        return f"made with another version of the manifest of {benchmark.name}: run it again"
    if said.exemplars > benchmark.spec.memory:
        return (
            f"made with {said.exemplars} exemplars, but {benchmark.name} allows"
            f" {benchmark.spec.memory}: run it again with fewer"
        )
    if (score.outcomes.correct == (score.predicted >= 0)).all():
        return "every prediction is right: these are the labels"
    return ""


def _of_board(
    path: Path, base: Base | None, workers: int, report: Report
) -> tuple[int, list[Problem]]:
    """Check a board; return how many of its entries agree with their predictions, and the rest."""
    try:
        data = read_bytes(path)
        file = BoardFile.parse(data, str(path))
        problems = list(_of_file(path, file, data))
    except AvbenchError as error:
        return 0, [Problem(str(path), str(error).removeprefix(f"{path}: "))]
    old = {entry.name for entry in base.boards.get(path.name, ())} if base else set()
    entries = [entry for entry in file.board.entries if isinstance(entry, Verified)]
    # Whoever was there before is the original, not the copy.
    entries.sort(key=lambda entry: entry.name not in old)
    wrong = list(_of_entries(path, entries, workers, report))
    problems += [*wrong, *(_changed(path, file.board, base) if base else ())]
    return len(entries) - len({problem.file for problem in wrong}), problems


def _of_file(path: Path, file: BoardFile, data: bytes) -> Iterable[Problem]:
    """Check what can be seen without computing anything."""
    board = file.board
    if board.benchmark != path.stem:
        raise AvbenchError(f"{path}: is of {board.benchmark}: rename it")
    fingerprint = evidence.layout_of(board.benchmark).benchmark.manifest.fingerprint
    if file.format != FORMAT:
        yield Problem(
            str(path),
            f"is of format {file.format}, without digests: run avbench leaderboard render",
        )
    elif file.edited:
        yield from (Problem(str(path), f"{name}: {EDITED}") for name in file.edited)
    elif data != board.to_text().encode():
        yield Problem(str(path), "is not written as avbench writes it: was it edited by hand?")
    expected = set()
    for entry in board.entries:
        if isinstance(entry, Verified):
            expected.add(f"{entry.name}.parquet")
            if entry.fingerprint != fingerprint:
                yield Problem(str(path), f"{entry.name}: made with another manifest")
    folder = path.parent / "predictions" / board.benchmark
    for other in sorted(folder.iterdir() if folder.is_dir() else ()):
        if other.name not in expected:
            yield Problem(str(other), "belongs to no entry: remove it")


def _of_entries(
    path: Path, entries: Sequence[Verified], workers: int, report: Report
) -> Iterable[Problem]:
    from joblib import Parallel, delayed  # slow to import

    chunks = [entries[start : start + _CHUNK] for start in range(0, len(entries), _CHUNK)]
    processes = max(1, min(workers, len(chunks)))
    parallel = Parallel(n_jobs=processes, return_as="generator")
    readable: list[Verified] = []
    errors: list[Errors] = []
    done = 0
    for chunk, found in zip(
        chunks, parallel(delayed(_verify)(chunk, path.parent) for chunk in chunks), strict=True
    ):
        for entry, (message, wrong) in zip(chunk, found, strict=True):
            if message:
                evidence_file = evidence_path(path.parent, entry.benchmark, entry.name)
                yield Problem(str(evidence_file), message.removeprefix(f"{evidence_file}: "))
            if wrong is not None:
                readable.append(entry)
                errors.append(wrong)
        done += len(chunk)
        report(path.stem, done, len(entries))
    for complaint in complaints(readable, errors):
        yield Problem(str(path), complaint)


def _verify(entries: Sequence[Verified], boards: Path) -> list[tuple[str, Errors | None]]:
    """Recompute entries; return for each what is wrong, and its errors if they can be read."""
    found: list[tuple[str, Errors | None]] = []
    for entry in entries:
        try:
            score = evidence.kept(entry, boards)
            again = Verified.of(entry, score, entry.predictions)
            differ = [k for k in Verified.model_fields if getattr(again, k) != getattr(entry, k)]
            message = f"{', '.join(differ)} of the board do not follow from it" if differ else ""
            message = message or broken_rule(entry, score)
            found.append((message, errors_of(entry, score)))
        except AvbenchError as error:
            found.append((str(error), None))
    return found


def _changed(path: Path, board: Board, base: Base) -> Iterable[Problem]:
    """Compare a board with what it was; entries are only ever added."""
    now = {entry.name: entry for entry in board.entries}
    for entry in base.boards.get(path.name, ()):
        if entry.name not in now:
            yield Problem(str(path), f"{entry.name} was removed since {base.revision}")
        elif now[entry.name] != entry:
            yield Problem(str(path), f"{entry.name} was changed since {base.revision}")


def _lost(folder: Path, base: Base) -> Iterable[Problem]:
    """Find boards of a revision that are no longer there."""
    if not base.boards:
        yield Problem(str(folder), f"has no boards at {base.revision}: nothing was compared")
    for name in base.boards:
        if not (folder / name).is_file():
            yield Problem(str(folder / name), f"was removed since {base.revision}")
