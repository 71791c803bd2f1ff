"""Only equals compete, and what intervals cannot tell apart is a tie."""

from __future__ import annotations

import pytest

from avbench.leaderboard.board import Board
from avbench.leaderboard.entry import Metric, Reported
from avbench.leaderboard.ranking import places


@pytest.fixture
def entry(candidate):
    """An entry with a mean accuracy and the half width of its interval."""
    made = candidate().entry

    def make(name, mean, half, **changes):
        accuracy = Metric(
            mean=mean, std=half, interval_95=(mean - half, mean + half), per_seed=(mean,) * 3
        )
        metrics = made.metrics | {"mean_accuracy": accuracy}
        return made.model_copy(update={"name": name, "metrics": metrics} | changes)

    return make


def stand(*entries):
    board = Board(benchmark="toy-ci", entries=tuple(sorted(entries, key=lambda e: e.name)))
    return [(place.entry.name, place.shown) for place in places(board)]


def test_overlapping_intervals_are_ties_and_ranks_count_entries(entry):
    assert stand(entry("a", 90, 1), entry("b", 88, 1), entry("c", 87, 0.9), entry("d", 80, 1)) == [
        ("a", "1="),
        ("b", "1="),
        ("c", "3"),
        ("d", "4"),
    ]


def test_a_wide_interval_does_not_climb_over_better_means(entry):
    """The rank never improves down the table."""
    assert stand(entry("a", 90, 0.1), entry("b", 85, 0.1), entry("c", 80, 30)) == [
        ("a", "1"),
        ("b", "2="),
        ("c", "2="),
    ]


def test_other_features_rank_apart(entry):
    assert stand(
        entry("a", 90, 1),
        entry("b", 80, 1, preset="other"),
        entry("c", 70, 1, preset_hash="ab"),
        entry("d", 60, 1),
    ) == [("a", "1"), ("d", "2"), ("c", "1"), ("b", "1")]


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"access": "joint"}, "bound"),
        ({"coverage": 0.81}, "81.0 % of the clips"),
        ({"seeds": (0, 1)}, "fewer than 3 seeds"),
        ({"fingerprint": "00"}, "another manifest"),
        ({"repeats": "other"}, "repeats other"),
    ],
)
def test_others_are_listed_last_without_a_rank(entry, change, remark):
    entries = (entry("best", 99, 0.1, **change), entry("other", 50, 1))
    board = Board.model_construct(benchmark="toy-ci", entries=entries)
    found = [(place.entry.name, place.rank, place.remark) for place in places(board)]
    assert found == [("other", 1, ""), ("best", None, remark)]


def test_reported_numbers_never_rank(entry):
    said = {"method": "M", "modality": "audio", "source": "S", "url": "https://example.org"}
    reported = Reported(name="said", access="incremental", mean_accuracy=99.9, **said)
    assert stand(entry("a", 10, 1), reported) == [("a", "1"), ("said", "-")]
