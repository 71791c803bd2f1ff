"""How an entry comes onto a board: from a run, from predictions, or from a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from avbench import resources
from avbench.evaluation import predictions
from avbench.evaluation.result import Result
from avbench.evaluation.score import PredictionsError, Score
from avbench.evaluation.score import score as measure
from avbench.evaluation.statistics import Estimate
from avbench.leaderboard import evidence
from avbench.leaderboard.board import Board, evidence_path
from avbench.leaderboard.check import broken_rule, errors_of
from avbench.leaderboard.copies import Errors, complaints
from avbench.leaderboard.decode import MOST_SEEDS
from avbench.leaderboard.entry import Submission, Verified, preset_of, reason
from avbench.leaderboard.evidence import kept, layout_of
from avbench.leaderboard.history import refuse_links
from avbench.leaderboard.ranking import Place, estimate, places
from avbench.manifests.benchmark import Benchmark
from avbench.resources import alone, read_json, replacing
from avbench.types import AvbenchError

_ENTRY, _PREDICTIONS = "entry.json", "predictions.parquet"
_MOST_METADATA = 100_000
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Candidate:
    """What is to become an entry: checked by itself, not yet beside others.

    Attributes:
        submission: What is said about it.
        entry: The line, computed.
        data: The file of its predictions.
        errors: What was predicted wrongly.
        estimate: Of its mean accuracy.
    """

    submission: Submission
    entry: Verified
    data: bytes
    errors: Errors = dataclasses.field(compare=False)
    estimate: Estimate = dataclasses.field(compare=False)

    @classmethod
    def of(cls, submission: Submission, score: Score, data: bytes) -> Candidate:
        """Check a submission beside its predictions.

        Raises:
            AvbenchError: If it is of another manifest, keeps more exemplars than allowed, or its
                predictions cannot be predictions.
        """
        if rule := broken_rule(submission, score):
            raise AvbenchError(f"{submission.name}: {rule}")
        sha256 = hashlib.sha256(data).hexdigest()
        entry = Verified.of(submission, score, sha256)
        return cls(submission, entry, data, errors_of(submission, score), estimate(score))


def template(facts: dict[str, Any]) -> str:
    """Return a file to fill in, with what is known already."""
    lines = ["# About an entry of a leaderboard. Fill in what is empty.", ""]
    for name, field in Submission.model_fields.items():
        lines.append(f"# {field.description}")
        if facts.get(name) is not None:
            lines.append(f"{name} = {json.dumps(facts[name], ensure_ascii=False)}")
        elif field.is_required():
            lines.append(f"{name} = []" if name == "authors" else f'{name} = ""')
        else:
            lines.append(f"# {name} = ")
    return "\n".join(lines) + "\n"


def facts_of(benchmark: Benchmark) -> dict[str, Any]:
    """Return what a benchmark alone says about entries."""
    return {"benchmark": benchmark.name, "fingerprint": benchmark.manifest.fingerprint}


def facts_of_run(run: Path) -> dict[str, Any]:
    """Return what a run directory says about its entry.

    Raises:
        AvbenchError: If it is not a finished run.
    """
    result = _result(run)
    config, stored = result.config, result.stored_bytes
    return {
        "benchmark": config["benchmark"],
        "fingerprint": config["fingerprint"],
        "modality": config["modality"],
        "access": config["access"],
        "exemplars": config["memory"],
        "exemplar_bytes": result.exemplar_bytes,
        "stored_bytes": None if stored is None else sum(stored.values()),
        "preset": preset_of(config["preset"]),
        "preset_hash": config["preset_hash"],
        "features_hash": config["features_hash"],
        "coverage": min(result.coverage.values()),
        "seconds": round(sum(result.seconds.values()) / len(result.seconds), 1) or None,
    }


def read_metadata(path: Path) -> Submission:
    """Read what is said about an entry, from a file as `template` makes it.

    Raises:
        AvbenchError: If the file is missing or not complete.
    """
    try:
        if path.stat().st_size > _MOST_METADATA:
            raise AvbenchError(f"{path}: too large to be about an entry: check the path")
        text = json.dumps(tomllib.loads(path.read_text(encoding="utf-8")))
        return Submission.model_validate_json(text)
    except FileNotFoundError as error:
        raise AvbenchError(f"no file {path}: avbench submit --init {path} writes one") from error
    except ValidationError as error:
        raise AvbenchError(f"{path}: {reason(error)}: fill it in") from error
    except (OSError, RecursionError, TypeError, ValueError) as error:
        why = (str(error).splitlines() or ["corrupt"])[0][:120]
        raise AvbenchError(f"{path}: not readable as TOML ({why})") from error


def from_run(run: Path, submission: Submission) -> Candidate:
    """Take up a finished run, with all its seeds.

    Raises:
        AvbenchError: If the run is not finished, says something else than the submission, or its
            numbers do not follow from its predictions.
    """
    result = _result(run)
    if result.mixed_code:
        raise AvbenchError(
            f"{run}: its steps or seeds differ in {', '.join(result.mixed_code)}, and mixed code is"
            " not ranked: run it again by avbench evaluate --force"
        )
    facts = facts_of_run(run)
    for name, fact in facts.items():
        if (said := getattr(submission, name)) != fact:
            raise AvbenchError(
                f"{run}: {name} is {fact!r} in the run, {said!r} in the metadata: correct them"
            )
    if {f"seed-{seed}" for seed in result.seeds} != {path.name for path in run.glob("seed-*")}:
        raise AvbenchError(f"{run}: holds other seeds than its result: run evaluate on all of them")
    tables = []
    for seed in sorted(result.seeds):
        table = predictions.read(run / f"seed-{seed}" / "predictions.parquet")
        tables.append(table.append_column("seed", pa.array([seed] * len(table), pa.int32())))
    layout = layout_of(submission.benchmark)
    score = _measured(pa.concat_tables(tables), layout.benchmark, str(run))
    for seed, matrix in zip(sorted(result.seeds), score.matrices, strict=True):
        claimed = result.matrices[seed]
        if (matrix.correct != claimed.correct).any() or (matrix.total != claimed.total).any():
            raise AvbenchError(f"{run}: seed {seed} of result.json is not what it predicted")
    return Candidate.of(submission, score, evidence.to_bytes(score))


def from_predictions(path: Path, submission: Submission) -> Candidate:
    """Take up predictions of any framework, as `avbench score` reads them.

    Raises:
        AvbenchError: If they break the contract, or have no column `seed`.
    """
    layout = layout_of(submission.benchmark)
    if path.suffix.lower() == ".parquet" and path.is_file():
        try:
            rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            why = (str(error).splitlines() or ["corrupt"])[0][:120]
            raise AvbenchError(f"{path}: not readable as parquet ({why})") from error
        if rows > MOST_SEEDS * len(layout.seen):
            raise AvbenchError(f"{path}: {rows:,} rows are more than {MOST_SEEDS} seeds have")
    score = _measured(path, layout.benchmark, str(path))
    if None in score.seeds:
        raise AvbenchError(f"{path}: has no column seed: add one, even for a single run")
    if len(score.seeds) > MOST_SEEDS:
        raise AvbenchError(f"{path}: has {len(score.seeds)} seeds, a board at most {MOST_SEEDS}")
    return Candidate.of(submission, score, evidence.to_bytes(score))


def to_bundle(candidate: Candidate, path: Path) -> None:
    """Write a candidate as one file, to be sent.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    buffer = io.BytesIO()
    text = candidate.submission.model_dump_json(indent=2) + "\n"
    with zipfile.ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name, data in ((_ENTRY, text.encode()), (_PREDICTIONS, candidate.data)):
            archive.writestr(zipfile.ZipInfo(name), data)  # of a fixed date: equal bytes
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def from_bundle(path: Path) -> Candidate:
    """Take up what `to_bundle` wrote; nothing is unpacked to disk.

    Raises:
        AvbenchError: If it is not such a file, or what it holds is not valid.
    """
    members = {_ENTRY: _MOST_METADATA, _PREDICTIONS: evidence.MOST_BYTES}
    try:
        if path.stat().st_size > 2 * evidence.MOST_BYTES:
            raise AvbenchError(f"{path}: too large for a bundle")
        with zipfile.ZipFile(path) as archive:
            held = archive.infolist()
            if sorted(info.filename for info in held) != sorted(members):
                raise ValueError(f"must hold {_ENTRY} and {_PREDICTIONS}, nothing else")
            # Others unfold with as much memory as the file asks for.
            if any(info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for info in held):
                raise ValueError("must be stored or deflated")
            content = {}
            for name, most in members.items():
                with archive.open(name) as member:
                    content[name] = member.read(most + 1)
                if len(content[name]) > most:
                    raise ValueError(f"{name} unfolds to more than {most:,} bytes")
        submission = Submission.model_validate_json(content[_ENTRY])
    except FileNotFoundError as error:
        raise AvbenchError(f"no run or bundle {path}: check the path") from error
    except ValidationError as error:
        raise AvbenchError(f"{path}: {_ENTRY}: {reason(error)}") from error
    except _BROKEN_ZIP as error:
        why = (str(error).splitlines() or ["corrupt"])[0][:120]
        raise AvbenchError(f"{path}: not a bundle of avbench submit ({why})") from error
    data = content[_PREDICTIONS]
    score = evidence.parse(data, layout_of(submission.benchmark), f"{path}: {_PREDICTIONS}")
    return Candidate.of(submission, score, data)


