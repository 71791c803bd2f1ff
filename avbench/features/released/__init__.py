"""The feature files the authors of AV-CIL published, brought into the store."""

from __future__ import annotations

from avbench.features.encoder import Encoder
from avbench.types import UsageError

PRESET = "released"


def no_encoder() -> Encoder:
    """Stand for the preset where encoders are asked for: nobody knows how it was made.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        "released features are not extracted but imported: run avbench features import"
    )
