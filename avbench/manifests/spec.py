"""The facts of a benchmark that are not per clip, one TOML each."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from avbench.manifests.variant import Variant, parse, sizes_of_steps
from avbench.registry import unknown
from avbench.types import AvbenchError, UsageError

_SPECS = Path(__file__).parent / "specs"
_FORMS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "tuple[str, ...]": (list,),
    "tuple[int, ...]": (list, int),
    "dict[str, str]": (dict,),
}
_WORDS = {
    "str": "a text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "tuple[str, ...]": "a list of texts",
    "tuple[int, ...]": "a whole number or a list of them",
    "dict[str, str]": "a table of texts",
}


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark as its TOML describes it.

    Attributes:
        name: How it is called everywhere.
        title: How a person calls it.
        classes: Number of classes.
        class_names: The classes to select from the table, in class order; empty for all of the
            table's. In the TOML it is `classes` that may be this list.
        classes_per_step: Number of new classes at every step, first to last; the TOML may give
            one number for all.
        memory: Capacity of the exemplar memory, in clips.
        clip_seconds: Length of a clip.
        preset: The encoder preset its features come from unless another is asked for.
        sources: Where clips come from unless asked otherwise, `NAME` or `NAME:ARGUMENT`; the first
            that has a clip gives it.
        source_notes: Why these, and what serves better for who has it, in a line or two.
        annotations: Table of clips the manifest is built from, beside the TOML or in
            `splits/annotations/`.
        val_per_class: How many clips of each class to hold out for val; with 0 for both, the
            table gives the splits.
        test_per_class: How many for test.
        seed: Of the hold-out, and of the class order where neither TOML nor table gives one.
        keep_videos_together: Whether a hold-out takes all clips of a source video or none.
        drop_test_videos: Whether to leave out train and val clips of source videos that are in
            test.
        clips_of: A benchmark of avbench whose clips and features this one shares, all of its own
            being among them; or empty.
        columns: Where every column of the table comes from.
        licence: Licence of the annotations, and where the clips' own applies.
        citation: BibTeX.
        homepage: Where the source data set lives.
        notes: What a user must know, in a sentence or two.
        path: The TOML itself.
        variant: How this differs from the benchmark `variant_of`; None if it is none.
        variant_of: The benchmark it is a variant of.
    """

    name: str
    title: str
    classes: int
    class_names: tuple[str, ...]
    classes_per_step: tuple[int, ...]
    memory: int
    clip_seconds: float
    preset: str
    sources: tuple[str, ...]
    source_notes: str
    annotations: str
    val_per_class: int
    test_per_class: int
    seed: int
    keep_videos_together: bool
    drop_test_videos: bool
    clips_of: str
    columns: dict[str, str] = field(hash=False)
    licence: str
    citation: str
    homepage: str
    notes: str
    path: Path
    variant: Variant | None = None
    variant_of: BenchmarkSpec | None = None

    @cached_property
    def is_shipped(self) -> bool:
        """Whether the benchmark comes with avbench."""
        return self.path.parent == _SPECS

    @property
    def steps(self) -> int:
        """Number of incremental steps, T."""
        return len(self.classes_per_step)


_NOT_IN_TOML = ("class_names", "path", "variant", "variant_of")
_OPTIONAL: dict[str, Any] = {
    "title": "",
    "memory": 0,
    "preset": "filterbank",
    "sources": [],
    "source_notes": "",
    "val_per_class": 0,
    "test_per_class": 0,
    "seed": 0,
    "keep_videos_together": True,
    "drop_test_videos": False,
    "clips_of": "",
    "columns": {},
    "licence": "",
    "citation": "",
    "homepage": "",
    "notes": "",
}


def shipped_names() -> list[str]:
    """Return the names of the benchmarks that come with avbench."""
    return sorted(path.stem for path in _SPECS.glob("*.toml"))


