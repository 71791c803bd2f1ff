"""Where the weights of pretrained encoders come from; none is ever unpickled."""

from __future__ import annotations

import hashlib
from pathlib import Path

from avbench.types import AvbenchError

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def find_weights(hub_id: str, name: str, weights: Path | None) -> Path:
    """Return a folder with `config.json` and `model.safetensors` of a pretrained model.

    Args:
        hub_id: What the Hugging Face hub calls it.
        name: The sub-folder of `weights` it lies in.
        weights: A folder of weights; None for the hub, or what was fetched from it before.

    Raises:
        AvbenchError: If it cannot be had; the message says how to give it.
    """
    if weights is not None:
        folder = weights / name
        for file in (_CONFIG, _WEIGHTS):
            if not (folder / file).is_file():
                raise AvbenchError(
                    f"no {folder / file}: put {_CONFIG} and {_WEIGHTS} of {hub_id} there"
                )
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[_CONFIG, _WEIGHTS]))
    except (OSError, HfHubHTTPError) as error:
        raise AvbenchError(_no_weights(hub_id, name, "cannot be fetched from the hub")) from error
    if not (folder / _WEIGHTS).is_file():
        raise AvbenchError(_no_weights(hub_id, name, f"has no {_WEIGHTS} on the hub"))
    return folder


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of the weights in a folder, in hexadecimal."""
    with (folder / _WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_weights(hub_id: str, name: str, cause: str) -> str:
    return (
        f"{hub_id} {cause}: put its {_CONFIG} and {_WEIGHTS} into DIR/{name} and pass --weights DIR"
    )
