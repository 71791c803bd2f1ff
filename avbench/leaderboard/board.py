"""A leaderboard: one JSON per benchmark, predictions beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.result import Result
from avbench.leaderboard.entry import Entry
from avbench.learning.method import Method
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.spec import shipped_names
from avbench.resources import alone, read_json, replacing, write_json
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
        record = read_json(path, remedy="restore it from version control")
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
    if not (run / "result.json").is_file():
        raise AvbenchError(f"{run} is not a finished run: check the path, or run avbench evaluate")
    result = Result.read(run / "result.json")
    config = result.config
    if config != read_json(run / "config.json", remedy="run avbench evaluate again"):
        raise AvbenchError(f"{run}: result.json and config.json differ: run avbench evaluate again")
    method: type[Method] = registry.load("methods", str(config["method"]))
    if config["access"] != method.access or config["modality"] not in method.modalities:
        raise AvbenchError(f"{run}: {config['method']} does not have such access or modality")
    if config["benchmark"] not in shipped_names():
        raise AvbenchError(f"{run}: there is no leaderboard for {config['benchmark']}")
    benchmark = Benchmark.load(config["benchmark"])
    if config["fingerprint"] != benchmark.manifest.fingerprint:
        raise AvbenchError(f"{run}: made with another version of the manifest: run it again")
    if config["memory"] > benchmark.spec.memory:
        raise AvbenchError(
            f"{run}: made with {config['memory']} exemplars, but {benchmark.name} allows"
            f" {benchmark.spec.memory}: run it again without --set memory"
        )
    if {f"seed-{seed}" for seed in result.seeds} != {path.name for path in run.glob("seed-*")}:
        raise AvbenchError(f"{run}: holds other seeds than its result: run evaluate on all of them")
    tables, matrices = [], []
    for seed, claimed in result.matrices.items():
        evidence = run / f"seed-{seed}" / "predictions.parquet"
        table = predictions.read(evidence)
        try:
            matrix = predictions.matrix(table, benchmark.manifest)
        except AvbenchError as error:
            raise AvbenchError(f"{evidence}: {error}") from error
        if (matrix.correct != claimed.correct).any() or (matrix.total != claimed.total).any():
            raise AvbenchError(f"{run}: seed {seed} of result.json is not what it predicted")
        matrices.append(matrix)
        seeds = pa.array([seed] * len(table), pa.int32())
        tables.append(table.append_column("seed", seeds))
    path = boards / f"{benchmark.name}.json"
    Board.read(path)
    entry = Entry.verified_by(name, config, matrices)
    with alone(boards, "changing these leaderboards"):
        board = Board.read(path).with_entry(entry)
        with replacing(boards / "predictions" / benchmark.name / f"{name}.parquet") as temporary:
            # The label follows from the manifest.
            kept = pa.concat_tables(tables).drop_columns(["label"])
            pq.write_table(kept, temporary, compression="zstd")
        board.write(path)
    return entry


def _sorted(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda e: (-e.mean_accuracy, e.name)))
