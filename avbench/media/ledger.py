"""What became of every clip: one row each, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from avbench.types import AvbenchError

SHORT = "short"
"""The reason given for a clip that is kept although its video ends early."""


@dataclass(frozen=True)
class Outcome:
    """What became of a clip.

    Attributes:
        clip_id: The clip.
        status: Whether the clip is there.
        source: Where it was asked for, `NAME` or `NAME:ARGUMENT`.
        request: What was asked for: video, start, end and length.
        seconds: Time spent on the last attempt.
        reason: Why it failed, in words common to all such clips; `SHORT`, or nothing, if it is ok.
        detail: The particulars of this clip.
        permanent: Whether there is no use in asking the same source again.
        attempts: How often it was tried.
        bytes: Size of the clip's file.
        sha256: Of the clip's file, in hexadecimal.
    """

    clip_id: str
    status: Literal["ok", "failed"]
    source: str
    request: str
    seconds: float
    reason: str = ""
    detail: str = ""
    permanent: bool = False
    attempts: int = 1
    bytes: int = 0
    sha256: str = ""


_COLUMNS = [field.name for field in fields(Outcome)]
_CREATE = """CREATE TABLE IF NOT EXISTS clips (
    clip_id TEXT PRIMARY KEY, status TEXT NOT NULL, source TEXT NOT NULL,
    request TEXT NOT NULL, seconds REAL NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, permanent INTEGER NOT NULL,
    attempts INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, updated TEXT NOT NULL
)"""
_RECORD = "REPLACE INTO clips ({}, updated) VALUES ({}, ?)".format(
    ", ".join(_COLUMNS), ", ".join("?" * len(_COLUMNS))
)


class Ledger:
    """The ledger of one benchmark; a context manager.

    Args:
        path: The SQLite file; created where there is none, in a folder that exists.

    Raises:
        AvbenchError: From every method, if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._using():
            self._database = sqlite3.connect(path)
            try:
                # In this mode a reader never waits for the run that writes.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute(_CREATE)
            except sqlite3.Error:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def record(self, outcome: Outcome) -> None:
        """Write the row of a clip, in place of an earlier one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._using(), self._database:
            self._database.execute(_RECORD, (*astuple(outcome), now))

    def all(self) -> dict[str, Outcome]:
        """Return every row by clip id, sorted."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM clips ORDER BY clip_id"
        with self._using():
            rows = self._database.execute(query).fetchall()
        named = (dict(zip(_COLUMNS, row, strict=True)) for row in rows)
        outcomes = (Outcome(**row | {"permanent": bool(row["permanent"])}) for row in named)
        return {outcome.clip_id: outcome for outcome in outcomes}

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "check space and permissions, or delete it and prepare again"
            raise AvbenchError(f"cannot use {self._path}: {error}: {remedy}") from error
