"""A leaderboard: one JSON per benchmark, predictions beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from avbench import resources
from avbench.leaderboard.entry import Entry, Name, Record, Verified, reason
from avbench.manifests.spec import load_spec, shipped_names
from avbench.resources import replacing
from avbench.types import AvbenchError

FORMAT: Final = 2  # raise it with every change that older boards or readers do not know

_MOST_BYTES = 64_000_000
_NUMBERS = re.compile(r"\[\n\s+([-0-9.e,\s]+?)\n\s+\]")


class Board(Record):
    """The entries of one benchmark, in the order of their names."""

    format: Literal[2] = FORMAT
    benchmark: Name
    entries: tuple[Entry, ...] = Field(default=())

    @model_validator(mode="after")
    def _consistent(self) -> Board:
        names = [entry.name for entry in self.entries]
        if names != sorted(set(names)):
            raise ValueError("entries must have different names and be sorted by them")
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
            AvbenchError: If the file is missing or is not a board.
        """
        if not path.is_file():
            raise AvbenchError(f"no leaderboard {path}: check the benchmark and the folder")
        if path.stat().st_size > _MOST_BYTES:
            raise AvbenchError(f"{path}: too large for a leaderboard: remove it")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Board:
        """Read a board from the bytes of its file.

        Raises:
            AvbenchError: If it is not one.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if any(found["loc"] == ("format",) for found in error.errors()):
                raise AvbenchError(
                    f"{origin}: not format {FORMAT} of a leaderboard: use the avbench that wrote it"
                ) from error
            raise AvbenchError(
                f"{origin}: not a leaderboard of avbench: {reason(error)}"
            ) from error

    def to_text(self) -> str:
        """Return the canonical text: what is not known is left out, numbers share a line."""
        record = self.model_dump(mode="json")
        record["entries"] = [
            {"name": entry["name"]} | {k: v for k, v in entry.items() if v is not None}
            for entry in record["entries"]
        ]
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


def check_places(boards: Path, benchmark: str) -> None:
    """Refuse boards of which a part lies elsewhere by a link: it could lead anywhere.

    Raises:
        AvbenchError: If one does.
    """
    root = boards.resolve()
    for place in (Path(f"{benchmark}.json"), Path("predictions"), Path("predictions", benchmark)):
        if (root / place).resolve() != root / place:
            raise AvbenchError(f"{boards / place}: is a link: put what it leads to there itself")


def schema() -> dict[str, Any]:
    """Return the JSON schema of the boards' files."""
    published = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return published | Board.model_json_schema()


if __name__ == "__main__":  # make schema
    print(json.dumps(schema(), indent=2))
