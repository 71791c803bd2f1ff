"""AV-CIL's loss terms, their paper forms and switches, against golden numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from avbench.learning.losses import attention_distillation, attention_divergence
from avbench.learning.method import Setup
from avbench.learning.network import Output
from avbench.learning.picked import Picked
from avbench.learning.stream import Batch
from reference_methods.avcil import (
    AVCIL,
    class_similarity,
    instance_similarity,
)
from reference_methods.ssil import SSIL
from tests.helpers.golden import PRECISIONS, Step, close, labels_of, tensor


def setup(modality: str = "audio-visual") -> Setup:
    return Setup(8, 8, modality, 0, torch.device("cpu"), print)


def given(
    record: dict[str, Any],
    method_class: type = AVCIL,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> tuple[Any, Batch, Output]:
    """A method whose networks say what the record says, the batch, and what the student says.

    What it says asks for gradients; only the loss is under test.
    """

    def said(logits: str, suffix: str, rows: slice = slice(None), **features: Tensor) -> Output:
        spatial, temporal = (
            tensor(record[f"{kind}_{suffix}"][rows], dtype) for kind in ("spatial", "temporal")
        )
        return Output(
            tensor(record[logits], dtype),
            tensor(0),
            spatial=spatial,
            temporal=temporal,
            spatial_entropy=torch.special.entr(spatial).sum(dim=2),
            **features,
        )

    features = {name: tensor(record[f"{name}_l2"], dtype) for name in ("audio", "visual")}
    exemplars = slice(record["n_current"], None)
    student, teacher = said("logits", "new", **features), said("old_logits", "old", exemplars)
    teacher = teacher._replace(spatial=None, spatial_reference=Picked(teacher.spatial))
    for name in ("logits", "audio", "visual", "spatial", "temporal"):
        getattr(student, name).requires_grad_()

    def network(audio, visual, *, maps=False, reference=None) -> Output:
        out = student if maps else student._replace(spatial=None)
        if reference is None:
            return out
        logs = student.spatial[exemplars].log()
        return out._replace(spatial_cross_entropy=-(reference.read() * logs).sum(dim=2))

    method = method_class(method_class.Settings(**settings), setup())
    method.network = network
    method.taught = lambda batch, attention=False: teacher
    return method, Batch(None, None, labels_of(record), record["n_current"]), student


def loss_of(record: dict[str, Any], method_class: type = AVCIL, **settings: Any) -> float:
    method, batch, _ = given(record, method_class, **settings)
    return method.loss(batch, Step(record)).item()


@PRECISIONS
@pytest.mark.parametrize(("key", "temperature"), [("", None), ("_tau0p1", 0.1)])
def test_similarity_constraints(golden, key, temperature, dtype):
    record = golden("loss_avcil.npz")
    audio, visual = tensor(record["audio_l2"], dtype), tensor(record["visual_l2"], dtype)
    tau = temperature or record["tau"]
    close(instance_similarity(audio, visual, tau), record[f"instance{key}"], dtype)
    classes = class_similarity(audio, visual, labels_of(record), tau)
    close(classes, record[f"class_official{key}"], dtype)


def test_similarity_in_both_directions(golden):
    record = golden("loss_avcil.npz")
    audio, visual = tensor(record["audio_l2"]), tensor(record["visual_l2"])
    back = instance_similarity(visual, audio, 0.1)
    both = instance_similarity(audio, visual, 0.1, symmetric=True)
    close(both, ((instance_similarity(audio, visual, 0.1) + back) / 2).item())
    on, off = (
        loss_of(record, symmetric=symmetric, c_avss=False, vad=False, lambda_instance=1.0)
        for symmetric in (True, False)
    )
    gap = instance_similarity(audio, visual, record["tau"], symmetric=True) - record["instance"]
    assert on - off == pytest.approx(gap.item(), abs=1e-9)


@PRECISIONS
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_attention_distillation(golden, kind, dtype):
    record = golden("loss_avcil.npz")
    rows = slice(record["n_current"], None)
    new, old = (tensor(record[f"{kind}_{which}"], dtype) for which in ("new", "old"))
    close(
        attention_distillation(attention_divergence(new[rows], old[rows])),
        record[f"vad_{kind}"],
        dtype,
    )


@PRECISIONS
@pytest.mark.parametrize("weights", ["usual", "alternative"])
def test_total_loss_and_its_gradients(golden, weights, dtype):
    record = golden("loss_avcil.npz")
    usual = (record["lam"], record["lam_I"], record["lam_C"])
    vad, instance, classes = usual if weights == "usual" else record["alt_lams"].tolist()
    method, batch, student = given(
        record,
        dtype=dtype,
        temperature=record["tau"],
        distillation_temperature=record["T"],
        lambda_vad=vad,
        lambda_instance=instance,
        lambda_class=classes,
    )
    loss = method.loss(batch, Step(record))
    close(loss, record["total" if weights == "usual" else "total_alt_lams"], dtype)
    if weights == "usual":
        loss.backward()
        close(student.logits.grad, record["grad_logits"], dtype)
        close(student.audio.grad, record["grad_audio_l2"], dtype)
        close(student.visual.grad, record["grad_visual_l2"], dtype)
        close(student.spatial.grad, record["grad_spatial"], dtype)
        close(student.temporal.grad, record["grad_temporal"], dtype)


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
