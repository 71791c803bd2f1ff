"""Time by phase, on a clock that the test turns."""

from __future__ import annotations

import pytest

from avbench.learning import stopwatch
from avbench.learning.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def test_a_phase_inside_another_counts_alone(clock):
    watch = Stopwatch(running=True)
    clock(1)
    with watch("validation"):
        clock(2)
        with watch("loading"):
            clock(4)
        clock(8)
    clock(16)
    with pytest.raises(RuntimeError), watch("loading"):
        clock(32)
        raise RuntimeError
    clock(64)
    assert watch.seconds["validation"] == 10
    assert watch.seconds["loading"] == 36
    assert sum(watch.seconds.values()) == 46
    watch.reset()
    assert sum(watch.seconds.values()) == 0


def test_one_that_does_not_run_reads_no_clock(monkeypatch):
    monkeypatch.setattr(stopwatch.time, "perf_counter", None)
    watch = Stopwatch()
    with watch("forward"):
        pass
    assert sum(watch.seconds.values()) == 0
