"""What the field measures, as pure functions on a matrix of counts.

Steps count from 0 in code and from 1 in equations. a_t is the accuracy after step t on the test
clips of all classes seen so far; a_{t,i} is the accuracy after step t on those of step i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AccuracyMatrix:
    """Correct test clips per step and task.

    Attributes:
        correct: correct[t, i] is how many test clips of step i's classes were classified correctly
            after step t; entries with i > t are 0. Shape (T, T).
        total: How many test clips step i's classes have. Shape (T,).
    """

    correct: Integers
    total: Integers

    def __post_init__(self) -> None:
        steps = len(self.total)
        if self.correct.shape != (steps, steps) or steps == 0:
            raise ValueError(f"correct must be {steps} x {steps}, not {self.correct.shape}")
        if (self.total < 1).any():
            raise ValueError("every step needs at least one test clip")
        if (self.correct < 0).any() or (self.correct > self.total).any():
            raise ValueError("correct must lie between 0 and total")
        if np.triu(self.correct, 1).any():
            raise ValueError("correct must be 0 for classes not seen yet")

    @classmethod
    def from_predictions(
        cls, step: Integers, task: Integers, label: Integers, prediction: Integers
    ) -> AccuracyMatrix:
        """Count correct predictions.

        Args:
            step: After which step each prediction was made, (n,).
            task: The step that introduced the clip's class, (n,).
            label: The clip's class index, (n,).
            prediction: The predicted class index, (n,).

        Raises:
            ValueError: If a step is missing, or its test clips differ from those of another.
        """
        steps = int(step.max()) + 1
        flat = step * steps + task
        counts = np.bincount(flat, minlength=steps * steps).reshape(steps, steps)
        total = counts[-1]
        if (counts != np.tril(np.tile(total, (steps, 1)))).any():
            raise ValueError("every step must predict all test clips of the classes seen so far")
        correct = np.bincount(flat[label == prediction], minlength=steps * steps)
        return cls(correct.reshape(steps, steps).astype(np.int64), total.astype(np.int64))

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.total)

    @property
    def accuracy(self) -> Floats:
        """a_{t,i}, NaN where i > t. Shape (T, T)."""
        values = self.correct / self.total
        values[np.triu_indices(self.steps, 1)] = np.nan
        return np.asarray(values, dtype=np.float64)


def accuracy_per_step(matrix: AccuracyMatrix) -> Floats:
    """a_t: correct over all test clips of the classes seen so far, pooled. Shape (T,)."""
    pooled: Floats = matrix.correct.sum(axis=1) / np.cumsum(matrix.total)
    return pooled


def mean_accuracy(matrix: AccuracyMatrix) -> float:
    """Mean accuracy (paper, Eq. 15): the mean of a_t over t = 1..T."""
    return float(accuracy_per_step(matrix).mean())


def last_accuracy(matrix: AccuracyMatrix) -> float:
    """a_T: accuracy over all classes after the last step."""
    return float(accuracy_per_step(matrix)[-1])


def task_mean_accuracy(matrix: AccuracyMatrix) -> float:
    """The mean over t of the mean over i <= t of a_{t,i}: every task counts alike.

    Not Eq. 15: where tasks have different numbers of test clips it is another number.
    """
    return float(np.nanmean(matrix.accuracy, axis=1).mean())


def forgetting_per_step(matrix: AccuracyMatrix) -> Floats:
    """F_t for t = 2..T (paper, Eq. 16). Shape (T - 1,).

    F_t is the mean over i < t of (the best a_{s,i} for i <= s <= t-1) - a_{t,i}. It is never
    clamped: a task that improves counts negative.
    """
    accuracy = matrix.accuracy
    values = []
    for t in range(1, matrix.steps):
        best = np.nanmax(accuracy[:t, :t], axis=0)
        values.append(float((best - accuracy[t, :t]).mean()))
    return np.asarray(values, dtype=np.float64)


def average_forgetting(matrix: AccuracyMatrix) -> float:
    """Average forgetting (paper, Eq. 16): the mean of F_t over t = 2..T; NaN for one step."""
    per_step = forgetting_per_step(matrix)
    return float(per_step.mean()) if len(per_step) else float("nan")


def final_forgetting(matrix: AccuracyMatrix) -> float:
    """F_T: forgetting after the last step (Chaudhry et al., ECCV 2018); NaN for one step."""
    per_step = forgetting_per_step(matrix)
    return float(per_step[-1]) if len(per_step) else float("nan")


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """The mean over i < T of a_{T,i} - a_{i,i} (Lopez-Paz, NeurIPS 2017); NaN for one step."""
    if matrix.steps == 1:
        return float("nan")
    accuracy = matrix.accuracy
    return float((accuracy[-1] - np.diag(accuracy))[:-1].mean())


METRICS: dict[str, Callable[[AccuracyMatrix], float]] = {
    "mean_accuracy": mean_accuracy,
    "average_forgetting": average_forgetting,
    "last_accuracy": last_accuracy,
    "task_mean_accuracy": task_mean_accuracy,
    "final_forgetting": final_forgetting,
    "backward_transfer": backward_transfer,
}
"""Every metric of a result, by name, as a fraction."""
