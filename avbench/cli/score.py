"""`avbench score`: measure predictions made anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from avbench.cli.output import json_option, percent, percent_interval, print_json, print_table
from avbench.types import UsageError


@click.command()
@click.argument("predictions", required=False, type=click.Path(path_type=Path))
@click.option(
    "--benchmark",
    required=True,
    help="A name, the path of a TOML, or a variant of either such as ks-ci:seed=3.",
)
@click.option("--describe", is_flag=True, help="Print what the file must hold, and stop.")
@json_option
def score(predictions: Path | None, benchmark: str, describe: bool, as_json: bool) -> None:
    """Measure predictions of any framework, from a Parquet or CSV file.

    Everything that is wrong with them is listed at once, with exit code 1. With a column `seed`,
    numbers are means over seeds with deviation and 95 % t-interval.

    \b
    Examples:
      avbench score --benchmark ks-ci --describe
      avbench score predictions.parquet --benchmark ks-ci
      avbench score predictions.csv --benchmark ks-ci:seed=3 --json

    From Python: avbench.score(frame, benchmark="ks-ci").
    """
    if describe == (predictions is not None):
        raise UsageError("give either a file of predictions or --describe")
    from avbench.evaluation import score as scoring
    from avbench.evaluation.metrics import METRICS, definition
    from avbench.manifests.benchmark import Benchmark

    chosen = Benchmark.load(benchmark)
    if predictions is None:
        contract = scoring.describe(chosen)
        if as_json:
            print_json(contract)
        else:
            _print_contract(contract, benchmark)
        return
    try:
        found = scoring.score(predictions, chosen)
    except scoring.PredictionsError as error:
        if as_json:
            print_json({"violations": [violation.to_json() for violation in error.violations]})
        else:
            click.echo(f"Error: {error}", err=True)  # a line for each of them
        sys.exit(error.exit_code)
    if as_json:
        print_json(found.to_json())
        return
    click.echo(f"{found.benchmark}, {len(found.seeds)} seed(s), in %")
    rows = []
    for name in METRICS:
        summary = found.metric(name)
        numbers = [percent(summary.mean), percent(summary.std), percent_interval(summary.interval)]
        rows.append([name.replace("_", " "), *numbers, definition(name)])
    print_table(["metric", "mean", "std", "95 % interval", "what it is"], rows)


def _print_contract(contract: dict[str, Any], benchmark: str) -> None:
    click.echo(f"Predictions of {contract['benchmark']}: a Parquet or CSV file with the columns")
    click.echo()
    rows = [
        [name, need, what]
        for need, columns in contract["columns"].items()
        for name, what in columns.items()
    ]
    print_table(["column", "", "holds"], rows)
    click.echo("and, for every seed, one row for each test clip of the classes seen so far:")
    click.echo()
    steps = [
        [row["step"], f"0 to {row['classes_seen'] - 1}", f"{row['clips']:,}"]
        for row in contract["steps"]
    ]
    print_table(["step", "class indices", "rows"], steps)
    click.echo(f"{contract['rows_per_seed']:,} rows a seed. Labels, by class index:")
    click.echo("; ".join(contract["classes"]))
    click.echo(f"Test clips: avbench splits show {benchmark} --split test")
