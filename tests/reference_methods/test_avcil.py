"""AV-CIL's loss terms, their paper forms and switches, against golden numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avbench.learning.losses import attention_distillation
from avbench.learning.method import Setup
from avbench.learning.network import Output
from avbench.learning.stream import Batch
from reference_methods.avcil import (
    AVCIL,
    AVCILSettings,
    class_similarity,
    instance_similarity,
)
from reference_methods.ssil import SSIL

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


def given(record: dict[str, Any], method_class: type, **settings: Any) -> tuple[Any, Batch, Step]:
    """A method whose networks say what the record says."""
    out = Output(
        tensor(record["logits"]),
        tensor(0),
        audio=tensor(record["audio_l2"]),
        visual=tensor(record["visual_l2"]),
        spatial=tensor(record["spatial_new"]),
        temporal=tensor(record["temporal_new"]),
    )
    old = Output(
        tensor(record["old_logits"]),
        tensor(0),
        spatial=tensor(record["spatial_old"]),
        temporal=tensor(record["temporal_old"]),
    )
    method = method_class(method_class.Settings(**settings), setup())
    method.network = lambda audio, visual: out
    method.teacher = lambda audio, visual: old
    labels = torch.as_tensor([*record["labels_current"], *record["labels_exemplar"]])
    batch = Batch(None, None, labels, record["n_current"])
    return method, batch, Step(record["step"], record["class_num_per_step"])


def loss_of(record: dict[str, Any], method_class: type = AVCIL, **settings: Any) -> float:
    method, batch, step = given(record, method_class, **settings)
    return float(method.loss(batch, step))


@pytest.mark.parametrize("i_avss", [True, False])
@pytest.mark.parametrize("c_avss", [True, False])
@pytest.mark.parametrize("vad", [True, False])
def test_the_switches_of_table_3(golden, i_avss, c_avss, vad):
    record = golden("loss_avcil.npz")
    weights = {
        "temperature": record["tau"],
        "lambda_instance": record["lam_I"],
        "lambda_class": record["lam_C"],
        "lambda_vad": record["lam"],
    }
    expected = (
        record["ss_ce"]
        + record["tkd_sum"]
        + i_avss * record["lam_I"] * record["instance"]
        + c_avss * record["lam_C"] * record["class_official"]
        + vad * record["lam"] * record["vad_spatial"]
        + vad * (1 - record["lam"]) * record["vad_temporal"]
    )
    loss = loss_of(record, i_avss=i_avss, c_avss=c_avss, vad=vad, **weights)
    assert loss == pytest.approx(expected, abs=1e-9)
    if not (i_avss or c_avss or vad):
        assert loss == loss_of(record, SSIL)


def test_the_papers_forms(golden):
    """Each option changes its own term, to the number the equation gives."""
    record = golden("loss_avcil.npz")
    off = {"i_avss": False, "c_avss": False, "vad": False}

    def term(switch: str, **settings: Any) -> float:
        base = {"kl_direction": settings.get("kl_direction", "official")}
        with_term = loss_of(record, **(off | {switch: True} | settings))
        return with_term - loss_of(record, **(off | base))

    direction = "_paper_direction__not_official"
    for lam, kind in ((1.0, "spatial"), (0.0, "temporal")):
        found = term("vad", lambda_vad=lam, kl_direction="paper")
        assert found == pytest.approx(record[f"vad_{kind}{direction}"], abs=1e-9)
        # One distribution a frame and channel, and one a channel.
        maps = record[f"{kind}_new"]
        count = maps[0].size / maps.shape[-2]
        found = term("vad", lambda_vad=lam, vad_reduction="paper")
        assert found == pytest.approx(record[f"vad_{kind}"] / count, abs=1e-9)
    for form, key in (
        ("supcon", "class_supcon_variant__not_official_default"),
        ("eq7", "class_eq7_literal__paper"),
    ):
        found = term("c_avss", class_contrast=form, temperature=record["tau"])
        assert found == pytest.approx(record[key], abs=1e-9)
    tkd = loss_of(record, **off, kl_direction="paper", distillation_temperature=1.0)
    expected = record["ss_ce"] + record["tkd_paper_direction_T1__not_official"]
    assert tkd == pytest.approx(expected, abs=1e-9)
