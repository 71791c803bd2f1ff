"""Growing classifiers: local similarities and imprinting against golden numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from avbench.learning.classifiers import LinearClassifier, LocalSimilarityClassifier

EXACT = {"rtol": 1e-9, "atol": 1e-9}
K = LocalSimilarityClassifier.PROXIES


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def holding(weight: Tensor, old: Tensor | None = None) -> LocalSimilarityClassifier:
    """A classifier with these proxies."""
    made = LocalSimilarityClassifier(weight.shape[1], len(weight) // K, old).double()
    made.new.data.copy_(weight)
    return made


def test_local_similarity(golden):
    record = golden("afc_lsc_nca.npz")
    assert record["K"] == K
    classifier, x = holding(tensor(record["weight"])), tensor(record["x"])
    similarity = classifier.similarity(x).detach().numpy()
    np.testing.assert_allclose(similarity, record["raw_similarity"], **EXACT)
    np.testing.assert_allclose(classifier(x).detach().numpy(), record["logits"], **EXACT)


@pytest.mark.parametrize("part", [1, 2])
def test_frozen_and_new_proxies_score_alike(golden, part):
    """A grown classifier is the whole one, cut anywhere."""
    record = golden("afc_lsc_nca.npz")
    weight = tensor(record["weight"])
    classifier = holding(weight[part * K :], weight[: part * K])
    logits = classifier(tensor(record["x"])).detach().numpy()
    np.testing.assert_allclose(logits, record["logits"], **EXACT)


def test_imprinting(golden):
    record = golden("afc_imprint.npz")
    new, per_class, dim = record["fc2_rows_sorted_per_class"].shape
    assert (new, per_class) == (record["class_num_per_step"], K)
    classifier = holding(torch.zeros(new * K, dim), tensor(record["fc1_weight"]))
    assert classifier.old.norm(dim=1).mean().item() == pytest.approx(record["mean_fc1_norm"])
    labels = torch.as_tensor(record["labels"]) - record["step"] * record["class_num_per_step"]
    classifier.imprint(tensor(record["features"]), labels, n_init=10, seed=0)
    for index, rows in enumerate(classifier.new.detach().numpy().reshape(new, K, dim)):
        ordered = rows[np.lexsort(rows.T[::-1])]
        np.testing.assert_allclose(ordered, record["fc2_rows_sorted_per_class"][index], **EXACT)


def test_imprinting_classes_with_few_clips_or_none():
    torch.manual_seed(0)
    classifier = LocalSimilarityClassifier(4, 2).grown(5)
    random = classifier.new.detach().clone()
    features = torch.nn.functional.normalize(torch.randn(3, 4))
    classifier.imprint(features, torch.tensor([0, 0, 2]), n_init=10, seed=0)
    length = classifier.old.norm(dim=1).mean()
    first, none, single = torch.split(classifier.new.detach(), K)
    assert {tuple(row) for row in first.numpy().round(4)} == {
        tuple(row) for row in (length * features[:2]).numpy().round(4)
    }
    assert torch.equal(none, random[K : 2 * K])
    torch.testing.assert_close(single, (length * features[2]).expand(K, 4))


def test_a_grown_classifier_keeps_what_it_knows():
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    linear = LinearClassifier(6, 3)
    grown = linear.grown(7)
    torch.testing.assert_close(grown(x)[:, :3], linear(x))
    assert grown(x).shape == (5, 7)
    local = LocalSimilarityClassifier(6, 3)
    local.scale.data.fill_(2.0)
    once = local.grown(7)
    twice = once.grown(8)
    torch.testing.assert_close(once(x)[:, :3], local(x))
    torch.testing.assert_close(twice(x)[:, :7], once(x))
    assert twice(x).shape == (5, 8)
    # Old proxies are frozen, and the scale starts anew.
    assert [name for name, _ in twice.named_parameters()] == ["new", "scale"]
    assert once.scale.item() == 1.0


def test_proxies_begin_as_spread_as_linear_weights():
    torch.manual_seed(0)
    proxies = LocalSimilarityClassifier(256, 20).new
    assert proxies.std().item() == pytest.approx(1 / 16, rel=0.02)


def test_a_feature_of_nothing_but_zeros_has_a_score():
    scores = LocalSimilarityClassifier(6, 3)(torch.zeros(1, 6))
    torch.testing.assert_close(scores, torch.full((1, 3), -1.0))
