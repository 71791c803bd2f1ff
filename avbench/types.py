"""Words that every part of avbench speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Modality = Literal["audio", "visual", "audio-visual"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

Residency = Literal["device", "ram", "disk"]
"""Where the features of a step lie while it is learned."""
RESIDENCIES: tuple[Residency, ...] = get_args(Residency)

Report = Callable[[str, int, int], None]
"""Progress call-back: what is being done, how many are done, how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Report nothing: the default of every long-running function."""


class AvbenchError(Exception):
    """What went wrong, with which file, and what to do about it, in one line. Exit code 1."""

    exit_code = 1


class ProtocolError(AvbenchError):
    """A method asked for something the protocol does not give it."""


class UsageError(AvbenchError):
    """A name or an option that does not exist or does not fit. Exit code 2."""

    exit_code = 2
