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
from avbench.evaluation.statistics import (
    REPLICATES,
    Interval,
    Outcomes,
    bootstrap,
    interval_to_json,
    percentile_interval,
    t_interval,
)
from avbench.types import AvbenchError

_EQUAL = ("benchmark", "fingerprint", "preset", "preset_hash")


@dataclass(frozen=True)
class Difference:
    """How two runs differ in one metric, on the seeds both have.

    Attributes:
        a: Mean over seeds of the first run.
        b: Of the second.
        over_seeds: 95 % t-interval of a - b, paired by seed; NaN for one seed.
        over_seeds_and_clips: 95 % interval of a - b from the hierarchical bootstrap, paired by seed
            and test clip.
        better: Which run is better; "tie" where either interval holds 0.
    """

    a: float
    b: float
    over_seeds: Interval
    over_seeds_and_clips: Interval
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
        seeds: The seeds both have, ascending.
        bootstrap_seed: Seed of the bootstrap's draws.
        differences: By metric, those both runs have.
    """

    a: Result
    b: Result
    seeds: tuple[int, ...]
    bootstrap_seed: int
    differences: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON; numbers are fractions."""
        return {
            "benchmark": self.a.config["benchmark"],
            "fingerprint": self.a.config["fingerprint"],
            "preset": self.a.config["preset"],
            "a": self.a.name,
            "b": self.b.name,
            "seeds": list(self.seeds),
            "bootstrap": {"seed": self.bootstrap_seed, "replicates": REPLICATES},
            "differences": {
                name: {
                    "definition": definition(name),
                    "a": found.a,
                    "b": found.b,
                    "difference": found.difference,
                    "over_seeds_95": interval_to_json(found.over_seeds),
                    "over_seeds_and_clips_95": interval_to_json(found.over_seeds_and_clips),
                    "better": found.better,
                }
                for name, found in self.differences.items()
            },
        }


def compare(run_a: Path, run_b: Path, *, seed: int = 0) -> Comparison:
    """Compare two run directories, paired over the seeds both have and over test clips.

    Numbers are computed from the predictions. Two intervals tell how sure a difference is: over
    seeds (t), which holds for few seeds but speaks of these test clips only, and over seeds and
    clips (bootstrap), which speaks of other clips too but understates how much few seeds differ. A
    run is better where neither holds 0.

    Args:
        run_a: A run directory.
        run_b: Another.
        seed: Of the bootstrap's draws.

    Raises:
        AvbenchError: If a directory is not a finished run, its numbers do not follow from its
            predictions, the two are not comparable, or they have no seed in common.
    """
    a, b = (read_run(run) for run in (run_a, run_b))
    check_comparable([a, b])
    seeds = sorted({*a.seeds} & {*b.seeds})
    if not seeds:
        raise AvbenchError(
            f"{run_a} has the seeds {_list(a.seeds)}, {run_b} {_list(b.seeds)}: none in common"
        )
    of_a, of_b = read_outcomes(run_a, a, seeds), read_outcomes(run_b, b, seeds)
    joint = "joint" in (a.config["access"], b.config["access"])
    metrics = {
        name: metric
        for name, metric in METRICS.items()
        # A bound has nothing to forget, nor has a single step.
        if not (name in OF_EARLIER_STEPS and (joint or of_a.matrix().steps == 1))
    }
    return Comparison(a, b, tuple(seeds), seed, differences(of_a, of_b, metrics, seed=seed))


def differences(
    a: Outcomes, b: Outcomes, metrics: Mapping[str, Metric], *, seed: int
) -> dict[str, Difference]:
    """Compare the outcomes of two methods, paired by seed and test clip.

    Args:
        a: Of the first method.
        b: Of the second, with the same seeds and clips in the same order.
        metrics: Some of `METRICS`.
        seed: Of the bootstrap's draws.

    Raises:
        ValueError: If the two do not have the same numbers of seeds and the same clips.
    """
    if a.correct.shape != b.correct.shape or (a.task != b.task).any():
        raise ValueError("outcomes must have the same seeds and clips")
    # Equal seeds draw alike, which pairs the two.
    drawn_a, drawn_b = (bootstrap(outcomes, metrics, seed=seed) for outcomes in (a, b))
    found = {}
    for name, metric in metrics.items():
        per_seed_a, per_seed_b = metric(a.matrix()), metric(b.matrix())
        over_seeds = t_interval(per_seed_a - per_seed_b)
        over_both = percentile_interval(drawn_a[name] - drawn_b[name])
        means = float(per_seed_a.mean()), float(per_seed_b.mean())
        better = _better(name, over_seeds, over_both)
        found[name] = Difference(*means, over_seeds, over_both, better)
    return found


def _better(name: str, over_seeds: Interval, over_both: Interval) -> Literal["A", "B", "tie"]:
    # Nothing compares with NaN: with one seed the second interval decides alone.
    if over_seeds[0] <= 0 <= over_seeds[1] or over_both[0] <= 0 <= over_both[1]:
        return "tie"
    higher = over_both[0] > 0
    return "A" if higher != (name in LOWER_IS_BETTER) else "B"


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


def read_outcomes(run: Path, result: Result, seeds: Sequence[int]) -> Outcomes:
    """Read the predictions of some seeds, and check that the result's counts follow from them.

    Raises:
        AvbenchError: If predictions are missing or not whole, or say something else.
    """
    tables = [predictions.read(run / f"seed-{seed}" / "predictions.parquet") for seed in seeds]
    try:
        outcomes = predictions.outcomes(tables)
    except AvbenchError as error:
        raise AvbenchError(f"predictions of {run}: {error}") from error
    found = outcomes.matrix()
    for seed, correct in zip(seeds, found.correct, strict=True):
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


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
