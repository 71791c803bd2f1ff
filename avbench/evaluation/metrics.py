"""What the field measures, as pure functions on counts.

Steps count from 0 in code and from 1 in equations. a_t is the accuracy after step t on the test
clips of all classes seen so far; a_{t,i} is the accuracy after step t on those of step i. All are
fractions. A function of an `AccuracyMatrix` works on a stack of them too: the shapes below are of
one matrix, and leading dimensions are kept.
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
    """Correct test clips per step and task, of one run or of a stack of runs.

    Attributes:
        correct: correct[..., t, i] is how many test clips of step i's classes were classified
            correctly after step t; entries with i > t are 0. Shape (..., T, T).
        total: How many test clips step i's classes have. Shape (T,).
    """

    correct: Integers
    total: Integers

    def __post_init__(self) -> None:
        steps = len(self.total)
        if self.correct.shape[-2:] != (steps, steps) or steps == 0:
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
        seen = np.tri(self.steps, dtype=bool)
        return np.where(seen, self.correct / self.total, np.nan)


def accuracy_per_step(matrix: AccuracyMatrix) -> Floats:
    """Accuracy after each step: correct over all test clips of the classes seen so far, pooled.

    a_t = (sum over i <= t of correct_{t,i}) / (sum over i <= t of total_i). Shape (T,).
    """
    pooled: Floats = matrix.correct.sum(axis=-1) / np.cumsum(matrix.total)
    return pooled


def mean_accuracy(matrix: AccuracyMatrix) -> Floats:
    """Mean over steps of the accuracy pooled over all test clips of seen classes (Eq. 15).

    (1 / T) * (sum over t = 1..T of a_t). Shape ().
    """
    return _mean(accuracy_per_step(matrix))


def last_accuracy(matrix: AccuracyMatrix) -> Floats:
    """Accuracy after the last step, pooled over the test clips of all classes.

    a_T. Shape ().
    """
    last: Floats = accuracy_per_step(matrix)[..., -1]
    return last


def task_mean_accuracy(matrix: AccuracyMatrix) -> Floats:
    """Mean over steps of the mean over tasks, each counting alike; not Eq. 15.

    (1 / T) * (sum over t of (1 / t) * (sum over i <= t of a_{t,i})): another number than
    `mean_accuracy` wherever tasks have different numbers of test clips. Shape ().
    """
    return _mean(np.nanmean(matrix.accuracy, axis=-1))


def new_accuracy_per_step(matrix: AccuracyMatrix) -> Floats:
    """Accuracy after each step on the classes it introduced: a_{t,t}. Shape (T,)."""
    return np.diagonal(matrix.accuracy, axis1=-2, axis2=-1)


def old_accuracy_per_step(matrix: AccuracyMatrix) -> Floats:
    """Accuracy after each of the steps 2..T on the classes of all earlier steps, pooled.

    (sum over i < t of correct_{t,i}) / (sum over i < t of total_i). Shape (T - 1,).
    """
    old = np.tril(matrix.correct, -1).sum(axis=-1)[..., 1:]
    pooled: Floats = old / np.cumsum(matrix.total)[:-1]
    return pooled


def forgetting_per_step(matrix: AccuracyMatrix) -> Floats:
    """Forgetting at each of the steps 2..T (Eq. 16), never clamped.

    F_t = (1 / (t-1)) * (sum over i < t of (max over s = i..t-1 of a_{s,i}) - a_{t,i}): a task that
    improves counts negative. Shape (T - 1,).
    """
    accuracy = matrix.accuracy
    # fmax passes over NaN: before step i there is no accuracy on its classes.
    best = np.fmax.accumulate(accuracy, axis=-2)
    per_step: Floats = np.nanmean(best[..., :-1, :] - accuracy[..., 1:, :], axis=-1)
    return per_step


def average_forgetting(matrix: AccuracyMatrix) -> Floats:
    """Mean over steps 2..T of forgetting since each earlier task's best (Eq. 16), never clamped.

    (1 / (T-1)) * (sum over t = 2..T of F_t); NaN for one step. Shape ().
    """
    return _mean(forgetting_per_step(matrix))


def final_forgetting(matrix: AccuracyMatrix) -> Floats:
    """Forgetting after the last step only (Chaudhry et al., ECCV 2018, Eq. 3), never clamped.

    F_T; NaN for one step. Shape ().
    """
    return _mean(forgetting_per_step(matrix)[..., -1:])


def backward_transfer(matrix: AccuracyMatrix) -> Floats:
    """Mean change of each earlier task's accuracy since it was learned (Lopez-Paz, NeurIPS 2017).

    (1 / (T-1)) * (sum over i < T of a_{T,i} - a_{i,i}); NaN for one step. Shape ().
    """
    change = matrix.accuracy[..., -1, :] - new_accuracy_per_step(matrix)
    return _mean(change[..., :-1])


def forward_transfer(matrix: AccuracyMatrix, alone: Floats) -> Floats:
    """Mean gain on a new task over a model that learned that task alone (Wang et al., TPAMI 2024).

    (1 / (T-1)) * (sum over i = 2..T of a_{i,i} - alone_i); NaN for one step. The forward transfer
    of Lopez-Paz et al., a_{i-1,i} minus chance, is not defined here: before step i no method may
    predict its classes. Shape ().

    Args:
        matrix: Of the method.
        alone: Accuracy on step i's test clips of a model trained from scratch on step i's data
            only, (T,).

    Raises:
        ValueError: If `alone` does not have one accuracy a step.
    """
    if alone.shape != (matrix.steps,):
        raise ValueError(f"alone must have one accuracy for each of {matrix.steps} steps")
    return _mean((new_accuracy_per_step(matrix) - alone)[..., 1:])


def intransigence_per_step(matrix: AccuracyMatrix, oracle: AccuracyMatrix) -> Floats:
    """How far each step's new classes stay behind the oracle's (Chaudhry et al., ECCV 2018).

    I_t = a*_{t,t} - a_{t,t}, where a* is of the oracle, trained on the data of steps 1..t at once.
    Shape (T,).

    Args:
        matrix: Of the method.
        oracle: Of a run with joint access, on the same test clips.

    Raises:
        ValueError: If the two were not tested on the same numbers of clips.
    """
    if not np.array_equal(matrix.total, oracle.total):
        raise ValueError("the oracle was tested on other clips")
    return new_accuracy_per_step(oracle) - new_accuracy_per_step(matrix)


def intransigence(matrix: AccuracyMatrix, oracle: AccuracyMatrix) -> Floats:
    """Mean over steps of how far the new classes stay behind the oracle's.

    (1 / T) * (sum over t = 1..T of I_t). Shape ().

    Raises:
        ValueError: If the two were not tested on the same numbers of clips.
    """
    return _mean(intransigence_per_step(matrix, oracle))


def confusion_matrix(label: Integers, prediction: Integers, classes: int) -> Integers:
    """Count which class was taken for which.

    Args:
        label: Class index of each clip, (n,).
        prediction: The class predicted for it, (n,).
        classes: Number of classes, C.

    Returns:
        Entry [c, p] is how many clips of class c were predicted as p. Shape (C, C).

    Raises:
        ValueError: If a class index is not in 0..C-1.
    """
    both = np.concatenate([label, prediction])
    if ((both < 0) | (both >= classes)).any():
        raise ValueError(f"class indices must lie between 0 and {classes - 1}")
    flat = np.bincount(label * classes + prediction, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy_per_class(confusion: Integers) -> Floats:
    """Accuracy on each class: its diagonal entry over its row's sum, NaN for one without clips.

    Args:
        confusion: As `confusion_matrix` returns, (C, C).

    Returns:
        Shape (C,).
    """
    total = confusion.sum(axis=1)
    accuracy = np.full(len(total), np.nan)
    np.divide(np.diagonal(confusion), total, out=accuracy, where=total > 0)
    return accuracy


def _mean(values: Floats) -> Floats:
    """Return the mean over the last dimension, NaN where it is empty."""
    if values.shape[-1] == 0:
        empty: Floats = np.full(values.shape[:-1], np.nan)[()]
        return empty
    mean: Floats = values.mean(axis=-1)
    return mean


Metric = Callable[[AccuracyMatrix], Floats]

METRICS: dict[str, Metric] = {
    "mean_accuracy": mean_accuracy,
    "average_forgetting": average_forgetting,
    "last_accuracy": last_accuracy,
    "task_mean_accuracy": task_mean_accuracy,
    "final_forgetting": final_forgetting,
    "backward_transfer": backward_transfer,
}
"""Every metric of a result, by name, as a fraction."""

LOWER_IS_BETTER = frozenset({"average_forgetting", "final_forgetting"})
"""The names in `METRICS` of which less is better."""

OF_EARLIER_STEPS = frozenset({"average_forgetting", "final_forgetting", "backward_transfer"})
"""The names in `METRICS` that say nothing of a single step, nor of a bound: it cannot forget."""


def definition(name: str) -> str:
    """Return what one of `METRICS` is, in a sentence."""
    return (METRICS[name].__doc__ or "").partition("\n")[0]
