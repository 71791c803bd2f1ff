"""VideoMAE: a transformer over tubes of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import VideoMAEModel
from transformers.utils import logging

from avbench.types import AvbenchError

HUB_ID = "MCG-NJU/videomae-base"

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalised(pictures: Tensor) -> Tensor:
    """Bring pictures to the scale VideoMAE takes, as its image processor does.

    Args:
        pictures: (B, frames, height, width, 3) uint8, RGB.

    Returns:
        (B, frames, 3, height, width) float32.
    """
    mean = torch.tensor(MEAN, device=pictures.device)
    std = torch.tensor(STD, device=pictures.device)
    return pictures.div(255).sub(mean).div(std).movedim(-1, -3)


def load_videomae(folder: Path) -> nn.Module:
    """Build the model of a folder in the format of transformers.

    `last_hidden_state` are its tokens, (B, frames * cells, d), frame by frame, behind the last
    layer norm.

    Args:
        folder: With `config.json` and `model.safetensors`.

    Raises:
        AvbenchError: If the folder does not hold such a model.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the decoder, which nobody needs
    logging.disable_progress_bar()
    model: Any
    try:
        model, found = VideoMAEModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (RuntimeError, TypeError, ValueError, KeyError, OSError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise AvbenchError(f"{folder}: not a VideoMAE that can be built: {cause}") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:
        raise AvbenchError(f"{folder}: the weights do not fit config.json: {', '.join(wrong[:3])}")
    if model.layernorm is None:
        raise AvbenchError(f"{folder}: a fine-tuned VideoMAE: give one with use_mean_pooling false")
    encoder: nn.Module = model.eval()
    return encoder
