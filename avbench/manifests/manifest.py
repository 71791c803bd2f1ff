"""Which clips a benchmark is made of: one typed row per clip, kept in Parquet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avbench.resources import replacing
from avbench.types import SPLITS, AvbenchError, Split

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("youtube_id", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("class_index", pa.int16(), nullable=False),
        pa.field("step", pa.int16(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source_split", pa.string()),
    ]
)
_METADATA_KEY = b"avbench"
_FORMAT = 1
# A clip id becomes a file name, and one that starts with a dot would be hidden.
_CLIP_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Clip:
    """One row of a manifest.

    Attributes:
        clip_id: Unique, and safe as a file name.
        youtube_id: The source video; None where there is none.
        start_s: Where the clip starts in its source video, in seconds; None if unknown.
        end_s: Where it ends.
        label: Name of its class.
        class_index: Position of the class in the class order, from 0.
        step: The step that introduces the class, from 0.
        split: train, val or test.
        source_split: The split the source data set put it in, if known.
    """

    clip_id: str
    youtube_id: str | None
    start_s: float | None
    end_s: float | None
    label: str
    class_index: int
    step: int
    split: Split
    source_split: str | None


@dataclass(frozen=True)
class Manifest:
    """The clips of a benchmark, in canonical order: by split, class index, clip id.

    The order makes the clips of one split and step a contiguous range of rows.

    Attributes:
        name: The benchmark.
        table: The rows, with exactly the columns of `SCHEMA`.
        seed: Seed of the class order, or None where the order was given.
    """

    name: str
    table: pa.Table
    seed: int | None = None

    @classmethod
    def from_table(cls, name: str, table: pa.Table, *, seed: int | None = None) -> Manifest:
        """Check rows and bring them into canonical order.

        Args:
            name: The benchmark.
            table: Columns as in `SCHEMA`, in any row order.
            seed: Seed of the class order, if it had one.

        Raises:
            AvbenchError: If a row is not valid; the message names row and column.
        """
        for field in SCHEMA:
            if field.name not in table.column_names:
                raise AvbenchError(f"manifest {name}: column {field.name} is missing")
            if not field.nullable:
                nulls = pc.is_null(table[field.name])
                _refuse(name, table, nulls, field.name, "must not be null")
        try:
            table = table.select(SCHEMA.names).cast(SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise AvbenchError(f"manifest {name}: a column has the wrong type: {error}") from error
        _check(name, table)
        # Splits in their natural order: train, val, test.
        rank = pc.index_in(table["split"], value_set=pa.array(SPLITS))
        keyed = table.append_column("rank", rank)
        keys = [("rank", "ascending"), ("class_index", "ascending"), ("clip_id", "ascending")]
        order = pc.sort_indices(keyed, sort_keys=keys)
        return cls(name, table.take(order).combine_chunks(), seed)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest and verify its fingerprint.

        Raises:
            AvbenchError: If the file is missing, corrupt, not a manifest, or was edited by hand.
        """
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise AvbenchError(f"no manifest {path}: build it or check the path") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise AvbenchError(f"{path}: not a readable Parquet file ({_brief(error)})") from error
        info = _metadata(table.schema, path)
        manifest = cls.from_table(str(info["name"]), table, seed=info["seed"])
        if manifest.fingerprint != info["fingerprint"]:
            raise AvbenchError(
                f"{path}: rows do not match the file's fingerprint: it was edited or is corrupt;"
                " restore it"
            )
        return manifest

    def write(self, path: Path) -> None:
        """Write the manifest as Parquet, whole or not at all.

        Raises:
            AvbenchError: If the place cannot be written to.
        """
        table = self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(self.summary())})
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=9)

    def summary(self) -> dict[str, Any]:
        """Return what the file says about itself."""
        sizes = pc.value_counts(self.table["split"]).to_pylist()
        counts = {size["values"]: size["counts"] for size in sizes}
        return {
            "format": _FORMAT,
            "name": self.name,
            "protocol": "class-incremental",
            "seed": self.seed,
            "class_order": list(self.labels),
            "classes_per_step": list(self.classes_per_step),
            "counts": {split: counts.get(split, 0) for split in SPLITS},
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the logical rows, in hexadecimal; independent of the file's bytes.

        Per column: its name, then lengths and UTF-8 bytes of strings (length -1 for null), whole
        milliseconds of times (int64, minimum for null), or int64 values, little-endian.
        """
        digest = hashlib.sha256()
        for field in SCHEMA:
            digest.update(field.name.encode() + b"\n")
            column = self.table[field.name].combine_chunks()
            if pa.types.is_string(field.type):
                lengths = pc.fill_null(pc.binary_length(column), -1)
                digest.update(np.asarray(lengths).astype("<i8").tobytes())
                digest.update("".join(pc.fill_null(column, "").to_pylist()).encode())
            elif pa.types.is_floating(field.type):
                null = np.asarray(pc.is_null(column))
                millis = np.rint(np.asarray(pc.fill_null(column, 0.0)) * 1000).astype("<i8")
                digest.update(np.where(null, np.iinfo(np.int64).min, millis).tobytes())
            else:
                digest.update(np.asarray(column).astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Clip]:
        for row in self.table.to_pylist():
            yield Clip(**row)

    @cached_property
    def clip_ids(self) -> list[str]:
        """Clip ids, in row order."""
        ids: list[str] = self.table["clip_id"].to_pylist()
        return ids

    @cached_property
    def class_indices(self) -> npt.NDArray[np.int64]:
        """Class index of every row."""
        return np.asarray(self.table["class_index"], dtype=np.int64)

    @cached_property
    def step_of_row(self) -> npt.NDArray[np.int64]:
        """Step of every row."""
        return np.asarray(self.table["step"], dtype=np.int64)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in class order."""
        pairs = set(zip(self.class_indices.tolist(), self.table["label"].to_pylist(), strict=True))
        return tuple(label for _, label in sorted(pairs))

    @cached_property
    def classes_per_step(self) -> tuple[int, ...]:
        """Number of new classes at every step."""
        pairs = set(zip(self.step_of_row.tolist(), self.class_indices.tolist(), strict=True))
        return tuple(np.bincount([step for step, _ in pairs]).tolist())

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the row numbers of a split, ascending."""
        return np.flatnonzero(np.asarray(pc.equal(self.table["split"], split)))


def clip_id_of(path: str) -> str:
    """Return the clip id of a file: its path without suffix, odd characters made `_`.

    Args:
        path: Relative, with `/` between folders.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", str(PurePosixPath(path).with_suffix(""))).lstrip(".")


def read_summary(path: Path) -> dict[str, Any]:
    """Read what a manifest file says about itself, without reading its rows.

    Raises:
        AvbenchError: If the file is missing, corrupt or not a manifest.
    """
    try:
        return _metadata(pq.read_schema(path), path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AvbenchError(f"{path}: not a readable Parquet file ({_brief(error)})") from error


def _metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((schema.metadata or {})[_METADATA_KEY])
        if info["format"] != _FORMAT or not {"name", "seed", "fingerprint"} <= set(info):
            raise KeyError("format")
    except (KeyError, TypeError, ValueError) as error:
        raise AvbenchError(f"{path}: a Parquet file, but not a manifest of avbench") from error
    return info


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _check(name: str, table: pa.Table) -> None:
    """Raise on the first row that breaks a rule, naming row and column."""

    def fail(bad: Any, column: str, rule: str) -> None:
        _refuse(name, table, bad, column, rule)

    if table.num_rows == 0:
        raise AvbenchError(f"manifest {name}: it has no rows")
    ids = table["clip_id"].to_pylist()
    bad_ids = [_CLIP_ID.fullmatch(i) is None for i in ids]
    fail(bad_ids, "clip_id", "use letters, digits, '.', '_' and '-' only, at most 128")
    first: dict[str, int] = {}
    fail([first.setdefault(i, n) != n for n, i in enumerate(ids)], "clip_id", "appears twice")
    fail(pc.invert(pc.is_in(table["split"], pa.array(SPLITS))), "split", "train, val or test")
    fail(pc.equal(table["label"], ""), "label", "must not be empty")
    for column in ("start_s", "end_s"):
        finite = pc.fill_null(pc.is_finite(table[column]), True)
        fail(pc.invert(finite), column, "must be a number of seconds")
    fail(pc.fill_null(pc.less(table["start_s"], 0), False), "start_s", "must not be negative")
    ends = pc.less_equal(table["end_s"], table["start_s"])
    fail(pc.fill_null(ends, False), "end_s", "must be after start_s")

    index = np.asarray(table["class_index"], dtype=np.int64)
    step = np.asarray(table["step"], dtype=np.int64)
    fail(index < 0, "class_index", "must not be negative")
    classes = int(index.max()) + 1
    fail(index > len(np.unique(index)) - 1, "class_index", "leaves a gap in 0, 1, 2, ...")
    label_of = dict(zip(index.tolist(), table["label"].to_pylist(), strict=True))
    labels = table["label"].to_pylist()
    pairs = zip(index.tolist(), labels, strict=True)
    fail([label_of[i] != label for i, label in pairs], "label", "the class has another name above")
    if len(set(label_of.values())) != classes:
        raise AvbenchError(f"manifest {name}: two class indices share one label")
    step_of = np.zeros(classes, dtype=np.int64)
    step_of[index] = step
    fail(step != step_of[index], "step", "the class is in another step above")
    if step_of[0] != 0 or not np.isin(np.diff(step_of), (0, 1)).all():
        raise AvbenchError(f"manifest {name}: steps must run 0, 1, 2, ... along the class order")


def _refuse(name: str, table: pa.Table, bad: Any, column: str, rule: str) -> None:
    """Raise on the first row that is bad."""
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        value = table[column][int(rows[0])].as_py()
        raise AvbenchError(f"manifest {name}: row {rows[0] + 1}, {column} {value!r}: {rule}")
