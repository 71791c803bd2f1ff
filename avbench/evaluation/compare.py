"""Whether one run is better than another, or the two are a tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avbench.evaluation import predictions
from avbench.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    OF_EARLIER_STEPS,
    Metric,
    definition,
)
from avbench.evaluation.result import Result
from avbench.evaluation.statistics import Estimate, Interval, Outcomes, difference_interval
from avbench.types import AvbenchError

_EQUAL = ("benchmark", "fingerprint", "preset", "preset_hash")


@dataclass(frozen=True)
class Difference:
    """How two runs differ in one metric.

    Attributes:
        a: Mean over seeds of the first run.
        b: Of the second.
        interval: 95 % interval of a - b, see `difference_interval`.
        better: Which run is better; "tie" where the interval holds 0.
    """

    a: float
    b: float
    interval: Interval
    better: Literal["A", "B", "tie"]

    @property
    def difference(self) -> float:
        """Mean over seeds of a - b."""
        return self.a - self.b


@dataclass(frozen=True)
class Comparison:
    """How two runs differ.

    Attributes:
        a: The first run.
        b: The second.
        differences: By metric, those both runs have.
    """

    a: Result
    b: Result
    differences: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON; numbers are fractions."""
        return {
            "benchmark": self.a.config["benchmark"],
            "fingerprint": self.a.config["fingerprint"],
            "preset": self.a.config["preset"],
            "a": self.a.name,
            "b": self.b.name,
            "access": {"a": self.a.config["access"], "b": self.b.config["access"]},
            "coverage": self.a.coverage,
            "seeds": {"a": self.a.seeds, "b": self.b.seeds},
            "mixed_code": {"a": self.a.mixed_code, "b": self.b.mixed_code},
            "features_hash": {"a": self.a.features_hash, "b": self.b.features_hash},
            "differences": {
                name: {
                    "definition": definition(name),
                    "a": found.a,
                    "b": found.b,
                    "difference": found.difference,
                    "interval_95": list(found.interval),
                    "better": found.better,
                }
                for name, found in self.differences.items()
            },
        }


def compare(run_a: Path, run_b: Path) -> Comparison:
    """Compare two run directories, paired over test clips.

    Numbers are computed from the predictions, of all seeds of either run.

    Args:
        run_a: A run directory.
        run_b: Another.

    Raises:
        AvbenchError: If a directory is not a finished run, its numbers do not follow from its
            predictions, or the two are not comparable.
    """
    a, b = (read_run(run) for run in (run_a, run_b))
    check_comparable([a, b])
    of_a, of_b = read_outcomes(run_a, a), read_outcomes(run_b, b)
    joint = "joint" in (a.config["access"], b.config["access"])
    metrics = {
        name: metric
        for name, metric in METRICS.items()
        # A bound has nothing to forget, nor has a single step.
        if not (name in OF_EARLIER_STEPS and (joint or of_a.matrix().steps == 1))
    }
    return Comparison(a, b, differences(of_a, of_b, metrics))


def differences(a: Outcomes, b: Outcomes, metrics: Mapping[str, Metric]) -> dict[str, Difference]:
    """Compare the outcomes of two methods.

    Args:
        a: Of the first method.
        b: Of the second, on the same clips in the same order.
        metrics: Some of `METRICS`.

    Raises:
        ValueError: If the clips differ.
    """
    found = {}
    for name, metric in metrics.items():
        of_a, of_b = Estimate.of(a, metric), Estimate.of(b, metric)
        interval = difference_interval(of_a, of_b)
        means = float(of_a.per_seed.mean()), float(of_b.per_seed.mean())
        found[name] = Difference(*means, interval, _better(name, interval))
    return found


def _better(name: str, interval: Interval) -> Literal["A", "B", "tie"]:
    if interval[0] <= 0 <= interval[1]:
        return "tie"
    return "A" if (interval[0] > 0) != (name in LOWER_IS_BETTER) else "B"


def read_run(run: Path) -> Result:
    """Read the result of a run directory.

    Raises:
        AvbenchError: If it is not a finished run.
    """
    if not (run / "result.json").is_file():
        raise AvbenchError(f"{run} is not a finished run: check the path, or run avbench evaluate")
    return Result.read(run / "result.json")


def terms(result: Result) -> dict[str, Any]:
    """Return what runs must have in common to be compared, by name."""
    equal = {key: result.config[key] for key in _EQUAL}
    return equal | {"coverage": result.coverage, "test clips": result.test_clips_hash}


def obstacles(a: Result, b: Result) -> list[str]:
    """Return why two results must not share a table; nothing where they may.

    They must have been given the same to do: manifest, features, coverage and test clips.
    """
    of_a, of_b = terms(a), terms(b)
    return [
        f"{key} ({_short(of_a[key])} and {_short(of_b[key])})"
        for key in of_a
        if of_a[key] != of_b[key]
    ]


def check_comparable(results: Sequence[Result]) -> None:
    """Refuse results that must not share a table.

    Raises:
        AvbenchError: Naming the first two that differ, and in what.
    """
    for other in results[1:]:
        if differ := obstacles(results[0], other):
            raise AvbenchError(
                f"not comparable, {results[0].name} and {other.name} differ in {', '.join(differ)}:"
                " run both on the same"
            )


def read_outcomes(run: Path, result: Result) -> Outcomes:
    """Read the predictions of a run, and check that the result's counts follow from them.

    Raises:
        AvbenchError: If predictions are missing or not whole, or say something else.
    """
    tables = [
        predictions.read(run / f"seed-{seed}" / "predictions.parquet") for seed in result.seeds
    ]
    try:
        outcomes = predictions.outcomes(tables)
    except AvbenchError as error:
        raise AvbenchError(f"predictions of {run}: {error}") from error
    found = outcomes.matrix()
    for seed, correct in zip(result.seeds, found.correct, strict=True):
        claimed = result.matrices[seed]
        if not (
            np.array_equal(correct, claimed.correct) and np.array_equal(found.total, claimed.total)
        ):
            raise AvbenchError(f"{run}: seed {seed} of result.json is not what it predicted")
    return outcomes


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{split} {100 * share:.2f} %" for split, share in value.items())
    return str(value)[:24]
