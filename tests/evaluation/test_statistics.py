"""Intervals that hold what they promise, and a bootstrap that is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from avbench.evaluation.metrics import METRICS, mean_accuracy
from avbench.evaluation.statistics import (
    Outcomes,
    Summary,
    bootstrap,
    percentile_interval,
    t_interval,
)


def outcomes(seed: int, *, seeds: int, sizes: tuple[int, ...], accuracy: float = 0.7) -> Outcomes:
    """Draw outcomes that are seldom all alike."""
    random = np.random.default_rng(seed)
    task = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    correct = random.random((seeds, len(sizes), len(task))) < accuracy
    return Outcomes(correct & (task <= np.arange(len(sizes))[:, None]), task)


def test_summary_by_hand():
    summary = Summary.of([0.1, 0.2, 0.6])
    # Student's t of 2 degrees of freedom at 97.5 %, from a table: 4.303.
    half = 4.303 * np.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2) / np.sqrt(3)
    assert summary.mean == pytest.approx(0.3)
    assert summary.interval == pytest.approx((0.3 - half, 0.3 + half), abs=1e-4)
    assert summary.to_json()["interval_95"] == list(summary.interval)
    single = Summary.of([0.1])
    assert np.isnan(single.std)
    assert single.to_json() == {
        "mean": 0.1,
        "std": None,
        "interval_95": None,
        "per_seed": [0.1],
    }


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_t_interval_against_scipy(values):
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    if standard_error > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), standard_error)
        assert t_interval(values) == pytest.approx(expected)


def test_t_interval_holds_the_mean_in_95_of_100():
    random = np.random.default_rng(0)
    samples = random.normal(0.7, 0.02, (2000, 3))
    held = np.mean([low <= 0.7 <= high for low, high in map(t_interval, samples)])
    assert held == pytest.approx(0.95, abs=0.015)  # three standard errors


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_counts_against_plain_loops(seed, seeds, sizes):
    example = outcomes(seed, seeds=seeds, sizes=tuple(sizes))
    matrix = example.matrix()
    assert matrix.total.tolist() == sizes
    for s in range(seeds):
        for t in range(len(sizes)):
            for i in range(len(sizes)):
                clips = [c for c, task in enumerate(example.task) if task == i]
                count = sum(bool(example.correct[s, t, c]) for c in clips)
                assert matrix.correct[s, t, i] == count


# What is compared is random: the same examples every time keep a rare one from failing a run.
@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_bootstrap_against_drawing_one_by_one(seed, seeds, sizes):
    """The slow form: draw indices, copy what was drawn, measure it; equal in distribution."""
    example = outcomes(seed, seeds=seeds, sizes=tuple(sizes))
    fast = bootstrap(example, {"a": mean_accuracy}, seed=1, replicates=2000)["a"]
    random = np.random.default_rng(2)
    slow = []
    for _ in range(600):
        clips = np.concatenate(
            [random.choice(np.flatnonzero(example.task == i), size) for i, size in enumerate(sizes)]
        )
        drawn = example.correct[random.integers(seeds, size=seeds)][:, :, clips]
        slow.append(mean_accuracy(Outcomes(drawn, example.task[clips]).matrix()).mean())
    error = np.sqrt(fast.var() / len(fast) + np.var(slow) / len(slow))
    assert fast.mean() == pytest.approx(np.mean(slow), abs=5 * error + 1e-9)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.25, abs=1e-9)


def test_bootstrap_of_one_step_is_the_textbook_deviation():
    """One seed, one step: the deviation of a mean of n draws is sqrt(p (1 - p) / n)."""
    correct = np.arange(400)[None, None] < 300
    spread = bootstrap(
        Outcomes(correct, np.zeros(400, dtype=np.int64)), {"a": mean_accuracy}, seed=0
    )["a"]
    assert spread.mean() == pytest.approx(0.75, abs=0.002)
    assert spread.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.06)
    low, high = percentile_interval(spread)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.1)


def test_a_shared_test_set_does_not_average_out_over_seeds():
    """Ten seeds that agree on every clip say no more about other clips than one."""
    one = outcomes(3, seeds=1, sizes=(200, 200))
    ten = Outcomes(np.repeat(one.correct, 10, axis=0), one.task)
    spread = [bootstrap(o, {"a": mean_accuracy}, seed=0)["a"].std() for o in (one, ten)]
    assert spread[1] == pytest.approx(spread[0], rel=0.1)


def test_same_seed_same_numbers_and_equal_draws_pair():
    one = outcomes(0, seeds=3, sizes=(30, 20))
    again, other = (bootstrap(one, METRICS, seed=seed) for seed in (5, 6))
    for name, values in bootstrap(one, METRICS, seed=5).items():
        assert values.shape == (2000,)
        np.testing.assert_array_equal(values, again[name])
        assert (values != other[name]).any()
    # Worse on ten clips and equal elsewhere: paired, nothing but those ten clips varies.
    worse = one.correct.copy()
    worse[:, :, np.flatnonzero(one.task == 0)[:10]] = False
    a = bootstrap(one, METRICS, seed=5)["mean_accuracy"]
    b = bootstrap(Outcomes(worse, one.task), METRICS, seed=5)["mean_accuracy"]
    alone = bootstrap(Outcomes(worse, one.task), METRICS, seed=6)["mean_accuracy"]
    assert (a - b).min() >= 0
    assert (a - b).std() < 0.8 * (a - alone).std()


def test_impossible_outcomes_are_refused():
    good = outcomes(0, seeds=2, sizes=(3, 2))
    for correct, task in (
        (good.correct, good.task[1:]),
        (good.correct[:0], good.task),
        (np.ones_like(good.correct), good.task),
        (good.correct & False, np.zeros_like(good.task)),
        (good.correct & False, good.task + 1),
    ):
        with pytest.raises(ValueError, match="task must|test clip|not seen yet"):
            Outcomes(correct, task)
