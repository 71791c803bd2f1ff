"""What a method has learned, and whether its checkpoint holds all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from avbench.learning.method import Method, Setup
from avbench.types import ProtocolError

# What they refer to is held elsewhere, or is none of the method's.
_REFERRING = (
    *(type, ModuleType, Setup),
    *(torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
)


def stored_bytes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many bytes a checkpoint takes, by the first part of its tensors' names.

    Every tensor counts, the network's and all others, with the numbers it holds in the precision it
    holds them in: `audio_proj.weight` and `audio_proj.bias` as `audio_proj`.

    Args:
        state: What `Method.state` returned.
    """
    found: dict[str, int] = {}
    for name, tensor in state.items():
        part = name.partition(".")[0]
        found[part] = found.get(part, 0) + tensor.numel() * tensor.element_size()
    return found


def trainable(method: Method) -> dict[str, Tensor]:
    """Return the tensors that gradients reach, by where a method holds them.

    They are found in its attributes and those of its class, in modules, containers and objects, and
    in what its functions are closed over.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    of_class = {k: v for each in type(method).__mro__[:-1] for k, v in vars(each).items()}
    waiting: list[tuple[str, Any]] = [*of_class.items(), *vars(method).items()]
    while waiting:
        place, thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if not isinstance(thing, Tensor):
            waiting += [(f"{place}.{name}", part) for name, part in _parts(thing)]
        elif thing.requires_grad and thing.is_leaf and thing.numel():
            found[place] = thing
    return found


def checked_state(method: Method) -> tuple[dict[str, Tensor], int]:
    """Return the state of a method, and how many of its numbers gradients reach.

    Raises:
        ProtocolError: As `check_stored`.
    """
    state, trained = method.state(), trainable(method)
    check_stored(trained, state)
    return state, sum(tensor.numel() for tensor in trained.values())


def check_stored(trained: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint holds all that was trained.

    Args:
        trained: As `trainable` returned it.
        state: What `Method.state` returned.

    Raises:
        ProtocolError: If it lacks a tensor.
    """
    for place, tensor in trained.items():
        if not any(_is(tensor.detach(), other.detach()) for other in state.values()):
            raise ProtocolError(
                f"{place} is trainable, but in no checkpoint: let state() return it as it is, or"
                " freeze it by requires_grad_(False)"
            )


def _is(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor is another, or a copy of it in whatever precision."""
    if tensor.shape != other.shape:
        return False
    return tensor.data_ptr() == other.data_ptr() or torch.equal(tensor.to(other), other)


def _parts(thing: Any) -> list[tuple[object, Any]]:
    """Return what something holds, each with a name."""
    held: Iterable[tuple[object, Any]] = ()
    if isinstance(thing, Mapping):
        held = thing.items()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        held = enumerate(thing)
    elif isinstance(thing, partial):
        held = [*enumerate(thing.args), *thing.keywords.items(), ("func", thing.func)]
    elif isinstance(thing, MethodType):
        held = [("self", thing.__self__)]
    elif isinstance(thing, FunctionType):
        contents = map(_content, thing.__closure__ or ())
        held = zip(thing.__code__.co_freevars, contents, strict=True)
    elif hasattr(thing, "__dict__") and not isinstance(thing, _REFERRING):
        attributes = dict(vars(thing))
        if isinstance(thing, nn.Module):
            for name in ("_parameters", "_buffers", "_modules"):
                attributes |= attributes.pop(name)
        held = attributes.items()
    return list(held)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
