"""What a method is, and where its settings come from."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, Self, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avbench.learning.checkpoint import Checkpoint
from avbench.learning.stopwatch import Stopwatch
from avbench.learning.stream import Clips, Task
from avbench.registry import unknown
from avbench.types import MODALITIES, AvbenchError, Modality, UsageError

Log = Callable[[dict[str, Any]], None]

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple[int, ...]: "whole numbers such as 50,100",
}


@dataclass(frozen=True)
class Setup:
    """What the evaluator tells a method at the start of a run.

    Attributes:
        dim: Width d of the features.
        frames: Number L of frames the visual tokens are ordered by.
        modality: What the method may look at.
        seed: Source of all its randomness.
        device: Where it computes.
        log: Takes one flat record per epoch, for the run's log and progress bar.
        checkpoint: Where a method may keep a step in the middle; None for nowhere. It leads to no
            file.
        stopwatch: Where a method may say what its time goes into.
    """

    dim: int
    frames: int
    modality: Modality
    seed: int
    device: torch.device
    log: Log
    checkpoint: Checkpoint | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


class Method(Protocol):
    """A way of learning class after class.

    Registered under the entry-point group `avbench.methods`. The evaluator makes one object per
    run, then calls `learn` and `predict` once a step.

    Attributes:
        Settings: Frozen dataclass of settings, every field with a default. A field `memory: int |
            None` lets users choose the capacity of the exemplar memory.
        recipes: TOML with settings per benchmark, or None.
        access: "incremental", or "joint" for a bound that sees the data of all seen classes.
        modalities: What it can look at, its default first.
        uses_memory: Whether it keeps exemplars.
    """

    Settings: ClassVar[type[Any]]
    recipes: ClassVar[Path | None]
    access: ClassVar[Literal["incremental", "joint"]]
    modalities: ClassVar[tuple[Modality, ...]]
    uses_memory: ClassVar[bool]

    def __init__(self, settings: Any, setup: Setup) -> None: ...

    def learn(self, task: Task) -> None:
        """Learn one step."""
        ...

    def predict(self, clips: Clips) -> npt.NDArray[np.int64]:
        """Return a class index for every clip, among the classes seen so far, (clips,).

        A copy of the method does so for test clips: nothing of these is there at the next step, and
        what `state` returns must stay as it is.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what has been learned, for a checkpoint."""
        ...

    def restore(self, state: dict[str, Tensor], classes_per_step: tuple[int, ...]) -> None:
        """Take up the state of an earlier run, so that the next step can be learned.

        Args:
            state: What `state` returned at the end of a step.
            classes_per_step: Number of classes of every step up to that one.
        """
        ...


@dataclass(frozen=True)
class Declaration:
    """What a method declares, read once: what its class says later changes nothing.

    Attributes:
        access: As of `Method`.
        modalities: As of `Method`.
        uses_memory: As of `Method`.
        mean_of_tokens: Whether it needs but the mean of a clip's visual tokens, of sight alone.
    """

    access: Literal["incremental", "joint"]
    modalities: tuple[Modality, ...]
    uses_memory: bool
    mean_of_tokens: bool

    @classmethod
    def of(cls, method_class: type[Method], name: str) -> Self:
        """Read what a method declares.

        Args:
            method_class: The method.
            name: The name it is registered under.

        Raises:
            AvbenchError: If a value is none of those there are.
        """
        access, modalities = method_class.access, tuple(method_class.modalities)
        if type(access) is not str or access not in ("incremental", "joint"):
            raise AvbenchError(f"{name}.access must be 'incremental' or 'joint', not {access!r}")
        if not modalities or any(type(m) is not str or m not in MODALITIES for m in modalities):
            raise AvbenchError(f"{name}.modalities must be some of {', '.join(MODALITIES)}")
        uses_memory = bool(method_class.uses_memory)
        mean_of_tokens = bool(getattr(method_class, "mean_of_tokens", False))
        return cls(access, modalities, uses_memory, mean_of_tokens)


def resolve_settings(
    method: type[Method], name: str, benchmark: str, modality: Modality, given: Mapping[str, str]
) -> Any:
    """Return a method's settings: its defaults, then its recipe, then what the user gave.

    A recipe is a table `[benchmark.name]`, where benchmark `default` serves all those without one;
    a value may be a table by modality.

    Args:
        method: The method.
        name: The name it is registered under.
        benchmark: Name of the benchmark.
        modality: What the method looks at.
        given: Settings as text, from `--set`.

    Raises:
        UsageError: If a given key is unknown or its value has the wrong type.
        AvbenchError: If the recipe is not valid.
    """
    hints = get_type_hints(method.Settings)
    types = {f.name: hints[f.name] for f in fields(method.Settings)}
    values = _recipe(method.recipes, name, benchmark, modality) if method.recipes else {}
    for key in values:
        if key not in types:
            raise AvbenchError(
                f"{method.recipes}: [{benchmark}.{name}] has {unknown('key', key, list(types))}"
            )
    for key, text in given.items():
        if key not in types:
            raise unknown("setting", key, list(types))
        values[key] = _parse(key, text, types[key])
    try:
        return method.Settings(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"settings of {name}: {error}") from error


def _recipe(path: Path, name: str, benchmark: str, modality: Modality) -> dict[str, Any]:
    try:
        recipes = tomllib.loads(path.read_text(encoding="utf-8"))
        table = benchmark if name in recipes.get(benchmark, {}) else "default"
        recipe = recipes.get(table, {}).get(name, {})
        return {k: v[modality] if isinstance(v, dict) else v for k, v in recipe.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise AvbenchError(f"{path}: not a readable table of recipes: {error}") from error
    except KeyError as error:
        raise AvbenchError(f"{path}: [{benchmark}.{name}] lacks a value for {modality}") from error


def _parse(key: str, text: str, kind: Any) -> Any:
    """Read a setting from text: a bool, a number, a text, one of some words, whole numbers."""
    if isinstance(kind, UnionType):  # int | None: None is only the default
        (kind,) = set(get_args(kind)) - {NoneType}
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise unknown(f"{key} in --set:", text, list(get_args(kind)))
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind == tuple[int, ...]:
            return tuple(int(part) for part in text.split(","))
        if kind in (int, float, str):
            return kind(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {key}={text}: {key} takes {_WORDS[kind]}") from error
    raise UsageError(f"--set {key}: a {kind} can only be set in a recipe")
