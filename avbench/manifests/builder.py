"""From a table of annotated clips to a manifest, the same for everyone."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from avbench.manifests.manifest import Manifest, clip_id_of, read_unverified, with_classes
from avbench.manifests.spec import BenchmarkSpec, load_spec, shipped_names
from avbench.manifests.variant import by_hash, sizes_of_steps
from avbench.registry import unknown
from avbench.resources import shipped
from avbench.types import AvbenchError, UsageError

_KNOWN = (
    *("clip_id", "path", "youtube_id", "start_s", "end_s", "label", "class_index", "split"),
    *("source_split", "orig_split"),
)
_TEXTS = ("clip_id", "path", "youtube_id", "label", "split", "source_split", "orig_split")


def build(spec: BenchmarkSpec) -> Manifest:
    """Build the manifest of a benchmark, or of a variant of one, from its table of annotations.

    Raises:
        AvbenchError: If the table is unreadable, or does not fit the benchmark.
    """
    if spec.variant and spec.variant_of:
        return build(spec.variant_of).varied(spec.name, spec.variant)
    path = annotations_path(spec)
    manifest = build_manifest(
        spec.name,
        path,
        classes_per_step=spec.classes_per_step,
        classes=spec.class_names,
        val_per_class=spec.val_per_class,
        test_per_class=spec.test_per_class,
        seed=spec.seed,
        keep_videos_together=spec.keep_videos_together,
        drop_test_videos=spec.drop_test_videos,
    )
    if spec.clips_of:
        _check_shared(manifest, build(load_spec(spec.clips_of)), path)
    return manifest


def build_manifest(
    name: str,
    annotations: Path | pd.DataFrame,
    *,
    classes_per_step: int | Sequence[int],
    classes: Sequence[str] = (),
    val_per_class: int = 0,
    test_per_class: int = 0,
    seed: int = 0,
    keep_videos_together: bool = True,
    drop_test_videos: bool = False,
) -> Manifest:
    """Build a manifest from any table of annotated clips.

    The table needs `label`, and what gives the clip its id: `clip_id`, or `path`, a file, or
    `youtube_id` and `start_s`. It may have `split` (train, val, test), `class_index` (the class
    order), `end_s` and `source_split` (`orig_split`). Every choice comes from hashing the seed with
    ids and labels, so that the order of the rows has no say.

    Args:
        name: What the manifest is called.
        annotations: A Parquet or CSV file, or the table itself.
        classes_per_step: Number of new classes at every step, first to last, or one for all.
        classes: The classes to select, in class order; empty for all, in the order of
            `class_index`, or else in that of hashing (seed, label).
        val_per_class: Clips of every class to hold out for val.
        test_per_class: Clips of every class to hold out for test; `split` then becomes
            `source_split`, if that is not there. With 0, val clips are held out from the table's
            train clips, and the videos its splits share stay shared.
        seed: Of class order and hold-out.
        keep_videos_together: Hold out all clips of a `youtube_id` or none. Videos of several
            classes are never held out.
        drop_test_videos: Leave out train and val clips whose `youtube_id` is in test.

    Raises:
        AvbenchError: If the table is unreadable, a row of it is not valid, a class is not in it, a
            class has too few clips to hold out, or steps and classes do not add up.
    """
    if min(val_per_class, test_per_class, seed) < 0:
        raise UsageError("val_per_class, test_per_class and seed must not be negative")
    origin = str(annotations) if isinstance(annotations, Path) else f"table of {name}"
    frame = _read(annotations) if isinstance(annotations, Path) else annotations
    # The index keeps the number of the row in the table, for messages.
    frame = _completed(frame.reset_index(drop=True), origin, needs_split=not test_per_class)
    seeded = "class_index" not in frame and not classes
    order = _selected(frame, classes, origin) if classes else _class_order(frame, seed, origin)
    frame = frame[frame["label"].isin(order)]
    if val_per_class or test_per_class:
        held = _HoldOut(origin, seed, keep_videos_together)
        frame = held.split(frame, val_per_class, test_per_class)
    if drop_test_videos:
        tested = frame.loc[frame["split"] == "test", "youtube_id"].dropna()
        kept = frame[(frame["split"] == "test") | ~frame["youtube_id"].isin(tested)]
        _check_trainable(frame, kept, origin)
        frame = kept
    try:
        sizes = sizes_of_steps(len(order), classes_per_step)
    except UsageError as error:
        raise AvbenchError(f"{origin}: it has {len(order)} classes: {error}") from error
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = with_classes(table, order, sizes)
    return Manifest.from_table(
        name,
        table,
        seed=seed if seeded else None,
        origin=origin,
        rows=frame.index.to_numpy(),
    )


def verify(path: Path) -> tuple[Manifest, bool]:
    """Check that a manifest file holds what its benchmark's table of annotations gives.

    Args:
        path: The file.

    Returns:
        The manifest, and whether it was rebuilt: of a benchmark that is neither shipped nor a
        variant of one, only the file's own fingerprint can be checked.

    Raises:
        AvbenchError: If it does not; the message names the first row and column that differ.
    """
    table, info = read_unverified(path)
    rebuilt = info["name"].partition(":")[0] in shipped_names()
    if rebuilt:
        right = _named(info["name"], path)
        if not table.equals(right.table):
            difference = _difference(table, right)
            raise AvbenchError(f"{path}: {difference}: make it anew with avbench splits build")
    manifest = Manifest.from_table(info["name"], table, seed=info["seed"], origin=str(path))
    for key, value in (right if rebuilt else manifest).summary().items():
        if info.get(key) != value:
            raise AvbenchError(
                f"{path}: metadata {key}: not what its rows give: make it anew with avbench"
                " splits build"
            )
    return manifest, rebuilt


def _named(name: str, path: Path) -> Manifest:
    """Build the benchmark a manifest file says it is of."""
    spec = None
    if not name.lower().endswith(".toml"):  # which would be a path
        with suppress(UsageError):
            spec = load_spec(name)
    if spec is None or spec.name != name:
        raise AvbenchError(f"{path}: metadata name {name!r}: not a benchmark or variant of avbench")
    return build(spec)


def _difference(table: pa.Table, right: Manifest) -> str:
    """Say where rows first differ from what they should be."""
    if table.schema.names != right.table.schema.names:
        return f"columns {', '.join(map(repr, table.schema.names))}: not those of a manifest"
    for ours, theirs in zip(table.schema, right.table.schema, strict=True):
        if not ours.equals(theirs):
            return f"column {ours.name}: its type is {ours}, not {theirs}"
    wanted = {row["clip_id"]: row for row in right.table.to_pylist()}
    seen = set()
    for number, row in enumerate(table.to_pylist(), start=1):
        clip_id = row["clip_id"]
        if clip_id not in wanted or clip_id in seen:
            rule = "appears twice" if clip_id in seen else "the benchmark has no such clip"
            return f"row {number}, clip_id {clip_id!r}: {rule}"
        seen.add(clip_id)
        for column, value in wanted[clip_id].items():
            if row[column] != value:
                return f"row {number}, {column} {row[column]!r}: must be {value!r}"
    missing = sorted(wanted.keys() - seen)
    return f"clip_id {missing[0]!r}: it is missing" if missing else "rows not in canonical order"


def annotations_path(spec: BenchmarkSpec) -> Path:
    """Return where the table of annotations of a benchmark lies."""
    folder = shipped("splits") / "annotations" if spec.is_shipped else spec.path.parent
    return folder / spec.annotations


class _HoldOut:
    """Takes clips of every class out of train, whole videos at a time where asked."""

    def __init__(self, origin: str, seed: int, keep_videos_together: bool) -> None:
        self._origin = origin
        self._seed = seed
        self._together = keep_videos_together

    def split(self, frame: pd.DataFrame, val: int, test: int) -> pd.DataFrame:
        """Return the rows with `split` set anew: all of them, or with `test` 0 those of train."""
        frame = frame.copy()
        if test:
            if "split" in frame and frame["source_split"].isna().all():
                frame["source_split"] = frame["split"]
            frame["split"] = "train"
        # A clip without a video is a video of its own; a space keeps the two kinds apart.
        own = " " + frame["clip_id"]
        video = frame["youtube_id"].fillna(own) if self._together else own
        pool = frame[frame["split"] == "train"]
        labels_of = frame.groupby(video)["label"].nunique()
        single = ~video.isin(labels_of.index[labels_of > 1])
        single &= ~video.isin(video[frame["split"] != "train"])  # the table has split those
        for label, rows in pool.groupby("label"):
            self._check_size(str(label), rows, val + test)
            sizes = video[rows.index][single[rows.index]].value_counts().to_dict()
            for name, count in (("test", test), ("val", val)):
                taken = self._choose(str(label), rows, sizes, name, count)
                frame.loc[rows.index[video[rows.index].isin(taken)], "split"] = name
                sizes = {v: size for v, size in sizes.items() if v not in taken}
        return frame

    def _check_size(self, label: str, rows: pd.DataFrame, count: int) -> None:
        if len(rows) <= count:
            raise AvbenchError(
                f"{self._origin}: row {rows.index[0] + 1}, label {label!r}: the class has"
                f" {len(rows)} clips, too few to hold out {count} and train on the rest"
            )

    def _choose(
        self, label: str, rows: pd.DataFrame, sizes: dict[Any, int], name: str, count: int
    ) -> set[Any]:
        """Return videos of `count` clips together, the first such in hash order."""
        videos = by_hash(self._seed, sizes)
        # Bit n of within[i]: whether some of videos[i:] have n clips together.
        within, mask = [1], (1 << (count + 1)) - 1
        for video in reversed(videos):
            within.append((within[-1] | within[-1] << sizes[video]) & mask)
        within.reverse()
        if not within[0] >> count & 1:
            raise AvbenchError(
                f"{self._origin}: row {rows.index[0] + 1}, label {label!r}: no choice of whole"
                f" videos of this class alone has {name}_per_class = {count} clips: change it, or"
                " set keep_videos_together = false"
            )
        taken = set()
        for video, after in zip(videos, within[1:], strict=True):
            left = count - sizes[video]
            if left >= 0 and after >> left & 1:
                taken.add(video)
                count = left
        return taken


def _completed(frame: pd.DataFrame, origin: str, *, needs_split: bool) -> pd.DataFrame:
    """Return the table with every column that a manifest has, but for class order and steps."""
    there = list(frame)
    frame = _known(frame, origin)
    key = next((k for k in ("clip_id", "path") if k in frame), None)
    if key is None:
        key = "youtube_id" if {"youtube_id", "start_s"} <= set(frame) else "clip_id"
    for column in (key, "label", *(["split"] if needs_split else [])):
        if column not in frame:
            raise AvbenchError(
                f"{origin}: column {column} is missing: it has {', '.join(map(repr, there))};"
                " a CSV needs commas between columns"
            )
    for column in _TEXTS:
        if column in frame:
            frame[column] = _as_text(frame, column, origin)
    for column in (key, "label", *(["split"] if needs_split else [])):
        _refuse(frame, frame[column].isna(), column, "must not be empty", origin)
    for column in ("youtube_id", "start_s", "end_s", "source_split"):
        if column not in frame:
            frame[column] = pd.Series([None] * len(frame), frame.index, "string")
    for column in ("start_s", "end_s"):
        # To the millisecond, as the fingerprint has it.
        frame[column] = _as_number(frame, column, "must be a number of seconds", origin).round(3)
    if key == "path":
        frame["clip_id"] = frame["path"].map(clip_id_of)
    elif key == "youtube_id":
        _refuse(frame, frame["start_s"].isna(), "start_s", "must not be empty", origin)
        frame["clip_id"] = frame["youtube_id"] + "_" + frame["start_s"].map(_six_digits)
    return frame


def _known(frame: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Return the columns that have a meaning: what others hold is nobody's business here."""
    there = [column for column in frame if isinstance(column, str) and column in _KNOWN]
    for column in there:
        if there.count(column) > 1:
            raise AvbenchError(f"{origin}: column {column} is there twice")
    frame = frame[there].copy(deep=False)
    if "source_split" not in frame:
        frame = frame.rename(columns={"orig_split": "source_split"})
    return frame


