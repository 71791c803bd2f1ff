"""What tests of golden numbers share: precision, the facts of a step, batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avbench.learning.picked import Picked
from avbench.learning.stream import Batch

# How close is equal, by precision.
EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize("dtype", EXACT, ids=["double", "single"])


class Step:
    """The facts of a step, without its clips."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self.classes_per_step = (record["class_num_per_step"],) * (self.step + 1)
        self.old_classes = self.step * record["class_num_per_step"]
        self.seen_classes = self.old_classes + record["class_num_per_step"]


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64)).to(dtype)


def close(actual: Any, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    """Fail unless numbers computed in a precision are the expected ones."""
    if isinstance(actual, Tensor):
        assert actual.dtype == dtype
        actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=EXACT[dtype], atol=EXACT[dtype])


def batch_of(record: dict[str, Any], prefix: str, dtype: torch.dtype) -> Batch:
    """Return a golden batch, its exemplars after the new clips."""

    def read(name: str) -> Tensor | None:
        keys = [key for part in ("", "ex_") if (key := f"{prefix}{part}{name}") in record]
        return torch.cat([torch.as_tensor(record[key]) for key in keys]) if keys else None

    sound, sight, labels = (read(name) for name in ("audio", "visual", "labels"))
    assert labels is not None
    return Batch(
        None if sound is None else tensor(sound, dtype),
        None if sight is None else Picked(tensor(sight, dtype)),
        labels,
        current=len(record[f"{prefix}labels"]),
    )


def labels_of(record: dict[str, Any], prefix: str = "") -> Tensor:
    """Return the labels of new clips and, after them, of exemplars."""
    names = (f"{prefix}labels_current", f"{prefix}labels_exemplar")
    return torch.cat([torch.as_tensor(record[name]) for name in names])
