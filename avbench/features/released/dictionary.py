"""Pickled dictionaries of arrays, as np.save writes them, read item by item and run by nobody.

A pickle is a program. This reads the few instructions that a dictionary of arrays is made of and
refuses all others, so that nothing is ever imported or called; and it hands over every array as it
comes, so that the whole, of many gigabytes, is never held.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

_LONGEST_ARRAY, _LONGEST_NAME, _LONGEST_KEPT = 2**26, 2**10, 2**6
_MOST_ON_STACK, _MOST_REMEMBERED, _MOST_NAMES = 2**16, 2**23, 2**20

_MARK = object()
_FORGOTTEN = object()
_CORE = ("numpy._core.multiarray", "numpy.core.multiarray")
_MAY_NAME = {
    **{f"{module} _reconstruct": "reconstruct" for module in _CORE},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}

_IGNORED = {"PROTO", "FRAME"}
_VALUES = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS, _GETS = {"MEMOIZE", "BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):  # noqa: N818 - a finding, not a fault
    """A file that is not a dictionary of arrays of the shape expected; the message says why."""


@dataclass
class _Name:
    """Something the pickle would import: never more than its name."""

    name: str


@dataclass
class _Type:
    """A dtype, such as f4, and its byte order."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """An array: `key` is the name it was handed over under, `holds` what an object array holds."""

    key: str | None = None
    holds: Any = None


@dataclass
class _Dictionary:
    """A dictionary whose items were handed over."""


def read_items(file: BinaryIO, shape: tuple[int, ...]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Read a `.npy` file that holds a dictionary from names to float arrays of one shape.

    Args:
        file: Read from its position on, forwards only.
        shape: Of every array.

    Yields:
        Name and array, of float16, float32 or float64, in the file's order.

    Raises:
        Refused: If it is anything else, as soon as that shows.
    """
    _skip_header(file)
    machine = _Machine(shape)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], _Limited(file))):
            yield from machine.step(opcode.name, argument)
    except (ValueError, IndexError, EOFError) as error:
        raise Refused(f"not a whole pickle ({error})") from error
    machine.check_end()


class _Machine:
    """The stack and the memory of a pickle, for dictionaries of arrays alone."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._names: set[str] = set()

    def step(self, name: str, argument: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Take one instruction; hand over an array if it completes one."""
        stack = self._stack
        if len(stack) > _MOST_ON_STACK or len(self._memory) > _MOST_REMEMBERED:
            raise Refused("it holds more than a dictionary of features")
        if name in _VALUES:
            if isinstance(argument, str) and len(argument) > _LONGEST_NAME:
                raise Refused("it has a name of more than 1,024 letters")
            stack.append(_CONSTANTS.get(name, argument))
        elif name in _TUPLES:
            stack.append(self._pop(_TUPLES[name]))
        elif name == "TUPLE":
            stack.append(self._pop_to_mark())
        elif name in _PUTS:
            value = stack[-1]
            if isinstance(value, bytes) and len(value) > _LONGEST_KEPT:
                value = _FORGOTTEN
            self._memory[len(self._memory) if name == "MEMOIZE" else argument] = value
        elif name in _GETS:
            known = self._memory.get(argument, _FORGOTTEN)
            if known is _FORGOTTEN:
                raise Refused("arrays in it share their data")
            stack.append(known)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if name == "SETITEM" else self._pop_to_mark())
        elif name == "BUILD":
            yield from self._build()
        elif name not in _IGNORED:
            self._structure(name, argument)

    def check_end(self) -> None:
        """Refuse what did not turn out to be one dictionary."""
        outer = self._stack[0] if len(self._stack) == 1 else None
        if not (isinstance(outer, _Array) and isinstance(outer.holds, _Dictionary)):
            raise Refused("it does not hold a dictionary")

    def _structure(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append(_Dictionary())
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "APPEND" and stack[-2] == []:
            stack[-2].append(stack.pop())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            asked = argument if name == "GLOBAL" else " ".join(map(str, self._pop(2)))
            if asked not in _MAY_NAME:
                raise Refused(f"it asks for {asked[:100].replace(' ', '.')}, which no array needs")
            stack.append(_Name(_MAY_NAME[asked]))
        elif name == "REDUCE":
            stack.append(self._reduce(*self._pop(2)))
        elif name != "STOP":
            raise Refused(f"it has the instruction {name}, which no array needs")

    def _reduce(self, function: Any, arguments: Any) -> _Array | _Type:
        match function, arguments:
            case _Name("reconstruct"), (_Name("ndarray"), *_):
                return _Array()
            case _Name("dtype"), (str(code), *_):
                return _Type(code)
        raise Refused("it calls what no array needs")

    def _build(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        target, state = self._pop(2)
        self._stack.append(target)
        match target, state:
            case _Type(), (int(), str(order), *_):
                target.order = order
            case _Array(key=None, holds=None), (int(), (), _Type(code="O8" | "O"), _, [held]):
                target.holds = held
            case _Array(key=None, holds=None), (int(), tuple(shape), _Type() as kind, order, data):
                if not (isinstance(data, bytes) and len(self._stack) > 1):
                    raise Refused("it holds something else than arrays of numbers")
                target.key = self._name(self._stack[-2])
                yield target.key, self._array(target.key, shape, kind, bool(order), data)
            case _:
                raise Refused("it builds what is no array")

    def _name(self, key: Any) -> str:
        if not isinstance(key, str):
            raise Refused("it has an array without a name")
        if key in self._names:
            raise Refused(f"it has {key} twice")
        if len(self._names) == _MOST_NAMES:
            raise Refused(f"it has more than {_MOST_NAMES:,} names")
        self._names.add(key)
        return key

    def _array(
        self, name: str, shape: tuple[Any, ...], kind: _Type, by_columns: bool, data: bytes
    ) -> npt.NDArray[Any]:
        if shape != self._shape:
            raise Refused(f"{name} has shape {shape}, not {self._shape}")
        if kind.code not in ("f2", "f4", "f8") or kind.order not in "<>=":
            raise Refused(f"{name} is not of floats")
        dtype = np.dtype(kind.order + kind.code)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise Refused(f"{name} has {len(data)} bytes")
        flat = np.frombuffer(data, dtype)
        return flat.reshape(shape, order="F" if by_columns else "C")

    def _set_items(self, items: tuple[Any, ...]) -> None:
        if not isinstance(self._stack[-1], _Dictionary):
            raise Refused("it fills what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(value, _Array) and value.key == key):
                raise Refused("it holds something else than one array for each name")

    def _pop(self, count: int) -> tuple[Any, ...]:
        if count > len(self._stack):
            raise Refused("not a whole pickle")
        taken = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return taken

    def _pop_to_mark(self) -> tuple[Any, ...]:
        for count, value in enumerate(reversed(self._stack)):
            if value is _MARK:
                taken = self._pop(count)
                self._stack.pop()
                return taken
        raise Refused("not a whole pickle")


class _Limited:
    """A file of which nobody reads more at a time than an array of features can have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _LONGEST_ARRAY:
            raise Refused(f"it has a piece of {count:,} bytes")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_NAME)


def _skip_header(file: BinaryIO) -> None:
    """Go past the header of a `.npy` file of one object."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise Refused("not a .npy file") from error
    if shape != () or dtype != np.dtype(object):
        raise Refused(f"it holds {dtype} {shape}, not a dictionary")
