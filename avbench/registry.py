"""Plug-ins by entry point: methods, encoders and sources of this and of any other package."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from avbench.types import UsageError

Group = Literal["methods", "encoders", "sources"]


def registered(group: Group) -> dict[str, EntryPoint]:
    """Return the entry points of `avbench.<group>` by name, sorted, without importing any."""
    found = {point.name: point for point in entry_points(group=f"avbench.{group}")}
    return dict(sorted(found.items()))


def load(group: Group, name: str) -> Any:
    """Import what is registered under a name.

    Raises:
        UsageError: If nothing is, naming the closest matches.
    """
    points = registered(group)
    if name not in points:
        raise unknown(group.removesuffix("s"), name, list(points))
    return points[name].load()


def unknown(kind: str, name: str, known: list[str]) -> UsageError:
    """Return the error for a name that does not exist: the closest matches, or all there are."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return UsageError(f"unknown {kind} {name!r}; did you mean {' or '.join(close)}?")
    return UsageError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")
