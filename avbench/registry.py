"""Plug-ins by entry point: methods, encoders and sources of this and of any other package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
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


@cache
def own(group: Group) -> tuple[str, ...]:
    """Return the names that avbench itself registers, sorted, whatever else is installed."""
    points = entry_points(group=f"avbench.{group}")
    return tuple(sorted({p.name for p in points if p.dist and p.dist.name == "avbench"}))


def load(group: Group, name: str) -> Any:
    """Import what is registered under a name, or a class of a file, `path/to/file.py:ClassName`.

    Raises:
        UsageError: If there is nothing of that name, naming the closest matches.
        AvbenchError: If it cannot be imported.
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), attribute)
    points = registered(group)
    if name not in points:
        raise unknown(group.removesuffix("s"), name, list(points))
    try:
        return points[name].load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise AvbenchError(
            f"{name} cannot be imported from {points[name].value} ({error}): mend its package"
        ) from error


def short_name(name: str) -> str:
    """Return how a plug-in is called: its registered name, or the class of a file."""
    path, _, attribute = name.rpartition(":")
    return attribute if path.endswith(".py") else name


def _from_file(path: Path, attribute: str) -> Any:
    """Import a class from a file that no package registers."""
    if not path.is_file():
        raise UsageError(f"no file {path}: check the path")
    # A name of its own, under which inspect, dataclasses and type hints find the module.
    name = f"_avbench_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise AvbenchError(
            f"{path} cannot be imported ({type(error).__name__}: {error}): mend it"
        ) from error
    if not isinstance(getattr(module, attribute, None), type):
        own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == name]
        raise unknown(f"class in {path}:", attribute, own)
    return getattr(module, attribute)


def unknown(kind: str, name: str, known: list[str]) -> UsageError:
    """Return the error for a name that does not exist: the closest matches, or all there are."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return UsageError(f"unknown {kind} {name!r}; did you mean {' or '.join(close)}?")
    return UsageError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")
