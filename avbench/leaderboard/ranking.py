"""Who competes with whom, and who is ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from avbench.evaluation.metrics import mean_accuracy
from avbench.evaluation.score import Score
from avbench.evaluation.statistics import Estimate, difference_interval
from avbench.leaderboard.board import Board
from avbench.leaderboard.entry import Entry, Reported, Verified
from avbench.manifests.benchmark import Benchmark

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Place:
    """Where an entry stands.

    Attributes:
        entry: The entry.
        rank: From 1, among the entries it competes with; None where it does not compete.
        tied: Whether others share its rank.
        remark: Why it does not compete; empty where it does.
    """

    entry: Entry
    rank: int | None
    tied: bool
    remark: str

    @property
    def shown(self) -> str:
        """The rank as shown: with an equals sign where it is shared."""
        return "-" if self.rank is None else f"{self.rank}{'=' if self.tied else ''}"

    @property
    def features(self) -> str:
        """The features, of entries that compete or might: their hash, too, if it is known."""
        if not isinstance(self.entry, Verified):
            return "-"
        return f"{self.entry.preset} ({(self.entry.preset_hash or 'no hash')[:8]})"

    @property
    def values(self) -> str:
        """Hash of the values of the features, shortened; a dash where it is not known."""
        known = isinstance(self.entry, Verified) and self.entry.features_hash
        return known[:8] if known else "-"


def unequal_values(found: Iterable[Place]) -> list[str]:
    """Return a warning for each set of features of which competitors used different values."""
    used: dict[str, dict[str, list[str]]] = {}
    for place in found:
        if place.rank is not None and place.values != "-":
            names = used.setdefault(place.features, {}).setdefault(place.values, [])
            names.append(place.entry.name)
    warnings = []
    for features, by_values in used.items():
        if len(by_values) > 1:
            known = [f"{values} ({', '.join(names)})" for values, names in by_values.items()]
            warnings.append(
                f"{features}: competitors used features of different values, made on different"
                f" machines or altered: {'; '.join(known)}"
            )
    return warnings


def estimate(score: Score) -> Estimate:
    """Return what entries stand by."""
    return Estimate.of(score.outcomes, mean_accuracy)


def places(board: Board, estimated: Callable[[Verified], Estimate]) -> list[Place]:
    """Rank the entries of a board.

    Only verified entries with incremental access, all clips, at least three seeds, the manifest of
    the benchmark, predictions of their own and the same features, by name and hash, compete; one
    that is alone with its features has no rank. They stand by mean accuracy; an entry shares the
    rank of another where the 95 % interval of their difference holds 0, and ranks count entries, so
    that two at the top are followed by a third.

    Args:
        board: The entries.
        estimated: Gives the `estimate` of an entry.

    Returns:
        Those that compete first, by features (those of most entries first) and rank; then the
        others, by mean accuracy.
    """
    fingerprint = Benchmark.load(board.benchmark).manifest.fingerprint
    remarks = {entry.name: _remark(entry, fingerprint) for entry in board.entries}
    ordered = sorted(board.entries, key=lambda e: (-e.mean_accuracy, e.name))
    rivals = [e for e in ordered if isinstance(e, Verified) and not remarks[e.name]]
    ranked: list[Place] = []
    groups = [list(found) for _, found in groupby(sorted(rivals, key=_features), key=_features)]
    for group in sorted(groups, key=len, reverse=True):  # nobody heads a board by a name
        if len(group) == 1:
            remarks[group[0].name] = "no other entry with these features"
        else:
            ranked += _ranked(group, estimated)
    others = [Place(e, None, False, remarks[e.name]) for e in ordered if remarks[e.name]]
    return ranked + others


def _features(entry: Verified) -> tuple[str, str]:
    return entry.preset, entry.preset_hash or ""


def _remark(entry: Entry, fingerprint: str) -> str:
    """Return why an entry does not compete, or nothing."""
    reasons: Iterable[str]
    if isinstance(entry, Reported):
        reasons = ["reported"] + ["bound"] * (entry.access == "joint")
    else:
        found = {
            "bound": entry.access == "joint",
            f"fewer than {FEWEST_SEEDS} seeds": len(entry.seeds) < FEWEST_SEEDS,
            f"{100 * entry.coverage:.1f} % of the clips": entry.coverage < 1,
            "features without a hash": entry.preset_hash is None,
            "another manifest": entry.fingerprint != fingerprint,
            f"repeats {entry.repeats}": entry.repeats is not None,
        }
        reasons = [text for text, applies in found.items() if applies]
    return ", ".join(reasons)


def _ranked(entries: Sequence[Verified], estimated: Callable[[Verified], Estimate]) -> list[Place]:
    """Rank competitors that stand by mean accuracy, best first."""
    tiers: list[list[Verified]] = []
    first: Estimate | None = None
    for entry in entries:
        mine = estimated(entry)
        if first and difference_interval(first, mine)[0] <= 0:
            tiers[-1].append(entry)
        else:
            tiers.append([entry])
            first = mine
    found, rank = [], 1
    for tier in tiers:
        found += [Place(entry, rank, len(tier) > 1, "") for entry in tier]
        rank += len(tier)
    return found
