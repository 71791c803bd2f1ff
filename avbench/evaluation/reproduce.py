"""Runs what a table or figure of the AV-CIL paper needs, and puts ours beside the paper's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avbench import registry
from avbench.evaluation.apart import Job, fair_threads, run_apart
from avbench.evaluation.compare import read_run
from avbench.evaluation.evaluator import checked_seeds, coverage_of, memory_of, open_store
from avbench.evaluation.forecast import Expected, Forecast, forecast
from avbench.evaluation.grid import Cell, Suite, cells
from avbench.evaluation.page import write_page
from avbench.evaluation.paper_table import COLUMNS, Row, caveats, remarks
from avbench.evaluation.plots import plot_accuracy, plot_memory
from avbench.learning.method import Declaration, resolve_settings
from avbench.manifests.benchmark import Benchmark
from avbench.media.backend import Backend, each, pool
from avbench.resources import alone, home, write_json
from avbench.types import AvbenchError, Report, Split, UsageError, silent

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """The runs of a table or figure.

    Attributes:
        suite: Which.
        benchmark: On what.
        preset: On which features.
        seeds: Of every run.
        coverage: Share of the clips that have features, per split; empty where `obstacle` is set.
        obstacle: Why the runs cannot be made yet; None if they can.
        settings: What is changed in all runs.
        device: What they compute on.
        allow_missing: Whether to go on where clips have no features.
        cells: The runs.
        out: Where their directories lie, and the table.
        expected: What each is to do.
        forecasts: What each will cost.
    """

    suite: Suite
    benchmark: Benchmark
    preset: str
    seeds: tuple[int, ...]
    coverage: Mapping[Split, float]
    obstacle: str | None
    settings: Mapping[str, str]
    device: str
    allow_missing: bool
    cells: tuple[Cell, ...]
    out: Path
    expected: tuple[Expected, ...]
    forecasts: tuple[Forecast, ...]

    def seconds(self, workers: int) -> float | None:
        """Return the wall time of what is left on some workers; None where nothing tells."""
        times = [found.seconds for found in self.forecasts]
        known = [seconds for seconds in times if seconds is not None]
        if len(known) < len(times):
            return None
        return max(sum(known) / workers, *known)

    @property
    def caveats(self) -> list[str]:
        """Why numbers are not comparable with the paper's."""
        return caveats(self.benchmark, self.preset, self.coverage, self.settings)

    @property
    def title(self) -> str:
        """What is reproduced, on what."""
        name = f"{self.suite[:-1].capitalize()} {self.suite[-1]}"
        seeds = ", ".join(map(str, self.seeds))
        return f"{name} on {self.benchmark.name}, {self.preset} features, seeds {seeds}"


def plan(
    suite: Suite,
    benchmark: Benchmark,
    *,
    seeds: Sequence[int],
    out: Path,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_missing: bool = False,
) -> Plan:
    """Say which runs a table or figure needs, and what is left of them.

    Args:
        suite: A table or figure of the paper.
        benchmark: On what. Where its features are not prepared the plan says so.
        seeds: Of every run.
        out: Where run directories lie or will; finished runs there are kept.
        preset: Which features; None for the benchmark's default.
        settings: Settings as text, over the recipes of all runs.
        device: A torch device.
        allow_missing: Go on where clips have no features; the table says so.

    Raises:
        UsageError: If a setting does not exist or is one the suite itself sets, or if there is no
            such preset.
        AvbenchError: If a memory is too small.
    """
    settings, preset = settings or {}, preset or benchmark.spec.preset
    seeds = checked_seeds(seeds)
    store, coverage, obstacle = None, {}, None
    try:
        store = open_store(benchmark, preset)
        coverage = coverage_of(benchmark, store, allow_missing)
    except UsageError:
        raise
    except AvbenchError as error:
        obstacle = str(error)
    runs, found = cells(suite, benchmark), []
    if both := sorted({key for cell in runs for key in cell.settings} & settings.keys()):
        raise UsageError(f"{suite} sets {both[0]} itself: leave --set {both[0]} out")
    for cell in runs:
        method_class = registry.load("methods", cell.method)
        resolved = resolve_settings(
            method_class,
            cell.method,
            benchmark.base.name,
            cell.modality,
            {**settings, **cell.settings},
        )
        declared = Declaration.of(method_class, cell.method)
        memory = memory_of(benchmark, cell.method, declared, resolved)
        place = out / cell.name
        found.append(Expected(place, method_class, cell.modality, resolved, memory, seeds))
    return Plan(
        suite=suite,
        benchmark=benchmark,
        preset=preset,
        seeds=tuple(seeds),
        coverage=coverage,
        obstacle=obstacle,
        settings=settings,
        device=device,
        allow_missing=allow_missing,
        cells=tuple(runs),
        out=out,
        expected=tuple(found),
        forecasts=tuple(forecast(benchmark, store, found, device=device)),
    )


