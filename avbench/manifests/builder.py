"""From a table of annotated clips to a manifest, the same for everyone."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa

from avbench.manifests.manifest import Manifest, clip_id_of
from avbench.manifests.spec import BenchmarkSpec
from avbench.resources import shipped
from avbench.types import AvbenchError

_REQUIRED = ("label", "split")
_RENAMED = {"orig_split": "source_split"}


def build(spec: BenchmarkSpec, *, seed: int = 0) -> Manifest:
    """Build the manifest of a benchmark from its table of annotations.

    The table (Parquet or CSV) needs `clip_id` (or `path`, a file, which gives the id), `label` and
    `split`. It may have `class_index` (the class order), `youtube_id`, `start_s`, `end_s` and
    `source_split`. Without `class_index` the order comes from hashing (seed, label).

    Args:
        spec: The benchmark.
        seed: Seed of the class order; not used where the table gives one.

    Raises:
        AvbenchError: If the table is unreadable, or does not fit the benchmark.
    """
    path = annotations_path(spec)
    frame = _read(path)
    if "source_split" not in frame:
        frame = frame.rename(columns=_RENAMED)
    required = ("path" if "path" in frame and "clip_id" not in frame else "clip_id", *_REQUIRED)
    for column in required:
        if column not in frame:
            raise AvbenchError(
                f"{path}: column {column} is missing: it has {', '.join(map(str, frame))};"
                " a CSV needs commas between columns"
            )
        empty = frame.index[frame[column].isna()]
        if len(empty):
            raise AvbenchError(f"{path}: row {empty[0] + 1}, {column}: must not be empty")
    frame["label"] = frame["label"].astype(str)
    if "clip_id" not in frame:
        frame["clip_id"] = frame["path"].astype(str).map(clip_id_of)

    seeded = "class_index" not in frame
    if seeded:
        order = sorted(frame["label"].unique(), key=lambda label: _hash(seed, label))
        frame["class_index"] = frame["label"].map({label: i for i, label in enumerate(order)})
    classes = frame["label"].nunique()
    if classes != spec.classes:
        raise AvbenchError(f"{path}: it has {classes} classes, but {spec.path} says {spec.classes}")
    index = pd.to_numeric(frame["class_index"], errors="coerce")
    wrong = frame.index[~(index % 1 == 0)]
    if len(wrong):
        value = frame["class_index"][wrong[0]]
        raise AvbenchError(f"{path}: row {wrong[0] + 1}, class_index {value!r}: give whole numbers")
    wrong = frame.index[~index.between(0, classes - 1)]
    if len(wrong):
        value = frame["class_index"][wrong[0]]
        raise AvbenchError(
            f"{path}: row {wrong[0] + 1}, class_index {value!r}: must be 0 to {classes - 1}"
        )
    frame["class_index"] = index.astype(int)
    step_of = [step for step, k in enumerate(spec.classes_per_step) for _ in range(k)]
    frame["step"] = [step_of[i] for i in frame["class_index"]]
    for column in ("youtube_id", "start_s", "end_s", "source_split"):
        if column not in frame:
            frame[column] = None
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return Manifest.from_table(spec.name, table, seed=seed if seeded else None)


def annotations_path(spec: BenchmarkSpec) -> Path:
    """Return where the table of annotations of a benchmark lies."""
    folder = shipped("splits") / "annotations" if spec.is_shipped else spec.path.parent
    return folder / spec.annotations


def _read(path: Path) -> pd.DataFrame:
    text = dict.fromkeys(("clip_id", "path", "youtube_id", "label", "split", "source_split"), str)
    try:
        if path.suffix.lower() == ".csv":
            with warnings.catch_warnings():
                # A row with more fields than the header would lose some.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                return pd.read_csv(
                    path,
                    dtype=text,
                    index_col=False,
                    keep_default_na=False,
                    na_values=[""],
                    skipinitialspace=True,
                )
        return pd.read_parquet(path)
    except pd.errors.ParserWarning as error:
        raise AvbenchError(
            f"{path}: a row has more fields than the header: put quotes around commas"
        ) from error
    except FileNotFoundError as error:
        raise AvbenchError(f"no table of clips {path}: check `annotations`") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise AvbenchError(f"{path}: not a readable table of clips ({reason})") from error


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{key}".encode()).digest()
