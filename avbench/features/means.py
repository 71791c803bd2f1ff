"""The mean of a clip's visual tokens: all of sight that a visual-only network uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from avbench.features.rows import Floats, RowFile, RowReader, Rows
from avbench.features.store import FeatureStore
from avbench.resources import alone, replacing
from avbench.types import AvbenchError, Report, silent

_NAME = "means.npy"
_SINGLE = np.dtype("<f4")
_BYTES_AT_A_TIME = 64 << 20

Read = Callable[[Rows, Floats], Floats]


def token_means(store: FeatureStore) -> Read:
    """Return what reads the mean of the tokens of clips, (n, 1, dim), float32, into memory.

    They are the bits that a network computes from the tokens in single precision. They are kept in
    `means.npy` beside the features, made when first asked for; where nothing can be written, they
    are computed whenever they are read.

    Args:
        store: The store.

    Raises:
        AvbenchError: If `means.npy` is damaged, or features cannot be read.
    """
    folder = store.folder
    if folder is not None and not (folder / _NAME).is_file():
        with suppress(AvbenchError):  # of a disk that is full or read-only
            _keep(store, folder / _NAME)
    return _kept(store) or partial(_average, store)


def damaged_means(store: FeatureStore, report: Report = silent) -> list[str]:
    """Average all tokens again; return the clips whose kept mean is another.

    Args:
        store: The store; where it keeps no means, none are damaged.
        report: Called as clips are averaged.

    Raises:
        AvbenchError: As `token_means`.
    """
    read, at_a_time = _kept(store), _at_a_time(store)
    damaged: list[str] = []
    if read is None:
        return damaged
    for start in range(0, len(store), at_a_time):
        rows = np.arange(start, min(start + at_a_time, len(store)))
        kept, made = (np.empty((len(rows), 1, store.dim), _SINGLE) for _ in range(2))
        read(rows, kept)
        _average(store, rows, made)
        # Another machine may add in another order.
        whole = np.isclose(kept, made, rtol=1e-4, atol=1e-5).all(axis=(1, 2))
        damaged += [store.clip_ids[row] for row in rows[~whole]]
        report("checking means", start + len(rows), len(store))
    return damaged


def _kept(store: FeatureStore) -> Read | None:
    """Return what reads the means that are kept; None where there are none."""
    if store.folder is None or not (store.folder / _NAME).is_file():
        return None
    return partial(_read, store.reader(_NAME, (len(store), store.dim), _SINGLE))


def _keep(store: FeatureStore, path: Path) -> None:
    with alone(path.parent, "averaging tokens", wait=True):
        if path.is_file():  # another process was faster
            return
        with replacing(path) as temporary, RowFile(temporary, (store.dim,), _SINGLE) as file:
            at_a_time = _at_a_time(store)
            for start in range(0, len(store), at_a_time):
                rows = np.arange(start, min(start + at_a_time, len(store)))
                means = _average(store, rows, np.empty((len(rows), 1, store.dim), _SINGLE))
                for row, mean in zip(rows.tolist(), means, strict=True):
                    file.write(row, mean)
            file.seal(len(store))


def _read(reader: RowReader, rows: Rows, out: Floats) -> Floats:
    reader.read(rows, out[:, 0])
    return out


def _average(store: FeatureStore, rows: Rows, out: Floats) -> Floats:
    at_a_time = _at_a_time(store)
    for start in range(0, len(rows), at_a_time):
        tokens = torch.from_numpy(store.visual(rows[start : start + at_a_time]))
        out[start : start + len(tokens), 0] = tokens.float().mean(dim=1).numpy()
    return out


def _at_a_time(store: FeatureStore) -> int:
    size = store.frames * store.cells * store.dim * store.dtype.itemsize
    return max(1, _BYTES_AT_A_TIME // size)