@dataclass(frozen=True)
class Reproduction:
    """A table or figure, ours beside the paper's.

    Attributes:
        plan: What was run.
        rows: A line each.
        files: What was written.
    """

    plan: Plan
    rows: tuple[Row, ...]
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "suite": self.plan.suite,
            "benchmark": self.plan.benchmark.name,
            "fingerprint": self.plan.benchmark.manifest.fingerprint,
            "preset": self.plan.preset,
            "seeds": list(self.plan.seeds),
            "coverage": dict(self.plan.coverage),
            "comparable": not self.plan.caveats,
            "caveats": self.plan.caveats,
            "remarks": remarks(self.plan.preset, self.rows),
            "rows": [row.to_json() for row in self.rows],
        }


def reproduce(
    plan: Plan,
    *,
    backend: Backend = "threading",
    workers: int = 1,
    scheduler: str | None = None,
    report: Report = silent,
) -> Reproduction:
    """Make the runs of a plan, and put ours beside the paper's.

    Every run is a process of its own; one that fails leaves the others alone. Run directories are
    those of `evaluate`: what is finished is kept, what was stopped goes on. Writes the table as
    Markdown and JSON, and the curves of a figure, into the plan's folder.

    Args:
        plan: What to run.
        backend: Where runs are started from.
        workers: How many at a time.
        scheduler: Address of a Dask scheduler; its workers must see the same folders.
        report: Called as training proceeds, with epochs of all runs.

    Raises:
        UsageError: If the backend does not fit.
        AvbenchError: If features are missing, another process reproduces here, or a place cannot
            be written to.
    """
    if plan.obstacle:
        raise AvbenchError(plan.obstacle)
    jobs = {str((plan.out / cell.name).absolute()): cell for cell in plan.cells}
    failures: dict[str, str | None] = {}
    with alone(plan.out, f"reproducing {plan.suite} here"):
        with pool(backend, workers=workers, scheduler=scheduler), _progress(plan, report):
            for out, failure in each(run_apart, _jobs(plan, fair_threads(workers))):
                failures[jobs[out].name] = failure and " ".join(failure.split())
        rows = tuple(_row(plan, cell, failures[cell.name]) for cell in plan.cells)
        return _written(plan, rows)


def _jobs(plan: Plan, threads: int) -> Iterator[Job]:
    """Yield the runs, longest first, so that none is left alone at the end."""
    benchmark = plan.benchmark.argument
    if not plan.benchmark.spec.is_shipped:
        root = plan.benchmark.spec.path.absolute()
        benchmark = str(root) + benchmark.removeprefix(str(plan.benchmark.spec.path))
    order = sorted(zip(plan.cells, plan.forecasts, strict=True), key=lambda p: -(p[1].seconds or 0))
    for cell, _ in order:
        yield Job(
            benchmark=benchmark,
            method=cell.method,
            modality=cell.modality,
            seeds=plan.seeds,
            out=str((plan.out / cell.name).absolute()),
            preset=plan.preset,
            settings={**plan.settings, **cell.settings},
            device=plan.device,
            allow_missing=plan.allow_missing,
            home=str(home().absolute()),
            threads=threads,
        )


@contextmanager
def _progress(plan: Plan, report: Report) -> Iterator[None]:
    """Report epochs of all runs, from their logs, wherever they are made."""
    total = sum(found.epochs for found in plan.forecasts)
    what = f"epochs of {len(plan.cells)} runs"
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            report(what, sum(run.epochs_done(plan.benchmark) for run in plan.expected), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    report(what, sum(run.epochs_done(plan.benchmark) for run in plan.expected), total)


def _row(plan: Plan, cell: Cell, failure: str | None) -> Row:
    return Row(cell, None, failure) if failure else Row(cell, read_run(plan.out / cell.name))


def _written(plan: Plan, rows: tuple[Row, ...]) -> Reproduction:
    """Write the table, and the figure if it is one."""
    done = [(row, row.result) for row in rows if row.result]
    figures = []
    if plan.suite.startswith("figure") and done:
        labels, results = [row.label for row, _ in done], [result for _, result in done]
        for suffix in (".png", ".svg"):
            path = plan.out / f"{plan.suite}{suffix}"
            if plan.suite == "figure4":
                plot_accuracy(results, path, labels=labels)
            else:
                sizes = [result.config["memory"] for result in results]
                plot_memory(sizes, results, path)
            figures.append(path)
    pages = [plan.out / f"{plan.suite}{suffix}" for suffix in (".md", ".json")]
    found = Reproduction(plan, rows, (*pages, *figures))
    context = {
        "plan": plan,
        "rows": rows,
        "columns": COLUMNS,
        "remarks": remarks(plan.preset, rows),
        "steps": range(1, plan.benchmark.spec.steps + 1),
        "figure": figures[0].name if figures else None,
    }
    write_page(pages[0], "reproduce.md", context)
    write_json(pages[1], found.to_json())
    return found
