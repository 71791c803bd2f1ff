"""A leaderboard: one JSON per benchmark, predictions beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avbench.evaluation import predictions
from avbench.evaluation.result import Result, read_json, write_json
from avbench.leaderboard.entry import Entry
from avbench.manifests.benchmark import Benchmark
from avbench.resources import replacing
from avbench.types import AvbenchError

_FORMAT = 1


@dataclass(frozen=True)
class Board:
    """The entries of one benchmark.

    Attributes:
        benchmark: Its name.
        entries: Best mean accuracy first.
    """

    benchmark: str
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, path: Path) -> Board:
        """Read a board.

        Raises:
            AvbenchError: If the file is missing or is not a board.
        """
        if not path.is_file():
            raise AvbenchError(f"no leaderboard {path}: check the benchmark and the folder")
        record = read_json(path)
        try:
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']}, not {_FORMAT}")
            entries = tuple(Entry(**entry) for entry in record["entries"])
            return cls(record["benchmark"], _sorted(entries))
        except (KeyError, TypeError, ValueError) as error:
            raise AvbenchError(f"{path}: not a leaderboard of avbench ({error})") from error

    def write(self, path: Path) -> None:
        """Write the board, whole or not at all; what is not known is left out."""
        entries = [
            {f.name: v for f in fields(entry) if (v := getattr(entry, f.name)) is not None}
            for entry in self.entries
        ]
        write_json(path, {"format": _FORMAT, "benchmark": self.benchmark, "entries": entries})

    def with_entry(self, entry: Entry) -> Board:
        """Return the board with one entry more.

        Raises:
            AvbenchError: If an entry of that name is there already.
        """
        if any(other.name == entry.name for other in self.entries):
            raise AvbenchError(
                f"{self.benchmark} has an entry {entry.name!r}: choose another --name"
            )
        return Board(self.benchmark, _sorted((*self.entries, entry)))


def submit(run: Path, boards: Path, *, name: str) -> Entry:
    """Add a finished run to a board, with numbers recomputed from its predictions.

    Args:
        run: A run directory.
        boards: The folder `leaderboards/` of a checkout.
        name: Name of the entry.

    Raises:
        AvbenchError: If the run is incomplete, partial or of another manifest, its numbers do not
            follow from its predictions, or the board has such an entry.
    """
    result = Result.read(run / "result.json")
    benchmark = Benchmark.load(str(result.config["benchmark"]))
    if result.config["fingerprint"] != benchmark.manifest.fingerprint:
        raise AvbenchError(f"{run}: made with another version of the manifest: run it again")
    if min(result.coverage.values()) < 1:
        raise AvbenchError(f"{run}: ran on part of the clips: prepare the rest and run it again")
    tables, matrices = [], []
    for seed, claimed in result.matrices.items():
        table = predictions.read(run / f"seed-{seed}" / "predictions.parquet")
        matrix = predictions.matrix(table, benchmark.manifest)
        if (matrix.correct != claimed.correct).any() or (matrix.total != claimed.total).any():
            raise AvbenchError(f"{run}: seed {seed} of result.json is not what it predicted")
        matrices.append(matrix)
        seeds = pa.array([seed] * len(table), pa.int32())
        tables.append(table.append_column("seed", seeds))
    path = boards / f"{benchmark.name}.json"
    entry = Entry.verified_by(name, result.config, matrices)
    board = Board.read(path).with_entry(entry)
    with replacing(boards / "predictions" / benchmark.name / f"{name}.parquet") as temporary:
        # The label follows from the manifest.
        evidence = pa.concat_tables(tables).drop_columns(["label"])
        pq.write_table(evidence, temporary, compression="zstd")
    board.write(path)
    return entry


def _sorted(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: (-e.mean_accuracy, e.name)))