def load_spec(name: str) -> BenchmarkSpec:
    """Read the facts of a benchmark or of a variant of it.

    Args:
        name: Name of a shipped benchmark, or the path of a TOML of your own; behind it, for a
            variant, a colon and options, such as `vs100-ci:steps=50+5x10,seed=3`.

    Raises:
        UsageError: If there is no such benchmark, or the options do not fit it.
        AvbenchError: If the TOML is unreadable, or a key is missing, unknown or of the wrong type.
    """
    own, colon, options = name.rpartition(":")
    if not colon or _is_path(name):
        return _read(name)
    spec = _read(own)
    variant = parse(own, options, spec.classes_per_step)
    if not variant.text:
        return spec  # another way to write the benchmark itself
    return replace(
        spec,
        name=f"{spec.name}:{variant.text}",
        classes_per_step=variant.classes_per_step,
        variant=variant,
        variant_of=spec,
    )


def _is_path(name: str) -> bool:
    return name.lower().endswith(".toml")


def _read(name: str) -> BenchmarkSpec:
    own = _is_path(name)
    path = Path(name) if own else _SPECS / f"{name}.toml"
    if not own and name not in shipped_names():
        raise unknown("benchmark", name, shipped_names())
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no benchmark file {name}: check the path") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AvbenchError(f"{path}: not a readable TOML file: {error}") from error
    return _checked(given, path)


def _checked(given: dict[str, Any], path: Path) -> BenchmarkSpec:
    forms = {f.name: str(f.type) for f in fields(BenchmarkSpec) if f.name not in _NOT_IN_TOML}
    for key in given:
        if key not in forms:
            raise AvbenchError(f"{path}: {unknown('key', key, list(forms))}")
    values = _OPTIONAL | given
    values["class_names"] = ()
    if isinstance(values.get("classes"), list):
        values["class_names"] = _class_names(values["classes"], path)
        values["classes"] = len(values["class_names"])
    for key, form in forms.items():
        if key not in values:
            raise AvbenchError(f"{path}: {key} is missing: add it")
        value = values[key]
        odd = isinstance(value, bool) and form != "bool"
        if odd or not isinstance(value, _FORMS[form]):
            raise AvbenchError(f"{path}: {key} must be {_WORDS[form]}, not {value!r}")
    values["title"] = values["title"] or values["name"]
    for key in ("sources", "columns"):
        texts = values[key].values() if key == "columns" else values[key]
        if not all(isinstance(text, str) for text in texts):
            raise AvbenchError(f"{path}: {key} must hold texts only")
    values["sources"] = tuple(values["sources"])
    try:
        sizes = sizes_of_steps(values["classes"], values["classes_per_step"])
    except UsageError as error:
        raise AvbenchError(f"{path}: {error}") from error
    values["classes_per_step"] = sizes
    _check_values(values, path)
    return BenchmarkSpec(**values, path=path.resolve())


def _check_values(values: dict[str, Any], path: Path) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", values["name"]):
        raise AvbenchError(f"{path}: name must be lower-case letters, digits and '-'")
    if path.parent != _SPECS and values["name"] in shipped_names():
        raise AvbenchError(
            f"{path}: {values['name']} is a benchmark of avbench: choose another name"
        )
    if not 0.1 <= values["clip_seconds"] <= 3600 or values["memory"] < 0:
        raise AvbenchError(f"{path}: clip_seconds must be 0.1 to 3600, memory not negative")
    for key in ("val_per_class", "test_per_class", "seed"):
        if not 0 <= values[key] < 2**31:
            raise AvbenchError(f"{path}: {key} = {values[key]}: must not be negative, nor huge")
    if values["clips_of"] and values["clips_of"] not in shipped_names():
        raise AvbenchError(
            f"{path}: clips_of: {unknown('benchmark', values['clips_of'], shipped_names())}"
        )
    if values["clips_of"] and values["clip_seconds"] != _read(values["clips_of"]).clip_seconds:
        raise AvbenchError(f"{path}: clip_seconds must be that of {values['clips_of']} (clips_of)")


def _class_names(given: list[Any], path: Path) -> tuple[str, ...]:
    for number, name in enumerate(given):
        if not isinstance(name, str) or not name:
            raise AvbenchError(f"{path}: classes: entry {number + 1} {name!r} must be a label")
        if name in given[:number]:
            raise AvbenchError(f"{path}: classes: entry {number + 1} {name!r} appears twice")
    return tuple(given)
