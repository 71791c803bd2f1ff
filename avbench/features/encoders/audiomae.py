"""AudioMAE: a vision transformer over the spectrogram of a sound."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from avbench.features.encoder import Floats
from avbench.types import AvbenchError

HUB_ID = "gaunernst/vit_base_patch16_1024_128.audiomae_as2m"

# A self-supervised checkpoint has no `fc_norm`: it stays at the identity. What an encoder has no
# use for may be there.
_MAY_LACK = {"fc_norm.weight", "fc_norm.bias"}
_MAY_HAVE = ("norm.", "head.", "decoder", "mask_token")


def filter_banks(waveform: Tensor, sample_rate: int, *, times: int = 1024) -> Tensor:
    """Compute the log-mel spectrogram AudioMAE takes, of Kaldi, from the first channel.

    Windows of 25 ms every 10 ms, Hann, 128 mel bins, no dither, of the sound less its mean over all
    channels. Short ones are filled up with zeros after the logarithm, long ones cut.

    Args:
        waveform: (channels, samples).
        sample_rate: In samples a second.
        times: Rows wanted.

    Returns:
        (times, 128).
    """
    if waveform.shape[1] < sample_rate // 40:  # not one window
        return torch.zeros(times, 128)
    mels = kaldi.fbank(
        waveform - waveform.mean(),
        htk_compat=True,
        sample_frequency=sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )[:times]
    return nn.functional.pad(mels, (0, 0, 0, times - len(mels)))


def as_moviepy_writes(waveform: Floats) -> Floats:
    """Bring sound from 44,100 to 11,430 Hz as the authors' extraction does.

    Its library takes the nearest sample, without a low-pass filter before, limits to 0.99 and
    writes 16 bits.

    Args:
        waveform: (2, samples) at 44,100 Hz.
    """
    count = waveform.shape[1] * 11_430 // 44_100
    nearest = (torch.arange(count, dtype=torch.float64) * (44_100 / 11_430)).round().long()
    samples = torch.from_numpy(waveform)[:, nearest].mul(2**15).round()
    written: Floats = (samples.clamp(-32_440, 32_440) / 2**15).numpy()
    return written


def load_audiomae(folder: Path) -> nn.Module:
    """Build the model of a folder in timm's format; its output is the pooled feature, (B, d).

    Pooled: `fc_norm` of the mean over the tokens of patches, without the class token.

    Args:
        folder: With `config.json` and `model.safetensors`.

    Raises:
        AvbenchError: If the folder does not hold such a model.
    """
    try:
        model: nn.Module = timm.create_model(
            f"local-dir:{folder}", pretrained=False, num_classes=0, global_pool="avg"
        )
        state = load_file(folder / "model.safetensors")
        lacks, has = model.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, TypeError, ValueError, KeyError, OSError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise AvbenchError(f"{folder}: not a model of timm that can be built: {cause}") from error
    wrong = {*lacks} - _MAY_LACK | {key for key in has if not key.startswith(_MAY_HAVE)}
    if wrong:
        raise AvbenchError(
            f"{folder}: the weights do not fit config.json: {', '.join(sorted(wrong)[:3])}"
        )
    return model.eval()
