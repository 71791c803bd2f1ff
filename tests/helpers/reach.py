"""What a method can get at from what it is handed."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator


def reached(*roots: object) -> Iterator[object]:
    """Yield everything that attributes, closures and containers lead to from some objects."""
    seen, todo = set(), list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, types.FunctionType):  # but not the globals of its module
            todo += [thing.__closure__, thing.__defaults__]
        else:
            todo += gc.get_referents(thing)
