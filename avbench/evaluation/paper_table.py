"""Ours beside the paper's: the tables of `avbench reproduce`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avbench.evaluation.grid import Cell, paper_name
from avbench.evaluation.metrics import accuracy_per_step
from avbench.evaluation.result import Result
from avbench.evaluation.statistics import Summary
from avbench.manifests.benchmark import Benchmark
from avbench.types import Split

COMPARED = ("mean_accuracy", "average_forgetting")
COLUMNS = (
    "run",
    *("mean accuracy", "paper", "difference"),
    *("average forgetting", "paper", "difference"),
)
_AUTHORS = "released"
_AS_AUTHORS = "avcil"


@dataclass(frozen=True)
class Row:
    """A run, ours and the paper's.

    Attributes:
        cell: What was run.
        result: What it found; None if it failed.
        failure: Why it failed.
    """

    cell: Cell
    result: Result | None
    failure: str | None = None

    @property
    def label(self) -> str:
        """The run with what a reader must know of it: joint access, and gaps in the data."""
        return self.cell.name + (self.result.marks if self.result else "")

    def ours(self, metric: str) -> Summary | None:
        """Return a metric as a fraction; None where there is none."""
        if self.result is None:
            return None
        if metric == "average_forgetting" and self.result.config["access"] == "joint":
            return None  # a bound has nothing to forget
        found = self.result.metric(metric)
        return None if math.isnan(found.mean) else found

    def difference(self, metric: str) -> float | None:
        """Return ours minus the paper's, in points."""
        ours, theirs = self.ours(metric), self.cell.paper.get(metric)
        return None if ours is None or theirs is None else 100 * ours.mean - theirs

    def cells(self) -> list[str]:
        """Return the cells of `COLUMNS`."""
        found = [self.label]
        for metric in COMPARED:
            ours, theirs = self.ours(metric), self.cell.paper.get(metric)
            difference = self.difference(metric)
            found += [
                "failed" if self.failure else _spread(ours),
                "-" if theirs is None else f"{theirs:.2f}",
                "-" if difference is None else f"{difference:+.2f}",
            ]
        return found

    def steps(self) -> list[str]:
        """Return accuracy on seen classes after each step, in percent, mean over seeds."""
        if self.result is None:
            return []
        curves = [accuracy_per_step(matrix) for matrix in self.result.matrices.values()]
        return [f"{100 * sum(step) / len(step):.2f}" for step in zip(*curves, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the row for JSON: ours as fractions with their spread, differences in points."""
        ours = {metric: self.ours(metric) for metric in COMPARED}
        return {
            "run": self.cell.name,
            "method": self.cell.method,
            "modality": self.cell.modality,
            "settings": dict(self.cell.settings),
            "failure": self.failure,
            "ours": {k: summary.to_json() if summary else None for k, summary in ours.items()},
            "paper_percent": {metric: self.cell.paper.get(metric) for metric in COMPARED},
            "difference_points": {metric: self.difference(metric) for metric in COMPARED},
        }


def caveats(
    benchmark: Benchmark, preset: str, coverage: Mapping[Split, float], settings: Mapping[str, str]
) -> list[str]:
    """Return why numbers are not comparable with the paper's; nothing where they are.

    Args:
        benchmark: What was run.
        preset: On which features.
        coverage: Share of the clips that had features, per split.
        settings: What was changed in all runs.
    """
    found = []
    if paper_name(benchmark) is None:
        found.append(f"the paper has no {benchmark.name}")
    elif benchmark.spec.variant:
        found.append(f"{benchmark.name} is a variant of the paper's {paper_name(benchmark)}")
    if preset not in (_AUTHORS, _AS_AUTHORS):
        found.append(f"{preset} features are not the paper's, which {_AUTHORS} are")
    if any(share < 1 for share in coverage.values()):
        shares = ", ".join(f"{100 * share:.2f} % of {s}" for s, share in coverage.items())
        found.append(f"PARTIAL, clips have no features: {shares} have")
    if settings:
        changed = ", ".join(f"{key}={value}" for key, value in settings.items())
        found.append(f"settings are not the paper's: {changed}")
    return found


def remarks(preset: str, rows: Sequence[Row]) -> list[str]:
    """Return what a reader should know of numbers that are comparable otherwise."""
    found = []
    if preset == _AS_AUTHORS:
        found.append(
            "Features are made as the authors' scripts make them, which has been reported to score"
            f" lower than their own; those are the preset {_AUTHORS}."
        )
    if any(row.cell.paper for row in rows) and any("memory" in row.cell.settings for row in rows):
        found.append(
            "The paper prints no numbers of Figure 6; that of the usual size is Table 1's."
        )
    return found


def _spread(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    deviation = "" if math.isnan(summary.std) else f" ± {100 * summary.std:.2f}"
    return f"{100 * summary.mean:.2f}{deviation}"
