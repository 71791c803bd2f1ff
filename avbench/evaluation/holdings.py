"""What a method holds, wherever it put it, and whether clips are in it.

Everything in Python's reach is looked through: the method's object, its classes, the modules these
are written in, closures, containers and generators. What lies elsewhere (files, other processes,
globals of other modules) is not.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from avbench.features.rows import Rows
from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method
from avbench.learning.picked import Picked, tensor
from avbench.learning.stream import Clips, Sweep, Task, TaskStream, Validation
from avbench.types import ProtocolError

# What the evaluator handed out is not the method's; clips in it are closed by themselves.
_HANDED_OUT = (Clips, Validation, Task, Sweep, TaskStream, ExemplarMemory, FeatureStore)
_OPAQUE = (*weakref.ProxyTypes, types.ModuleType, types.CodeType, types.FrameType, str, int)
# Modules that methods derive classes from, and are not their own.
_OTHERS = {"avbench", "numpy", "torch", *sys.stdlib_module_names}
# Bounds time, not what is found of a method of usual size.
_MOST_THINGS, _MOST_NUMBERS, _AT_A_TIME = 500_000, 1 << 22, 1 << 14
# Correlation of a vector with a copy of it that was shifted, scaled or rounded to eight bits, and
# how much shorter a copy may be: weights that are nearly 0 may be a multiple of a clip by chance.
_ALIKE, _SHORTEST = 0.9995, 0.01

Numbers = npt.NDArray[Any]


def bytes_held(method: Method) -> int:
    """Return how many bytes of numbers a method holds, each counted once."""
    sizes: dict[int, int] = {}
    for thing in _things(method):
        if isinstance(thing, torch.Tensor) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            at = storage.data_ptr()
            sizes[at] = max(sizes.get(at, 0), storage.nbytes())
        elif isinstance(thing, np.ndarray):
            at = thing.__array_interface__["data"][0]
            sizes[at] = max(sizes.get(at, 0), thing.nbytes)
        elif isinstance(thing, bytes | bytearray | array | memoryview):
            sizes[id(thing)] = memoryview(thing).nbytes
        elif isinstance(thing, float):
            sizes[id(thing)] = 8
    return sum(sizes.values())


def clips_held(method: Method, features: FeatureStore, steps: Sequence[Rows]) -> set[int]:
    """Return which clips of some steps a method holds features of, as they are or in another form.

    Found are vectors of sound, tokens and means of tokens, each shifted, scaled (to no less than a
    hundredth), normalised, in lower precision or standardised by dimension over its step; in arrays
    of any shape, between other numbers.

    Args:
        method: The method.
        features: Where the clips' features lie.
        steps: The rows of the clips, step by step.
    """
    owners, forms = [], []
    for rows in steps:
        audio = FeatureStore.audio(features, rows).astype(np.float64)[:, None]
        visual = FeatureStore.visual(features, rows).astype(np.float64)
        for kind in (audio, visual, visual.mean(axis=1, keepdims=True)):
            flat = kind.reshape(-1, features.dim)
            forms += [flat, (flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-12)]
            owners += [np.repeat(rows, kind.shape[1])] * 2
    if not forms:
        return set()
    owner, (wanted, sizes) = np.concatenate(owners), _shapes(np.concatenate(forms))
    found: set[int] = set()
    left = _MOST_NUMBERS
    for numbers in _arrays(method):
        for flat in (numbers.reshape(-1), np.moveaxis(numbers, 0, -1).reshape(-1))[: numbers.ndim]:
            if len(flat) < features.dim:
                continue
            windows = sliding_window_view(flat[:left], features.dim)
            left -= len(windows)
            for start in range(0, len(windows), _AT_A_TIME):
                shapes, lengths = _shapes(windows[start : start + _AT_A_TIME])
                alike = np.abs(shapes @ wanted.T) > _ALIKE
                alike &= lengths[:, None] > _SHORTEST * sizes
                found |= {int(row) for row in owner[alike.any(axis=0)]}
            if left < features.dim:
                return found
    return found


def _shapes(vectors: Numbers) -> tuple[Numbers, Numbers]:
    """Return vectors without what shifting and scaling change, and how long they were."""
    with np.errstate(all="ignore"):
        centred = np.nan_to_num(vectors.astype(np.float64), posinf=0.0, neginf=0.0)
        centred = centred - centred.mean(axis=1, keepdims=True)
        lengths = np.sqrt((centred**2).sum(axis=1))
        return centred / np.maximum(lengths, 1e-9)[:, None], lengths


def _arrays(method: Method) -> Iterator[Numbers]:
    """Yield every array of numbers a method holds; bytes are taken for each kind of float."""
    for thing in _things(method):
        if isinstance(thing, torch.Tensor | Picked):
            try:
                values = tensor(thing).detach().cpu()
            except ProtocolError:  # closed with its clips
                continue
            if values.is_floating_point():
                yield from _numbers(values.to_dense().double().numpy())
            elif not values.is_complex():
                yield from _numbers(values.to_dense().numpy())
        elif isinstance(thing, np.ndarray):
            yield from _numbers(thing)
        elif isinstance(thing, bytes | bytearray | array | memoryview):
            raw = bytes(thing)
            for dtype in (np.float16, np.float32, np.float64):
                size = np.dtype(dtype).itemsize
                yield np.frombuffer(raw[: len(raw) // size * size], dtype)
        elif isinstance(thing, list | tuple) and any(isinstance(n, float) for n in thing):
            yield np.array([n if isinstance(n, float | int) else np.nan for n in thing], float)


def _numbers(values: Numbers) -> Iterator[Numbers]:
    if values.ndim and (values.dtype.kind in "fiu"):
        yield values


def _things(method: Method) -> Iterator[object]:
    """Yield the objects a method leads to, without what the evaluator handed it."""
    modules = {c.__module__ for c in type(method).__mro__}
    own = {name for name in modules if name.partition(".")[0] not in _OTHERS}
    todo: list[object] = [method, method.state()]
    todo += [vars(c) for c in type(method).__mro__ if c.__module__ in own]
    for name in own & sys.modules.keys():
        # What Python itself puts into a module is no place to hold anything.
        todo += [value for key, value in vars(sys.modules[name]).items() if key[:2] != "__"]
    yield from islice(_reached(todo, own), _MOST_THINGS)


def _reached(todo: list[object], own: set[str]) -> Iterator[object]:
    seen: set[int] = set()
    kept: list[object] = []  # so that no other object gets the id of one that was seen
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, _OPAQUE + _HANDED_OUT):
            continue
        if isinstance(thing, type) and thing.__module__ not in own:
            continue
        seen.add(id(thing))
        kept.append(thing)
        yield thing
        if isinstance(thing, types.FunctionType):  # but not the globals of its module
            todo += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, vars(thing)]
        elif isinstance(thing, torch.Tensor):
            todo += [vars(thing), thing.grad if thing.is_leaf else None]
        elif isinstance(thing, np.ndarray):
            todo += [thing.base, *(thing.ravel() if thing.dtype == object else ())]
        else:
            todo += gc.get_referents(thing)
