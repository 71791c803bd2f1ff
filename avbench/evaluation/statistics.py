"""How sure a number is: over seeds, and over seeds and test clips, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avbench.evaluation.metrics import METRICS, AccuracyMatrix, Floats, Integers, Metric, definition

CONFIDENCE = 0.95
REPLICATES = 2000

Interval = tuple[float, float]
"""Lower and upper end; NaN where there is none."""

# Counts held at a time while bootstrapping: bounds memory, whatever the numbers of seeds and steps.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Summary:
    """A metric over seeds.

    Attributes:
        mean: Mean over seeds.
        std: Unbiased standard deviation; NaN for one seed.
        interval: 95 % t-interval of the mean; NaN for one seed.
        per_seed: The metric of every seed.
    """

    mean: float
    std: float
    interval: Interval
    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise one value per seed."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        mean = float(np.mean(values))
        return cls(mean, std, t_interval(values), tuple(float(value) for value in values))

    def to_json(self) -> dict[str, Any]:
        """Return the record for JSON, None for NaN."""
        return {
            "mean": _number(self.mean),
            "std": _number(self.std),
            "interval_95": interval_to_json(self.interval),
            "per_seed": [_number(value) for value in self.per_seed],
        }


def summarise(matrices: Collection[AccuracyMatrix]) -> dict[str, Any]:
    """Return every metric over seeds for JSON, with its definition, by name.

    Args:
        matrices: One per seed.
    """
    return {
        name: {"definition": definition(name)}
        | Summary.of([float(metric(matrix)) for matrix in matrices]).to_json()
        for name, metric in METRICS.items()
    }


def t_interval(values: Sequence[float] | Floats) -> Interval:
    """Return Student's 95 % interval of the mean of independent values, such as one per seed.

    mean ± t_{n-1, 0.975} * s / sqrt(n), with the unbiased deviation s. It speaks of other seeds on
    the same test clips.

    Args:
        values: (n,).

    Returns:
        NaN for fewer than two values.
    """
    from scipy.special import stdtrit  # slow to import

    if len(values) < 2:
        return math.nan, math.nan
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(len(values))
    return mean - half, mean + half


def percentile_interval(replicates: Floats) -> Interval:
    """Return the middle 95 % of bootstrap replicates.

    Args:
        replicates: (replicates,).
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Outcomes:
    """Which predictions were correct, for seeds tested on the same clips.

    Attributes:
        correct: Whether clip c was classified correctly after step t under seed s; False where its
            class was not seen yet. Shape (S, T, clips).
        task: The step that introduced the clip's class, (clips,).
    """

    correct: npt.NDArray[np.bool_]
    task: Integers

    def __post_init__(self) -> None:
        seeds, steps, clips = self.correct.shape
        if self.task.shape != (clips,) or seeds == 0:
            raise ValueError(f"task must be ({clips},), and there must be a seed")
        present = np.bincount(self.task, minlength=steps)
        if len(present) != steps or not present.all():
            raise ValueError("every step needs at least one test clip")
        if self.correct[:, self.task > np.arange(steps)[:, None]].any():
            raise ValueError("correct must be False for classes not seen yet")

    def matrix(self) -> AccuracyMatrix:
        """Return the accuracy matrices of the seeds as a stack, (S, T, T)."""
        _, steps, _ = self.correct.shape
        counts = [self.correct[..., self.task == i].sum(axis=-1) for i in range(steps)]
        return AccuracyMatrix(np.stack(counts, axis=-1), np.bincount(self.task))


@dataclass(frozen=True)
class Estimate:
    """A metric of one method, and what its value hangs on.

    Attributes:
        per_seed: The metric of every seed, (S,).
        clips: What the predictions of a test clip add to the mean over seeds, to first order,
            (clips,).
        task: The step that introduced the clip's class, (clips,).
    """

    per_seed: Floats
    clips: Floats
    task: Integers

    @classmethod
    def of(cls, outcomes: Outcomes, metric: Metric) -> Estimate:
        """Measure outcomes.

        What a correct prediction is worth, g_{s,t,i}, is how much the metric of seed s moves with
        one correct clip more or less in cell (t, i) of its accuracy matrix; a clip of step i adds
        (1 / S) * (sum over s and t of g_{s,t,i} * correct_{s,t,clip}).
        """
        matrix = outcomes.matrix()
        per_seed = metric(matrix)
        step, task = np.tril_indices(matrix.steps)
        cells = np.arange(len(step))
        # A cell with nothing correct can only gain.
        move = np.where(matrix.correct[:, step, task] > 0, -1, 1).T
        moved = np.tile(matrix.correct, (len(cells), 1, 1, 1))
        moved[cells, :, step, task] += move
        worth = np.zeros(matrix.correct.shape)
        gained = metric(AccuracyMatrix(moved, matrix.total)) - per_seed
        worth[:, step, task] = (gained * move).T
        clips = (worth[:, :, outcomes.task] * outcomes.correct).sum(axis=(0, 1)) / len(per_seed)
        return cls(per_seed, clips, outcomes.task)


