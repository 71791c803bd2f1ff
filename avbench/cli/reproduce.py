"""`avbench reproduce`: the paper's tables and figures, ours beside the paper's."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from avbench.cli.arguments import (
    backend_option,
    device_option,
    read_seeds,
    read_settings,
    scheduler_option,
    seeds_option,
    settings_option,
)
from avbench.cli.output import json_option, print_json, print_table, progress

if TYPE_CHECKING:
    from avbench.evaluation.grid import Suite
    from avbench.evaluation.reproduce import Plan
    from avbench.media.backend import Backend


@click.command()
@click.argument("suite", type=click.Choice(("table1", "table2", "table3", "figure4", "figure6")))
@click.option(
    "--benchmark",
    required=True,
    help="A name, the path of a TOML, or a variant of either such as ave-ci:seed=3.",
)
@seeds_option
@settings_option
@click.option("--preset", help="Which features.  [default: the benchmark's]")
@device_option
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/BENCHMARK]")
@click.option("--allow-missing", is_flag=True, help="Go on where clips have no features.")
@click.option("--dry-run", is_flag=True, help="Say which runs there are, and what they take.")
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Runs at a time.  [default: all cores; 1 on another device than cpu]",
)
@backend_option
@scheduler_option
@json_option
def reproduce(
    suite: Suite,
    benchmark: str,
    seeds: str,
    settings: tuple[str, ...],
    preset: str | None,
    device: str,
    out: Path | None,
    allow_missing: bool,
    dry_run: bool,
    workers: int | None,
    backend: Backend,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Run what a table or figure of the paper needs, and show ours beside the paper's.

    \b
      table1    every method
      table2    every baseline on sound, sight, and both
      table3    AV-CIL without each of its parts
      figure4   accuracy after each step, of the runs of table1
      figure6   AV-CIL with other sizes of the memory

    Run directories are those of `avbench evaluate`, in --out beside the table: what is finished
    there is kept, and the same command goes on after any stop. Each run is a process of its own;
    one that fails is named, and the others go on. Exit code 1 if any failed.

    \b
    Examples:
      avbench reproduce table1 --benchmark toy-ci
      avbench reproduce table3 --benchmark ave-ci --preset released --device cuda
      avbench reproduce table2 --benchmark ks-ci --dry-run
      avbench reproduce figure6 --benchmark toy-ci --set epochs=5 --out runs/short
    """
    seed_list, given = read_seeds(seeds), read_settings(settings)
    from avbench.evaluation import reproduce as reproduction
    from avbench.evaluation.paper_table import COLUMNS, remarks
    from avbench.manifests.benchmark import Benchmark

    chosen = Benchmark.load(benchmark)
    plan = reproduction.plan(
        suite,
        chosen,
        seeds=seed_list,
        out=out or Path("runs") / chosen.name,
        preset=preset,
        settings=given,
        device=device,
        allow_missing=allow_missing,
    )
    at_a_time = min(
        workers or ((os.cpu_count() or 1) if device == "cpu" else 1),
        len(plan.cells),
    )
    if dry_run:
        _print_plan(plan, at_a_time, as_json=as_json)
        return
    with progress() as report:
        found = reproduction.reproduce(
            plan, backend=backend, workers=at_a_time, scheduler=scheduler, report=report
        )
    failed = [row for row in found.rows if row.failure]
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(f"{plan.title}, in %")
        print_table(COLUMNS, [row.cells() for row in found.rows])
        _print_caveats(plan)
        for remark in remarks(plan.preset, found.rows):
            click.echo(remark)
        click.echo(f"table and runs: {found.files[0]}")
        for path in found.files[2:3]:
            click.echo(f"figure: {path}")
    for row in failed:
        click.echo(f"FAILED {row.cell.name}: {row.failure}", err=True)
    if failed:
        sys.exit(1)


def _print_caveats(plan: Plan) -> None:
    if plan.caveats:
        click.echo(f"Not comparable with the paper: {'; '.join(plan.caveats)}.")
    else:
        click.echo("Comparable with the paper: its clips, class order, features and settings.")


def _print_plan(plan: Plan, workers: int, *, as_json: bool) -> None:
    seconds = plan.seconds(workers)
    pairs = list(zip(plan.cells, plan.forecasts, strict=True))
    if as_json:
        runs = [
            {"run": cell.name, "directory": str(plan.out / cell.name)} | asdict(found)
            for cell, found in pairs
        ]
        hours = None if seconds is None else round(seconds / 3600, 4)
        known = {"obstacle": plan.obstacle, "caveats": plan.caveats}
        print_json({"runs": runs, "workers": workers, "hours": hours, **known})
        return
    click.echo(plan.title)
    print_table(
        ["run", "epochs", "done", "hours to go", "as"],
        [
            [cell.name, found.epochs, found.epochs_done, _hours(found.seconds), found.basis]
            for cell, found in pairs
        ],
    )
    click.echo(f"{len(pairs)} runs in {plan.out}, {_hours(seconds)} hours on {workers} workers")
    if plan.obstacle:
        click.echo(f"They cannot be made yet: {plan.obstacle}.")
    _print_caveats(plan)


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:.2f}"
