"""Predictions of somebody else under a new name, and those that are honestly alike."""

from __future__ import annotations

import numpy as np
import pytest

from avbench import resources
from avbench.evaluation.score import Score
from avbench.evaluation.statistics import Outcomes
from avbench.leaderboard import evidence
from avbench.leaderboard.board import Board
from avbench.leaderboard.check import check, errors_of
from avbench.leaderboard.copies import Errors, too_alike
from avbench.leaderboard.evidence import kept, layout_of
from avbench.leaderboard.render import ranked_board
from avbench.leaderboard.submit import Candidate, add
from avbench.types import AvbenchError


def altered(candidate, share, how, seeds=None, **said):
    """The predictions of another entry, of a share of the rows something else."""
    layout = layout_of("toy-ci")
    random = np.random.default_rng(9)
    score = evidence.parse(candidate.data, layout, "them")
    label = np.broadcast_to(layout.label, layout.predicted.shape)[layout.predicted]
    rows = score.predicted[:, layout.predicted].copy()
    for row in rows:
        at = random.permutation(len(label))[: round(share * len(label))]
        row[at] = {"right": label[at], "any": random.integers(layout.seen[at])}[how]
    if how == "right":
        rows[:, 0] = (label[0] + 1) % 2  # else a seed could be the labels
    predicted = score.predicted.copy()
    predicted[:, layout.predicted] = rows[::-1]
    outcomes = Outcomes(predicted == layout.label, layout.task)
    seeds = seeds or score.seeds
    made = Score("toy-ci", score.fingerprint, seeds, predicted, outcomes)
    submission = candidate.submission.model_copy(update={"name": "other", **said})
    return Candidate.of(submission, made, evidence.to_bytes(made))


@pytest.mark.parametrize("how", ["right", "any"])
@pytest.mark.parametrize("share", [0, 0.005, 0.02])
def test_a_copy_with_seeds_permuted_and_rows_changed_is_refused(boards, candidate, share, how):
    original = candidate()
    add(original, boards)
    copy = altered(original, share, how, seeds=(4, 5, 6))
    with pytest.raises(AvbenchError, match="^other has predictions of mine: seed") as caught:
        add(copy, boards)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in Board.read(boards / "toy-ci.json").entries] == ["mine"]


def test_one_seed_of_somebody_else_is_enough(boards, candidate, toy):
    original, own = candidate(), candidate(rng=3, name="other")
    add(original, boards)
    layout = layout_of("toy-ci")
    mixed = evidence.parse(own.data, layout, "own").predicted.copy()
    mixed[1] = evidence.parse(original.data, layout, "original").predicted[2]
    outcomes = Outcomes(mixed == layout.label, layout.task)
    score = Score("toy-ci", toy.manifest.fingerprint, (0, 1, 2), mixed, outcomes)
    with pytest.raises(AvbenchError, match="seed 1 shares 100.0 % of its errors with seed 2"):
        add(Candidate.of(own.submission, score, evidence.to_bytes(score)), boards)


def test_who_says_so_is_listed_below_without_a_rank(boards, candidate):
    original = candidate()
    add(original, boards)
    place = add(altered(original, 0.01, "any", repeats="mine"), boards)
    assert (place.rank, place.remark) == (None, "repeats mine")
    assert check([boards / "toy-ci.json"]).problems == ()
    board = Board.read(boards / "toy-ci.json")
    assert {p.remark for p in ranked_board(board, boards)} == {
        "no other entry with these features",
        "repeats mine",
    }
    # A third is told of the original, and may say the same.
    with pytest.raises(AvbenchError, match='say repeats = "mine"'):
        add(altered(original, 0.01, "any", name="third"), boards)
    add(altered(original, 0.01, "any", name="third", repeats="mine"), boards)
    assert check([boards / "toy-ci.json"]).problems == ()


def test_what_is_no_repetition_must_not_be_called_one(boards, candidate):
    add(candidate(), boards)
    with pytest.raises(AvbenchError, match="repeats mine, but errs otherwise"):
        add(candidate(rng=1, name="other", repeats="mine"), boards)
    with pytest.raises(AvbenchError, match="repeats nobody: not a verified original"):
        add(candidate(rng=1, name="other", repeats="nobody"), boards)
    add(altered(candidate(), 0, "any", repeats="mine"), boards)
    with pytest.raises(AvbenchError, match="repeats other: not a verified original"):
        add(candidate(name="third", repeats="other"), boards)


def test_honest_entries_are_far_from_the_limit():
    """Of our own methods no two are alike, nor two seeds of any."""
    folder = resources.shipped("leaderboards")
    errors = [
        errors_of(entry, kept(entry, folder))
        for entry in Board.read(folder / "toy-ci.json").entries
    ]
    single = [
        Errors(e.wrong[[seed]], e.counts[[seed]]) for e in errors for seed in range(len(e.wrong))
    ]
    assert len(single) >= 45
    assert list(too_alike(single)) == []


def test_the_share_is_of_errors_and_what_is_spared_is_not_alike(candidate, monkeypatch):
    """The bound that spares comparisons loses no pair."""
    from avbench.leaderboard import copies

    monkeypatch.setattr(copies, "MOST_ALIKE", 0.3)
    a, b = candidate(skill=0.3).errors, candidate(skill=0.35, rng=0).errors
    expected = 0.0
    for x in a.wrong:
        for y in b.wrong:
            common = ((x == y) & (x >= 0)).sum()
            expected = max(expected, common / ((x >= 0).sum() + (y >= 0).sum() - common))
    (found,) = too_alike([candidate(rng=5).errors, b, a])
    assert (found.earlier, found.later) == (1, 2)
    assert found.share == pytest.approx(expected)
