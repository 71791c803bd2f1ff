"""The network against golden numbers of the authors' code, and its growing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avbench.learning.network import AudioVisualNet

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def weights(record: dict[str, object], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): tensor(v) for k, v in record.items() if k.startswith(prefix)}


def from_weights(state: dict[str, Tensor], modality: str, frames: int = 8) -> AudioVisualNet:
    classes, dim = state["classifier.weight"].shape
    network = AudioVisualNet(dim, classes, modality, frames=frames).double()
    network.load_state_dict(state)
    return network


def close(actual: Tensor | None, expected: object) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.detach().numpy(), expected, **EXACT)


def test_audio_visual_forward(golden):
    record = golden("model_d8_audio_visual.npz")
    network = from_weights(weights(record, "w."), "audio-visual")
    audio, visual = tensor(record["audio"]), tensor(record["visual"])
    out = network(audio, visual)
    close(out.logits, record["logits"])
    close(out.feature, record["fused"])
    close(F.normalize(out.feature), record["fused_l2"])
    close(out.audio, record["audio_l2"])
    close(out.visual, record["visual_l2"])
    close(out.spatial, record["spatial_attn"])
    close(out.temporal, record["temporal_attn"])
    close(network.attend(audio, visual)[0], record["visual_pooled"])


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_unimodal_forward(golden, modality):
    record = golden(f"model_d8_{modality}.npz")
    network = from_weights(weights(record, "w."), modality)
    out = network(tensor(record.get("audio", 0)), tensor(record.get("visual", 0)))
    close(out.logits, record["logits"])
    close(out.feature, record["feature_relu"])
    close(getattr(out, modality), record["feature_l2"])


def test_forward_at_full_width(golden):
    record = golden("model_d768_recipe.npz")
    rng = np.random.RandomState(record["recipe_seed"])
    names = ("audio_proj", "visual_proj", "attn_audio_proj", "attn_visual_proj", "classifier")
    state = {}
    for name in names:
        rows = record["num_classes"] if name == "classifier" else 768
        state[f"{name}.weight"] = tensor(rng.standard_normal((rows, 768)) * 0.03)
        state[f"{name}.bias"] = tensor(rng.standard_normal(rows) * 0.1)
    visual = tensor(rng.standard_normal((record["B"], 8 * record["S"], 768)))
    audio = tensor(rng.standard_normal((record["B"], 768)))
    out = from_weights(state, "audio-visual")(audio, visual)
    close(out.logits, record["logits"])
    close(out.feature, record["fused"])
    close(out.audio, record["audio_l2"])
    close(out.visual, record["visual_l2"])
    close(out.spatial[..., ::16], record["spatial_attn_every16"])
    close(out.temporal[..., ::16], record["temporal_attn_every16"])


def test_initial_weights_and_growing(golden):
    record = golden("init_seed.npz")
    torch.manual_seed(record["torch_seed"])
    network = AudioVisualNet(768, record["num_classes"])
    state = network.state_dict()
    assert list(state) == record["param_order"].tolist()
    for name, value in state.items():
        first = value.flatten()[:5].numpy()
        np.testing.assert_allclose(first, record[f"init_first5.{name}"], rtol=1e-6)
    old = {name: value.clone() for name, value in state.items()}
    network.grow(2 * record["num_classes"])
    for part in ("weight", "bias"):
        grown = network.state_dict()[f"classifier.{part}"]
        assert torch.equal(grown[: record["num_classes"]], old[f"classifier.{part}"])
        new = grown[record["num_classes"] :].flatten()[:5].numpy()
        np.testing.assert_allclose(new, record[f"grown_new_rows_first5.classifier.{part}"], 1e-6)
    assert network.classifier.weight.requires_grad


def test_attention_is_a_distribution_even_for_extreme_input():
    torch.manual_seed(0)
    network = AudioVisualNet(6, 3, frames=4)
    out = network(1e4 * torch.randn(2, 6), 1e4 * torch.randn(2, 4 * 5, 6))
    torch.testing.assert_close(out.spatial.sum(dim=2), torch.ones(2, 4, 6))
    torch.testing.assert_close(out.temporal.sum(dim=1), torch.ones(2, 6))
