"""Batches as the workers of a `DataLoader` make them: in a module that a new process can import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from avbench.features.store import FeatureStore


def collate(store: FeatureStore) -> Callable[[Sequence[int]], Tensor]:
    """Return what makes a batch of visual tokens of rows."""
    return partial(_visual, store)


def _visual(store: FeatureStore, rows: Sequence[int]) -> Tensor:
    return torch.from_numpy(store.visual(np.array(rows)))
