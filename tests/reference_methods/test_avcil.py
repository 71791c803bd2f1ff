"""AV-CIL's losses and optimisation steps against golden numbers of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avbench.learning.method import Setup
from avbench.learning.network import AudioVisualNet, Output
from avbench.learning.stream import Batch
from reference_methods.avcil import (
    AVCIL,
    AVCILSettings,
    attention_distillation,
    class_similarity,
    instance_similarity,
)
from reference_methods.finetune import FineTuning

CPU = torch.device("cpu")


class Step:
    """The facts of a step, without its clips."""

    def __init__(self, step: int, per_step: int) -> None:
        self.step = step
        self.classes_per_step = (per_step,) * (step + 1)
        self.old_classes = step * per_step
        self.seen_classes = self.old_classes + per_step


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def setup(modality: str = "audio-visual") -> Setup:
    return Setup(8, 8, modality, 0, CPU, print)


@pytest.mark.parametrize(("key", "temperature"), [("", None), ("_tau0p1", 0.1)])
def test_similarity_constraints(golden, key, temperature):
    record = golden("loss_avcil.npz")
    audio, visual = tensor(record["audio_l2"]), tensor(record["visual_l2"])
    labels = torch.as_tensor([*record["labels_current"], *record["labels_exemplar"]])
    tau = temperature or record["tau"]
    instance = instance_similarity(audio, visual, tau).item()
    classes = class_similarity(audio, visual, labels, tau).item()
    assert instance == pytest.approx(record[f"instance{key}"], abs=1e-9)
    assert classes == pytest.approx(record[f"class_official{key}"], abs=1e-9)


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_attention_distillation(golden, kind):
    record = golden("loss_avcil.npz")
    rows = slice(record["n_current"], None)
    new, old = tensor(record[f"{kind}_new"]), tensor(record[f"{kind}_old"])
    loss = attention_distillation(new[rows], old[rows]).item()
    assert loss == pytest.approx(record[f"vad_{kind}"], abs=1e-9)


@pytest.mark.parametrize("weights", ["usual", "alternative"])
def test_total_loss_and_its_gradients(golden, weights):
    record = golden("loss_avcil.npz")
    inputs = {
        "logits": tensor(record["logits"]).requires_grad_(),
        "audio": tensor(record["audio_l2"]).requires_grad_(),
        "visual": tensor(record["visual_l2"]).requires_grad_(),
        "spatial": tensor(record["spatial_new"]).requires_grad_(),
        "temporal": tensor(record["temporal_new"]).requires_grad_(),
    }
    old = Output(
        tensor(record["old_logits"]),
        tensor(0),
        spatial=tensor(record["spatial_old"]),
        temporal=tensor(record["temporal_old"]),
    )
    usual = (record["lam"], record["lam_I"], record["lam_C"])
    vad, instance, classes = usual if weights == "usual" else record["alt_lams"].tolist()
    settings = AVCILSettings(
        temperature=record["tau"],
        lambda_vad=vad,
        lambda_instance=instance,
        lambda_class=classes,
    )
    method = AVCIL(settings, setup())
    # What the networks would say is given; only the loss is under test.
    method.network = lambda audio, visual: Output(feature=tensor(0), **inputs)
    method.teacher = lambda audio, visual: old
    labels = torch.as_tensor([*record["labels_current"], *record["labels_exemplar"]])
    step = Step(record["step"], record["class_num_per_step"])
    loss = method.loss(Batch(None, None, labels, record["n_current"]), step)
    expected = record["total" if weights == "usual" else "total_alt_lams"]
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    if weights == "usual":
        loss.backward()
        for name, key in (
            ("logits", "logits"),
            ("audio", "audio_l2"),
            ("visual", "visual_l2"),
            ("spatial", "spatial"),
            ("temporal", "temporal"),
        ):
            gradient = inputs[name].grad.numpy()
            np.testing.assert_allclose(gradient, record[f"grad_{key}"], rtol=1e-9, atol=1e-9)


def test_finetuning_loss_and_its_gradient(golden):
    record = golden("loss_baselines.npz")
    logits = tensor(record["logits"]).requires_grad_()
    method = FineTuning(FineTuning.Settings(), setup())
    method.network = lambda audio, visual: Output(logits, tensor(0))
    labels = torch.as_tensor(record["labels_new_only"])
    step = Step(record["step"], record["class_num_per_step"])
    loss = method.loss(Batch(None, None, labels, len(labels)), step)
    assert loss.item() == pytest.approx(record["ft_loss"], abs=1e-9)
    loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), record["ft_grad"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("method_class", "settings", "name"),
    [
        (AVCIL, AVCILSettings(lambda_instance=0.5), "ours_audio_visual"),
        (FineTuning, FineTuning.Settings(), "ft_audio_visual"),
        (FineTuning, FineTuning.Settings(), "ft_audio"),
        (FineTuning, FineTuning.Settings(), "ft_visual"),
    ],
)
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_three_adam_steps(golden, method_class, settings, name, dtype, exact):
    record = golden(f"traj_{name}.npz")
    modality = name.partition("_")[2].replace("_", "-")
    method = method_class(settings, setup(modality))
    method.network = _network(record, "w0.", modality).to(dtype)
    method.teacher = _network(record, "old.", modality).to(dtype)
    step = Step(record["step"], record["class_num_per_step"])
    optimizer = torch.optim.Adam(
        method.network.parameters(), lr=record["lr"], weight_decay=record["weight_decay"]
    )
    for number in range(record["n_batches"]):
        batch = _batch(record, f"b{number}.", "", dtype)
        if f"b{number}.ex_labels" in record:
            batch = batch.followed_by(_batch(record, f"b{number}.", "ex_", dtype))
        loss = method.loss(batch, step)
        assert loss.item() == pytest.approx(record[f"loss{number}"], rel=exact, abs=exact)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in method.network.state_dict().items():
        np.testing.assert_allclose(value.numpy(), record[f"w3.{key}"], rtol=exact, atol=exact)


def _network(record: dict[str, Any], prefix: str, modality: str) -> AudioVisualNet:
    state = {k.removeprefix(prefix): tensor(v) for k, v in record.items() if k.startswith(prefix)}
    classes, dim = state["classifier.weight"].shape
    network = AudioVisualNet(dim, classes, modality).double()
    network.load_state_dict(state)
    return network


def _batch(record: dict[str, Any], prefix: str, part: str, dtype: torch.dtype) -> Batch:
    def read(name: str) -> Tensor | None:
        key = f"{prefix}{part}{name}"
        return tensor(record[key]).to(dtype) if key in record else None

    labels = torch.as_tensor(record[f"{prefix}{part}labels"])
    return Batch(read("audio"), read("visual"), labels, len(labels))
