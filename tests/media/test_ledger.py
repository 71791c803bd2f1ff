"""The ledger remembers what became of every clip."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from avbench.media.ledger import SHORT, Ledger, Outcome
from avbench.types import AvbenchError

GONE = Outcome("a", "failed", "folder:x", "q", 0.5, failure="permanent", reason="private")
GOOD = Outcome("b", "ok", "folder:x", "q", 1.5, bytes=12, sha256="ff")


def test_rows_outlive_the_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(GOOD)
        ledger.record(GONE)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.all() == {"a": GONE, "b": GOOD}


def test_a_later_outcome_replaces_the_earlier(tmp_path: Path) -> None:
    later = replace(GOOD, clip_id="a", reason=SHORT)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(GONE)
        ledger.record(later)
        assert ledger.all() == {"a": replace(later, attempts=2)}


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_text("not a database, but long enough to look at" * 9)
    with pytest.raises(AvbenchError, match=r"l\.sqlite.*not a database"):
        Ledger(tmp_path / "l.sqlite")


def test_who_reads_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        for n in range(3):
            ledger.record(replace(GOOD, clip_id=str(n)))
        with closing(sqlite3.connect(path)) as reader:
            rows = reader.execute("SELECT clip_id FROM clips")
            assert rows.fetchone()  # and goes on to hold the file
            ledger._database.execute("PRAGMA busy_timeout = 0")
            ledger.record(replace(GOOD, clip_id="3"))
            assert len(rows.fetchall()) == 2, "what there was when it began"
        assert len(ledger.all()) == 4
