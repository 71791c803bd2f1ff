"""Herding and the nearest mean of exemplars against golden numbers of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avbench.learning.herding import class_mean, herd, nearest
from avbench.learning.memory import ExemplarMemory


def test_order_of_herding(golden):
    record = golden("herding_order.npz")
    features = record["features_l2"]
    order = herd(features, record["m"])
    assert order == record["order"].tolist()
    assert len(set(order)) == record["n_unique"]
    mean = class_mean(torch.as_tensor(features[order]), record["m"])
    np.testing.assert_allclose(mean, record["class_mean"], rtol=1e-5, atol=1e-6)


def test_a_class_smaller_than_its_share(golden):
    record = golden("herding_pure.npz")
    features = record["features_l2"]
    order = herd(features, record["m"])
    assert order == [position for position in record["order"] if position >= 0]
    assert len(order) == len(features) < record["m"]
    mean = class_mean(torch.as_tensor(features[order]), record["m"])
    expected = record["class_mean_with_zero_padding"]
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_memory_and_prediction_over_steps(golden):
    record = golden("herding_nme.npz")
    features = F.normalize(torch.as_tensor(record["features_raw"]))
    per_step = record["class_num_per_step"]
    memory = ExemplarMemory(record["memory_size"])
    for step in range(record["steps"]):
        places = memory.make_room((step + 1) * per_step)
        assert places == record[f"m_step{step}"]
        for index in range(step * per_step, (step + 1) * per_step):
            rows = np.flatnonzero(record["labels"] == index)
            memory.keep(index, rows[herd(features[rows].numpy(), places)].tolist())
        kept = list(memory.by_class.values())
        expected = record[f"exemplar_row_step{step}"]
        assert kept == [[row for row in rows if row >= 0] for rows in expected.tolist()]
        means = torch.stack([class_mean(features[rows], places) for rows in kept])
        np.testing.assert_allclose(means, record[f"class_mean_step{step}"], rtol=1e-5, atol=1e-6)
    predicted = nearest(torch.as_tensor(record["query_raw"]), means)
    assert predicted.tolist() == record["nme_pred"].tolist()


def test_herding_by_hand():
    """Each choice brings the mean of the chosen closest to the mean of all."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8, 3)).astype(np.float32)
    chosen = herd(features, 8)
    for count in range(1, 9):
        so_far = features[chosen[: count - 1]].sum(axis=0)
        gaps = [np.linalg.norm(features.mean(axis=0) - (so_far + x) / count) for x in features]
        assert chosen[count - 1] == int(np.argmin(gaps))
    assert len(set(chosen)) < 8


def test_without_replacement_every_clip_is_chosen_once():
    features = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    assert sorted(herd(features, 20, replacement=False)) == list(range(8))
    assert herd(features, 1) == herd(features, 1, replacement=False)


def test_edges():
    assert herd(np.zeros((0, 3), dtype=np.float32), 4) == []
    assert herd(np.ones((2, 3), dtype=np.float32), 0) == []
    # The first wins a tie.
    assert herd(np.ones((3, 3), dtype=np.float32), 1) == [0]
    assert class_mean(torch.zeros(0, 3), 4).tolist() == [0, 0, 0]


def test_an_empty_place_shortens_the_mean_unless_it_is_normalised():
    exemplars = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert class_mean(exemplars, 4).tolist() == pytest.approx([0.25, 0.25])
    assert class_mean(exemplars, 4, normalize=True).norm().item() == pytest.approx(1)
