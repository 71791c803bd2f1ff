"""Herding and the nearest mean of exemplars (iCaRL, CVPR 2017, Algorithms 1 and 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def herd(features: npt.NDArray[np.float32], places: int, *, replacement: bool = True) -> list[int]:
    """Choose clips, one after another, so that their mean stays close to the mean of all.

    As in the authors' code, a clip may be chosen again, the first wins a tie, and no more are
    chosen than there are clips.

    Args:
        features: L2-normalised features of one class, (n, d).
        places: How many to choose at most.
        replacement: False chooses every clip once at most, as iCaRL did.

    Returns:
        Positions in `features`, the most important first.
    """
    if len(features) == 0:
        return []
    mean = features.mean(axis=0)
    total = np.zeros(features.shape[1])
    chosen: list[int] = []
    for number in range(1, min(places, len(features)) + 1):
        distance = np.linalg.norm(mean - (total + features) / number, axis=1)
        if not replacement:
            distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        total += features[chosen[-1]]
    return chosen


def class_mean(exemplars: Tensor, places: int, *, normalize: bool = False) -> Tensor:
    """Average the exemplars of a class.

    As in the authors' code, an exemplar chosen twice counts twice, an empty place counts as a zero,
    and the mean is not normalised.

    Args:
        exemplars: L2-normalised features, at most `places`, (n, d).
        places: How many the class has.
        normalize: Whether to scale the mean to length 1, as iCaRL did.

    Returns:
        (d,).
    """
    mean = exemplars.sum(dim=0) / max(places, 1)
    return F.normalize(mean, dim=0) if normalize else mean


def nearest(features: Tensor, means: Tensor) -> Tensor:
    """Return the class whose mean is nearest to each feature.

    Args:
        features: Not normalised, (n, d).
        means: One a class, (C, d).

    Returns:
        Class indices, (n,).
    """
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(F.normalize(features), means, compute_mode=exact)
    return distance.argmin(dim=1)
