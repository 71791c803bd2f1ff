"""A leaderboard: one JSON per benchmark, predictions beside it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from avbench import resources
from avbench.leaderboard.entry import Entry, Name, Record, Verified, outline, reason
from avbench.manifests.spec import load_spec, shipped_names
from avbench.resources import replacing
from avbench.types import AvbenchError

FORMAT: Final = 3  # raise it with every change that older boards or readers do not know
EDITED: Final = "edited since avbench wrote it: restore it from version control"

_WITHOUT_DIGESTS: Final = 2
_MOST_BYTES = 64_000_000
_NUMBERS = re.compile(r"\[\n\s+([-0-9.e,\s]+?)\n\s+\]")


class Board(Record):
    """The entries of one benchmark, in the order of their names."""

    format: Literal[2, 3] = FORMAT
    benchmark: Name
    entries: tuple[Entry, ...] = Field(default=())

    @model_validator(mode="after")
    def _consistent(self) -> Board:
        names = [entry.name for entry in self.entries]
        if names != sorted(set(names)):
            raise ValueError("entries must have different names and be sorted by them")
        looks: dict[str, str] = {}
        for name in names:
            if (other := looks.setdefault(outline(name), name)) != name:
                raise ValueError(f"{name} looks like {other}: choose another name")
        for entry in self.entries:
            if entry.kind == "verified" and entry.benchmark != self.benchmark:
                raise ValueError(f"{entry.name} is an entry of another benchmark")
        originals = {e.name for e in self.entries if isinstance(e, Verified) and not e.repeats}
        for entry in self.entries:
            if isinstance(entry, Verified) and entry.repeats not in {None, *originals}:
                raise ValueError(f"{entry.name} repeats {entry.repeats}: not a verified original")
        return self

    @classmethod
    def read(cls, path: Path) -> Board:
        """Read a board.

        Raises:
            AvbenchError: If the file is missing, is not a board, or has entries that were edited.
        """
        return cls.parse(read_bytes(path), str(path))

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Board:
        """Read a board from the bytes of its file.

        Raises:
            AvbenchError: If it is not one, or has entries that were edited.
        """
        file = BoardFile.parse(data, origin)
        if file.edited:
            raise AvbenchError(f"{origin}: {', '.join(file.edited)}: {EDITED}")
        return file.board

    def to_text(self) -> str:
        """Return the canonical text: what is not known is left out, numbers share a line."""
        record = self.model_dump(mode="json")
        record["entries"] = [_with_digest(self.benchmark, entry) for entry in record["entries"]]
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        # A line break is never inside a text of JSON.
        return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

    def write(self, path: Path) -> None:
        """Write the board, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_text(), encoding="utf-8")

    def with_entry(self, entry: Entry) -> Board:
        """Return the board with one entry more.

        Raises:
            AvbenchError: If an entry of that name is there already, or none that it repeats.
        """
        if any(other.name == entry.name for other in self.entries):
            raise AvbenchError(f"{self.benchmark} has an entry {entry.name!r}: choose another name")
        entries = sorted((*self.entries, entry), key=lambda e: e.name)
        try:
            return Board(benchmark=self.benchmark, entries=tuple(entries))
        except ValidationError as error:
            raise AvbenchError(f"{self.benchmark}: {reason(error)}") from error


@dataclass(frozen=True)
class BoardFile:
    """A board as its file holds it.

    Attributes:
        board: What it says, in today's format.
        format: Of the file.
        edited: Names of entries whose digest is not theirs, or is missing.
    """

    board: Board
    format: int
    edited: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes, origin: str) -> BoardFile:
        """Read a board from the bytes of its file, whether or not its entries were edited.

        Raises:
            AvbenchError: If it is not one.
        """
        try:
            board = Board.model_validate_json(data)
        except ValidationError as error:
            if any(found["loc"] == ("format",) for found in error.errors()):
                raise AvbenchError(
                    f"{origin}: not format {FORMAT} of a leaderboard: use the avbench that wrote it"
                ) from error
            raise AvbenchError(
                f"{origin}: not a leaderboard of avbench: {reason(error)}"
            ) from error
        edited = []
        for entry in board.entries:
            written = _with_digest(board.benchmark, entry.model_dump(mode="json"))["digest"]
            if entry.digest != (None if board.format == _WITHOUT_DIGESTS else written):
                edited.append(entry.name)
        entries = tuple(entry.model_copy(update={"digest": None}) for entry in board.entries)
        today = Board(benchmark=board.benchmark, entries=entries)
        return cls(today, board.format, tuple(edited))


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a board's file.

    Raises:
        AvbenchError: If the file is missing or too large.
    """
    if not path.is_file():
        raise AvbenchError(f"no leaderboard {path}: check the benchmark and the folder")
    if path.stat().st_size > _MOST_BYTES:
        raise AvbenchError(f"{path}: too large for a leaderboard: remove it")
    return path.read_bytes()


def rewrite(boards: Path) -> list[Path]:
    """Bring the boards of a folder into today's format; return the files that were not in it.

    Raises:
        AvbenchError: If a file is not a board, or has entries that were edited.
    """
    written = []
    for path in (boards / f"{name}.json" for name in shipped_names()):
        if path.is_file():
            board = Board.read(path)
            if path.read_bytes() != board.to_text().encode():
                board.write(path)
                written.append(path)
    return written


def shipped_board(benchmark: str) -> Board:
    """Read the board that comes with avbench.

    Raises:
        UsageError: If there is no such benchmark.
        AvbenchError: If it has no board.
    """
    name = load_spec(benchmark).name
    if name not in shipped_names():
        raise AvbenchError(f"there is no leaderboard for {name}: variants and your own have none")
    return Board.read(resources.shipped("leaderboards") / f"{name}.json")


def evidence_path(boards: Path, benchmark: str, name: str) -> Path:
    """Return where the predictions of an entry lie, in a folder of boards."""
    return boards / "predictions" / benchmark / f"{name}.parquet"


def _with_digest(benchmark: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an entry as files hold it: without unknown values, with its digest."""
    content = {k: v for k, v in entry.items() if v is not None and k != "digest"}
    canonical = json.dumps([benchmark, content], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return {"name": entry["name"]} | content | {"digest": digest}


def schema() -> dict[str, Any]:
    """Return the JSON schema of the boards' files."""
    published = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return published | Board.model_json_schema()


if __name__ == "__main__":  # make schema
    print(json.dumps(schema(), indent=2))
