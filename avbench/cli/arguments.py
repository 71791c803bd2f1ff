"""What several commands take, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from avbench.types import UsageError

backend_option = click.option(
    "--backend",
    type=click.Choice(("threading", "loky", "dask")),
    default="threading",
    show_default=True,
    help="Threads, processes, or a Dask cluster.",
)
scheduler_option = click.option(
    "--scheduler", metavar="tcp://HOST:PORT", help="Of a Dask cluster that is there."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="How many are worked on at a time.",
)
seeds_option = click.option(
    "--seeds", default="0,1,2", show_default=True, help="Such as 0,1,2 or 0..4."
)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting."
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute, such as cuda."
)


def read_seeds(text: str) -> list[int]:
    """Read `0,1,2` or `0..4`.

    Raises:
        UsageError: If it is neither.
    """
    try:
        if ".." in text:
            first, last = (int(part) for part in text.split(".."))
            if last - first >= 1000:
                raise UsageError(f"--seeds {text}: at most 1,000 seeds at a time")
            seeds = list(range(first, last + 1))
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds {text}: give numbers such as 0,1,2 or 0..4") from error
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {text}: give different numbers, none negative")
    return seeds


def read_settings(given: Sequence[str]) -> dict[str, str]:
    """Read `KEY=VALUE` of each.

    Raises:
        UsageError: If one is something else.
    """
    pairs = [text.partition("=") for text in given]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(f"--set {key}: give KEY=VALUE, such as epochs=5")
    return {key: value for key, _, value in pairs}
