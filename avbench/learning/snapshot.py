"""What a method holds in the middle of a step, put away without pickles and taken up again."""

from __future__ import annotations

import random
import re
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avbench.learning.stream import Clips, Task, Validation
from avbench.learning.teaching import Lessons
from avbench.types import AvbenchError

Record = list[Any]
"""What JSON holds of a value: its kind, its content, and its place when the step began, if any."""

_PLAIN = (bool, int, float, str, NoneType)
# What can be made anew; of others the content is kept.
_CONTAINERS = (list, tuple, set, frozenset, dict, OrderedDict, Counter)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
# Code, names, and what the evaluator handed out: nothing in them changes within a step.
_CONSTANT = (
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, partial, weakref.ref),
    *(torch.dtype, torch.device, np.dtype, PurePath, bytes, complex, range, slice, Enum),
    *(Clips, Validation, Task, Lessons),
)
_PYTHON_CLASS = 1 << 9  # Py_TPFLAGS_HEAPTYPE


class CannotKeepError(AvbenchError):
    """A step cannot be kept in the middle."""


class Snapshot:
    """Keeps what an object holds, however deep, as tensors and JSON.

    Numbers, text, tensors, arrays, generators and containers of these are kept whenever they were
    made. Objects of other classes, such as modules and optimizers, are kept if they were there when
    the step began: a run that resumes the step makes them again, and they get their content back.

    Args:
        owner: The object, as it is when a step begins.
        apart: What it holds that is kept elsewhere, or never changes.
    """

    def __init__(self, owner: object, apart: Iterable[object]) -> None:
        self._owner = owner
        self._apart = {id(thing): thing for thing in apart}
        # By place and by identity; things that are held twice have two places.
        self._made: dict[str, Any] = {}
        self._place_of: dict[int, str] = {}
        waiting: list[tuple[str, Any]] = [("self", owner)]
        while waiting:
            place, thing = waiting.pop()
            if type(thing) in _PLAIN:
                continue
            self._made[place] = thing
            if self._place_of.setdefault(id(thing), place) == place and not self.leaves(thing):
                waiting += _parts(place, thing)

    def leaves(self, thing: object) -> bool:
        """Whether the content of something is not looked at."""
        return id(thing) in self._apart or isinstance(thing, _CONSTANT)

    def place_of(self, thing: object) -> str | None:
        """Return where something was when the step began; None if it was not there."""
        return self._place_of.get(id(thing))

    def write(self) -> tuple[dict[str, Tensor], Record]:
        """Return what the object holds now.

        Raises:
            AvbenchError: If it holds something that cannot be kept.
        """
        writer = _Writer(self)
        record = writer.put("self", self._owner)
        return writer.tensors, record

    def read(self, tensors: Mapping[str, Tensor], record: Record) -> None:
        """Give the object back what was written, by this process or another.

        Raises:
            AvbenchError: If something was not made again.
        """
        _Reader(self._made, tensors).get(record)


