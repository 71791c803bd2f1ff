"""AudioMAE and VideoMAE side by side: the presets `avcil` and `audiomae-16k`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avbench.features.decode import decode
from avbench.features.encoder import Floats
from avbench.features.encoders import audiomae, videomae
from avbench.features.encoders.weights import find_weights, hash_weights
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, UsageError

_TIMES, _MELS = 1024, 128

# Pictures a second the authors took out of a clip before they chose sixteen: 10 for AVE.
_RATE, _RATE_OF = 8, {"ave-ci": 10}

# Over AudioSet, from AudioMAE's code.
_MEL_MEAN, _MEL_STD = -4.2677393, 4.5689974


def avcil(
    benchmark: Benchmark, device: str | None = None, weights: Path | None = None
) -> PretrainedEncoder:
    """Encode as the code of the AV-CIL paper does: sound at 11,430 Hz, not normalised."""
    return PretrainedEncoder("avcil", benchmark, device, weights)


def audiomae_16k(
    benchmark: Benchmark, device: str | None = None, weights: Path | None = None
) -> PretrainedEncoder:
    """Encode sound as AudioMAE was trained: at 16 kHz, normalised; pictures as `avcil`."""
    return PretrainedEncoder("audiomae-16k", benchmark, device, weights)


@dataclass(frozen=True)
class _Inputs:
    """What the models see of a clip: (1024, 128) float32 and (frames, side, side, 3) uint8."""

    mels: torch.Tensor
    pictures: npt.NDArray[np.uint8]


class PretrainedEncoder:
    """AudioMAE's pooled feature and VideoMAE's tokens.

    Args:
        name: The preset.
        benchmark: Whose clips it encodes.
        device: Where, as torch says it; None for cuda if there is one.
        weights: Folder with `audiomae/` and `videomae/`; None for the hub.

    Raises:
        UsageError: If there is no such device.
        AvbenchError: If weights cannot be had or do not fit.
    """

    # Of the hub's weights; others may differ.
    dim, frames, cells = 768, 8, 196

    def __init__(
        self, name: str, benchmark: Benchmark, device: str | None, weights: Path | None
    ) -> None:
        self.name = name
        self._device = _device(device)
        heard = find_weights(audiomae.HUB_ID, "audiomae", weights)
        seen = find_weights(videomae.HUB_ID, "videomae", weights)
        self._audio = _frozen(audiomae.load_audiomae(heard), self._device)
        self._visual = _frozen(videomae.load_videomae(seen), self._device)
        patches, config = self._audio.patch_embed, self._visual.config
        if (*patches.img_size, patches.proj.in_channels) != (_TIMES, _MELS, 1):
            raise AvbenchError(f"{heard}: the model does not take spectrograms of 1024 x 128")
        if self._audio.num_features != config.hidden_size:
            raise AvbenchError(
                f"{heard}: width {self._audio.num_features}, but {seen}: width"
                f" {config.hidden_size}: give weights of one width"
            )
        self.dim = config.hidden_size
        self.frames = config.num_frames // config.tubelet_size
        self.cells = (config.image_size // config.patch_size) ** 2
        on_gpu = self._device.type == "cuda"
        self.batch_size = 32 if on_gpu else 8
        self._half = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        self._rate = _RATE_OF.get(benchmark.base.name, _RATE)
        self._hashes = hash_weights(heard), hash_weights(seen)

    def describe(self) -> dict[str, Any]:
        """Return every choice the features depend on, with the hashes of the weights."""
        as_authors = self.name == "avcil"
        return {
            "name": self.name,
            "version": 1,
            "dim": self.dim,
            "precision": "bfloat16" if self._half else "float32",
            "audio": {
                "model": audiomae.HUB_ID,
                "weights": self._hashes[0],
                "sample_rate": 11_430 if as_authors else 16_000,
                "resampling": "nearest" if as_authors else "band-limited",
                "channels": "left" if as_authors else "mean",
                "mean": 0.0 if as_authors else _MEL_MEAN,
                "deviation": 0.5 if as_authors else _MEL_STD,
            },
            "visual": {
                "model": videomae.HUB_ID,
                "weights": self._hashes[1],
                "pictures": self._visual.config.num_frames,
                "side": self._visual.config.image_size,
                "per_second": self._rate,
            },
        }

    def read(self, path: Path) -> _Inputs:
        """Decode a clip and compute its spectrogram.

        Raises:
            AvbenchError: If the clip cannot be decoded.
        """
        as_authors, config = self.name == "avcil", self._visual.config
        clip = decode(
            path,
            frames=config.num_frames,
            height=config.image_size,
            width=config.image_size,
            sample_rate=44_100 if as_authors else 16_000,
            rate=self._rate,
            crop=True,
            stereo=as_authors,
        )
        if as_authors:
            written = torch.from_numpy(audiomae.as_moviepy_writes(clip.waveform))
            return _Inputs(audiomae.filter_banks(written, 11_430), clip.pictures)
        mels = audiomae.filter_banks(torch.from_numpy(clip.waveform)[None], 16_000)
        return _Inputs((mels - _MEL_MEAN) / (2 * _MEL_STD), clip.pictures)

    def encode(self, clips: Sequence[_Inputs]) -> Sequence[tuple[Floats, Floats]]:
        """Encode a batch.

        Raises:
            AvbenchError: If it does not fit into the memory of the device.
        """
        try:
            mels = torch.stack([clip.mels for clip in clips])[:, None].to(self._device)
            pictures = torch.from_numpy(np.stack([clip.pictures for clip in clips]))
            with (
                torch.inference_mode(),
                torch.autocast(self._device.type, torch.bfloat16, enabled=self._half),
            ):
                audio = self._audio(mels)
                seen = videomae.normalised(pictures.to(self._device))
                visual = self._visual(seen).last_hidden_state
        except torch.OutOfMemoryError as error:
            raise AvbenchError(
                f"{len(clips)} clips do not fit into the memory of {self._device}:"
                " pass a smaller --batch-size"
            ) from error
        return list(zip(audio.float().cpu().numpy(), visual.float().cpu().numpy(), strict=True))


def _frozen(model: torch.nn.Module, device: torch.device) -> Any:
    """Untyped: what a model of timm or transformers has is known to them alone."""
    return model.to(device, torch.float32).requires_grad_(False)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used here: try cpu") from error
    return device
