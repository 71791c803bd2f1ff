"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self, get_args

import torch

Phase = Literal["loading", "teacher", "forward", "backward", "validation", "herding"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Stopwatch:
    """Adds up wall time by phase; while a phase runs inside another, only its own time counts.

    Args:
        running: Whether it measures at all.
        device: Where the work is done; a GPU is waited for at every change of phase.

    Attributes:
        seconds: Time by phase.
    """

    __slots__ = ("_on_gpu", "_phases", "_since", "running", "seconds")

    def __init__(self, *, running: bool = False, device: torch.device | None = None) -> None:
        self.running = running
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._on_gpu = device is not None and device.type == "cuda"
        self._phases: list[Phase] = []
        self._since = 0.0

    def __deepcopy__(self, _: object) -> Self:
        return self  # a copy of a method is timed by the same

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Count the time of a block."""
        if not self.running:
            yield
            return
        self._turn()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def _turn(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    def reset(self) -> None:
        """Begin at nothing."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
