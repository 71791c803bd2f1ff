"""The authors' way of training, written plainly from what their scripts do.

Features come clip by clip out of HDF5 in single precision, through torch's loaders; attention is
made of whole tensors; the teacher runs in every iteration. Nothing here is used by avbench: it is
what `training.py` measures against, and a test holds its losses equal to those of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

FRAMES, PROXIES = 8, 10


class Features(Dataset):
    """Some clips: sound from a dictionary in memory, sight from a file with a dataset a clip."""

    def __init__(self, sight: Path, audio: dict[str, Tensor], labels: dict[str, int]) -> None:
        self.file = h5py.File(sight)
        self.audio, self.labels, self.ids = audio, labels, list(labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        clip = self.ids[number]
        sight = torch.tensor(self.file[clip][()], dtype=torch.float32)
        return self.audio[clip], sight, self.labels[clip]


class LocalSimilarity(nn.Module):
    """AFC's classifier: proxies of old classes, which stay, and of new ones."""

    def __init__(self, dim: int, old: int, new: int) -> None:
        super().__init__()
        self.register_buffer("old", torch.randn(PROXIES * old, dim))
        self.new = nn.Parameter(torch.randn(PROXIES * new, dim))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, feature: Tensor) -> Tensor:
        """Return scores, (B, C)."""
        proxies = F.normalize(torch.cat([self.old, self.new]))
        feature = F.normalize(feature)
        distance = (
            feature.pow(2).sum(1, keepdim=True) + proxies.pow(2).sum(1) - 2 * feature @ proxies.T
        )
        similarity = -distance.view(len(feature), -1, PROXIES)
        return (similarity.softmax(dim=2) * similarity).sum(dim=2)


class Seen(NamedTuple):
    """What the network says of a batch."""

    logits: Tensor
    feature: Tensor
    audio: Tensor | None = None
    visual: Tensor | None = None
    pooled: Tensor | None = None
    spatial: Tensor | None = None
    temporal: Tensor | None = None


