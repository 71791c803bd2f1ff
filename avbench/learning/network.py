"""The network of the AV-CIL paper, section 3.2: frozen features in, class scores out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avbench.learning.attention import attend, attend_with_maps
from avbench.learning.classifiers import Classifier, LinearClassifier
from avbench.learning.picked import Picked, tensor
from avbench.types import Modality

Activation = Literal["official", "paper"]


class Output(NamedTuple):
    """What the network computes for a batch of B clips.

    Attributes:
        logits: Class scores, (B, C).
        feature: What the classifier sees, (B, d), not normalised.
        audio: Audio feature before fusion, L2-normalised, (B, d); None without sound.
        visual: Visual feature before fusion, L2-normalised, (B, d); None without sight.
        stages: Features on the way to the scores, none normalised, each (B, d): the attended
            visual feature, then the audio and the visual one before fusion; of one modality, what
            the classifier sees.
        spatial: Attention over the cells of a frame, per channel, (B, L, S, d), Eq. 2; only if
            maps were asked for.
        temporal: Attention over frames, per channel, (B, L, d), Eq. 3; audio-visual only.
        spatial_entropy: Of `spatial`, in nats, (B, L, d); audio-visual only.
        spatial_cross_entropy: Of `spatial` relative to a reference, for the clips that have one,
            (E, L, d).
        spatial_reference: Of a teacher, `spatial` of the clips that it keeps it of, to be given to
            the student as reference, (E, L, S, d).
    """

    logits: Tensor
    feature: Tensor
    audio: Tensor | None = None
    visual: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    spatial: Tensor | None = None
    temporal: Tensor | None = None
    spatial_entropy: Tensor | None = None
    spatial_cross_entropy: Tensor | None = None
    spatial_reference: Picked | None = None


class Pooled(NamedTuple):
    """The visual tokens of B clips as one vector each.

    Attributes:
        visual: (B, d); None for an audio network.
        spatial: As in `Output`, like all that follow.
    """

    visual: Tensor | None
    spatial: Tensor | None = None
    temporal: Tensor | None = None
    spatial_entropy: Tensor | None = None
    spatial_cross_entropy: Tensor | None = None
    spatial_reference: Picked | None = None


class AudioVisualNet(nn.Module):
    """Audio-guided visual attention, fusion and a classifier (paper, Eq. 2 to 5).

    As in the authors' code, all projections have biases, attention uses tanh and fusion ReLU, and
    the temporal scores are guided by audio too. A network of one modality is that modality's
    projection, ReLU and the classifier; sight is then the mean over all tokens.

    Args:
        dim: Width d of the features.
        classes: Number C of classes to begin with.
        modality: What the network may look at.
        frames: Number L of frames; visual tokens come frame by frame.
        classifier: Makes the classifier from d and C.
        activation: "paper" applies tanh before fusion too, as Eq. 5 reads.
        temporal_audio_guidance: False scores frames by sight alone, as Eq. 3 reads.
        product: In which precision tokens are projected for attention; None for that of the
            weights.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        modality: Modality = "audio-visual",
        *,
        frames: int = 8,
        classifier: Callable[[int, int], Classifier] = LinearClassifier,
        activation: Activation = "official",
        temporal_audio_guidance: bool = True,
        product: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.modality = modality
        self.frames = frames
        self.activate = torch.tanh if activation == "paper" else torch.relu
        self.temporal_audio_guidance = temporal_audio_guidance
        self.product = product
        if modality != "visual":
            self.audio_proj = nn.Linear(dim, dim)
        if modality != "audio":
            self.visual_proj = nn.Linear(dim, dim)
        if modality == "audio-visual":
            self.attn_audio_proj = nn.Linear(dim, dim)
            self.attn_visual_proj = nn.Linear(dim, dim)
        self.classifier = classifier(dim, classes)

    def forward(
        self,
        audio: Tensor | None,
        visual: Tensor | Picked | None,
        *,
        maps: bool = False,
        reference: Tensor | Picked | None = None,
    ) -> Output:
        """Classify a batch.

        Args:
            audio: (B, d); not read by a visual network.
            visual: Tokens, frame by frame, (B, L * S, d), in any precision; not read by an audio
                network. They are frozen: no gradient reaches them.
            maps: As for `pool`.
            reference: As for `pool`.
        """
        return self.classify(audio, self.pool(audio, visual, maps=maps, reference=reference))

    def pool(
        self,
        audio: Tensor | None,
        visual: Tensor | Picked | None,
        *,
        maps: bool = False,
        reference: Tensor | Picked | None = None,
    ) -> Pooled:
        """Pool visual tokens: their mean, or audio-guided attention, per channel (Eq. 2 to 4).

        Args:
            audio: As for `forward`.
            visual: As for `forward`.
            maps: Whether to keep spatial attention, which takes several times the memory of the
                tokens.
            reference: Spatial attention of the last E clips that theirs is compared with,
                (E, L, S, d).
        """
        if self.modality == "audio":
            return Pooled(None)
        assert visual is not None
        if self.modality == "visual":
            return Pooled(tensor(visual).to(self.visual_proj.weight.dtype).mean(dim=1))
        cells = visual.shape[1] // self.frames
        tokens = visual.view(len(visual), self.frames, cells, visual.shape[2])
        query = torch.tanh(self.attn_audio_proj(audio))
        weights = self.attn_visual_proj.weight, self.attn_visual_proj.bias
        if maps:
            attended = attend_with_maps(query, tokens, *weights, product=self.product)
        else:
            attended = attend(query, tokens, *weights, reference, product=self.product)
        scores = attended.scores
        if self.temporal_audio_guidance:
            scores = query[:, None] * scores
        temporal = torch.softmax(scores, dim=1)
        return Pooled(
            (temporal * attended.values).sum(dim=1),
            attended.maps,
            temporal,
            attended.entropy,
            attended.cross_entropy,
        )

    def classify(self, audio: Tensor | None, pooled: Pooled) -> Output:
        """Project, fuse and classify (Eq. 5).

        Args:
            audio: (B, d); not read by a visual network.
            pooled: What `pool` made of the visual tokens; not read by an audio network.
        """
        if self.modality == "audio":
            feature = self.activate(self.audio_proj(audio))
            return Output(self.classifier(feature), feature, F.normalize(feature), None, (feature,))
        f_visual = self.activate(self.visual_proj(pooled.visual))
        if self.modality == "visual":
            normal = F.normalize(f_visual)
            return Output(self.classifier(f_visual), f_visual, None, normal, (f_visual,))
        assert pooled.visual is not None
        f_audio = self.activate(self.audio_proj(audio))
        fused = f_audio + f_visual
        return Output(
            self.classifier(fused),
            fused,
            F.normalize(f_audio),
            F.normalize(f_visual),
            (pooled.visual, f_audio, f_visual),
            *pooled[1:],
        )

    def grow(self, classes: int) -> None:
        """Widen the classifier to more classes; what it knows of the old ones stays.

        Args:
            classes: Number of classes from now on.
        """
        self.classifier = self.classifier.grown(classes)
