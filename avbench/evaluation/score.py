"""Predictions made anywhere, checked whole and measured as avbench measures its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from avbench.evaluation.metrics import METRICS, AccuracyMatrix, Integers, accuracy_per_step
from avbench.evaluation.statistics import Outcomes, Summary, summarise
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.types import AvbenchError, UsageError

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = {
    "step": "after which step the prediction was made: a whole number, the first step is 0",
    "clip_id": "a test clip of a class seen by then: text",
    "prediction": "the predicted class: its index (whole number) or its label (text)",
}
OPTIONAL = {
    "seed": "which run of several the row belongs to: a whole number",
    "label": "the true class, as index or label: only compared with the manifest's",
}

_WHOLE = r"^\s*-?[0-9]{1,15}(\.0+)?\s*$"
# What pandas calls an index without a name, in CSV and in Parquet.
_INDEX = r"|__index_level_[0-9]+__"
_EXAMPLES = 3
_MOST_SEEDS = 1000

Columns = list[tuple[str, pa.Array | None]]
Predicted = npt.NDArray[np.int16]
Parsed = tuple[tuple[int | None, ...], Predicted, Outcomes]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Violation:
    """One way in which predictions break the contract.

    Attributes:
        rule: Which rule, in a word or two.
        count: How often.
        message: What is wrong.
        examples: The first few.
    """

    rule: str
    count: int
    message: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rule}: {self.count:,} {self.message}, such as {'; '.join(self.examples)}"

    def to_json(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return asdict(self)


class PredictionsError(AvbenchError):
    """Everything that is wrong with predictions, one line each after the first.

    Attributes:
        violations: The same as records.
    """

    def __init__(self, origin: str, benchmark: Benchmark, violations: Sequence[Violation]) -> None:
        lines = "\n".join(f"  {violation}" for violation in violations)
        remedy = f"avbench score --benchmark {benchmark.argument} --describe says what is expected"
        super().__init__(f"{origin} does not fit {benchmark.name}:\n{lines}\n{remedy}")
        self.violations = tuple(violations)


@dataclass(frozen=True)
class Score:
    """What predictions are worth.

    Attributes:
        benchmark: Its name, of a variant with the options.
        fingerprint: Of its manifest.
        seeds: The seeds, ascending; one None where the predictions have none.
        predicted: The class index predicted for test clip c after step t under seed s, test clips
            as in the manifest; -1 where its class was not seen yet. Shape (S, T, clips).
        outcomes: Which predictions were correct, the seeds in that order, for `bootstrap`.
    """

    benchmark: str
    fingerprint: str
    seeds: tuple[int | None, ...]
    predicted: Predicted
    outcomes: Outcomes

    @cached_property
    def matrices(self) -> list[AccuracyMatrix]:
        """One accuracy matrix per seed."""
        stack = self.outcomes.matrix()
        return [AccuracyMatrix(correct, stack.total) for correct in stack.correct]

    def metric(self, name: str) -> Summary:
        """Summarise one of `METRICS` over seeds, as a fraction."""
        return Summary.of([float(METRICS[name](matrix)) for matrix in self.matrices])

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "benchmark": self.benchmark,
            "fingerprint": self.fingerprint,
            "metrics": summarise(self.matrices),
            "runs": [
                {
                    "seed": seed,
                    "accuracy_per_step": accuracy_per_step(matrix).tolist(),
                    "correct": matrix.correct.tolist(),
                    "total": matrix.total.tolist(),
                }
                for seed, matrix in zip(self.seeds, self.matrices, strict=True)
            ],
        }


def score(predictions: Path | str | pd.DataFrame | pa.Table, benchmark: Benchmark) -> Score:
    """Check predictions against a benchmark and measure them.

    Args:
        predictions: A Parquet or CSV file, a pandas DataFrame or a pyarrow Table with one row per
            seed, step and test clip; columns as in `REQUIRED` and `OPTIONAL`.
        benchmark: What was predicted.

    Raises:
        PredictionsError: If the predictions break the contract; it lists every violation.
        UsageError: If the file is neither Parquet nor CSV by its name.
        AvbenchError: If the file cannot be read, or the benchmark has a step without test clips.
    """
    if isinstance(predictions, Path | str):
        origin, untyped = str(predictions), Path(predictions).suffix.lower() == ".csv"
        columns = _columns(_read(Path(predictions)))
    else:
        origin, untyped = "the table of predictions", False
        columns = _columns(predictions)
    check = _Check(_TestClips.of(benchmark), untyped)
    checked = check.run(columns)
    if checked is None:
        raise PredictionsError(origin, benchmark, check.violations)
    return Score(benchmark.name, benchmark.manifest.fingerprint, *checked)


def describe(benchmark: Benchmark) -> dict[str, Any]:
    """Return the contract that predictions of a benchmark must keep.

    Raises:
        AvbenchError: If the benchmark has a step without test clips.
    """
    clips = _TestClips.of(benchmark)
    per_step = np.cumsum(np.bincount(clips.task))
    return {
        "benchmark": benchmark.name,
        "fingerprint": benchmark.manifest.fingerprint,
        "columns": {"required": REQUIRED, "optional": OPTIONAL},
        "steps": [
            {"step": step, "classes_seen": int(clips.seen[step]), "clips": int(count)}
            for step, count in enumerate(per_step)
        ],
        "rows_per_seed": int(per_step.sum()),
        "classes": list(clips.manifest.labels),
    }


@dataclass(frozen=True)
class _TestClips:
    """The test clips of a benchmark, by their position among them.

    Attributes:
        manifest: Of the benchmark.
        ids: Of the clips, (n,).
        task: The step that introduces a clip's class, (n,).
        label: A clip's class index, (n,).
        seen: Number of classes seen after each step, (T,).
    """

    manifest: Manifest
    ids: pa.Array
    task: Integers
    label: Integers
    seen: Integers

    @classmethod
    def of(cls, benchmark: Benchmark) -> _TestClips:
        manifest = benchmark.manifest
        rows = manifest.rows("test")
        task = manifest.step_of_row[rows]
        seen = np.cumsum(manifest.classes_per_step)
        for step, count in enumerate(np.bincount(task, minlength=len(seen))):
            if count == 0:
                raise AvbenchError(f"step {step + 1} of {benchmark.name} has no test clip")
        ids = manifest.table["clip_id"].take(rows).combine_chunks()
        return cls(manifest, ids, task, manifest.class_indices[rows], seen)


def _read(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise UsageError(f"{path}: predictions must be a file .parquet or .csv")
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.read()
        # As text, since ids of digits are ids; only an empty field is a null, since a label may
        # be "null" or "NA".
        names = [*REQUIRED, *OPTIONAL]
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        return pyarrow.csv.read_csv(path, convert_options=convert)
    except FileNotFoundError as error:
        raise AvbenchError(f"no predictions {path}: check the path") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        remedy = "write it again" + (", in UTF-8, with commas" if suffix == ".csv" else "")
        raise AvbenchError(f"{path}: not readable as {suffix[1:]} ({reason}): {remedy}") from error


def _columns(table: pa.Table | pd.DataFrame) -> Columns:
    """Return names and values of the columns; None for values that have no common type."""
    columns: Columns = []
    if isinstance(table, pa.Table):
        for name, column in zip(table.column_names, table.columns, strict=True):
            if not re.fullmatch(_INDEX, name):
                columns.append((name, _plain(column.combine_chunks())))
        return columns
    for number, name in enumerate(table.columns):
        try:
            columns.append((str(name), _plain(pa.array(table.iloc[:, number], from_pandas=True))))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            columns.append((str(name), None))
    return columns


def _plain(column: pa.Array) -> pa.Array:
    """Return a column with categories decoded, and text of any kind as one kind of text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        column = column.cast(pa.string())
    return column