def _as_text(frame: pd.DataFrame, column: str, origin: str) -> pd.Series[str]:
    """Return a column as texts without blanks around them; an empty text is none at all."""
    given = frame[column]
    if isinstance(given.dtype, pd.CategoricalDtype):
        given = given.astype(object)
    plain = given.map(lambda value: isinstance(value, str | int | float | np.generic))
    _refuse(frame, ~plain & given.notna(), column, "must be a text", origin)
    texts = given.astype("string")
    if column != "path":
        texts = texts.str.strip()
    return texts.mask(texts == "", None)


def _as_number(frame: pd.DataFrame, column: str, rule: str, origin: str) -> pd.Series[float]:
    given = frame[column]
    if isinstance(given.dtype, pd.DatetimeTZDtype) or given.dtype.kind in "mMcb":
        raise AvbenchError(f"{origin}: column {column}: {rule}, not {given.dtype}")
    numbers = pd.to_numeric(given, errors="coerce").astype("float64")
    _refuse(frame, numbers.isna() & given.notna(), column, rule, origin)
    return numbers


def _six_digits(seconds: float) -> str:
    whole = float(seconds).is_integer()
    return f"{seconds:06.0f}" if whole else f"{seconds:010.3f}"


def _selected(frame: pd.DataFrame, classes: Sequence[str], origin: str) -> list[str]:
    there = set(frame["label"])
    for label in classes:
        if label not in there:
            raise AvbenchError(f"{origin}: column label: {unknown('class', label, sorted(there))}")
    if len(set(classes)) != len(classes):
        raise AvbenchError(f"{origin}: a class is selected twice")
    return list(classes)


