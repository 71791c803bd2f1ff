"""What turns a clip into features: the protocol of the plug-in group `avbench.encoders`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import numpy as np
import numpy.typing as npt

from avbench import registry
from avbench.manifests.benchmark import Benchmark
from avbench.types import UsageError

Floats = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A frozen pair of an audio and a visual encoder of one width.

    Attributes:
        name: Name of the preset.
        dim: Width of the audio descriptor and of a visual token.
        frames: Temporal positions of the visual tokens.
        cells: Spatial positions of each.
        batch_size: Clips encoded at a time unless asked otherwise.
    """

    name: str
    dim: int
    frames: int
    cells: int
    batch_size: int

    def describe(self) -> dict[str, Any]:
        """Return every choice the features depend on, as JSON can hold it, with the `name`."""

    def read(self, path: Path) -> Any:
        """Make of a clip's file what `encode` takes; called from several threads at once.

        Raises:
            AvbenchError: If the clip cannot be decoded; the message names it.
        """

    def encode(self, clips: Sequence[Any]) -> Sequence[tuple[Floats, Floats]]:
        """Encode a batch of what `read` returned.

        Returns:
            For each, audio (dim,) and visual tokens (frames * cells, dim), frame by frame.
        """


def bytes_of_clip(preset: str) -> int | None:
    """Return what the features of a clip take in the store, in half precision.

    It is asked before weights are there: what is registered, or the class that it says to return,
    has `dim`, `frames` and `cells` as attributes, or nobody knows.

    Raises:
        UsageError: If there is no such preset.
        AvbenchError: If it cannot be imported.
    """
    factory = registry.load("encoders", preset)
    try:
        kind: Any = factory if isinstance(factory, type) else get_type_hints(factory)["return"]
        return int(2 * (1 + kind.frames * kind.cells) * kind.dim)
    except (AttributeError, KeyError, NameError, TypeError):
        return None


def open_encoder(
    preset: str,
    benchmark: Benchmark,
    *,
    device: str | None = None,
    weights: Path | None = None,
) -> Encoder:
    """Make the encoder of a preset.

    What is registered is called with those of `benchmark`, `device` and `weights` that it takes.

    Args:
        preset: A name from `avbench list`.
        benchmark: Whose clips it will encode.
        device: Where it computes, as torch says it; None for the fastest there is.
        weights: A folder of weights; None for those of the hub.

    Raises:
        UsageError: If there is no such preset, or it has no use for a device or weights.
        AvbenchError: If it cannot be made, such as for want of weights.
    """
    factory = registry.load("encoders", preset)
    taken = inspect.signature(factory).parameters
    given = {"device": device, "weights": weights}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in asked.keys() - taken.keys():
        raise UsageError(f"{preset} features have no use for --{name}: leave it out")
    if "benchmark" in taken:
        asked["benchmark"] = benchmark
    encoder: Encoder = factory(**asked)
    return encoder
