"""The network of the AV-CIL paper, section 3.2: frozen features in, class scores out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avbench.types import Modality


class Output(NamedTuple):
    """What the network computes for a batch of B clips.

    Attributes:
        logits: Class scores, (B, C).
        feature: What the classifier sees, (B, d), not normalised.
        audio: Audio feature before fusion, L2-normalised, (B, d); None without sound.
        visual: Visual feature before fusion, L2-normalised, (B, d); None without sight.
        spatial: Attention over the cells of a frame, per channel, (B, L, S, d), Eq. 2;
            audio-visual only.
        temporal: Attention over frames, per channel, (B, L, d), Eq. 3; audio-visual only.
    """

    logits: Tensor
    feature: Tensor
    audio: Tensor | None = None
    visual: Tensor | None = None
    spatial: Tensor | None = None
    temporal: Tensor | None = None


class AudioVisualNet(nn.Module):
    """Audio-guided visual attention, fusion and a linear classifier (paper, Eq. 2 to 5).

    As in the authors' code, all projections have biases, attention uses tanh and fusion ReLU, and
    the temporal scores are guided by audio too. A network of one modality is that modality's
    projection, ReLU and the classifier; sight is then the mean over all tokens.

    Args:
        dim: Width d of the features.
        classes: Number C of classes to begin with.
        modality: What the network may look at.
        frames: Number L of frames; visual tokens come frame by frame.
    """

    def __init__(
        self, dim: int, classes: int, modality: Modality = "audio-visual", *, frames: int = 8
    ) -> None:
        super().__init__()
        self.modality = modality
        self.frames = frames
        if modality != "visual":
            self.audio_proj = nn.Linear(dim, dim)
        if modality != "audio":
            self.visual_proj = nn.Linear(dim, dim)
        if modality == "audio-visual":
            self.attn_audio_proj = nn.Linear(dim, dim)
            self.attn_visual_proj = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, audio: Tensor | None, visual: Tensor | None) -> Output:
        """Classify a batch.

        Args:
            audio: (B, d); not read by a visual network.
            visual: Tokens, frame by frame, (B, L * S, d); not read by an audio network.
        """
        if self.modality == "audio":
            feature = F.relu(self.audio_proj(audio))
            return Output(self.classifier(feature), feature, audio=F.normalize(feature))
        assert visual is not None
        if self.modality == "visual":
            feature = F.relu(self.visual_proj(visual.mean(dim=1)))
            return Output(self.classifier(feature), feature, visual=F.normalize(feature))

        pooled, spatial, temporal = self.attend(audio, visual)
        f_audio = F.relu(self.audio_proj(audio))
        f_visual = F.relu(self.visual_proj(pooled))
        fused = f_audio + f_visual
        return Output(
            logits=self.classifier(fused),
            feature=fused,
            audio=F.normalize(f_audio),
            visual=F.normalize(f_visual),
            spatial=spatial,
            temporal=temporal,
        )

    def attend(self, audio: Tensor | None, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pool visual tokens by audio-guided attention, separately in every channel (Eq. 2 to 4).

        Returns:
            Pooled tokens (B, d), spatial attention (B, L, S, d), temporal attention (B, L, d).
        """
        tokens = visual.reshape(len(visual), self.frames, -1, visual.shape[-1])
        query = torch.tanh(self.attn_audio_proj(audio))[:, None]  # (B, 1, d)
        keys = torch.tanh(self.attn_visual_proj(tokens))  # (B, L, S, d)
        spatial = torch.softmax(query[:, None] * keys, dim=2)
        temporal = torch.softmax(query * (spatial * keys).sum(dim=2), dim=1)
        pooled = (temporal * (spatial * tokens).sum(dim=2)).sum(dim=1)
        return pooled, spatial, temporal

    @torch.no_grad()
    def grow(self, classes: int) -> None:
        """Widen the classifier to more classes; what it knows of the old ones stays.

        Args:
            classes: Number of classes from now on.
        """
        old = self.classifier
        new = nn.Linear(old.in_features, classes).to(old.weight)
        new.weight[: old.out_features] = old.weight
        new.bias[: old.out_features] = old.bias
        self.classifier = new