class Network(nn.Module):
    """Audio-guided attention in whole tensors, fusion and a classifier."""

    def __init__(self, modality: str, dim: int, classifier: nn.Module) -> None:
        super().__init__()
        self.modality = modality
        if modality != "visual":
            self.audio_proj = nn.Linear(dim, dim)
        if modality != "audio":
            self.visual_proj = nn.Linear(dim, dim)
        if modality == "audio-visual":
            self.attn_audio_proj = nn.Linear(dim, dim)
            self.attn_visual_proj = nn.Linear(dim, dim)
        self.classifier = classifier

    def forward(self, audio: Tensor, visual: Tensor) -> Seen:
        """Classify a batch: (B, d) and (B, tokens, d)."""
        if self.modality == "audio":
            feature = F.relu(self.audio_proj(audio))
            return Seen(self.classifier(feature), feature)
        if self.modality == "visual":
            feature = F.relu(self.visual_proj(visual.mean(dim=1)))
            return Seen(self.classifier(feature), feature)
        batch, tokens, dim = visual.shape
        visual = visual.view(batch, FRAMES, tokens // FRAMES, dim)
        query = torch.tanh(self.attn_audio_proj(audio))
        keys = torch.tanh(self.attn_visual_proj(visual))
        spatial = F.softmax(query[:, None, None] * keys, dim=2)
        frames = (spatial * keys).sum(dim=2)
        temporal = F.softmax(query[:, None] * frames, dim=1)
        pooled = (temporal * (spatial * visual).sum(dim=2)).sum(dim=1)
        f_audio = F.relu(self.audio_proj(audio))
        f_visual = F.relu(self.visual_proj(pooled))
        feature = f_audio + f_visual
        return Seen(self.classifier(feature), feature, f_audio, f_visual, pooled, spatial, temporal)


@dataclass(frozen=True)
class Batch:
    """A batch; its new clips come first where it is a pair of batches."""

    audio: Tensor
    visual: Tensor
    labels: Tensor
    new: int


@dataclass(frozen=True)
class Step:
    """How many classes came before, and how many come with each step."""

    old: int
    per_step: int


Loss = Callable[[Network, Network, Batch, Step], Tensor]


def finetune(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:  # noqa: ARG001
    """Cross-entropy."""
    return F.cross_entropy(network(batch.audio, batch.visual).logits, batch.labels)


def lwf(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:
    """Cross-entropy of the new classes, and distillation."""
    logits = network(batch.audio, batch.visual).logits
    with torch.no_grad():
        old = teacher(batch.audio, batch.visual).logits
    new = F.cross_entropy(logits[:, step.old :], batch.labels % step.per_step)
    return new + distillation(logits, old, step)


def icarl(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:
    """Cross-entropy, and distillation through two sigmoids."""
    logits = network(batch.audio, batch.visual).logits
    with torch.no_grad():
        old = torch.sigmoid(teacher(batch.audio, batch.visual).logits)
    twice = torch.sigmoid(logits[:, : step.old])
    distilled = F.binary_cross_entropy_with_logits(twice, old)
    return F.cross_entropy(logits, batch.labels) + distilled


def ssil(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:
    """Separated softmax, and distillation."""
    logits = network(batch.audio, batch.visual).logits
    with torch.no_grad():
        old = teacher(batch.audio, batch.visual).logits
    return separated(logits, batch, step) + distillation(logits, old, step)


def avcil(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:
    """SS-IL with similarity of sound and sight, and distillation of attention."""
    seen = network(batch.audio, batch.visual)
    with torch.no_grad():
        old = teacher(batch.audio, batch.visual)
    similarity = F.normalize(seen.audio) @ F.normalize(seen.visual).T / 0.05
    instance = F.cross_entropy(similarity, torch.arange(len(similarity)))
    same = batch.labels[:, None] == batch.labels[None, :]
    classes = -(F.log_softmax(similarity, dim=1) * same).mean()
    spatial, temporal = (
        F.kl_div(new[batch.new :].log(), before[batch.new :], reduction="sum")
        / (len(new) - batch.new)
        for new, before in ((seen.spatial, old.spatial), (seen.temporal, old.temporal))
    )
    losses = separated(seen.logits, batch, step) + distillation(seen.logits, old.logits, step)
    return losses + 0.1 * instance + classes + 0.5 * spatial + 0.5 * temporal


def afc(network: Network, teacher: Network, batch: Batch, step: Step) -> Tensor:
    """NCA, and the distance of features, weighed by their gradients in the teacher."""
    seen, old = network(batch.audio, batch.visual), teacher(batch.audio, batch.visual)
    if network.modality == "audio-visual":
        teachers = nca(old.logits, batch.labels, teacher.classifier.scale)
        features = (old.pooled, old.audio, old.visual)
        gradients = torch.autograd.grad(teachers, features)
        importance = torch.stack([gradient.norm(dim=1) for gradient in gradients])
        pairs = list(zip((seen.pooled, seen.audio, seen.visual), features, strict=True))
    else:
        importance = torch.ones(1, len(batch.labels))
        pairs = [(seen.feature, old.feature)]
    distances = torch.stack(
        [(F.normalize(new) - F.normalize(before.detach())).norm(dim=1) for new, before in pairs]
    )
    discrepancy = (importance / importance.sum(dim=0) * distances).mean(dim=1).sum()
    weight = 0.5 * ((step.old + step.per_step) / step.per_step) ** 0.5
    return nca(seen.logits, batch.labels, network.classifier.scale) + weight * discrepancy


def separated(logits: Tensor, batch: Batch, step: Step) -> Tensor:
    """Cross-entropy of new clips among new classes, and of exemplars among old ones."""
    new, exemplars = logits[: batch.new, step.old :], logits[batch.new :, : step.old]
    first = F.cross_entropy(new, batch.labels[: batch.new] % step.per_step)
    second = F.cross_entropy(exemplars, batch.labels[batch.new :])
    return (len(new) * first + len(exemplars) * second) / len(logits)


def distillation(logits: Tensor, old: Tensor, step: Step) -> Tensor:
    """Of the scores of each old step, at temperature 2."""
    total = torch.zeros(())
    for first in range(0, step.old, step.per_step):
        task = slice(first, first + step.per_step)
        student = F.log_softmax(logits[:, task] / 2, dim=1)
        total = total + 4 * F.kl_div(
            student, F.softmax(old[:, task] / 2, dim=1), reduction="batchmean"
        )
    return total


def nca(scores: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Of scores less their margin, which has no effect."""
    scores = scale * (scores - 0.6)
    scores = scores - scores.max(dim=1, keepdim=True)[0]
    own = F.one_hot(labels, scores.shape[1]).bool()
    others = torch.where(own, torch.zeros_like(scores), scores.exp()).sum(dim=1)
    return (torch.log(1 + others) - scores[own]).mean()


LOSSES: dict[str, Loss] = {
    "finetune": finetune,
    "lwf": lwf,
    "icarl-fc": icarl,
    "ssil": ssil,
    "afc-lsc": afc,
    "avcil": avcil,
}
# Those that put new clips and exemplars into one set, and those that pair batches of them.
MERGED, PAIRED = ("icarl-fc", "afc-lsc"), ("ssil", "avcil")


def batches(
    name: str, new: Features, old: Features, batch_size: int, exemplar_batch_size: int
) -> Iterator[Batch]:
    """Yield the batches of an epoch."""
    options = {"shuffle": True, "drop_last": True}
    if name in MERGED:
        new = ConcatDataset([new, old])
    loader = DataLoader(new, batch_size, **options)
    if name not in PAIRED:
        for audio, visual, labels in loader:
            yield Batch(audio, visual, labels, len(labels))
        return
    exemplars = DataLoader(old, exemplar_batch_size, **options)
    for current, earlier in zip(loader, cycle(exemplars), strict=False):
        audio, visual, labels = (torch.cat(parts) for parts in zip(current, earlier, strict=True))
        yield Batch(audio, visual, labels, len(current[2]))


def train(
    loss: Loss,
    network: Network,
    teacher: Network,
    optimizer: torch.optim.Optimizer,
    step: Step,
    batches: Iterator[Batch],
) -> None:
    """Train for an epoch."""
    for batch in batches:
        value = loss(network, teacher, batch, step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