def _class_order(frame: pd.DataFrame, seed: int, origin: str) -> list[str]:
    labels = frame["label"].unique()
    if "class_index" not in frame:
        return by_hash(seed, labels)
    index = _as_number(frame, "class_index", "must be a whole number", origin)
    _refuse(frame, ~(index % 1 == 0), "class_index", "must be a whole number", origin)
    last = len(labels) - 1
    _refuse(frame, ~index.between(0, last), "class_index", f"must be 0 to {last}", origin)
    first = frame.assign(index=index.astype(int)).groupby("label")["index"].first()
    again = index != frame["label"].map(first)
    _refuse(frame, again, "class_index", "the class has another index above", origin)
    if first.duplicated().any():
        one, two = first.index[first == first[first.duplicated()].iloc[0]][:2]
        raise AvbenchError(f"{origin}: column class_index: {one!r} and {two!r} share an index")
    return [str(label) for label in first.sort_values().index]


def _check_trainable(frame: pd.DataFrame, kept: pd.DataFrame, origin: str) -> None:
    """Refuse to leave out all train clips of a class."""
    trained = kept.loc[kept["split"] == "train", "label"]
    lost = (frame["split"] == "train") & ~frame["label"].isin(trained)
    rule = "no train clip of the class is left without the videos that are in test"
    _refuse(frame, lost, "label", rule, origin)


