"""What tests of golden numbers share: precision, the facts of a step, batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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

    def read(part: str) -> Batch:
        sound, sight = (
            tensor(record[f"{prefix}{part}{name}"], dtype)
            if f"{prefix}{part}{name}" in record
            else None
            for name in ("audio", "visual")
        )
        labels = torch.as_tensor(record[f"{prefix}{part}labels"])
        return Batch(sound, sight, labels, len(labels))

    return read("").followed_by(read("ex_")) if f"{prefix}ex_labels" in record else read("")


def labels_of(record: dict[str, Any], prefix: str = "") -> Tensor:
    """Return the labels of new clips and, after them, of exemplars."""
    names = (f"{prefix}labels_current", f"{prefix}labels_exemplar")
    return torch.cat([torch.as_tensor(record[name]) for name in names])