def difference_interval(a: Estimate, b: Estimate) -> Interval:
    """Return the 95 % interval of the difference of a metric between two methods.

    d ± t_{f, 0.975} * sqrt(V) with V = s_a^2 / S_a + s_b^2 / S_b + (sum over steps i of
    n_i * s_i^2) and f after Welch and Satterthwaite: seeds of the two are independent, with
    deviations s_a and s_b of their own; test clips are shared, s_i being the deviation of the
    difference of what the n_i clips of a step add. It speaks of other seeds and other test clips of
    the same classes; where a method has one seed, of no other seed of it.

    Args:
        a: Of one method.
        b: Of another, on the same test clips in the same order.

    Raises:
        ValueError: If the clips differ.
    """
    from scipy.special import stdtrit  # slow to import

    if not np.array_equal(a.task, b.task):
        raise ValueError("estimates must be of the same clips")
    counts = np.bincount(a.task)
    added = a.clips - b.clips
    apart = added - (np.bincount(a.task, added) / counts)[a.task]
    # A step with a single clip says nothing of others.
    scale = counts / np.maximum(counts - 1, 1)
    variances = [(float(np.bincount(a.task, apart**2) @ scale), int((counts - 1).sum()))]
    for values in (a.per_seed, b.per_seed):
        if len(values) > 1:
            variances.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
    difference = float(a.per_seed.mean() - b.per_seed.mean())
    variance = sum(part for part, _ in variances)
    if variance == 0:
        return difference, difference
    freedom = variance**2 / sum(part**2 / free for part, free in variances if free)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return difference - half, difference + half


def bootstrap(
    outcomes: Outcomes, metrics: Mapping[str, Metric], *, seed: int, replicates: int = REPLICATES
) -> dict[str, Floats]:
    """Draw seeds and test clips anew, and return the mean metric over seeds of every draw.

    Both are drawn with replacement and independently (the pigeonhole bootstrap of Owen, 2007): the
    clips drawn are the same for all seeds and steps, as the test set is, and come from the same
    step as those they replace. With few seeds it understates how much seeds differ, as any
    bootstrap does: `t_interval` does not.

    Equal `seed`s draw alike for all outcomes with the same numbers of seeds and the same `task`:
    subtracting their replicates is the paired bootstrap of two methods.

    Args:
        outcomes: Of one method.
        metrics: Functions of an accuracy matrix, by name.
        seed: Of the draws.
        replicates: How many draws.

    Returns:
        For every metric, (replicates,).
    """
    seeds, steps, _ = outcomes.correct.shape
    total = np.bincount(outcomes.task)
    # Per task, what float32 holds exactly and BLAS multiplies: (clips of i, seeds * steps from i).
    hits = [
        outcomes.correct[:, i:, outcomes.task == i].reshape(-1, total[i]).T.astype(np.float32)
        for i in range(steps)
    ]
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(seeds * steps * steps, int(total.max())))
    parts: dict[str, list[Floats]] = {name: [] for name in metrics}
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        correct = np.zeros((size, seeds, steps, steps), dtype=np.int64)
        for i, clips in enumerate(total):
            counts = _times_drawn(random, size, clips) @ hits[i]
            correct[:, :, i:, i] = counts.reshape(size, seeds, steps - i)
        matrix = AccuracyMatrix(correct, total)
        for name, metric in metrics.items():
            parts[name].append((metric(matrix) * drawn).sum(axis=-1))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _times_drawn(random: np.random.Generator, size: int, clips: int) -> npt.NDArray[np.float32]:
    """Return how often each of some clips is drawn, in each of some draws, (size, clips)."""
    picks = random.integers(clips, size=(size, clips))
    picks += clips * np.arange(size)[:, None]
    times = np.bincount(picks.ravel(), minlength=size * clips)
    return times.reshape(size, clips).astype(np.float32)


def _number(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN."""
    return None if math.isnan(value) else value


def interval_to_json(interval: Interval) -> list[float] | None:
    """Return both ends, or None where there is no interval."""
    return None if math.isnan(interval[0]) else list(interval)
