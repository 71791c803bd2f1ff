"""Classifiers that grow with the classes."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Class scores (B, C) of features (B, d)."""

    @abstractmethod
    def grown(self, classes: int) -> Self:
        """Return a classifier of more classes that knows what this one knows of the old ones.

        Args:
            classes: Number of classes, old and new.
        """


class LinearClassifier(nn.Linear, Classifier):
    """A linear map with bias; all rows stay trainable.

    Args:
        dim: Width d of the features.
        classes: Number C of classes.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)

    @torch.no_grad()
    def grown(self, classes: int) -> Self:
        """Return a new classifier whose first rows are those of this one."""
        new = type(self)(self.in_features, classes).to(self.weight)
        new.weight[: self.out_features] = self.weight
        new.bias[: self.out_features] = self.bias
        return new


class LocalSimilarityClassifier(Classifier):
    """LSC: scores from the similarity to several proxies a class (PODNet and AFC).

    Similarity is minus the squared distance between L2-normalised feature and proxy, in [-4, 0];
    the score of a class is the mean over its proxies, weighted by the softmax of their
    similarities. When the classifier grows, all proxies are frozen and its scale is 1 again.

    Args:
        dim: Width d of the features.
        classes: Number of trainable classes.
        old: Frozen proxies of earlier classes, (PROXIES * classes, d); None for none.

    Attributes:
        old: The frozen proxies; those of a class are next to each other.
        new: Proxies of the trainable classes, which come after the others, likewise.
        scale: Of the scores in the loss; learnt, and not part of the scores.
    """

    PROXIES = 10

    old: Tensor

    def __init__(self, dim: int, classes: int, old: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("old", torch.empty(0, dim) if old is None else old)
        self.new = nn.Parameter(torch.empty(self.PROXIES * classes, dim))
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.normal_(self.new, std=1 / math.sqrt(dim))

    def forward(self, feature: Tensor) -> Tensor:
        """Return class scores, (B, C)."""
        similarity = torch.stack(torch.split(self.similarity(feature), self.PROXIES, dim=1), dim=1)
        return torch.sum(torch.softmax(similarity, dim=2) * similarity, dim=2)

    def similarity(self, feature: Tensor) -> Tensor:
        """Return the similarity to every proxy, (B, PROXIES * C)."""
        x = F.normalize(feature)
        proxies = F.normalize(torch.cat([self.old, self.new]))
        return 2 * x @ proxies.T - x.square().sum(1, keepdim=True) - proxies.square().sum(1)

    @torch.no_grad()
    def grown(self, classes: int) -> Self:
        """Return a classifier that keeps all proxies and has random ones for new classes."""
        old = torch.cat([self.old, self.new])
        return type(self)(old.shape[1], classes - len(old) // self.PROXIES, old).to(old)

    @torch.no_grad()
    def imprint(self, features: Tensor, labels: Tensor, *, n_init: int, seed: int | None) -> None:
        """Put the proxies of each new class at the centres of its features.

        Centres are scaled by the mean length of the old proxies. A class with fewer features than
        proxies has each centre several times; one without any keeps its random proxies.

        Args:
            features: L2-normalised, (n, d).
            labels: Which new class each belongs to, from 0, (n,).
            n_init: How often k-means starts anew, the best counts.
            seed: Of its random starts; None draws on NumPy's global generator.
        """
        from sklearn.cluster import KMeans  # slow to import

        length = self.old.norm(dim=1).mean()
        for index, proxies in enumerate(torch.split(self.new, self.PROXIES)):
            own = features[labels == index].cpu().numpy()
            clusters = min(self.PROXIES, len(np.unique(own, axis=0)))
            if clusters:
                fitted = KMeans(clusters, n_init=n_init, random_state=seed).fit(own)
                rows = np.resize(fitted.cluster_centers_, (self.PROXIES, own.shape[1]))
                proxies.copy_(length * torch.as_tensor(rows))
