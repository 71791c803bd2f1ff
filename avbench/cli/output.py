"""How the commands print: tables, JSON, progress."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from avbench.types import Report, silent

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")


def print_json(record: Any) -> None:
    """Print a record to standard output."""
    click.echo(json.dumps(record, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns under their names, and an empty line."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for number, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
        if number == 0:
            click.echo("  ".join("-" * width for width in widths))
    click.echo()


@contextmanager
def progress() -> Iterator[Report]:
    """Show progress bars on a terminal; say nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield report


def percent(value: float) -> str:
    """Return a fraction in percent, or a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def percent_interval(interval: tuple[float, float]) -> str:
    """Return both ends of an interval of fractions in percent, or a dash for NaN."""
    low, high = interval
    return "-" if math.isnan(low) else f"{percent(low)} to {percent(high)}"