class _Writer:
    """Turns values into records; a value that is met again is referred to by its number."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._snapshot = snapshot
        self._number_of: dict[int, int] = {}
        self._met: list[object] = []  # alive, or their identities could be given to others

    def put(self, place: str, thing: Any) -> Record:
        if type(thing) in _PLAIN:
            return ["plain", thing, None]
        if id(thing) in self._number_of:
            return ["again", self._number_of[id(thing)], None]
        number = self._number_of[id(thing)] = len(self._met)
        self._met.append(thing)
        made = self._snapshot.place_of(thing)
        return [*self._content(place, thing, str(number), new=made is None), made]

    def _content(self, place: str, thing: Any, number: str, *, new: bool) -> tuple[str, Any]:
        kind = type(thing).__name__
        found: tuple[str, Any] = "made", None
        if self._snapshot.leaves(thing) and not new:
            return found
        if isinstance(thing, Tensor) and _is_kept(thing, new=new):
            flat = thing.detach().reshape(-1).contiguous()
            self.tensors[number] = flat.view(torch.uint8) if len(flat) else flat.byte()
            gradient = self.put(f"{place}.grad", thing.grad if thing.is_leaf else None)
            found = "tensor", [str(thing.dtype), [*thing.shape], str(thing.device), gradient]
        elif _is_array(thing) and thing.dtype.kind in "biufcmMSU":
            content = thing.tobytes()
            flat = torch.from_numpy(np.ndarray(len(content), np.uint8, content).copy())
            self.tensors[number] = flat
            found = "array", [thing.dtype.str, list(thing.shape), isinstance(thing, np.ndarray)]
        elif type(thing) in _GENERATORS or (type(thing) is torch.Generator and not new):
            found = "generator", [kind, self.put(place, _state_of(thing))]
        elif type(thing) in _CONTAINERS or (isinstance(thing, dict | tuple | deque) and not new):
            found = "container", [kind, self._items(place, thing)]
        elif _has_state_dict(thing) and not new:
            found = "state", self.put(place, thing.state_dict())
        elif _is_plain_object(thing) and not new:
            named = zip(vars(thing), _parts(place, thing), strict=True)
            found = "object", [[name, self.put(at, part)] for name, (at, part) in named]
        else:
            raise _refusal(place, thing)
        return found

    def _items(self, place: str, thing: Any) -> list[Any]:
        if isinstance(thing, set | frozenset):
            return [self.put(place, part) for part in thing]
        if isinstance(thing, dict):
            pairs = zip(thing, _parts(place, thing), strict=True)
            return [[self.put(at, key), self.put(at, value)] for key, (at, value) in pairs]
        return [self.put(at, part) for at, part in _parts(place, thing)]


class _Reader:
    """Turns records into values, in the order they were written in."""

    def __init__(self, made: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._made = made
        self._tensors = tensors
        self._met: list[Any] = []

    def get(self, record: Record) -> Any:
        kind, content, place = record
        if kind == "plain":
            return content
        if kind == "again":
            return self._met[content]
        if place is not None and place not in self._made:
            raise AvbenchError(
                f"{_readable(place)} is made by neither restore() nor start(), so that the step"
                " cannot be resumed in the middle: delete epoch.safetensors to repeat the step"
            )
        made: Any = None if place is None else self._made[place]
        number = len(self._met)
        self._met.append(made)
        if kind == "tensor":
            *form, gradient = content
            self._met[number] = tensor = _tensor(made, self._tensors[str(number)], *form)
            tensor.grad = self.get(gradient)
        elif kind == "array":
            self._met[number] = _array(made, self._tensors[str(number)], *content)
        elif kind == "generator":
            self._met[number] = _generator(made, content[0], self.get(content[1]))
        elif kind == "container" and isinstance(made, tuple | frozenset):
            for part in content[1]:  # the same as then, but their content may have changed
                self.get(part)
        elif kind == "container":
            self._container(number, *content)
        elif kind == "state":
            made.load_state_dict(self.get(content))
        elif kind == "object":
            attributes = {name: self.get(part) for name, part in content}
            vars(made).clear()
            vars(made).update(attributes)
        return self._met[number]

    def _container(self, number: int, kind: str, items: list[Any]) -> None:
        of_kind = {each.__name__: each for each in _CONTAINERS}
        into = of_kind[kind]() if self._met[number] is None else self._met[number]
        if isinstance(into, tuple | frozenset):
            self._met[number] = type(into)(self.get(part) for part in items)
            return
        self._met[number] = into  # before its parts, which may refer to it
        if isinstance(into, dict):
            pairs = [(self.get(key), self.get(value)) for key, value in items]
            into.clear()
            for key, value in pairs:
                into[key] = value
            return
        parts = [self.get(part) for part in items]
        into.clear()
        for part in parts:
            into.add(part) if isinstance(into, set) else into.append(part)


def _parts(place: str, thing: Any) -> list[tuple[str, Any]]:
    """Return what something holds, each with its place; of a set nothing, which has no places."""
    if isinstance(thing, dict):
        keys = [repr(k) if type(k) in _PLAIN else str(n) for n, k in enumerate(thing)]
        return [(f"{place}[{k}]", part) for k, part in zip(keys, thing.values(), strict=True)]
    if isinstance(thing, list | tuple | deque):
        return [(f"{place}[{n}]", part) for n, part in enumerate(thing)]
    if _has_state_dict(thing) or not _is_plain_object(thing):
        return []
    return [(f"{place}.{name}", part) for name, part in vars(thing).items()]


def _is_kept(tensor: Tensor, *, new: bool) -> bool:
    """Whether a tensor can be kept; a new one must be nothing that an optimizer could hold."""
    dense = tensor.layout is torch.strided and not tensor.is_complex()
    trained = tensor.is_leaf and tensor.requires_grad
    return dense and not (new and (trained or type(tensor) is not Tensor))


def _is_array(thing: object) -> bool:
    return type(thing) is np.ndarray or isinstance(thing, np.generic)


def _has_state_dict(thing: Any) -> bool:
    """Whether something keeps itself; of modules the dictionary lacks what is not registered."""
    return not isinstance(thing, nn.Module) and hasattr(type(thing), "load_state_dict")


def _is_plain_object(thing: object) -> bool:
    """Whether all that an object holds is in its `__dict__`."""
    return (
        not isinstance(thing, Tensor | np.ndarray)
        and hasattr(thing, "__dict__")
        and all(
            each is object or (each.__flags__ & _PYTHON_CLASS and not vars(each).get("__slots__"))
            for each in type(thing).__mro__
        )
    )


def _tensor(made: Tensor | None, content: Tensor, dtype: str, shape: list[int], on: str) -> Tensor:
    kind = getattr(torch, dtype.removeprefix("torch."))
    values = content.clone().view(kind).reshape(shape)
    if made is None:
        return values.to(on)
    if made.shape == values.shape and made.dtype == kind:
        with torch.no_grad():
            made.copy_(values)
    else:
        made.data = values.to(made.device)
    return made


def _array(made: Any, content: Tensor, dtype: str, shape: list[int], whole: bool) -> Any:
    values = np.ndarray(shape, dtype, content.cpu().numpy().tobytes()).copy()
    if not whole:
        return values[()]
    if made is None or made.shape != values.shape or not made.flags.writeable:
        return values
    made[...] = values
    return made


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.get_state()


def _generator(made: Any, kind: str, state: Any) -> Any:
    if kind == "Random":
        generator = made or random.Random()
        generator.setstate(state)
    elif kind == "Generator" and isinstance(state, Tensor):
        made.set_state(state.cpu())
        return made
    elif kind == "Generator":
        bits = getattr(np.random, state["bit_generator"])
        generator = made or np.random.Generator(bits())
        generator.bit_generator.state = state
    else:
        generator = made or np.random.RandomState()
        generator.set_state(state)
    return generator


def _refusal(place: str, thing: object) -> CannotKeepError:
    return CannotKeepError(
        f"--checkpoint-epochs cannot keep {_readable(place)}, a {type(thing).__name__}: make it in"
        " start(), hold tensors, arrays, numbers or text instead, or leave --checkpoint-epochs out"
    )


def _readable(place: str) -> str:
    """Return a place as one writes it: `self.network.classifier.weight`."""
    return re.sub(r"\._(?:modules|parameters|buffers)\['([^']*)'\]", r".\1", place)
