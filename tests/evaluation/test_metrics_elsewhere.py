"""What other frameworks call the same: every number of docs/metrics.md, from their formulas."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from avbench.evaluation.metrics import METRICS, AccuracyMatrix

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
MATRIX = [[90], [92, 88], [80, 85, 90], [78, 70, 84, 86], [85, 74, 80, 80, 88]]
CLIPS = [100, 100, 200, 100, 50]
IMPROVED = [[50], [70, 50]]


def padded(rows):
    """Return the matrix as most frameworks keep it, with 0 for tasks not seen yet."""
    full = np.zeros((len(rows), len(rows)))
    for t, row in enumerate(rows):
        full[t, : len(row)] = row
    return full


def ours(name):
    def formula(rows, clips):
        counts = np.rint(padded(rows) * clips / 100).astype(np.int64)
        return 100 * METRICS[name](AccuracyMatrix(counts, np.array(clips)))

    return formula


def pooled(rows, clips):
    return [np.average(row, weights=clips[: len(row)]) for row in rows]


# --- forgetting ---


def facil_forgetting(rows, clips):
    a = padded(rows)
    t = len(rows) - 1
    return np.mean([a[:t, u].max() - a[t, u] for u in range(t)])


def pycil_forgetting(rows, clips):
    by_task = padded(rows).T
    return np.mean((by_task.max(axis=1) - by_task[:, -1])[:-1])


def mammoth_forgetting(rows, clips):
    a = padded(rows)
    return np.mean([a[:, i].max() - a[-1, i] for i in range(len(rows) - 1)])


def avalanche_forgetting(rows, clips):
    """Per experience its first value minus the present one, averaged over earlier experiences."""
    return np.mean([rows[i][i] - rows[-1][i] for i in range(len(rows) - 1)])


def continuum_forgetting(rows, clips):
    k = len(rows)
    lost = [max(rows[s][j] for s in range(k - 2) if s >= j) - rows[k - 1][j] for j in range(k - 2)]
    return sum(lost) / (k - 1)


def libcontinual_forgetting(rows, clips):
    last = len(rows) - 1
    if last <= 1:
        return 0
    return sum(rows[j][j] - rows[last][j] for j in range(last - 1)) / last


# --- accuracy ---


def mean_of_curve(rows, clips):
    return np.mean(pooled(rows, clips))


def mean_over_steps_and_tasks(rows, clips):
    return np.mean([np.mean(row) for row in rows])


def mean_of_entries(rows, clips):
    return sum(map(sum, rows)) / (len(rows) * (len(rows) + 1) / 2)


def last_mean_over_tasks(rows, clips):
    return np.mean(rows[-1])


def last_pooled(rows, clips):
    return pooled(rows, clips)[-1]


# --- backward transfer ---


def mammoth_transfer(rows, clips):
    return np.mean([rows[-1][i] - rows[i][i] for i in range(len(rows) - 1)])


def avalanche_transfer(rows, clips):
    return -avalanche_forgetting(rows, clips)


def continuum_transfer(rows, clips):
    steps = len(rows)
    change = [rows[i][j] - rows[j][j] for i in range(1, steps) for j in range(i - 1)]
    return sum(change) / (steps * (steps - 1) / 2)


def libcontinual_transfer(rows, clips):
    last = len(rows) - 1
    change = sum(rows[i][j] - rows[j][j] for i in range(2, last) for j in range(i - 1))
    change += sum(rows[last][j] - rows[j][j] for j in range(last - 1))
    return change * 2 / (last * (last + 1))


FORMULAS = {
    "avbench `average_forgetting`": ours("average_forgetting"),
    "avbench `final_forgetting`": ours("final_forgetting"),
    "FACIL `forg_tag`": facil_forgetting,
    "PyCIL `Forgetting (CNN)`": pycil_forgetting,
    "Mammoth `forgetting`": mammoth_forgetting,
    "Avalanche `StreamForgetting`": avalanche_forgetting,
    "Continuum `forgetting`": continuum_forgetting,
    "LibContinual `Forgetting`": libcontinual_forgetting,
    "avbench `mean_accuracy`": ours("mean_accuracy"),
    "PyCIL `Average Accuracy (CNN)`": mean_of_curve,
    "Continuum `average_incremental_accuracy`": mean_of_curve,
    "LibContinual `[Batch] Overall Avg Acc`": mean_of_curve,
    "avbench `task_mean_accuracy`": ours("task_mean_accuracy"),
    "LibContinual `[Task] Overall Avg Acc`": mean_over_steps_and_tasks,
    "Continuum `accuracy_A`": mean_of_entries,
    "FACIL `avg_accs_tag`": last_mean_over_tasks,
    "Mammoth class-IL accuracy": last_mean_over_tasks,
    "avbench `last_accuracy`": ours("last_accuracy"),
    "Avalanche `StreamAccuracy`": last_pooled,
    "avbench `backward_transfer`": ours("backward_transfer"),
    "Mammoth `backward_transfer`": mammoth_transfer,
    "Avalanche `StreamBWT`": avalanche_transfer,
    "Continuum `backward_transfer`": continuum_transfer,
    "LibContinual `Overall BwT`": libcontinual_transfer,
}


def told() -> list[tuple[str, list[str]]]:
    """Return the rows of the page's tables that end in numbers."""
    section = PAGE.read_text(encoding="utf-8").partition("## What others call the same")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    return [
        (row[0], numbers)
        for row in rows
        if (numbers := [cell for cell in row if re.fullmatch(r"-?\d+\.\d\d", cell)])
    ]


@pytest.mark.parametrize("start", FORMULAS)
def test_the_page_says_what_the_formula_gives(start):
    (numbers,) = [numbers for name, numbers in told() if name.startswith(start)]
    formula = FORMULAS[start]
    expected = [f"{formula(MATRIX, CLIPS):.2f}", f"{formula(IMPROVED, [100, 100]):.2f}"]
    assert numbers == expected[: len(numbers)]


def test_the_page_says_nothing_else():
    assert len(told()) == len(FORMULAS)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert str(MATRIX) in text
    assert "100, 100, 200, 100 and 50 test clips" in text
    assert str(IMPROVED) in text


def test_forgetting_means_at_least_five_things():
    names = [name for name in FORMULAS if "forg" in name.lower()]
    assert len(names) == 8
    both = {
        (round(FORMULAS[n](MATRIX, CLIPS), 2), round(FORMULAS[n](IMPROVED, [1, 1]), 2))
        for n in names
    }
    assert len(both) >= 5