def _check_shared(manifest: Manifest, base: Manifest, path: Path) -> None:
    """Refuse clips that the benchmark whose clips are shared does not have, or not so."""
    columns = ["clip_id", "youtube_id", "start_s", "end_s"]
    theirs = {row["clip_id"]: row for row in base.table.select(columns).to_pylist()}
    for row in manifest.table.select(columns).to_pylist():
        if theirs.get(row["clip_id"]) != row:
            raise AvbenchError(
                f"{path}: clip_id {row['clip_id']!r}: {base.name} has no such clip of this video"
                " and time, but clips_of says that clips are shared with it"
            )


def _refuse(frame: pd.DataFrame, bad: pd.Series, column: str, rule: str, origin: str) -> None:
    """Raise on the first row that is bad."""
    rows = frame.index[bad.to_numpy(dtype=bool)]
    if len(rows):
        value = frame[column][rows[0]]
        shown = "" if pd.isna(value) else f" {str(value)!r}"
        raise AvbenchError(f"{origin}: row {rows[0] + 1}, {column}{shown}: {rule}")


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".csv":
            with warnings.catch_warnings():
                # A row with more fields than the header would lose some.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                _check_header(path)
                return pd.read_csv(
                    path,
                    dtype=dict.fromkeys(_TEXTS, str),
                    index_col=False,
                    keep_default_na=False,
                    na_values=[""],
                    skipinitialspace=True,
                )
        # What pandas noted there about its own index is not needed, and may be anything.
        with pq.ParquetFile(path) as file:
            frame: pd.DataFrame = file.read().to_pandas(ignore_metadata=True)
        return frame
    except pd.errors.ParserWarning as error:
        raise AvbenchError(
            f"{path}: row {_too_long(path)}: more fields than the header: put quotes around commas"
        ) from error
    except FileNotFoundError as error:
        raise AvbenchError(f"no table of clips {path}: check `annotations`") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise AvbenchError(f"{path}: not a readable table of clips ({reason})") from error


def _check_header(path: Path) -> None:
    """Refuse two columns of one name, of which pandas would rename one."""
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, skipinitialspace=True)
    for column in _KNOWN:
        if (header.iloc[0] == column).sum() > 1:
            raise AvbenchError(f"{path}: column {column} is there twice")


def _too_long(path: Path) -> int:
    """Return the number of the first row with more fields than the header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, skipinitialspace=True)
        width = len(next(rows))
        return next(number for number, row in enumerate(rows, start=1) if len(row) > width)
