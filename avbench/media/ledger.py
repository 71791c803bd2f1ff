"""What became of every clip: one row each, in SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from avbench.types import AvbenchError

SHORT = "short"
"""The reason given for a clip that is kept although its video ends early."""

STILL = "still"
"""The reason given for a clip that is kept although its picture never changes."""


Failure = Literal["", "permanent", "transient", "invalid"]


@dataclass(frozen=True)
class Outcome:
    """What became of a clip.

    Attributes:
        clip_id: The clip.
        status: Whether the clip is there; "acquired" if only its original is.
        source: Where it came from or was asked for last, `NAME` or `NAME:ARGUMENT`.
        request: What was asked for: video, start, end and length.
        seconds: Time spent on the last attempt.
        failure: Why there is no use in trying the source again ("permanent"), or that there is
            ("transient"), or that what it gave is no clip ("invalid"); nothing if it did not fail.
        reason: Why it failed, in words common to all such clips; `SHORT`, `STILL`, or nothing, if
            it is ok.
        detail: The particulars of this clip.
        attempts: How often it was tried.
        bytes: Size of the clip's file.
        sha256: Of the clip's file, in hexadecimal.
    """

    clip_id: str
    status: Literal["ok", "acquired", "failed"]
    source: str
    request: str
    seconds: float = 0.0
    failure: Failure = ""
    reason: str = ""
    detail: str = ""
    attempts: int = 1
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Run:
    """One run of `prepare`.

    Attributes:
        started: When, as ISO 8601 in UTC.
        todo: How many clips it set out to make.
        done: How many it has dealt with so far.
        seconds: From its start to the last clip it dealt with.
        idle_s: From that clip to now.
        tools: Versions of what it cut and downloaded with.
    """

    started: str
    todo: int
    done: int
    seconds: float
    idle_s: float
    tools: str


_COLUMNS = [field.name for field in fields(Outcome)]
_values = attrgetter(*_COLUMNS)
_CREATE = """
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, started TEXT NOT NULL, todo INTEGER NOT NULL, tools TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS clips (
    clip_id TEXT PRIMARY KEY, status TEXT NOT NULL, source TEXT NOT NULL,
    request TEXT NOT NULL, seconds REAL NOT NULL, failure TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, attempts INTEGER NOT NULL,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, run INTEGER NOT NULL, updated TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS refusals (
    clip_id TEXT, source TEXT, request TEXT, reason TEXT NOT NULL,
    PRIMARY KEY (clip_id, source, request)
);
CREATE INDEX IF NOT EXISTS clips_by_run ON clips (run, updated);
"""
_VERSION = 2
_UPSERT = """INSERT INTO clips ({columns}, run, updated) VALUES ({marks}, ?, ?)
    ON CONFLICT (clip_id) DO UPDATE SET {updates}, run = excluded.run, updated = excluded.updated,
    attempts = clips.attempts + excluded.attempts""".format(
    columns=", ".join(_COLUMNS),
    marks=", ".join("?" * len(_COLUMNS)),
    updates=", ".join(f"{c} = excluded.{c}" for c in _COLUMNS if c not in ("clip_id", "attempts")),
)


class Ledger:
    """The ledger of one benchmark; a context manager. Only the driver of a run writes it.

    Args:
        path: The SQLite file; created where there is none, in a folder that exists.
        options: Of an SQLite address, for one that is only read.

    Raises:
        AvbenchError: From every method, if the file cannot be read or written, or was made by a
            version of avbench with another form of it.
    """

    def __init__(self, path: Path, *, options: str = "") -> None:
        self._path = path
        self._run = 0
        with self._using():
            address = f"{path.absolute().as_uri()}{options}" if options else str(path)
            self._database = sqlite3.connect(address, uri=bool(options))
            try:
                (version,) = self._database.execute("PRAGMA user_version").fetchone()
                (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if tables and version != _VERSION:
                    raise sqlite3.DatabaseError(f"it has form {version}, not {_VERSION}")
                if options:
                    return
                # In this mode a reader never waits for the run that writes.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.executescript(_CREATE)
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
            except sqlite3.Error:
                self._database.close()
                raise

    @classmethod
    def reading(cls, path: Path) -> Ledger:
        """Open a ledger to read it only, also where nothing can be written; or an empty one."""
        if not path.is_file():
            return cls(Path(":memory:"))
        if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
            return cls(path)
        return cls(path, options="?mode=ro&immutable=1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def begin(self, todo: int, tools: str) -> None:
        """Note that a run begins; what is recorded from now on is its work."""
        with self._using(), self._database:
            insert = "INSERT INTO runs (started, todo, tools) VALUES (?, ?, ?)"
            self._run = self._database.execute(insert, (_now(), todo, tools)).lastrowid or 0

    def record(self, outcome: Outcome) -> None:
        """Write the row of a clip, in place of an earlier one, to whose attempts it adds."""
        with self._using(), self._database:
            self._database.execute(_UPSERT, (*_values(outcome), self._run, _now()))
            if outcome.failure == "permanent":
                self._database.execute(
                    "REPLACE INTO refusals VALUES (?, ?, ?, ?)",
                    (outcome.clip_id, outcome.source, outcome.request, outcome.reason),
                )

    def standing(self, clip_ids: Sequence[str]) -> dict[str, tuple[str, str, int]]:
        """Return status, request and bytes of those of some clips that were tried, by id."""
        query = f"SELECT clip_id, status, request, bytes FROM clips WHERE {_among(clip_ids)}"
        with self._using():
            return {row[0]: row[1:] for row in self._database.execute(query, clip_ids)}

    def find(self, clip_id: str) -> Outcome | None:
        """Return what became of a clip, if it was tried."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM clips WHERE clip_id = ?"
        with self._using():
            row = self._database.execute(query, (clip_id,)).fetchone()
        return Outcome(*row) if row else None

    def refused(self, source: str, clip_ids: Sequence[str]) -> dict[tuple[str, str], str]:
        """Return what a source refused of some clips for good: the reason by id and request."""
        query = f"""SELECT clip_id, request, reason FROM refusals
            WHERE {_among(clip_ids)} AND source = ?"""
        with self._using():
            rows = self._database.execute(query, (*clip_ids, source))
            return {(clip_id, request): reason for clip_id, request, reason in rows}

    def made(self) -> dict[str, tuple[int, int, float]]:
        """Return how many clips are there, their bytes, and the seconds they took, by source."""
        query = """SELECT source, count(*), sum(bytes), sum(seconds) FROM clips
            WHERE status = 'ok' GROUP BY source"""
        with self._using():
            return {row[0]: row[1:] for row in self._database.execute(query)}

    def given_by(self, source: str) -> tuple[list[str], int, float]:
        """Return which clips a source gave, in how many runs, and how long these asked it.

        The time is by the clock, from the first answer to the last of each run, refusals included.
        """
        given = "SELECT clip_id FROM clips WHERE source = ? AND status != 'failed'"
        spans = """SELECT count(*), coalesce(sum(days), 0.0) FROM (
            SELECT julianday(max(updated)) - julianday(min(updated)) AS days
            FROM clips WHERE source = ? GROUP BY run)"""
        with self._using():
            ids = [clip_id for (clip_id,) in self._database.execute(given, (source,))]
            runs, days = self._database.execute(spans, (source,)).fetchone()
        return ids, runs, 86_400 * days

    def forget_refusals(self, clip_ids: Iterable[str], sources: Sequence[str]) -> None:
        """Let some sources be asked for some clips again."""
        pairs = ((clip_id, source) for clip_id in clip_ids for source in sources)
        with self._using(), self._database:
            delete = "DELETE FROM refusals WHERE clip_id = ? AND source = ?"
            self._database.executemany(delete, pairs)

    def all(self) -> dict[str, Outcome]:
        """Return every row by clip id, sorted."""
        rows = self._rows(f"SELECT {', '.join(_COLUMNS)}")
        return {row[0]: Outcome(*row) for row in rows}

    def export(self, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of some clips, in their order, with when they were written and by what.

        Clips that were never tried have the status "waiting" and nothing else.
        """
        columns = [*_COLUMNS, "updated", "tools"]
        query = (
            f"SELECT {', '.join(_COLUMNS)}, updated, tools FROM clips LEFT JOIN runs USING (run)"
        )
        with self._using():
            rows = {row[0]: row for row in self._database.execute(query)}
        blank: tuple[Any, ...] = ("waiting", *(None,) * (len(columns) - 2))
        return [dict(zip(columns, rows.get(i, (i, *blank)), strict=True)) for i in clip_ids]

    def last_run(self) -> Run | None:
        """Return what is known of the last run, or nothing if there was none."""
        query = """SELECT started, todo, tools, count(clip_id), max(updated) FROM runs
            LEFT JOIN clips USING (run) GROUP BY run ORDER BY run DESC LIMIT 1"""
        with self._using():
            row = self._database.execute(query).fetchone()
        if row is None:
            return None
        started, todo, tools, done, updated = row
        begun, last = (datetime.fromisoformat(text) for text in (started, updated or started))
        idle_s = (datetime.now(UTC) - last).total_seconds()
        return Run(started, todo, done, (last - begun).total_seconds(), idle_s, tools)

    def _rows(self, select: str) -> Iterable[tuple[Any, ...]]:
        with self._using():
            return self._database.execute(f"{select} FROM clips ORDER BY clip_id").fetchall()

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "check space and permissions"
            if "locked" in str(error):
                remedy = "another program is writing it: wait for that to end"
            elif isinstance(error, sqlite3.DatabaseError) and "it has form" in str(error):
                remedy = "move it and the clips away, and prepare again"
            elif "not a database" in str(error) or "malformed" in str(error):
                remedy = "restore it; without it all clips are fetched again"
            raise AvbenchError(f"cannot use {self._path}: {error}: {remedy}") from error


def _among(clip_ids: Sequence[str]) -> str:
    return f"clip_id IN ({', '.join('?' * len(clip_ids))})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
