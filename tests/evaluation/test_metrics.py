"""Metrics by hand, by golden numbers and against a slow independent form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avbench.evaluation import metrics
from avbench.evaluation.metrics import METRICS, AccuracyMatrix


def matrix(correct: list[list[int]], total: list[int]) -> AccuracyMatrix:
    full = np.zeros((len(total), len(total)), dtype=np.int64)
    for t, row in enumerate(correct):
        full[t, : len(row)] = row
    return AccuracyMatrix(full, np.asarray(total))


def percent(rows: list[list[int]]) -> AccuracyMatrix:
    return matrix(rows, [100] * len(rows))


def test_check_of_the_design():
    example = matrix([[9], [6, 4], [3, 5, 1]], [10, 5, 2])
    assert metrics.mean_accuracy(example) == pytest.approx((9 / 10 + 10 / 15 + 9 / 17) / 3)
    assert round(metrics.mean_accuracy(example), 5) == 0.69869
    assert metrics.average_forgetting(example) == pytest.approx(0.25)


def test_every_metric_by_hand():
    example = percent([[90], [92, 88], [80, 85, 90], [78, 70, 84, 86], [85, 74, 80, 80, 88]])
    expected = {
        "mean_accuracy": (90 + 90 + 85 + 79.5 + 81.4) / 500,
        # F_2..F_5: -2; 12, 3; 14, 18, 6; 7, 14, 10, 6
        "average_forgetting": (-2 + 15 / 2 + 38 / 3 + 37 / 4) / 400,
        "last_accuracy": 0.814,
        "task_mean_accuracy": (90 + 90 + 85 + 79.5 + 81.4) / 500,
        "final_forgetting": 0.0925,
        "backward_transfer": (-5 - 14 - 10 - 6) / 400,
    }
    assert expected.keys() == METRICS.keys()
    for name, value in expected.items():
        assert METRICS[name](example) == pytest.approx(value), name
    assert round(100 * metrics.average_forgetting(example), 2) == 6.85


def test_tasks_of_different_size_tell_the_two_accuracies_apart():
    example = matrix([[10], [0, 90]], [10, 90])
    assert metrics.mean_accuracy(example) == pytest.approx((1 + 0.9) / 2)
    assert metrics.task_mean_accuracy(example) == pytest.approx((1 + 0.5) / 2)


def test_improvement_counts_negative():
    assert metrics.average_forgetting(percent([[50], [70, 50]])) == pytest.approx(-0.2)


def test_one_step_has_no_forgetting():
    for name in ("average_forgetting", "final_forgetting", "backward_transfer"):
        assert math.isnan(METRICS[name](percent([[50]])))


def test_protocol_golden(golden):
    record = golden("protocol.npz")
    labels, per_step = record["labels"], record["class_num_per_step"]
    steps, clips = [], []
    for step, predictions in enumerate(record["predictions"]):
        seen = np.flatnonzero(labels < (step + 1) * per_step)
        assert (predictions[seen] >= 0).all()
        steps.append(np.full(len(seen), step))
        clips.append(seen)
    step, clip = np.concatenate(steps), np.concatenate(clips)
    prediction = record["predictions"][step, clip]
    result = AccuracyMatrix.from_predictions(
        step, labels[clip] // per_step, labels[clip], prediction
    )
    exact = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(result.accuracy, record["task_accuracy"], **exact)
    np.testing.assert_allclose(
        metrics.accuracy_per_step(result), record["seen_accuracy_per_step"], **exact
    )
    assert metrics.mean_accuracy(result) == pytest.approx(record["eq15_mean_accuracy"], abs=1e-6)
    np.testing.assert_allclose(metrics.forgetting_per_step(result), record["eq16_F_t"], **exact)
    np.testing.assert_allclose(
        metrics.forgetting_per_step(result), record["official_forgetting_per_step"], **exact
    )
    for key in ("eq16_average_forgetting", "official_average_forgetting"):
        assert metrics.average_forgetting(result) == pytest.approx(record[key], abs=1e-6)
    macro = record["task_mean_accuracy_macro_over_tasks__not_official"].mean()
    assert metrics.task_mean_accuracy(result) == pytest.approx(macro, abs=1e-6)


@st.composite
def matrices(draw: st.DrawFn) -> AccuracyMatrix:
    total = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    rows = [[draw(st.integers(0, total[i])) for i in range(t + 1)] for t in range(len(total))]
    return matrix(rows, total)


@given(matrices(), st.data())
def test_against_plain_loops(example, data):
    correct, total, steps = example.correct.tolist(), example.total.tolist(), example.steps

    def a(t: int, i: int) -> float:
        return correct[t][i] / total[i]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    def check(value, expected) -> None:
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)

    pooled = [sum(correct[t]) / sum(total[: t + 1]) for t in range(steps)]
    check(metrics.accuracy_per_step(example), pooled)
    check(metrics.mean_accuracy(example), mean(pooled))
    check(metrics.last_accuracy(example), pooled[-1])
    per_task = [mean([a(t, i) for i in range(t + 1)]) for t in range(steps)]
    check(metrics.task_mean_accuracy(example), mean(per_task))
    check(metrics.new_accuracy_per_step(example), [a(t, t) for t in range(steps)])
    old = [sum(correct[t][:t]) / sum(total[:t]) for t in range(1, steps)]
    check(metrics.old_accuracy_per_step(example), old)
    f = [
        mean([max(a(s, i) for s in range(i, t)) - a(t, i) for i in range(t)])
        for t in range(1, steps)
    ]
    check(metrics.forgetting_per_step(example), f)
    check(metrics.average_forgetting(example), mean(f))
    check(metrics.final_forgetting(example), f[-1] if f else math.nan)
    transfer = mean([a(steps - 1, i) - a(i, i) for i in range(steps - 1)])
    check(metrics.backward_transfer(example), transfer)
    alone = data.draw(st.lists(st.floats(0, 1), min_size=steps, max_size=steps))
    gain = mean([a(i, i) - alone[i] for i in range(1, steps)])
    check(metrics.forward_transfer(example, np.asarray(alone)), gain)
    rows = [[data.draw(st.integers(0, total[i])) for i in range(t + 1)] for t in range(steps)]
    behind = [rows[t][t] / total[t] - a(t, t) for t in range(steps)]
    check(metrics.intransigence_per_step(example, matrix(rows, total)), behind)
    check(metrics.intransigence(example, matrix(rows, total)), mean(behind))


@given(matrices(), st.integers(1, 3))
def test_a_stack_is_measured_as_each_of_its_matrices(example, copies):
    ones = [
        AccuracyMatrix(np.tril(example.correct // (n + 1)), example.total) for n in range(copies)
    ]
    stack = AccuracyMatrix(np.stack([one.correct for one in ones]), example.total)
    for name, metric in METRICS.items():
        assert metric(stack).shape == (copies,)
        np.testing.assert_array_equal(metric(stack), [metric(one) for one in ones], err_msg=name)


@given(st.integers(1, 6), st.data())
def test_confusion_against_plain_loops(classes, data):
    pairs = data.draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), max_size=30))
    label, prediction = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    confusion = metrics.confusion_matrix(label, prediction, classes)
    counts = [[pairs.count((c, p)) for p in range(classes)] for c in range(classes)]
    assert confusion.tolist() == counts
    of = [[p for label, p in pairs if label == c] for c in range(classes)]
    accuracy = [o.count(c) / len(o) if o else math.nan for c, o in enumerate(of)]
    np.testing.assert_allclose(metrics.accuracy_per_class(confusion), accuracy)


def test_confusion_by_hand():
    label, prediction = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 1])
    confusion = metrics.confusion_matrix(label, prediction, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_allclose(metrics.accuracy_per_class(confusion), [2 / 3, 1 / 2, np.nan, 0])
    for bad in (4, -1):
        with pytest.raises(ValueError, match="between 0 and 3"):
            metrics.confusion_matrix(np.array([bad]), np.array([0]), 4)
        with pytest.raises(ValueError, match="between 0 and 3"):
            metrics.confusion_matrix(np.array([0]), np.array([bad]), 4)


def test_old_and_new_classes_by_hand():
    example = matrix([[9], [6, 4], [3, 5, 1]], [10, 5, 2])
    np.testing.assert_allclose(metrics.new_accuracy_per_step(example), [9 / 10, 4 / 5, 1 / 2])
    np.testing.assert_allclose(metrics.old_accuracy_per_step(example), [6 / 10, 8 / 15])


def test_what_is_measured_against_another_model_by_hand():
    example = matrix([[9], [6, 4], [3, 5, 1]], [10, 5, 2])
    oracle = matrix([[9], [8, 5], [9, 5, 2]], [10, 5, 2])
    np.testing.assert_allclose(
        metrics.intransigence_per_step(example, oracle), [0, 1 / 5, 1 / 2], atol=1e-12
    )
    assert metrics.intransigence(example, oracle) == pytest.approx(0.7 / 3)
    alone = np.array([0.1, 0.6, 1.0])
    assert metrics.forward_transfer(example, alone) == pytest.approx((0.2 - 0.5) / 2)
    with pytest.raises(ValueError, match="other clips"):
        metrics.intransigence(example, matrix([[9], [8, 5], [9, 5, 2]], [10, 5, 3]))
    with pytest.raises(ValueError, match="each of 3 steps"):
        metrics.forward_transfer(example, alone[:2])
    assert math.isnan(metrics.forward_transfer(percent([[50]]), np.array([0.5])))


def test_every_metric_says_what_it_is():
    told = [metrics.definition(name) for name in METRICS]
    assert len({*told}) == len(told)
    assert all(20 < len(text) < 100 and text.endswith(".") for text in told)
    assert "pooled" in metrics.definition("mean_accuracy")
    assert "not Eq. 15" in metrics.definition("task_mean_accuracy")
    assert "never clamped" in metrics.definition("average_forgetting")


def test_metrics_leave_their_input_alone():
    example = percent([[90], [92, 88]])
    before = example.correct.copy(), example.total.copy()
    for metric in METRICS.values():
        metric(example)
    np.testing.assert_array_equal(example.correct, before[0])
    np.testing.assert_array_equal(example.total, before[1])


@pytest.mark.parametrize(
    ("correct", "total"),
    [([[2]], [1]), ([[-1]], [1]), ([[0]], [0]), ([[1, 1], [1, 1]], [1, 1]), ([[1, 0]], [1])],
)
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match="correct|test clip"):
        AccuracyMatrix(np.asarray(correct), np.asarray(total))


def test_incomplete_predictions_are_refused():
    step, task = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])
    good = AccuracyMatrix.from_predictions(step, task, task, task)
    assert good.total.tolist() == [1, 2]
    with pytest.raises(ValueError, match="all test clips"):
        AccuracyMatrix.from_predictions(step[1:], task[1:], task[1:], task[1:])