@dataclass
class _Check:
    """Finds everything that is wrong with predictions.

    Columns become arrays of integers, -1 where a row has no valid value; that is reported once.

    Attributes:
        clips: Of the benchmark.
        untyped: Whether numbers and text look alike, as in CSV.
        violations: What has been found.
    """

    clips: _TestClips
    untyped: bool
    violations: list[Violation] = field(default_factory=list)

    def run(self, columns: Columns) -> Parsed | None:
        """Return seeds, predictions and which are correct, or None where something is wrong."""
        given = self._usable(columns)
        parse = {
            "step": self._step,
            "clip_id": self._clip,
            "prediction": self._class,
            "seed": self._whole,
            "label": self._class,
        }
        parsed = {name: parse[name](name, column) for name, column in given.items()}
        step, clip, prediction = (parsed.get(name) for name in REQUIRED)
        if step is not None and prediction is not None:
            self._unseen(step, prediction)
        if clip is not None and "label" in parsed:
            self._labels(clip, parsed["label"])
        unread = {name for name, _ in columns} - parsed.keys()
        if step is None or clip is None or "seed" in unread:
            return None
        seed = parsed.get("seed", np.zeros(len(step), dtype=np.int64))
        known = np.unique(seed[seed >= 0])
        if len(known) > _MOST_SEEDS:
            what = f"different seeds, more than {_MOST_SEEDS:,}: they must tell runs apart"
            examples = tuple(str(value) for value in known[:_EXAMPLES])
            self.violations.append(Violation("wrong seed", len(known), what, examples))
            return None
        seeds: tuple[int | None, ...] = tuple(known.tolist()) if "seed" in parsed else (None,)
        seeds = seeds or (None,)  # no row has one: all predictions are missing
        of_seed = np.searchsorted(known, seed)
        good = (step >= 0) & (clip >= 0) & (seed >= 0)
        self._complete(seeds, of_seed[good], step[good], clip[good])
        if self.violations or prediction is None:
            return None
        shape = (len(seeds), len(self.clips.seen), len(self.clips.ids))
        predicted = np.full(shape, -1, dtype=np.int16)
        predicted[of_seed, step, clip] = prediction
        return seeds, predicted, Outcomes(predicted == self.clips.label, self.clips.task)

    def _add(
        self, rule: str, bad: Mask | Integers, message: str, example: Callable[[int], str]
    ) -> None:
        """Report some rows, if there are any, with the first different examples.

        Args:
            rule: What is broken.
            bad: Which rows, as a mask or by number.
            message: What is wrong with them, after their number.
            example: Says for a row's number what stands there.
        """
        rows = np.flatnonzero(bad) if bad.dtype == bool else bad
        examples: dict[str, None] = {}
        for row in rows[:1000]:
            examples[example(int(row))] = None
            if len(examples) == _EXAMPLES:
                break
        if examples:
            self.violations.append(Violation(rule, len(rows), message, tuple(examples)))

    def _usable(self, columns: Columns) -> dict[str, pa.Array]:
        """Return the columns the contract has, as far as their types allow to read them."""
        names = [name for name, _ in columns]
        wrong = {
            "columns missing": [name for name in REQUIRED if name not in names],
            "columns that do not belong here": sorted(map(repr, {*names} - {*REQUIRED, *OPTIONAL})),
            "columns given twice": sorted({name for name in names if names.count(name) > 1}),
        }
        usable = {name: column for name, column in columns if name in REQUIRED | OPTIONAL}
        types = []
        for name, column in list(usable.items()):
            kind = None if column is None else column.type
            text = kind is not None and pa.types.is_string(kind)
            number = kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
            if not (text or (number and name != "clip_id")):
                must = "text" if name == "clip_id" else "numbers or text"
                types.append(f"{name} is {kind or 'of mixed types'}, not {must}")
                del usable[name]
        wrong["columns of a wrong type"] = types
        for message, examples in wrong.items():
            if examples:
                self.violations.append(
                    Violation("wrong columns", len(examples), message, tuple(examples))
                )
        for name in wrong["columns given twice"]:
            usable.pop(name, None)
        return usable

    def _nulls(self, name: str, column: pa.Array) -> Mask:
        null = np.asarray(column.is_null(nan_is_null=True))
        self._add("null", null, f"rows have no {name}", lambda row: f"row {row + 1}")
        return null

    def _whole(self, name: str, column: pa.Array) -> Integers:
        """Return whole numbers from 0 on."""
        null = self._nulls(name, column)
        numbers = column
        if pa.types.is_string(column.type):
            readable = pc.match_substring_regex(column, _WHOLE)
            numbers = pc.if_else(readable, pc.utf8_trim_whitespace(column), None)
        values = np.asarray(numbers.cast(pa.float64(), safe=False).fill_null(-1))
        whole = (values >= 0) & (values < 2**53) & (values == np.floor(values))
        self._add(
            "not a number",
            ~null & ~whole,
            f"values of {name} are not whole numbers from 0 on",
            lambda row: f"{column[row].as_py()!r} in row {row + 1}",
        )
        return np.where(whole, values, -1).astype(np.int64)

    def _step(self, name: str, column: pa.Array) -> Integers:
        values = self._whole(name, column)
        steps = len(self.clips.seen)
        what = f"rows have a step that is not one of 0 to {steps - 1} (they count from 0)"
        self._add("wrong step", values >= steps, what, lambda row: f"step {values[row]}")
        return np.where(values < steps, values, -1)

    def _class(self, name: str, column: pa.Array) -> Integers:
        """Return class indices, given as such or as labels."""
        labels = self.clips.manifest.labels
        if pa.types.is_string(column.type) and not self._are_indices(name, column):
            null = self._nulls(name, column)
            index = pc.index_in(column, value_set=pa.array(labels)).fill_null(-1)
            values = np.asarray(index, dtype=np.int64)

            @cache
            def told(label: str) -> str:
                close = get_close_matches(label, labels, n=1)
                return f"{label!r} (did you mean {close[0]!r}?)" if close else repr(label)

            what = f"values of {name} are not labels of {self.clips.manifest.name}"
            bad = ~null & (values < 0)
            self._add("unknown label", bad, what, lambda row: told(column[row].as_py()))
            return values
        values = self._whole(name, column)
        self._add(
            "unknown class",
            values >= len(labels),
            f"values of {name} are not one of 0 to {len(labels) - 1} (they count from 0)",
            lambda row: f"class {values[row]}",
        )
        return np.where(values < len(labels), values, -1)

    def _are_indices(self, name: str, column: pa.Array) -> bool:
        """Whether text is class indices: all of it numbers, which are no labels."""
        numbers = pc.all(pc.match_substring_regex(column, _WHOLE)).as_py()
        labels = pa.array(self.clips.manifest.labels)
        if not numbers or not pc.any(pc.match_substring_regex(labels, _WHOLE)).as_py():
            return bool(numbers)
        if self.untyped:
            what = (
                f"column cannot be read: numbers are labels of {self.clips.manifest.name}, too;"
                " give Parquet, where whole numbers are indices and text is labels"
            )
            self.violations.append(Violation("ambiguous", 1, what, (name,)))
        return False

    def _clip(self, name: str, column: pa.Array) -> Integers:
        """Return the clips' positions among the test clips."""
        null = self._nulls(name, column)
        manifest = self.clips.manifest
        values = np.asarray(pc.index_in(column, value_set=self.clips.ids).fill_null(-1))
        other = np.asarray(pc.is_in(column, value_set=manifest.table["clip_id"])) & (values < 0)

        def example(row: int) -> str:
            return repr(column[row].as_py())

        what = f"rows have clips of train or val of {manifest.name}"
        self._add("not a test clip", other, what, example)
        nowhere = ~null & ~other & (values < 0)
        what = f"rows have clips that are not of {manifest.name}"
        self._add("unknown clip", nowhere, what, example)
        return values.astype(np.int64)

    def _unseen(self, step: Integers, prediction: Integers) -> None:
        seen = self.clips.seen[step]  # where step is -1, all have been
        self._add(
            "unseen class",
            prediction >= seen,
            "rows predict a class that no step so far introduced",
            lambda row: f"class {prediction[row]} after step {step[row]} ({seen[row]} seen)",
        )

    def _labels(self, clip: Integers, label: Integers) -> None:
        true = self.clips.label[clip]
        self._add(
            "wrong label",
            (clip >= 0) & (label >= 0) & (label != true),
            "rows have another label than the manifest: predictions of another class order?",
            lambda row: f"{self._id(int(clip[row]))} has class {true[row]}, not {label[row]}",
        )

    def _complete(
        self, seeds: tuple[int | None, ...], seed: Integers, step: Integers, clip: Integers
    ) -> None:
        """Every seed and step must have each test clip of the classes seen, once."""
        shape = (len(seeds), len(self.clips.seen), len(self.clips.ids))

        def example(place: int) -> str:
            s, t, c = np.unravel_index(place, shape)
            run = "" if seeds[s] is None else f"seed {seeds[s]}, "
            return f"{run}step {t}, {self._id(int(c))}"

        places = np.ravel_multi_index((seed, step, clip), shape)
        times = np.bincount(places, minlength=np.prod(shape))
        expected = np.broadcast_to(self.clips.task <= np.arange(shape[1])[:, None], shape).ravel()
        early = places[~expected[places]]
        self._add("early clip", early, "rows have clips of a class not seen yet", example)
        what = "clips are predicted more than once after a step"
        self._add("duplicate", np.flatnonzero(times > 1), what, example)
        what = f"of {expected.sum():,} predictions are missing"
        self._add("missing", np.flatnonzero(expected & (times == 0)), what, example)

    def _id(self, clip: int) -> str:
        return f"clip {self.clips.ids[clip].as_py()}"
