"""Only equals compete, and what intervals cannot tell apart is a tie."""

from __future__ import annotations

import numpy as np
import pytest

from avbench.evaluation.metrics import mean_accuracy
from avbench.evaluation.statistics import Estimate, Outcomes
from avbench.leaderboard import evidence
from avbench.leaderboard.board import Board
from avbench.leaderboard.entry import Metric, Reported
from avbench.leaderboard.ranking import places, unequal_values


@pytest.fixture
def entry(candidate):
    """An entry with a mean accuracy and its deviation over seeds."""
    made = candidate().entry

    def make(name, mean, std, **changes):
        per_seed = (mean - std, mean, mean + std)
        accuracy = Metric(mean=mean, std=std, interval_95=(0, 100), per_seed=per_seed)
        metrics = made.metrics | {"mean_accuracy": accuracy}
        return made.model_copy(update={"name": name, "metrics": metrics} | changes)

    return make


def stand(*entries):
    board = Board(benchmark="toy-ci", entries=tuple(sorted(entries, key=lambda e: e.name)))
    return [(place.entry.name, place.shown) for place in places(board, estimated)]


def estimated(entry):
    """What is known of an entry if no test clip is like another."""
    clips = np.zeros(4)
    return Estimate(
        np.array(entry.metrics["mean_accuracy"].per_seed), clips, np.array([0, 0, 1, 1])
    )


def test_what_an_interval_cannot_tell_apart_ties_and_ranks_count_entries(entry):
    """Three seeds of deviation 1 each are told apart from 2.27 on: 2.776 * sqrt(2 / 3)."""
    assert stand(
        entry("a", 90, 1), entry("b", 87.8, 1), entry("c", 87.7, 1), entry("d", 80, 1)
    ) == [
        ("a", "1="),
        ("b", "1="),
        ("c", "3"),
        ("d", "4"),
    ]


def test_features_of_other_values_compete_with_a_warning(entry):
    entries = (
        entry("a", 90, 0, features_hash="a" * 64),
        entry("b", 80, 0, features_hash="b" * 64),
        entry("c", 70, 0, features_hash="a" * 64),
        entry("d", 60, 0),
        entry("e", 95, 0, features_hash="e" * 64, access="joint"),
    )
    assert stand(*entries) == [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "-")]
    (warning,) = unequal_values(places(Board(benchmark="toy-ci", entries=entries), estimated))
    assert warning.startswith(
        "filterbank (abababab): competitors used features of different values"
    )
    assert warning.endswith("aaaaaaaa (a, c); bbbbbbbb (b)")
    alike = Board(benchmark="toy-ci", entries=entries[2:])
    assert unequal_values(places(alike, estimated)) == []


def test_deviations_may_differ(entry):
    """Welch: the wide one counts with its own two degrees of freedom, 4.303 * 3 / sqrt(3)."""
    assert stand(entry("a", 90, 0), entry("b", 82.6, 3)) == [("a", "1="), ("b", "1=")]
    assert stand(entry("a", 90, 0), entry("b", 82.5, 3)) == [("a", "1"), ("b", "2")]


def test_a_method_without_spread_over_seeds_still_depends_on_the_test_clips(candidate, toy):
    """Three equal seeds, and the same but for three clips: no rank between them."""
    layout = evidence.Layout(toy)
    made = candidate(seeds=(0,))
    one = evidence.parse(made.data, layout, "it").predicted
    other = one.copy()
    wrong = np.flatnonzero(one[0, -1] == layout.label)[:3]
    other[0, -1, wrong] = (one[0, -1, wrong] + 1) % 12
    estimates = [
        Estimate.of(Outcomes(np.repeat(p, 3, axis=0) == layout.label, layout.task), mean_accuracy)
        for p in (one, other)
    ]
    entries = [made.entry.model_copy(update={"name": n, "seeds": (0, 1, 2)}) for n in "ab"]
    found = places(
        Board.model_construct(benchmark="toy-ci", entries=tuple(entries)),
        lambda entry: estimates["ab".index(entry.name)],
    )
    assert estimates[0].per_seed.mean() > estimates[1].per_seed.mean()
    assert [place.shown for place in found] == ["1=", "1="]


def test_a_wide_interval_does_not_climb_over_better_means(entry):
    """The rank never improves down the table."""
    assert stand(entry("a", 90, 0.1), entry("b", 85, 0.1), entry("c", 80, 19)) == [
        ("a", "1"),
        ("b", "2="),
        ("c", "2="),
    ]


def test_other_features_rank_apart(entry):
    assert stand(
        entry("a", 90, 1),
        entry("b", 80, 1, preset="avcil"),
        entry("c", 70, 1, preset="avcil"),
        entry("d", 60, 1),
        entry("e", 50, 1),
    ) == [("a", "1"), ("d", "2"), ("e", "3"), ("b", "1"), ("c", "2")]


def test_who_names_features_does_not_head_the_board_of_others(entry):
    """Equal names with another hash are not the same features, and look so."""
    entries = (
        entry("a", 60, 1),
        entry("b", 50, 1),
        entry("c", 40, 1),
        entry("d", 90, 1, preset_hash="cd" * 32),
        entry("e", 80, 1, preset_hash="cd" * 32),
    )
    found = places(Board(benchmark="toy-ci", entries=entries), estimated)
    assert [(place.entry.name, place.shown, place.features) for place in found] == [
        ("a", "1", "filterbank (abababab)"),
        ("b", "2", "filterbank (abababab)"),
        ("c", "3", "filterbank (abababab)"),
        ("d", "1", "filterbank (cdcdcdcd)"),
        ("e", "2", "filterbank (cdcdcdcd)"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"preset_hash": "cd" * 32},
        {"preset": "other:mine"},
        {"preset": "avcil"},
    ],
)
def test_who_is_alone_with_features_has_no_rank(entry, change):
    entries = (entry("a", 60, 1), entry("b", 50, 1), entry("new", 90, 1, **change))
    found = places(Board(benchmark="toy-ci", entries=entries), estimated)
    assert [place.shown for place in found] == ["1", "2", "-"]
    assert found[-1].remark == "no other entry with these features"


def test_features_without_a_hash_have_no_rank_however_many_there_are(entry):
    found = places(
        Board(
            benchmark="toy-ci",
            entries=tuple(entry(name, 90, 1, preset_hash=None) for name in ("a", "b", "c")),
        ),
        estimated,
    )
    assert {(place.shown, place.remark) for place in found} == {("-", "features without a hash")}


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
    entries = (entry("best", 99, 0.1, **change), entry("other", 50, 1), entry("third", 40, 1))
    board = Board.model_construct(benchmark="toy-ci", entries=entries)
    found = [(place.entry.name, place.rank, place.remark) for place in places(board, estimated)]
    assert found == [("other", 1, ""), ("third", 2, ""), ("best", None, remark)]


def test_reported_numbers_never_rank(entry):
    said = {"method": "M", "modality": "audio", "source": "S", "url": "https://example.org"}
    reported = Reported(name="said", access="incremental", mean_accuracy=99.9, **said)
    assert stand(entry("a", 10, 1), entry("b", 5, 1), reported) == [
        ("a", "1"),
        ("b", "2"),
        ("said", "-"),
    ]
