"""The network against golden numbers of the authors' code, and its growing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avbench.learning.network import AudioVisualNet
from tests.helpers.golden import PRECISIONS, close, tensor


@PRECISIONS
def test_audio_visual_forward(golden, golden_network, dtype):
    record = golden("model_d8_audio_visual.npz")
    network = golden_network(record, "w.", "audio-visual").to(dtype)
    out = network(tensor(record["audio"], dtype), tensor(record["visual"], dtype), maps=True)
    pooled, f_audio, f_visual = out.stages
    for found, key in (
        (out.logits, "logits"),
        (out.feature, "fused"),
        (F.normalize(out.feature), "fused_l2"),
        (out.audio, "audio_l2"),
        (out.visual, "visual_l2"),
        (out.spatial, "spatial_attn"),
        (out.temporal, "temporal_attn"),
        (pooled, "visual_pooled"),
        (f_audio, "audio_relu"),
        (f_visual, "visual_relu"),
    ):
        close(found, record[key], dtype)


@PRECISIONS
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_unimodal_forward(golden, golden_network, modality, dtype):
    record = golden(f"model_d8_{modality}.npz")
    network = golden_network(record, "w.", modality).to(dtype)
    audio, visual = (tensor(record.get(name, 0), dtype) for name in ("audio", "visual"))
    out = network(audio, visual)
    close(out.logits, record["logits"], dtype)
    close(out.feature, record["feature_relu"], dtype)
    close(out.stages[0], record["feature_relu"], dtype)
    close(getattr(out, modality), record["feature_l2"], dtype)


@PRECISIONS
def test_forward_at_full_width(golden, golden_network, dtype):
    record = golden("model_d768_recipe.npz")
    rng = np.random.RandomState(record["recipe_seed"])
    names = ("audio_proj", "visual_proj", "attn_audio_proj", "attn_visual_proj", "classifier")
    dim = record["fused"].shape[1]
    state = {}
    for name in names:
        rows = record["num_classes"] if name == "classifier" else dim
        state[f"w.{name}.weight"] = rng.standard_normal((rows, dim)) * 0.03
        state[f"w.{name}.bias"] = rng.standard_normal(rows) * 0.1
    network = golden_network(state, "w.", "audio-visual").to(dtype)
    visual = tensor(rng.standard_normal((record["B"], network.frames * record["S"], dim)))
    audio = tensor(rng.standard_normal((record["B"], dim)))
    first, last = record["check_audio_proj_w00"], record["check_audio_last"]
    close(state["w.audio_proj.weight"].flatten()[: len(first)], first)
    close(visual.sum().item(), record["check_visual_sum"])
    close(audio.flatten()[-len(last) :], last)
    out = network(audio.to(dtype), visual.to(dtype), maps=True)
    close(out.logits, record["logits"], dtype)
    close(out.feature, record["fused"], dtype)
    close(out.audio, record["audio_l2"], dtype)
    close(out.visual, record["visual_l2"], dtype)
    close(out.spatial.sum(dim=2).mean(dim=-1), record["spatial_attn_sum_over_space"], dtype)
    close(out.spatial[..., ::16], record["spatial_attn_every16"], dtype)
    close(out.temporal[..., ::16], record["temporal_attn_every16"], dtype)


def test_initial_weights_and_growing(golden):
    record = golden("init_seed.npz")
    torch.manual_seed(record["torch_seed"])
    dim = round(record["bound"] ** -2)
    network = AudioVisualNet(dim, record["num_classes"])
    state = network.state_dict()
    assert list(state) == record["param_order"].tolist()
    for name, value in state.items():
        first = value.flatten()[:5].numpy()
        np.testing.assert_allclose(first, record[f"init_first5.{name}"], rtol=1e-6)
    old = {name: value.clone() for name, value in state.items()}
    network.grow(2 * record["num_classes"])
    grown = network.classifier.weight.detach()
    close(grown[record["num_classes"] :].abs().max(), record["new_row_abs_max"], torch.float32)
    assert record["old_rows_kept"]
    for part in ("weight", "bias"):
        grown = network.state_dict()[f"classifier.{part}"]
        assert torch.equal(grown[: record["num_classes"]], old[f"classifier.{part}"])
        new = grown[record["num_classes"] :].flatten()[:5].numpy()
        np.testing.assert_allclose(new, record[f"grown_new_rows_first5.classifier.{part}"], 1e-6)
    assert network.classifier.weight.requires_grad


def test_attention_is_a_distribution_even_for_extreme_input():
    torch.manual_seed(0)
    network = AudioVisualNet(6, 3, frames=4)
    out = network(1e4 * torch.randn(2, 6), 1e4 * torch.randn(2, 4 * 5, 6), maps=True)
    torch.testing.assert_close(out.spatial.sum(dim=2), torch.ones(2, 4, 6))
    torch.testing.assert_close(out.temporal.sum(dim=1), torch.ones(2, 6))


def test_the_papers_form_of_attention_and_fusion(golden, golden_network):
    """Eq. 3 and 5, in NumPy, channel by channel."""
    record = golden("model_d8_audio_visual.npz")
    official = golden_network(record, "w.", "audio-visual")
    network = AudioVisualNet(
        *official.classifier.weight.shape[::-1],
        activation="paper",
        temporal_audio_guidance=False,
    ).double()
    network.load_state_dict(official.state_dict())
    w = {k: v.numpy() for k, v in official.state_dict().items()}

    def project(name, x):
        return np.tanh(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    audio, visual = record["audio"], record["visual"]
    tokens = visual.reshape(len(visual), network.frames, -1, visual.shape[-1])
    q, p = project("attn_audio_proj", audio), project("attn_visual_proj", tokens)
    spatial = np.exp(q[:, None, None] * p)
    spatial /= spatial.sum(axis=2, keepdims=True)
    temporal = np.exp((spatial * p).sum(axis=2))
    temporal /= temporal.sum(axis=1, keepdims=True)
    pooled = (temporal * (spatial * tokens).sum(axis=2)).sum(axis=1)
    fused = project("audio_proj", audio) + project("visual_proj", pooled)
    out = network(tensor(audio), tensor(visual))
    close(out.temporal, temporal)
    close(out.feature, fused)
    assert np.abs(out.feature.detach().numpy() - record["fused"]).max() > 1e-3
