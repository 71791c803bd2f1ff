"""The facts of a benchmark that are not per clip, one TOML each."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from avbench.registry import unknown
from avbench.types import AvbenchError, UsageError

_SPECS = Path(__file__).parent / "specs"
_FORMS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "tuple[str, ...]": (list,),
    "tuple[int, ...]": (list, int),
}
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a whole number or a list of them",
}


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark as its TOML describes it.

    Attributes:
        name: How it is called everywhere.
        title: How a person calls it.
        classes: Number of classes.
        classes_per_step: Number of new classes at every step, first to last; the TOML may give
            one number for all.
        memory: Capacity of the exemplar memory, in clips.
        clip_seconds: Length of a clip.
        preset: The encoder preset its features come from unless another is asked for.
        sources: Where clips come from unless asked otherwise, `NAME` or `NAME:ARGUMENT`; the first
            is used.
        annotations: Table of clips the manifest is built from, beside the TOML or in
            `splits/annotations/`.
        licence: Licence of the annotations, and where the clips' own applies.
        citation: BibTeX.
        homepage: Where the source data set lives.
        notes: What a user must know, in a sentence or two.
        path: The TOML itself.
    """

    name: str
    title: str
    classes: int
    classes_per_step: tuple[int, ...]
    memory: int
    clip_seconds: float
    preset: str
    sources: tuple[str, ...]
    annotations: str
    licence: str
    citation: str
    homepage: str
    notes: str
    path: Path

    @cached_property
    def is_shipped(self) -> bool:
        """Whether the benchmark comes with avbench."""
        return self.path.parent == _SPECS

    @property
    def steps(self) -> int:
        """Number of incremental steps, T."""
        return len(self.classes_per_step)


_OPTIONAL: dict[str, Any] = {
    "title": "",
    "memory": 0,
    "preset": "filterbank",
    "sources": [],
    "licence": "",
    "citation": "",
    "homepage": "",
    "notes": "",
}


def shipped_names() -> list[str]:
    """Return the names of the benchmarks that come with avbench."""
    return sorted(path.stem for path in _SPECS.glob("*.toml"))


def load_spec(name: str) -> BenchmarkSpec:
    """Read the TOML of a benchmark.

    Args:
        name: Name of a shipped benchmark, or the path of a TOML of your own.

    Raises:
        UsageError: If there is no such benchmark.
        AvbenchError: If the TOML is unreadable, or a key is missing, unknown or of the wrong type.
    """
    own = name.lower().endswith(".toml")
    path = Path(name) if own else _SPECS / f"{name}.toml"
    if not path.is_file():
        if own:
            raise UsageError(f"no benchmark file {name}: check the path")
        raise unknown("benchmark", name, shipped_names())
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AvbenchError(f"{path}: not a readable TOML file: {error}") from error
    return _checked(given, path)


def _checked(given: dict[str, Any], path: Path) -> BenchmarkSpec:
    forms = {f.name: str(f.type) for f in fields(BenchmarkSpec) if f.name != "path"}
    for key in given:
        if key not in forms:
            raise AvbenchError(f"{path}: {unknown('key', key, list(forms))}")
    values = _OPTIONAL | given
    for key, form in forms.items():
        if key not in values:
            raise AvbenchError(f"{path}: {key} is missing: add it")
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, _FORMS[form]):
            raise AvbenchError(f"{path}: {key} must be {_WORDS[form]}, not {value!r}")
    values["title"] = values["title"] or values["name"]
    if not all(isinstance(source, str) for source in values["sources"]):
        raise AvbenchError(f"{path}: sources must be a list of texts, such as ['folder:videos']")
    values["sources"] = tuple(values["sources"])
    values["classes_per_step"] = _steps(values["classes"], values["classes_per_step"], path)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", values["name"]):
        raise AvbenchError(f"{path}: name must be lower-case letters, digits and '-'")
    if path.parent != _SPECS and values["name"] in shipped_names():
        raise AvbenchError(
            f"{path}: {values['name']} is a benchmark of avbench: choose another name"
        )
    if not 0.1 <= values["clip_seconds"] <= 3600 or values["memory"] < 0:
        raise AvbenchError(f"{path}: clip_seconds must be 0.1 to 3600, memory not negative")
    return BenchmarkSpec(**values, path=path.resolve())


def _steps(classes: int, given: int | list[int], path: Path) -> tuple[int, ...]:
    if isinstance(given, int):
        given = [given] * (classes // given) if given > 0 else []
    if not given or any(type(k) is not int or k < 1 for k in given) or sum(given) != classes:
        raise AvbenchError(f"{path}: classes_per_step must add up to classes = {classes}")
    return tuple(given)