def consider(candidate: Candidate, boards: Path) -> tuple[Board, Place]:
    """Return the board with a candidate on it, and where it would stand.

    Raises:
        AvbenchError: If the board has an entry of that name or with these predictions, or nearly
            these, or what is on it was changed.
    """
    entry = candidate.entry
    board = Board.read(boards / f"{entry.benchmark}.json")
    if board.benchmark != entry.benchmark:
        raise AvbenchError(f"{boards / entry.benchmark}.json: is of {board.benchmark}: restore it")
    extended = board.with_entry(entry)
    others = [other for other in board.entries if isinstance(other, Verified)]
    errors, estimates = [], {entry.name: candidate.estimate}
    for other in others:
        score = kept(other, boards)
        errors.append(errors_of(other, score))
        estimates[other.name] = estimate(score)
    for complaint in complaints([*others, entry], [*errors, candidate.errors], len(others)):
        raise AvbenchError(complaint)
    (place,) = (
        place
        for place in places(extended, lambda other: estimates[other.name])
        if place.entry.name == entry.name
    )
    return extended, place


def add(candidate: Candidate, boards: Path) -> Place:
    """Put a candidate onto its board; another process that does so is waited for.

    Args:
        candidate: What to add.
        boards: The folder `leaderboards/` of a checkout.

    Returns:
        Where it stands.

    Raises:
        AvbenchError: If it cannot be added, or the boards are those of an installed package.
    """
    entry = candidate.entry
    path = boards / f"{entry.benchmark}.json"
    refuse_installed(boards)
    refuse_links(boards)
    Board.read(path)
    with alone(boards, "changing these leaderboards", wait=True):
        try:
            board, place = consider(candidate, boards)
            target = evidence_path(boards, entry.benchmark, entry.name)
            for left in target.parent.glob(".partial-*"):
                shutil.rmtree(left, ignore_errors=True)
            # First, so that no entry is ever without its predictions.
            with replacing(target) as temporary:
                temporary.write_bytes(candidate.data)
            board.write(path)
        finally:
            (boards / ".lock").unlink(missing_ok=True)  # no part of the boards
    return place


def refuse_installed(boards: Path) -> None:
    """Refuse boards that belong to an installed package.

    Raises:
        AvbenchError: If they do.
    """
    if boards.resolve().is_relative_to(Path(resources.__file__).resolve().parent):
        raise AvbenchError(f"{boards} is of the installed package: give --boards of a checkout")


def _result(run: Path) -> Result:
    if not (run / "result.json").is_file():
        raise AvbenchError(f"{run} is not a finished run: check the path, or run avbench evaluate")
    result = Result.read(run / "result.json")
    if result.config != read_json(run / "config.json", remedy="run avbench evaluate again"):
        raise AvbenchError(f"{run}: result.json and config.json differ: run avbench evaluate again")
    return result


def _measured(table: Path | pa.Table, benchmark: Benchmark, origin: str) -> Score:
    try:
        return measure(table, benchmark)
    except PredictionsError as error:
        first, *others = error.violations
        more = f" (and {len(others)} more: avbench score lists them)" if others else ""
        raise AvbenchError(f"{origin} does not fit {benchmark.name}: {first}{more}") from error
