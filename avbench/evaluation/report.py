"""Runs side by side, to read and to print: Markdown, HTML, LaTeX and figures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from avbench.evaluation import plots, predictions
from avbench.evaluation.compare import differences, read_outcomes, read_run, terms
from avbench.evaluation.metrics import METRICS, Floats, Integers, confusion_matrix, mean_accuracy
from avbench.evaluation.page import one_line, write_page
from avbench.evaluation.result import Result
from avbench.evaluation.statistics import Outcomes, Summary
from avbench.resources import replacing
from avbench.types import UsageError

_COLUMNS = (
    "method",
    "standing",
    "seeds",
    "mean accuracy",
    "95 % interval",
    "average forgetting",
    "last accuracy",
    "exemplars",
    "exemplars, MB",
    "checkpoint, MB",
    "s/seed",
)
_STORED = (
    "Exemplars are the features of the clips kept, checkpoint is all else that is kept of what was"
    " learned, the network included: the most after any step."
)
_TIES = (
    "In %, mean over seeds ± one standard deviation, with the 95 % t-interval of the mean accuracy."
    " Standing is by mean accuracy, as in avbench compare and on the leaderboards: a tie where the"
    " 95 % interval of the difference, over seeds and test clips, holds 0. Joint access sees the"
    " data of all seen classes: a bound, not a competitor."
)


@dataclass(frozen=True)
class Row:
    """A run as a line of a table.

    Attributes:
        label: The method, with what tells it from others of that name.
        result: What the run found.
        standing: "bound", "not ranked", "best", "tie with the best" or "below the best".
        confusion: See `step_confusion`, mean over seeds as shares of a row; None where not known.
    """

    label: str
    result: Result
    standing: str
    confusion: Floats | None

    @property
    def joint(self) -> bool:
        """Whether the method sees the data of all seen classes."""
        return bool(self.result.config["access"] == "joint")

    @property
    def values(self) -> str:
        """Hash of the values of the features, shortened."""
        return self.result.features_hash[:12]

    @property
    def marked(self) -> str:
        """The label with its marks, as `Result.marks` has them."""
        return self.label + self.result.marks

    def forgetting(self) -> Summary | None:
        """Average forgetting; None for a bound or a single step, which forget nothing."""
        found = self.result.metric("average_forgetting")
        return None if self.joint or math.isnan(found.mean) else found

    def cells(self) -> list[str]:
        """Return the cells of `_COLUMNS`."""
        accuracy, forgetting = self.result.metric("mean_accuracy"), self.forgetting()
        low, high = accuracy.interval
        stored = self.result.stored_bytes
        return [
            self.marked,
            self.standing,
            str(len(self.result.seeds)),
            _spread(accuracy, "±"),
            "-" if math.isnan(low) else f"{100 * low:.2f} to {100 * high:.2f}",
            _spread(forgetting, "±") if forgetting else "-",
            _spread(self.result.metric("last_accuracy"), "±"),
            str(self.result.config["memory"]),
            f"{self.result.exemplar_bytes / 1e6:.1f}",
            "-" if stored is None else f"{sum(stored.values()) / 1e6:.1f}",
            f"{np.mean(list(self.result.seconds.values())):.1f}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the row for JSON; numbers are fractions."""
        return {
            "label": self.label,
            "access": self.result.config["access"],
            "standing": self.standing,
            "features_hash": self.result.features_hash,
            "metrics": {name: self.result.metric(name).to_json() for name in METRICS},
            "seconds": {str(seed): s for seed, s in self.result.seconds.items()},
            "exemplar_bytes": self.result.exemplar_bytes,
            "stored_bytes": self.result.stored_bytes,
            "confusion_between_steps": None if self.confusion is None else self.confusion.tolist(),
        }


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table.

    Attributes:
        terms: What they have in common.
        rows: Best mean accuracy first.
    """

    terms: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Benchmark and features."""
        return f"{self.terms['benchmark']}, {self.terms['preset']} features"

    @property
    def partial(self) -> str | None:
        """The share of clips per split where it is not all of them."""
        shares = self.terms["coverage"]
        if min(shares.values()) >= 1:
            return None
        return ", ".join(f"{100 * share:.2f} % ({split})" for split, share in shares.items())

    @property
    def values_differ(self) -> bool:
        """Whether runs had features of the same preset, but of other values."""
        return len({row.result.features_hash for row in self.rows}) > 1

    @property
    def facts(self) -> str:
        """What the numbers hold for, shortened."""
        hashes = {
            "manifest": self.terms["fingerprint"],
            "preset": self.terms["preset_hash"],
            "test clips": self.terms["test clips"],
        }
        values = " and ".join(dict.fromkeys(row.values for row in self.rows))
        facts = [f"{name} {value[:12]}" for name, value in hashes.items()]
        return ", ".join([*facts, f"values of the features {values}"])

    def to_json(self) -> dict[str, Any]:
        """Return the group for JSON."""
        return self.terms | {"runs": [row.to_json() for row in self.rows]}


