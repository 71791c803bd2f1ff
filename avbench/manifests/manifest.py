"""Which clips a benchmark is made of: one typed row per clip, kept in Parquet."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from avbench.manifests.variant import Variant
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
_PRINTABLE = re.compile(r"[ -~]{1,200}")
_LONGEST_S = 1e9
# A clip id becomes a file name, and one that starts with a dot would be hidden.
_CLIP_ID = r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\z"


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
    def from_table(
        cls,
        name: str,
        table: pa.Table,
        *,
        seed: int | None = None,
        origin: str | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Manifest:
        """Check rows and bring them into canonical order.

        Args:
            name: The benchmark.
            table: Columns as in `SCHEMA`, in any row order.
            seed: Seed of the class order, if it had one.
            origin: What messages call the table, such as the file it was read from.
            rows: What messages call its rows, counted from 0; None where none was left out.

        Raises:
            AvbenchError: If a row is not valid; the message names row and column.
        """
        checks = _Checks(origin or f"manifest {name}", table, rows)
        checks.columns()
        for field in SCHEMA:
            if not field.nullable:
                checks.refuse(pc.is_null(table[field.name]), field.name, "must not be null")
        try:
            table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            reason = f"a column has the wrong type: {error}"
            raise AvbenchError(f"{checks.origin}: {reason}") from error
        _Checks(checks.origin, table, rows).run()
        return cls(name, _in_order(table), seed)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest and verify its fingerprint.

        Raises:
            AvbenchError: If the file is missing, corrupt, not a manifest, or was edited by hand.
        """
        table, info = read_unverified(path)
        manifest = cls.from_table(info["name"], table, seed=info["seed"], origin=str(path))
        if manifest.fingerprint != info["fingerprint"]:
            raise AvbenchError(
                f"{path}: its rows do not give the fingerprint it claims: it was edited or is"
                " corrupt: build it anew; avbench splits verify may say where"
            )
        return manifest

    def varied(self, name: str, variant: Variant) -> Manifest:
        """Return the same clips with the class order and steps of a variant.

        Args:
            name: What the result is called.
            variant: Of this benchmark.
        """
        table = with_classes(self.table, variant.arranged(self.labels), variant.classes_per_step)
        seed = variant.order if isinstance(variant.order, int) else None
        return Manifest(name, _in_order(table), self.seed if variant.order is None else seed)

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
        return {
            "format": _FORMAT,
            "name": self.name,
            "protocol": "class-incremental",
            "seed": self.seed,
            "class_order": list(self.labels),
            "classes_per_step": list(self.classes_per_step),
            "counts": dict(zip(SPLITS, self.counts.sum(axis=0).tolist(), strict=True)),
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
                digest.update(_bytes(pc.fill_null(column, "")))
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
        _, first = np.unique(self.class_indices, return_index=True)
        return tuple(self.table["label"].take(first).to_pylist())

    @cached_property
    def classes_per_step(self) -> tuple[int, ...]:
        """Number of new classes at every step."""
        _, first = np.unique(self.class_indices, return_index=True)
        return tuple(np.bincount(self.step_of_row[first]).tolist())

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Clips per step and split, (steps, 3), the splits in the order of `SPLITS`."""
        split = np.asarray(pc.index_in(self.table["split"], value_set=pa.array(SPLITS)))
        counts = np.zeros((len(self.classes_per_step), len(SPLITS)), dtype=np.int64)
        np.add.at(counts, (self.step_of_row, split), 1)
        return counts

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the row numbers of a split, ascending."""
        return np.flatnonzero(np.asarray(pc.equal(self.table["split"], split)))


def with_classes(
    table: pa.Table, order: Sequence[str], classes_per_step: Sequence[int]
) -> pa.Table:
    """Return a table with `class_index` and `step` set by class order and sizes of the steps.

    Args:
        table: With a column `label`, none of which is missing in `order`.
        order: Every label once.
        classes_per_step: Number of new classes at every step; they add up to those in `order`.
    """
    labels = table["label"].cast(pa.string())
    index = np.asarray(pc.index_in(labels, value_set=pa.array(order, pa.string())))
    step_of = np.repeat(np.arange(len(classes_per_step)), classes_per_step)
    for name, values in (("class_index", index), ("step", step_of[index])):
        column = pa.array(values.astype(np.int16))
        there = table.schema.get_field_index(name)
        table = (
            table.append_column(name, column)
            if there < 0
            else table.set_column(there, name, column)
        )
    return table


def read_unverified(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read the rows of a manifest file as they stand there, and what the file says about itself.

    Raises:
        AvbenchError: If the file is missing, corrupt or not a manifest.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(), _metadata(file.schema_arrow, path)
    except FileNotFoundError as error:
        raise AvbenchError(f"no manifest {path}: build it or check the path") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AvbenchError(f"{path}: not a readable Parquet file ({_brief(error)})") from error


def clip_id_of(path: str) -> str:
    """Return the clip id of a file: its path without suffix, odd characters made `_`.

    Args:
        path: Relative, with `/` between folders.
    """
    name = PurePosixPath(path)
    stem = name.with_suffix("") if name.name else name
    return re.sub(r"[^A-Za-z0-9._-]", "_", str(stem)).lstrip(".")


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
        texts = isinstance(info["name"], str) and isinstance(info["fingerprint"], str)
        if info["format"] != _FORMAT or not texts or not isinstance(info["seed"], int | None):
            raise KeyError("format")
        if not _PRINTABLE.fullmatch(info["name"]):
            raise KeyError("name")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise AvbenchError(
            f"{path}: a Parquet file, but not a manifest of avbench: its metadata lack that"
        ) from error
    return info


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _bytes(column: pa.Array) -> memoryview:
    """Return the UTF-8 bytes of all strings of a column without nulls, one after the other."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[[column.offset, column.offset + len(column)]]
    return memoryview(data or b"")[ends[0] : ends[1]]


def _in_order(table: pa.Table) -> pa.Table:
    # Splits in their natural order: train, val, test.
    rank = pc.index_in(table["split"], value_set=pa.array(SPLITS))
    keyed = table.append_column("rank", rank)
    keys = [("rank", "ascending"), ("class_index", "ascending"), ("clip_id", "ascending")]
    return table.take(pc.sort_indices(keyed, sort_keys=keys)).combine_chunks()


@dataclass(frozen=True)
class _Checks:
    """Refuses the first row that breaks a rule, naming table, row and column."""

    origin: str
    table: pa.Table
    rows: npt.NDArray[np.int64] | None

    def refuse(self, bad: Any, column: str, rule: str) -> None:
        """Raise on the first row that is bad."""
        found = np.flatnonzero(np.asarray(bad))
        if len(found):
            value = self.table[column][int(found[0])].as_py()
            row = self.number(found[0])
            raise AvbenchError(f"{self.origin}: row {row}, {column} {value!r}: {rule}")

    def number(self, row: int) -> int:
        """Return what people call a row."""
        return int(row if self.rows is None else self.rows[row]) + 1

    def columns(self) -> None:
        """Check that every column is there, once."""
        names = self.table.column_names
        for field in SCHEMA:
            if field.name not in names:
                raise AvbenchError(f"{self.origin}: column {field.name} is missing")
            if names.count(field.name) > 1:
                raise AvbenchError(f"{self.origin}: column {field.name} is there twice")

    def run(self) -> None:
        """Check all rules on a table of the right types."""
        table = self.table
        if table.num_rows == 0:
            raise AvbenchError(f"{self.origin}: it has no rows")
        good = pc.match_substring_regex(table["clip_id"], _CLIP_ID)
        rule = "use letters, digits, '.', '_' and '-' only, at most 128, no '.' first"
        self.refuse(pc.invert(good), "clip_id", rule)
        self._unique_ids()
        split = pc.is_in(table["split"], pa.array(SPLITS))
        self.refuse(pc.invert(split), "split", "must be train, val or test")
        self.refuse(pc.equal(table["label"], ""), "label", "must not be empty")
        for column in ("label", "youtube_id", "source_split"):
            # They are printed, and become parts of names and pages.
            odd = pc.fill_null(pc.match_substring_regex(table[column], r"[\x00-\x1f\x7f]"), False)
            self.refuse(odd, column, "must not hold control characters")
        for column in ("start_s", "end_s"):
            sane = pc.fill_null(pc.less(pc.abs(table[column]), _LONGEST_S), True)
            self.refuse(pc.invert(sane), column, "must be a number of seconds, below 1e9")
        negative = pc.fill_null(pc.less(table["start_s"], 0), False)
        self.refuse(negative, "start_s", "must not be negative")
        ends = pc.fill_null(pc.less_equal(table["end_s"], table["start_s"]), False)
        self.refuse(ends, "end_s", "must be after start_s")
        self._classes_and_steps()

    def _unique_ids(self) -> None:
        ids = self.table["clip_id"]
        if len(pc.unique(ids)) == len(ids):
            return
        first: dict[str, int] = {}
        for row, clip_id in enumerate(ids.to_pylist()):
            if clip_id in first:
                where = self.number(first[clip_id])
                again = np.arange(len(ids)) == row
                self.refuse(again, "clip_id", f"appears twice, first in row {where}")
            first[clip_id] = row

    def _classes_and_steps(self) -> None:
        index = np.asarray(self.table["class_index"], dtype=np.int64)
        step = np.asarray(self.table["step"], dtype=np.int64)
        labels = self.table["label"].combine_chunks().dictionary_encode()
        codes = np.asarray(labels.indices)
        self.refuse(index < 0, "class_index", "must not be negative")
        present, first = np.unique(index, return_index=True)
        classes = int(index.max()) + 1
        self.refuse(index > len(present) - 1, "class_index", "leaves a gap in 0, 1, 2, ...")
        self.refuse(codes != codes[first][index], "label", "the class has another name above")
        if len(labels.dictionary) != classes:
            twice = Counter(codes[first].tolist()).most_common(1)[0][0]
            label = labels.dictionary[twice].as_py()
            raise AvbenchError(f"{self.origin}: two class indices share one label, {label!r}")
        self.refuse(step != step[first][index], "step", "the class is in another step above")
        steps = step[first]
        if steps[0] != 0 or not np.isin(np.diff(steps), (0, 1)).all():
            raise AvbenchError(f"{self.origin}: steps must run 0, 1, 2, ... along the class order")
