"""The benchmarks run, and write down what they measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import timing

ROOT = Path(__file__).parents[1]


def run(*arguments, expect=0):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_the_cheap_ones_run_and_are_written_down(tmp_path):
    run("prepare", "splits", "--quick", "--out", str(tmp_path))
    (page,) = tmp_path.iterdir()
    assert page.name.endswith("-prepare-splits-quick.md")
    text = page.read_text()
    for part in ("| processor |", "| torch |", "| avbench |", "## prepare", "## splits"):
        assert part in text
    assert "| 2,000 | " in text
    assert "| vs100-ci | 61,195 | " in text


def test_an_unknown_one_is_told():
    assert "no benchmark speed" in run("speed", expect=2).stderr


def test_ways_are_run_by_turns_and_compared_turn_by_turn():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in ("slow", "fast")}
    found = timing.by_turns(ways, 2)
    assert calls == ["slow", "fast"] * 3
    assert [len(samples) for samples in found.values()] == [2, 2]
    slow = [timing.Sample(2, 9), timing.Sample(8, 9), timing.Sample(3, 9)]
    fast = [timing.Sample(1, 3), timing.Sample(2, 3), timing.Sample(1, 3)]
    assert timing.ratios(slow, fast) == ["3.00 (2.00 to 4.00)", "3.00 (3.00 to 3.00)"]
    assert timing.spread([0.25]) == "0.25"


def test_time_of_children_counts():
    samples: list[timing.Sample] = []
    with timing.timed(samples):
        burn = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert samples[0].cpu >= 0.3


def test_one_that_fails_is_named(monkeypatch, tmp_path, capsys):
    from benchmarks import __main__ as bench

    monkeypatch.setattr(bench, "NAMES", ("broken",))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "broken", "--out", str(tmp_path)])
    assert bench.main() == 1
    (page,) = tmp_path.iterdir()
    assert "## broken\n\nFailed with exit code 1" in page.read_text()


def test_tables_are_markdown():
    lines = timing.table(["a", "b"], [[1, "x"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | x |"]
