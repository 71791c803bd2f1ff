"""Variants of a benchmark, by one grammar: another class order, other steps.

    NAME:OPTION=VALUE,OPTION=VALUE,...

`seed=3` orders the classes by hashing (3, label), `order=alphabetical` by name. `steps=20` makes
twenty steps of one size; `steps=50+5x10` one of 50 classes, then five of 10; `first=50` makes a
first step of 50 classes and leaves the other steps at their size, or with `steps=6` makes five
equal steps of the rest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from avbench.registry import unknown
from avbench.types import UsageError

_OPTIONS = ("seed", "order", "steps", "first")
_SIZES = re.compile(r"(?:\d{1,6}x)?\d{1,6}(?:\+(?:\d{1,6}x)?\d{1,6})*", re.ASCII)


@dataclass(frozen=True)
class Variant:
    """How a variant differs from its benchmark.

    Attributes:
        order: The seed of its class order, or "alphabetical"; None where the order stays.
        classes_per_step: Number of new classes at every step.
        text: Its options in canonical form, the same for every way of writing them.
    """

    order: int | Literal["alphabetical"] | None
    classes_per_step: tuple[int, ...]
    text: str

    def arranged(self, labels: Sequence[str]) -> list[str]:
        """Return the classes in this variant's order, given those of the benchmark in its own."""
        if self.order is None:
            return list(labels)
        if self.order == "alphabetical":
            return sorted(labels, key=lambda label: (label.casefold(), label))
        return by_hash(self.order, labels)


def parse(name: str, options: str, classes_per_step: tuple[int, ...]) -> Variant:
    """Read the options behind a benchmark's name.

    Args:
        name: The benchmark, for messages.
        options: What stands behind the colon.
        classes_per_step: The benchmark's own.

    Raises:
        UsageError: If an option is unknown, given twice, or does not fit the benchmark.
    """
    given: dict[str, str] = {}
    for part in options.split(","):
        key, equals, value = part.partition("=")
        if key not in _OPTIONS:
            raise UsageError(f"{name}:{options}: {unknown('option', key, list(_OPTIONS))}")
        if not equals or not value or key in given:
            raise UsageError(f"{name}:{options}: give {key}=VALUE, once")
        given[key] = value
    try:
        order = _order(given)
        sizes = _steps(given, classes_per_step)
    except UsageError as error:
        raise UsageError(f"{name}:{options}: {error}") from error
    texts = []
    if order is not None:
        texts.append("order=alphabetical" if order == "alphabetical" else f"seed={order}")
    if sizes != classes_per_step:
        texts.append(f"steps={write_steps(sizes)}")
    return Variant(order, sizes, ",".join(texts))


def write_steps(sizes: Sequence[int]) -> str:
    """Write the sizes of steps in canonical form, such as 10 (equal steps) or 50+5x10."""
    if len(set(sizes)) == 1:
        return str(len(sizes))
    runs = [(len(list(run)), size) for size, run in groupby(sizes)]
    return "+".join(f"{count}x{size}" if count > 1 else str(size) for count, size in runs)


def sizes_of_steps(classes: int, given: int | Sequence[int]) -> tuple[int, ...]:
    """Return the number of new classes at every step.

    Args:
        classes: How many there are together.
        given: One number for all steps, or one for each.

    Raises:
        UsageError: If they do not add up.
    """
    if isinstance(given, int):
        sizes = (given,) * (classes // given if given > 0 else 0)
    else:
        sizes = tuple(given)
    if not sizes or any(type(k) is not int or k < 1 for k in sizes) or sum(sizes) != classes:
        shown = given if isinstance(given, int) else list(given)
        raise UsageError(f"classes_per_step = {shown} must add up to {classes} classes")
    return sizes


def by_hash(seed: int, keys: Iterable[str]) -> list[str]:
    """Return keys in the order of SHA-256(seed, key).

    Neither the order they come in, nor platform, nor any library's generator can change it.
    """
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())


def _order(given: dict[str, str]) -> int | Literal["alphabetical"] | None:
    if "order" in given:
        if "seed" in given:
            raise UsageError("give seed or order, not both")
        if given["order"] != "alphabetical":
            raise UsageError(f"order {given['order']!r}: write order=alphabetical, or seed=3")
        return "alphabetical"
    return _whole("seed", given["seed"]) if "seed" in given else None


def _steps(given: dict[str, str], own: tuple[int, ...]) -> tuple[int, ...]:
    classes, text = sum(own), given.get("steps", "")
    if text and not text.isdecimal():
        if "first" in given:
            raise UsageError(f"steps={text} says how large the first step is: leave out first")
        return _sizes(text, classes)
    first = _whole("first", given["first"]) if "first" in given else 0
    if "first" in given and not 0 < first < classes:
        raise UsageError(f"first={first}: it must leave some of {classes} classes, and take some")
    rest = classes - first
    if text:
        steps = _whole("steps", text) - (first > 0)
        if not 0 < steps <= rest:
            raise UsageError(f"steps={text}: there must be 1 to {classes}, the number of classes")
        if rest % steps:
            size, more = divmod(rest, steps)
            sizes = write_steps((first,) * (first > 0) + (size + more,) + (size,) * (steps - 1))
            raise UsageError(
                f"steps={text}: {rest} classes do not make {steps} equal steps:"
                f" write their sizes, such as steps={sizes}"
            )
        return (first,) * (first > 0) + (rest // steps,) * steps
    if not first:
        return own
    if len(set(own)) != 1 or rest % own[0]:
        raise UsageError(f"first={first}: the rest do not make equal steps: give steps as well")
    return (first,) + (own[0],) * (rest // own[0])


def _sizes(text: str, classes: int) -> tuple[int, ...]:
    if not _SIZES.fullmatch(text):
        raise UsageError(f"steps={text}: write their number, or their sizes such as 50+5x10")
    sizes: list[int] = []
    for term in text.split("+"):
        count, size = (int(part) for part in (term if "x" in term else f"1x{term}").split("x"))
        if not (0 < count <= classes and 0 < size <= classes):
            raise UsageError(f"steps={text}: not possible with {classes} classes")
        sizes += [size] * count
    if sum(sizes) != classes:
        raise UsageError(f"steps={text}: that is {sum(sizes)} classes, but there are {classes}")
    return tuple(sizes)


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**31:
        raise UsageError(f"{key}={text}: give a whole number, not negative, nor huge")
    return int(text)
