"""Plug-ins by entry point: methods, encoders and sources of this and of any other package."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from avbench.types import AvbenchError, UsageError

Group = Literal["methods", "encoders", "sources"]


def registered(group: Group) -> dict[str, EntryPoint]:
    """Return the entry points of `avbench.<group>` by name, sorted, without importing any.

    Raises:
        UsageError: If two packages use one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"avbench.{group}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"two packages register {group} {point.name!r}, {other.value} and {point.value}:"
                " uninstall one"
            )
    return dict(sorted(found.items()))


def load(group: Group, name: str) -> Any:
    """Import what is registered under a name.

    Raises:
        UsageError: If nothing is, naming the closest matches.
        AvbenchError: If it cannot be imported.
    """
    points = registered(group)
    if name not in points:
        raise unknown(group.removesuffix("s"), name, list(points))
    try:
        return points[name].load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise AvbenchError(
            f"{name} cannot be imported from {points[name].value} ({error}): mend its package"
        ) from error


def unknown(kind: str, name: str, known: list[str]) -> UsageError:
    """Return the error for a name that does not exist: the closest matches, or all there are."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return UsageError(f"unknown {kind} {name!r}; did you mean {' or '.join(close)}?")
    return UsageError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")