class _Member(NamedTuple):
    run: Path
    result: Result
    label: str


def report(runs: Sequence[Path], out: Path) -> list[Group]:
    """Write a report of run directories.

    Writes `report.md`, `report.html` (one file that needs no other), `table.tex` with the rows of a
    LaTeX table, and `figures/` in PNG and SVG. Every number follows from predictions: a run whose
    result says something else is refused. Runs that are not comparable get tables of their own.

    Args:
        runs: Run directories.
        out: A folder, made if it does not exist.

    Returns:
        The groups of comparable runs, in the order their first runs are given.

    Raises:
        UsageError: If no run is given, or one twice.
        AvbenchError: If a directory is not a finished run, its numbers do not follow from its
            predictions, or a place cannot be written to.
    """
    if not runs:
        raise UsageError("no run to report: give run directories")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is given twice: give each once")
    results = [read_run(run) for run in runs]
    members: list[list[_Member]] = []
    for member in map(_Member, runs, results, _labels(runs, results)):
        for others in members:
            if terms(others[0].result) == terms(member.result):
                others.append(member)
                break
        else:
            members.append([member])
    groups = [Group(terms(those[0].result), _rows(those)) for those in members]
    pages = []
    for number, group in enumerate(groups, start=1):
        prefix = f"{number}-" if len(groups) > 1 else ""
        pages.append(
            {
                "title": group.title,
                "partial": group.partial,
                "facts": group.facts,
                "rows": [{"joint": row.joint, "cells": row.cells()} for row in group.rows],
                "notes": _notes(group),
                "figures": _draw(group, out, prefix),
            }
        )
    context = {"groups": pages, "columns": _COLUMNS, "differ": _differ(groups)}
    for name in ("report.md", "report.html"):
        write_page(out / name, name, context)
    with replacing(out / "table.tex") as temporary:
        temporary.write_text("".join(map(latex, groups)), encoding="utf-8")
    return groups


def step_confusion(table: pa.Table) -> Integers | None:
    """Count which step's classes were taken for which after the last step.

    Args:
        table: Predictions of one seed. A step's classes are those first tested at it.

    Returns:
        Entry [i, j] is how many test clips of step i's classes were predicted as one of step j's.
        Shape (T, T). None where classes without test clips leave open where a step begins.
    """
    step, label, prediction = (np.asarray(table[c]) for c in ("step", "label", "prediction"))
    seen = [np.unique(label[step == t]) for t in range(int(step.max()) + 1)]
    first = [int(np.setdiff1d(new, old).min()) for new, old in zip(seen[1:], seen, strict=False)]
    if seen[0][0] or any(c != old.max() + 1 for c, old in zip(first, seen, strict=False)):
        return None
    last = step == len(seen) - 1
    of_label, of_prediction = (
        np.searchsorted(first, classes[last], side="right") for classes in (label, prediction)
    )
    return confusion_matrix(of_label, of_prediction, len(seen))


