"""What turns a clip into features: the protocol of the plug-in group `avbench.encoders`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A frozen pair of an audio and a visual encoder of one width.

    Attributes:
        name: Name of the preset.
        dim: Width of the audio descriptor and of a visual token.
        frames: Temporal positions of the visual tokens.
        cells: Spatial positions of each.
    """

    name: str
    dim: int
    frames: int
    cells: int

    def describe(self) -> dict[str, Any]:
        """Return every choice the features depend on, as JSON can hold it, with the `name`."""

    def encode(self, path: Path) -> tuple[Floats, Floats]:
        """Encode one clip; may be called from several threads at once.

        Returns:
            Audio (dim,) and visual tokens (frames * cells, dim), frame by frame.

        Raises:
            AvbenchError: If the clip cannot be decoded; the message names it.
        """
