"""Entries that repeat another's predictions, or nearly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avbench.evaluation.metrics import Integers
from avbench.evaluation.score import Score
from avbench.leaderboard.entry import Verified

MOST_ALIKE = 0.85
"""Share of errors that entries may have in common; docs/decisions/copies.md tells why."""


@dataclass(frozen=True)
class Errors:
    """What the seeds of an entry got wrong, and how.

    Attributes:
        wrong: The wrong class that was predicted, -1 where the prediction was right. One row a
            seed, one column a step and test clip seen by then, (S, rows).
        counts: How often a seed predicted each class wrongly after each step, (S, T * classes).
    """

    wrong: npt.NDArray[np.signedinteger]
    counts: Integers

    @classmethod
    def of(cls, score: Score, classes: int) -> Errors:
        """Find the errors of an entry of a benchmark with some number of classes."""
        seen = score.predicted[0] >= 0
        step, _ = np.nonzero(seen)
        wrong = np.where(score.outcomes.correct, -1, score.predicted)[:, seen]
        cells = [np.bincount((step * classes + row)[row >= 0]) for row in wrong]
        counts = np.zeros((len(wrong), len(seen) * classes), dtype=np.int64)
        for counted, cell in zip(counts, cells, strict=True):
            counted[: len(cell)] = cell
        # A byte is mostly enough, and boards are large.
        return cls(wrong.astype(np.min_scalar_type(-classes)), counts)


@dataclass(frozen=True)
class Pair:
    """Two entries that are too alike.

    Attributes:
        earlier: Position of the first.
        later: Position of the second.
        seeds: Position of the seed in either that are most alike.
        share: Errors in common (same clip, step and wrong class) over errors of either.
    """

    earlier: int
    later: int
    seeds: tuple[int, int]
    share: float


def too_alike(errors: Sequence[Errors], start: int = 0) -> Iterator[Pair]:
    """Find entries of which some seeds have more than `MOST_ALIKE` of their errors in common.

    Args:
        errors: Of entries of one benchmark, the earliest first.
        start: Position of the first entry to compare with those before it.
    """
    from scipy.spatial.distance import cdist  # slow to import

    if not errors:
        return
    first = np.cumsum([0] + [len(one.wrong) for one in errors])
    counts = np.concatenate([one.counts for one in errors]).astype(np.float64)
    total = counts.sum(axis=1)
    for later in range(max(start, 1), len(errors)):
        mine, before = slice(first[later], first[later + 1]), slice(first[later])
        # Errors in common are no more than their counts have in common: most pairs need no look.
        apart = cdist(counts[mine], counts[before], "cityblock")
        sums = total[mine, None] + total[before]
        near = (1 - MOST_ALIKE) * sums >= (1 + MOST_ALIKE) * apart
        found: dict[int, Pair] = {}
        for seed, at in np.argwhere(near):
            earlier = int(np.searchsorted(first, at, side="right")) - 1
            one, other = errors[later].wrong[seed], errors[earlier].wrong[at - first[earlier]]
            common = np.count_nonzero((one == other) & (one >= 0))
            union = sums[seed, at] - common
            share = common / union if union else 1.0
            if share > max(MOST_ALIKE, found[earlier].share if earlier in found else 0):
                seeds = int(at - first[earlier]), int(seed)
                found[earlier] = Pair(earlier, later, seeds, float(share))
        yield from found.values()


def complaints(
    entries: Sequence[Verified], errors: Sequence[Errors], start: int = 0
) -> Iterator[str]:
    """Say which entries repeat another without saying so, or do not though they say so.

    Args:
        entries: Of one board, the earliest first.
        errors: Theirs.
        start: Position of the first entry to look at.
    """
    alike: set[tuple[str, str | None]] = set()
    for pair in too_alike(errors, start):
        one, other = entries[pair.later], entries[pair.earlier]
        alike |= {(one.name, other.name), (other.name, one.name)}
        if (
            other.name == one.repeats
            or one.name == other.repeats
            or (one.repeats and other.repeats)
        ):
            continue
        theirs, mine = pair.seeds
        yield (
            f"{one.name} has predictions of {other.name}: seed {one.seeds[mine]} shares"
            f" {100 * pair.share:.1f} % of its errors with seed {other.seeds[theirs]} there;"
            f' if it is work of its own, say repeats = "{other.repeats or other.name}"'
        )
    names = {entry.name for entry in entries}
    for one in entries[start:]:
        if one.repeats in names and (one.name, one.repeats) not in alike:
            yield f"{one.name} says that it repeats {one.repeats}, but errs otherwise"
