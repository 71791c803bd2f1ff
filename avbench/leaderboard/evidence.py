"""The predictions kept beside a board: one column a seed, in the manifest's order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avbench.evaluation.metrics import Integers
from avbench.evaluation.score import Score
from avbench.evaluation.statistics import Outcomes
from avbench.leaderboard.board import evidence_path
from avbench.leaderboard.decode import decode
from avbench.leaderboard.entry import Verified
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.spec import shipped_names
from avbench.types import AvbenchError

MOST_BYTES = 8_000_000


@dataclass(frozen=True)
class Layout:
    """Which prediction stands in which row: step by step, test clips as in the manifest.

    Attributes:
        benchmark: What is predicted.
    """

    benchmark: Benchmark

    @cached_property
    def task(self) -> Integers:
        """The step that introduces a test clip's class, (clips,)."""
        manifest = self.benchmark.manifest
        return manifest.step_of_row[manifest.rows("test")]

    @cached_property
    def label(self) -> Integers:
        """The class index of a test clip, (clips,)."""
        manifest = self.benchmark.manifest
        return manifest.class_indices[manifest.rows("test")]

    @cached_property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Whether clip c is predicted after step t, (T, clips); row by row the order of rows."""
        steps = len(self.benchmark.manifest.classes_per_step)
        due: npt.NDArray[np.bool_] = self.task <= np.arange(steps)[:, None]
        return due

    @cached_property
    def seen(self) -> Integers:
        """How many classes have been seen, of every row, (rows,)."""
        step, _ = np.nonzero(self.predicted)
        return np.cumsum(self.benchmark.manifest.classes_per_step)[step]


@lru_cache(maxsize=8)
def layout_of(benchmark: str) -> Layout:
    """Return how predictions of a benchmark with a board are laid out.

    Raises:
        AvbenchError: If it has no board.
    """
    if benchmark not in shipped_names():
        raise AvbenchError(f"there is no leaderboard for {benchmark}")
    return Layout(Benchmark.load(benchmark))


def to_bytes(score: Score) -> bytes:
    """Return the predictions of a score as the Parquet file that is kept."""
    due = score.outcomes.task <= np.arange(score.predicted.shape[1])[:, None]
    table = pa.table(
        {
            f"seed-{seed}": pa.array(predicted[due], pa.int16())
            for seed, predicted in zip(score.seeds, score.predicted, strict=True)
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=len(table))
    return bytes(sink.getvalue())


def read_file(path: Path) -> bytes:
    """Return the bytes of a file of predictions.

    Raises:
        AvbenchError: If it is missing, not a plain file, or too large to be one.
    """
    if not path.is_file() or path.is_symlink():
        raise AvbenchError(f"no predictions {path}: restore them from version control")
    if path.stat().st_size > MOST_BYTES:
        raise AvbenchError(f"{path}: too large for predictions of a board: remove it")
    return path.read_bytes()


def parse(data: bytes, layout: Layout, origin: str) -> Score:
    """Read predictions that are kept, and measure them.

    The file may be anybody's: it is decoded by `decode`, within limits.

    Args:
        data: The Parquet file.
        layout: Of the benchmark.
        origin: What messages call the file.

    Raises:
        AvbenchError: If it is not a table of predictions of the benchmark.
    """
    try:
        seeds, values = decode(data, len(layout.seen))
    except ValueError as error:
        raise AvbenchError(
            f"{origin}: not predictions of {layout.benchmark.name}: {error}"
        ) from error
    wrong = (values < 0) | (values >= layout.seen)
    if wrong.any():
        number, row = np.argwhere(wrong)[0]
        raise AvbenchError(
            f"{origin}: seed {seeds[number]} predicts class {values[number, row]} in row"
            f" {row + 1}, where {layout.seen[row]} classes have been seen"
        )
    predicted = np.full((len(seeds), *layout.predicted.shape), -1, dtype=np.int16)
    predicted[:, layout.predicted] = values
    benchmark = layout.benchmark
    outcomes = Outcomes(predicted == layout.label, layout.task)
    return Score(benchmark.name, benchmark.manifest.fingerprint, seeds, predicted, outcomes)


def kept(entry: Verified, boards: Path) -> Score:
    """Return the predictions of an entry, measured.

    Raises:
        AvbenchError: If they are missing, were changed, or are of another benchmark.
    """
    path = evidence_path(boards, entry.benchmark, entry.name)
    data = read_file(path)
    if hashlib.sha256(data).hexdigest() != entry.predictions:
        raise AvbenchError(f"{path}: was changed: restore it from version control")
    score = parse(data, layout_of(entry.benchmark), str(path))
    if score.seeds != entry.seeds:
        raise AvbenchError(f"{path}: holds other seeds than the board says")
    return score
