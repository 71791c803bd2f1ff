"""One line of a leaderboard."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from avbench.evaluation.metrics import AccuracyMatrix, average_forgetting, mean_accuracy
from avbench.evaluation.statistics import Summary
from avbench.types import AvbenchError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """One method's line.

    Attributes:
        name: Unique on its board; also names the file of its predictions.
        method: How people call the method.
        modality: What it looked at.
        access: "incremental" or "joint"; a joint entry is a bound, not a competitor.
        source: Where the numbers come from.
        verified: Whether accuracy and forgetting were computed from predictions kept beside the
            board.
        mean_accuracy: Eq. 15, in percent, mean over seeds.
        average_forgetting: Eq. 16, in percent; None where it is not known.
        mean_accuracy_std: Unbiased deviation over seeds; None for one seed or where not known.
        seeds: How many seeds; None where it is not known.
        fingerprint: Of the manifest; None where it is not known.
        preset_hash: Of the features; None where it is not known.
    """

    name: str
    method: str
    modality: str
    access: str
    source: str
    verified: bool
    mean_accuracy: float
    average_forgetting: float | None = None
    mean_accuracy_std: float | None = None
    seeds: int | None = None
    fingerprint: str | None = None
    preset_hash: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise AvbenchError(f"entry name {self.name!r}: use lower-case letters, digits and '-'")

    @classmethod
    def verified_by(
        cls, name: str, config: dict[str, Any], matrices: list[AccuracyMatrix]
    ) -> Entry:
        """Make an entry from the counts of a run's predictions, one matrix per seed."""
        accuracy = Summary.of([100 * float(mean_accuracy(matrix)) for matrix in matrices])
        forgetting = Summary.of([100 * float(average_forgetting(matrix)) for matrix in matrices])
        several = len(matrices) > 1
        forgets = matrices[0].steps > 1 and config["access"] != "joint"
        return cls(
            name=name,
            method=config["method"],
            modality=config["modality"],
            access=config["access"],
            source=f"avbench {config['version']}, {config['preset']} features",
            verified=True,
            mean_accuracy=round(accuracy.mean, 4),
            average_forgetting=round(forgetting.mean, 4) if forgets else None,
            mean_accuracy_std=round(accuracy.std, 4) if several else None,
            seeds=len(matrices),
            fingerprint=config["fingerprint"],
            preset_hash=config["preset_hash"],
        )
