"""The mean of a clip's tokens stands for them, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avbench.evaluation.evaluator import evaluate
from avbench.features import means as module
from avbench.features.means import damaged_means, token_means
from avbench.features.store import FeatureStore, create
from avbench.learning.gradient import GradientMethod
from avbench.learning.network import AudioVisualNet
from avbench.types import AvbenchError


@pytest.fixture
def real(tmp_path):
    """Few clips, at the real shape."""
    rng = np.random.default_rng(3)
    with create(
        tmp_path / "features" / "p",
        preset={"name": "p"},
        fingerprint="f",
        clip_ids=list("abcde"),
        dim=768,
        frames=8,
        cells=196,
    ) as writer:
        for row in range(5):
            writer.write(row, rng.normal(size=768), rng.normal(size=(1568, 768)))
    return FeatureStore.open(tmp_path / "features" / "p")


def read(store, rows):
    rows = np.array(rows)
    return token_means(store)(rows, np.empty((len(rows), 1, store.dim), np.float32))


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_identical(real, threads):
    network = AudioVisualNet(768, 28, "visual").eval()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in ([0], [4, 1, 1], [3, 0, 2, 4, 1]):
            tokens = torch.from_numpy(real.visual(np.array(rows)))
            means = torch.from_numpy(read(real, rows))
            with torch.no_grad():
                logits = network(None, tokens).logits
                assert torch.equal(logits, network(None, means).logits)
                assert torch.equal(logits, network(None, tokens.float()).logits)
    finally:
        torch.set_num_threads(before)


def test_they_are_made_once_and_kept(real, monkeypatch):
    first = read(real, [2, 0])
    np.testing.assert_array_equal(np.load(real.folder / "means.npy")[[2, 0]], first[:, 0])
    assert {path.name for path in real.folder.glob("*")} >= {"means.npy", "visual.npy"}
    monkeypatch.setattr(module, "_average", None)
    np.testing.assert_array_equal(read(FeatureStore.open(real.folder), [2, 0]), first)


def test_where_nothing_can_be_written_they_are_computed(real, monkeypatch):
    expected = read(real, [4, 3])
    (real.folder / "means.npy").unlink()

    def full(*arguments, **options):
        raise AvbenchError("the disk is full")

    monkeypatch.setattr(module, "replacing", full)
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", 1)
    np.testing.assert_array_equal(read(real, [4, 3]), expected)
    assert not (real.folder / "means.npy").exists()


def test_damaged_means_are_named(real):
    read(real, [0])
    path = Path(real.folder / "means.npy")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AvbenchError, match=r"means\.npy: cut short"):
        read(real, [0])


@pytest.mark.parametrize("at_a_time", [1, 1 << 30])
def test_means_that_are_not_those_of_the_tokens_are_found(real, monkeypatch, at_a_time):
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", at_a_time)
    assert damaged_means(real) == []  # none are kept yet
    assert not (real.folder / "means.npy").exists()
    read(real, [0])
    assert damaged_means(real) == []
    kept = np.load(real.folder / "means.npy", mmap_mode="r+")
    kept[[1, 4], 700] *= 2
    kept.flush()
    assert damaged_means(FeatureStore.open(real.folder)) == ["b", "e"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["icarl-nme", "afc-lsc", "oracle"])
def test_visual_runs_are_the_same_as_with_all_tokens(
    tiny, with_features, tmp_path, monkeypatch, method
):
    benchmark = tiny()
    store = with_features(benchmark)
    found = []
    for mean in (True, False):
        monkeypatch.setattr(GradientMethod, "mean_of_tokens", mean)
        out = tmp_path / str(mean)
        settings = {"epochs": "2", "batch_size": "8"}
        result = evaluate(
            benchmark, method, seeds=[0], out=out, settings=settings, modality="visual"
        )
        states = sorted(out.glob("seed-0/step-*.safetensors"))
        found.append([path.read_bytes() for path in states])
        clip = 12 * 4 if mean else 32 * 12 * 2
        for use in result.memory[0]:  # a clip may be herded twice
            assert use["bytes"] % clip == 0
            assert use["bytes"] <= use["clips"] * clip
    assert found[0] == found[1]
    assert (store.folder / "means.npy").is_file()