def latex(group: Group) -> str:
    r"""Return a group as rows of a LaTeX table: method, mean accuracy, average forgetting.

    The best of the methods without joint access is bold, and so are those that tie with it.
    """
    lines = [f"% {_tex(group.title)}: method & mean accuracy & average forgetting"]
    if group.partial:
        lines.append(f"% partial: {_tex(group.partial)} of the clips")
    for row in group.rows:
        forgetting = row.forgetting()
        accuracy = _spread(row.result.metric("mean_accuracy"), r"$\pm$")
        if row.standing.startswith(("best", "tie with the best")):
            accuracy = rf"\textbf{{{accuracy}}}"
        cells = [
            _tex(row.marked),
            accuracy,
            _spread(forgetting, r"$\pm$") if forgetting else "--",
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join(lines) + "\n"


def _labels(runs: Sequence[Path], results: Sequence[Result]) -> list[str]:
    """Name runs by method; where two are alike, with their directories, too."""
    names = [result.name for result in results]
    return [
        f"{name} ({run})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def _rows(members: Sequence[_Member]) -> tuple[Row, ...]:
    """Rank comparable runs by mean accuracy, and say which the best one is better than."""
    ranked = sorted(members, key=lambda m: (-m.result.metric("mean_accuracy").mean, m.label))
    outcomes = [read_outcomes(m.run, m.result) for m in ranked]
    best: Outcomes | None = None
    rows = []
    for member, found in zip(ranked, outcomes, strict=True):
        if member.result.config["access"] == "joint":
            standing = "bound"
        elif member.result.mixed_code:
            standing = "not ranked"
        elif best is None:
            best, standing = found, "best"
        else:
            standing = _standing(best, found)
        if standing not in ("bound", "not ranked") and len(member.result.seeds) == 1:
            standing += " (one seed)"
        confusion = _confusion(member.run, member.result)
        rows.append(Row(member.label, member.result, standing, confusion))
    return tuple(rows)


def _standing(best: Outcomes, other: Outcomes) -> str:
    found = differences(best, other, {"mean_accuracy": mean_accuracy})["mean_accuracy"]
    return "tie with the best" if found.better == "tie" else "below the best"


def _confusion(run: Path, result: Result) -> Floats | None:
    shares = []
    for seed in result.seeds:
        table = predictions.read(run / f"seed-{seed}" / "predictions.parquet")
        counts = step_confusion(table)
        if counts is None:
            return None
        shares.append(counts / counts.sum(axis=1, keepdims=True))
    return np.asarray(np.mean(shares, axis=0))


def _notes(group: Group) -> list[str]:
    notes = [_TIES, _STORED]
    if any("one seed" in row.standing for row in group.rows):
        notes.append(
            "One seed: who is better is about these runs, and says nothing of other seeds."
        )
    if group.values_differ:
        values = ", ".join(f"{row.label} {row.values}" for row in group.rows)
        notes.append(
            f"The features differ in their values, under the same preset ({values}): they were made"
            " on different machines, or altered."
        )
    if any(row.standing == "not ranked" for row in group.rows):
        notes.append(
            "Mixed code: not all steps and seeds were computed by the same code, so the run is not"
            " ranked."
        )
    if any(row.confusion is None for row in group.rows):
        notes.append("Confusion between steps is not known: some classes have no test clip.")
    return notes


def _differ(groups: Sequence[Group]) -> list[str]:
    first = groups[0].terms
    return [key for key in first if any(group.terms[key] != first[key] for group in groups)]


def _draw(group: Group, out: Path, prefix: str) -> list[dict[str, str]]:
    """Draw the figures of a group; return where they lie, what they hold and what to call them."""
    results = [row.result for row in group.rows]
    labels = [row.marked for row in group.rows]
    figures: list[dict[str, str]] = []

    def add(name: str, caption: str, draw: Callable[..., None]) -> None:
        stem = f"{prefix}{name}"
        png, svg = (out / "figures" / f"{stem}{suffix}" for suffix in (".png", ".svg"))
        for path in (png, svg):
            draw(path=path)
        data = base64.b64encode(svg.read_bytes()).decode()
        figures.append(
            {
                "png": f"figures/{png.name}",
                "caption": caption,
                "data": f"data:image/svg+xml;base64,{data}",
            }
        )

    add(
        "accuracy",
        "Accuracy on the classes seen so far after each step; bands are one deviation over seeds",
        partial(plots.plot_accuracy, results, labels=labels),
    )
    if any(row.forgetting() for row in group.rows):
        add(
            "forgetting",
            "Forgetting at each step; bands are one deviation over seeds",
            partial(plots.plot_forgetting, results, labels=labels),
        )
    add(
        "cost",
        "Wall time of a seed, on the machine each run was made on, against mean accuracy",
        partial(plots.plot_cost, results, labels=labels),
    )
    for number, row in enumerate(group.rows, start=1):
        add(
            f"matrix-{number}-{_slug(row.result.name)}",
            f"{row.marked}: accuracy after each step on the classes of each step",
            partial(plots.plot_matrix, row.result, label=row.marked),
        )
        if row.confusion is not None:
            add(
                f"confusion-{number}-{_slug(row.result.name)}",
                f"{row.marked}: which step's classes are taken for which after the last step",
                partial(plots.plot_confusion, row.confusion, title=row.marked),
            )
    return figures


def _spread(summary: Summary, plus_minus: str) -> str:
    deviation = "" if math.isnan(summary.std) else f" {plus_minus} {100 * summary.std:.2f}"
    return f"{100 * summary.mean:.2f}{deviation}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in one_line(text))
