"""What a method predicted: the evidence every number is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avbench.evaluation.metrics import AccuracyMatrix
from avbench.evaluation.statistics import Outcomes
from avbench.manifests.manifest import Manifest
from avbench.resources import replacing
from avbench.types import AvbenchError

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int16(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("label", pa.int16(), nullable=False),
        pa.field("prediction", pa.int16(), nullable=False),
    ]
)


def write(path: Path, table: pa.Table) -> None:
    """Write predictions, whole or not at all.

    Args:
        path: A Parquet file.
        table: Columns as in `SCHEMA`: after which step (from 0), which clip, its class index and
            the predicted one.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    with replacing(path) as temporary:
        pq.write_table(table.cast(SCHEMA), temporary, compression="zstd")


def read(path: Path) -> pa.Table:
    """Read predictions.

    Raises:
        AvbenchError: If the file is missing, corrupt, or has other columns.
    """
    try:
        # Not by pq.read_table: its threads sometimes abort a process that ends soon after.
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False).select(SCHEMA.names).cast(SCHEMA)
    except FileNotFoundError as error:
        raise AvbenchError(f"no predictions {path}: check the path") from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise AvbenchError(f"{path}: not a readable table of predictions ({reason})") from error


def matrix(table: pa.Table, manifest: Manifest, *, partial: bool = False) -> AccuracyMatrix:
    """Count correct predictions per step and task, with labels from the manifest.

    Args:
        table: Predictions.
        manifest: Of the benchmark.
        partial: Whether some test clips may be missing, the same ones at every step.

    Raises:
        AvbenchError: If clips are not test clips of the benchmark, appear twice in a step, or a
            step misses some; if a prediction is of a class not seen yet.
    """
    rows = manifest.rows("test")
    row_of = {manifest.clip_ids[row]: row for row in rows}
    try:
        row = np.array([row_of[clip] for clip in table["clip_id"].to_pylist()], dtype=np.int64)
    except KeyError as error:
        raise AvbenchError(f"{error.args[0]} is not a test clip of {manifest.name}") from error
    step = np.asarray(table["step"], dtype=np.int64)
    prediction = np.asarray(table["prediction"], dtype=np.int64)
    if len(step) == 0 or step.min() < 0 or step.max() != len(manifest.classes_per_step) - 1:
        raise AvbenchError(
            f"predictions must cover the steps 0 to {len(manifest.classes_per_step) - 1}"
        )
    if len(np.unique(step * len(manifest) + row)) != len(row):
        raise AvbenchError("a clip is predicted twice in one step")
    seen = np.cumsum(manifest.classes_per_step)[step]
    if (bad := np.flatnonzero((prediction < 0) | (prediction >= seen))).size:
        raise AvbenchError(
            f"step {step[bad[0]]}: class {prediction[bad[0]]} is predicted, but only"
            f" {seen[bad[0]]} classes have been seen"
        )
    try:
        counts = AccuracyMatrix.from_predictions(
            step, manifest.step_of_row[row], manifest.class_indices[row], prediction
        )
    except ValueError as error:
        raise AvbenchError(f"predictions of {manifest.name}: {error}") from error
    if not partial and counts.total.sum() != len(rows):
        raise AvbenchError(
            f"predictions of {manifest.name} cover {counts.total.sum()} of {len(rows)} test clips"
        )
    return counts


def outcomes(tables: Sequence[pa.Table]) -> Outcomes:
    """Align the predictions of several seeds, with labels and tasks as they say themselves.

    Args:
        tables: One per seed. A clip's task is the first step that predicts it.

    Returns:
        Which predictions were correct, clips in the order of their ids.

    Raises:
        AvbenchError: If a step does not predict each clip seen so far once, or seeds differ in
            their clips.
    """
    last = pc.max(tables[0]["step"])
    ids = tables[0].filter(pc.equal(tables[0]["step"], last))["clip_id"].combine_chunks()
    ids = ids.take(pc.sort_indices(ids))
    shape = (len(tables), last.as_py() + 1, len(ids))
    correct = np.zeros(shape, dtype=bool)
    times = np.zeros(shape, dtype=np.int64)
    for seed, table in enumerate(tables):
        clip = np.asarray(pc.index_in(table["clip_id"], value_set=ids).fill_null(-1))
        step = np.asarray(table["step"])
        if (clip < 0).any() or (step < 0).any() or (step >= shape[1]).any():
            raise AvbenchError("a clip is predicted that is not at the last step of every seed")
        np.add.at(times[seed], (step, clip), 1)
        correct[seed, step, clip] = pc.equal(table["label"], table["prediction"])
    task = (times[0] > 0).argmax(axis=0)
    if (times != (task <= np.arange(shape[1])[:, None])).any():
        raise AvbenchError("a step does not predict each clip of the classes seen so far once")
    return Outcomes(correct, task)
