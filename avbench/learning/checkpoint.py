"""Training put away in the middle of a step, and taken up again to the last bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from avbench.learning.snapshot import Snapshot

State = dict[str, Tensor]


class Checkpoint(Protocol):
    """Where a step in the middle is kept; the evaluator owns the file."""

    def due(self, epochs: int) -> bool:
        """Return whether the user asked for a checkpoint after so many epochs of a step."""
        ...

    def write(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep tensors and what JSON can hold, whole or not at all, in place of earlier ones."""
        ...

    def read(self) -> tuple[State, dict[str, Any]] | None:
        """Return what a killed run kept in the middle of this step, if it did."""
        ...


@dataclass
class Training:
    """All that changes while a step is trained, global generators included.

    Attributes:
        network: What is trained.
        optimizer: Over its parameters.
        schedule: Of the learning rate.
        beside: What the method holds beside the network.
        epochs: How many are done.
        best_accuracy: On validation clips, of the best epoch so far.
        best: The network's state then; None if no epoch was better than nothing.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    beside: Snapshot
    epochs: int = 0
    best_accuracy: float = 0.0
    best: State | None = None

    def keep_best(self, accuracy: float) -> None:
        """Remember the network if this epoch is better than all before."""
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best = accuracy, copy.deepcopy(self.network.state_dict())

    def write(self, checkpoint: Checkpoint) -> None:
        """Put everything away.

        Raises:
            AvbenchError: If the method holds something that cannot be kept.
        """
        beside, content = self.beside.write()
        tensors = _prefixed("beside", beside) | _prefixed("network", self.network.state_dict())
        tensors |= _prefixed("best", self.best or {})
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{number}", state)
        tensors["generator"] = torch.get_rng_state()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            tensors["generator_gpu"] = torch.cuda.get_rng_state()
        name, keys, *position = np.random.get_state(legacy=True)  # noqa: NPY002
        record = {
            "epochs": self.epochs,
            "best_accuracy": self.best_accuracy,
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "numpy": [name, np.asarray(keys).tolist(), *position],
            "random": random.getstate(),
            "beside": content,
        }
        checkpoint.write(tensors, record)

    def read(self, checkpoint: Checkpoint) -> None:
        """Take up what was put away in this step, if anything."""
        kept = checkpoint.read()
        if kept is None:
            return
        tensors, record = kept
        self.network.load_state_dict(_under("network", tensors))
        self.best = _under("best", tensors) or None
        self.best_accuracy = record["best_accuracy"]
        known = self.optimizer.state_dict()
        for number in known["param_groups"][0]["params"]:
            if state := _under(f"optimizer.{number}", tensors):
                known["state"][number] = state
        self.optimizer.load_state_dict(known)
        for group, rate in zip(self.optimizer.param_groups, record["learning_rates"], strict=True):
            group["lr"] = rate
        self.epochs = self.schedule.last_epoch = record["epochs"]
        torch.set_rng_state(tensors["generator"].cpu())
        if "generator_gpu" in tensors:
            torch.cuda.set_rng_state(tensors["generator_gpu"].cpu())
        np.random.set_state(tuple(record["numpy"]))  # noqa: NPY002
        version, words, gauss = record["random"]
        random.setstate((version, tuple(words), gauss))
        self.beside.read(_under("beside", tensors), record["beside"])


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}/{key}": value for key, value in state.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
