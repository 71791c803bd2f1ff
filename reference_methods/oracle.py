"""The oracle: the upper bound of the AV-CIL paper (section 4, "Baselines")."""

from __future__ import annotations

from typing import ClassVar, Literal

from avbench.learning.stream import Task
from reference_methods.finetune import FineTuning


class Oracle(FineTuning):
    """Train a new network at every step, on all data of all classes seen so far."""

    access: ClassVar[Literal["incremental", "joint"]] = "joint"

    def start(self, task: Task) -> None:
        """Begin again from random weights."""
        self.network = self.new_network(task.seen_classes)
