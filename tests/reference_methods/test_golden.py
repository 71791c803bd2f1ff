"""Every method against golden numbers of the authors' code: losses, gradients, training steps."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avbench import registry
from avbench.learning.gradient import GradientMethod
from avbench.learning.losses import nca, separated_softmax, task_distillation
from avbench.learning.method import Setup
from avbench.learning.network import Output
from avbench.learning.stream import Batch
from reference_methods.afc import AFCLSC, discrepancy
from reference_methods.finetune import FineTuning
from reference_methods.icarl import ICaRLFC, sigmoid_distillation
from reference_methods.lwf import LwF
from reference_methods.ssil import SSIL

# The record of each method's training steps. NME and FC or LSC train alike; so do the oracle and
# fine-tuning, on other data.
RECORDS = {
    "finetune": "ft",
    "oracle": "ft",
    "lwf": "lwf",
    "icarl-nme": "icarl",
    "icarl-fc": "icarl",
    "ssil": "ssil",
    "afc-nme": "afc",
    "afc-lsc": "afc",
    "avcil": "ours",
}
EXACT = {"rtol": 1e-9, "atol": 1e-9}


class Step:
    """The facts of a step, without its clips."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self.classes_per_step = (record["class_num_per_step"],) * (self.step + 1)
        self.old_classes = self.step * record["class_num_per_step"]
        self.seen_classes = self.old_classes + record["class_num_per_step"]


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def made(
    method_class: type[GradientMethod], modality: str = "audio-visual", **settings: Any
) -> Any:
    setup = Setup(1, 8, modality, 0, torch.device("cpu"), print)
    return method_class(method_class.Settings(**settings), setup)


def batch_of(record: dict[str, Any], prefix: str, dtype: torch.dtype) -> Batch:
    """Return a golden batch, its exemplars after the new clips."""

    def read(part: str) -> Batch:
        sound, sight = (
            tensor(record[f"{prefix}{part}{name}"]).to(dtype)
            if f"{prefix}{part}{name}" in record
            else None
            for name in ("audio", "visual")
        )
        labels = torch.as_tensor(record[f"{prefix}{part}labels"])
        return Batch(sound, sight, labels, len(labels))

    return read("").followed_by(read("ex_")) if f"{prefix}ex_labels" in record else read("")


def test_every_reference_method_has_a_record():
    """Whoever registers a method here brings the numbers it must meet."""
    points = registry.registered("methods")
    ours = {name for name, point in points.items() if point.value.startswith("reference_methods.")}
    assert ours == RECORDS.keys()


class Trajectory:
    """The golden training steps of a method, in double precision."""

    def __init__(self, name: str, modality: str, golden: Any, golden_network: Any) -> None:
        self.record = golden(f"traj_{RECORDS[name]}_{modality.replace('-', '_')}.npz")
        self.name, self.modality, self.network = name, modality, golden_network

    def method(self, dtype: torch.dtype) -> Any:
        # The authors' weight of I-AVSS on AVE, which the records were made with.
        weights = {"lambda_instance": 0.5} if self.name == "avcil" else {}
        method = made(registry.load("methods", self.name), self.modality, **weights)
        method.network = self.network(self.record, "w0.", self.modality).to(dtype)
        teacher = self.network(self.record, "old.", self.modality).to(dtype)
        method.teacher = teacher.requires_grad_(False)
        return method

    def run(self, method: Any, dtype: torch.dtype) -> Any:
        """Train, yielding number, loss and network after each backward pass."""
        record = self.record
        optimizer = torch.optim.Adam(
            method.network.parameters(), lr=record["lr"], weight_decay=record["weight_decay"]
        )
        for number in range(record["n_batches"]):
            loss = method.loss(batch_of(record, f"b{number}.", dtype), Step(record))
            optimizer.zero_grad()
            loss.backward()
            yield number, loss.item()
            optimizer.step()

    def expect_final(self, method: Any, exact: float) -> None:
        expected = self.network(self.record, "w3.", self.modality).state_dict()
        for key, value in method.network.state_dict().items():
            np.testing.assert_allclose(value.numpy(), expected[key], rtol=exact, atol=exact)


@pytest.fixture(
    params=[(n, m) for n in RECORDS for m in registry.load("methods", n).modalities],
    ids="-".join,
)
def trajectory(request, golden, golden_network) -> Trajectory:
    return Trajectory(*request.param, golden, golden_network)


def test_three_adam_steps(trajectory):
    method = trajectory.method(torch.float64)
    for number, loss in trajectory.run(method, torch.float64):
        expected = trajectory.record[f"loss{number}"]
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-9)
    trajectory.expect_final(method, 1e-9)


def test_three_adam_steps_in_single_precision(trajectory):
    """Losses and gradients at the same weights; and all three steps, where that can be asked.

    At the start of a step the gradient of distillation is nothing but rounding, which Adam scales
    up to the learning rate: for LwF's old classes and AFC's proxies there is no other gradient.
    """
    exact, single = trajectory.method(torch.float64), trajectory.method(torch.float32)
    for number, loss in trajectory.run(exact, torch.float64):
        single.network.load_state_dict(exact.network.state_dict())
        batch = batch_of(trajectory.record, f"b{number}.", torch.float32)
        found = single.loss(batch, Step(trajectory.record))
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss, rel=1e-5, abs=1e-5)
        single.network.zero_grad()
        found.backward()
        for one, other in zip(single.network.parameters(), exact.network.parameters(), strict=True):
            np.testing.assert_allclose(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    if RECORDS[trajectory.name] not in ("lwf", "afc"):
        single = trajectory.method(torch.float32)
        for number, loss in trajectory.run(single, torch.float32):
            assert loss == pytest.approx(trajectory.record[f"loss{number}"], rel=1e-5)
        trajectory.expect_final(single, 1e-5)


@pytest.mark.parametrize(
    ("method_class", "key", "labels"),
    [
        (FineTuning, "ft", "labels_new_only"),
        (LwF, "lwf", "labels_new_only"),
        (ICaRLFC, "icarl", "labels_all"),
        (SSIL, "ssil", None),
    ],
)
def test_loss_and_its_gradient(golden, method_class, key, labels):
    record = golden("loss_baselines.npz")
    prefix = "ssil_" if labels is None else ""
    logits = tensor(record[f"{prefix}logits"]).requires_grad_()
    teacher = tensor(record[f"{prefix}old_logits"])
    current = record["ssil_n_current"]
    chosen = (
        [*record["ssil_labels_current"], *record["ssil_labels_exemplar"]]
        if labels is None
        else record[labels]
    )
    method = made(method_class)
    method.network = lambda audio, visual: Output(logits, tensor(0))
    method.teacher = lambda audio, visual: Output(teacher, tensor(0))
    batch = Batch(None, None, torch.as_tensor(np.asarray(chosen)), current)
    loss = method.loss(batch, Step(record))
    assert loss.item() == pytest.approx(record[f"{key}_loss"], abs=1e-9)
    loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), record[f"{key}_grad"], **EXACT)


def test_icarls_own_distillation(golden):
    record = golden("loss_baselines.npz")
    logits, teacher = tensor(record["logits"]), tensor(record["old_logits"])
    method = made(ICaRLFC, icarl_distill="single_sigmoid")
    method.network = lambda audio, visual: Output(logits, tensor(0))
    method.teacher = lambda audio, visual: Output(teacher, tensor(0))
    labels = torch.as_tensor(record["labels_all"])
    loss = method.loss(Batch(None, None, labels, len(labels)), Step(record))
    distilled = record["icarl_distill_single_sigmoid__not_official"]
    assert loss.item() == pytest.approx(record["icarl_ce"] + distilled, abs=1e-9)


def test_the_hidden_branch_for_ave_is_plain_cross_entropy(golden):
    """With four classes a step on AVE the authors' second step is that; nothing here does it."""
    record = golden("special_case_AVE_4_per_step.npz")
    labels = torch.as_tensor([*record["labels_current"], *record["labels_exemplar"]])
    record |= {"step": 1, "class_num_per_step": record["old_logits"].shape[1]}
    step, batch = Step(record), Batch(None, None, labels, len(record["labels_current"]))
    logits = tensor(record["logits"])
    method = made(FineTuning)
    method.network = lambda audio, visual: Output(logits, tensor(0))
    assert method.loss(batch, step).item() == pytest.approx(record["ce_ours"], abs=1e-9)
    # SS-IL's script has the labels of new clips counted from 0 by then.
    wrong = labels.clone()
    wrong[: batch.current] -= step.old_classes
    loss = method.loss(batch._replace(labels=wrong), step)
    assert loss.item() == pytest.approx(record["ce_ssil_buggy_labels"], abs=1e-9)


@pytest.mark.parametrize("modality", ["audio-visual", "audio", "visual"])
def test_afcs_discrepancy(golden, golden_network, modality):
    record = golden(f"afc_discrepancy_{modality.replace('-', '_')}.npz")
    method = made(AFCLSC, modality, lambda_disc=record["lam_disc"])
    method.network = golden_network(record, "new.", modality)
    method.teacher = golden_network(record, "old.", modality).requires_grad_(False)
    method.network.classifier.old.requires_grad_()
    batch, step = batch_of(record, "", torch.float64), Step(record)

    out = method.network(batch.audio, batch.visual)
    np.testing.assert_allclose(out.logits.detach(), record["new_logits"], **EXACT)
    np.testing.assert_allclose(
        method.teacher(batch.audio, batch.visual).logits, record["old_logits"], **EXACT
    )
    for network, key in ((method.network, "loss_cls"), (method.teacher, "prev_loss_cls")):
        logits = network(batch.audio, batch.visual).logits
        loss = nca(logits, batch.labels, network.classifier.scale)
        assert loss.item() == pytest.approx(record[key], abs=1e-9)
    old, weights = method.importance(batch)
    if modality == "audio-visual":
        order = ("visual_pooled", "audio", "visual")
        for number, name in enumerate(order):
            np.testing.assert_allclose(weights[number], record[f"norm_I_{name}"], **EXACT)
            part = discrepancy(*([x[number]] for x in (out.stages, old, weights)))
            assert part.item() == pytest.approx(record[f"loss_I_{name}"], abs=1e-9)
    total = discrepancy(out.stages, old, weights)
    assert total.item() == pytest.approx(record["loss_disc"], abs=1e-9)
    assert math.sqrt(step.seen_classes / step.classes_per_step[-1]) == pytest.approx(
        record["lam_t"]
    )

    loss = method.loss(batch, step)
    assert loss.item() == pytest.approx(record["loss"], abs=1e-9)
    loss.backward()
    gradients = {k: p.grad for k, p in method.network.named_parameters()}
    gradients["classifier.old"] = method.network.classifier.old.grad
    expected = golden_gradients(record)
    assert gradients.keys() == expected.keys()
    for key, value in gradients.items():
        np.testing.assert_allclose(value, expected[key], **EXACT)


def golden_gradients(record: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients of a record under our names."""
    names = {
        "classifier.fc1.weight": "classifier.old",
        "classifier.fc2.weight": "classifier.new",
        "classifier.factor": "classifier.scale",
    }
    given = {k.removeprefix("grad."): v for k, v in record.items() if k.startswith("grad.")}
    return {names.get(k, k): v for k, v in given.items()}


BOTH = pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["double", "single"]
)


@BOTH
def test_nca_and_its_gradients(golden, dtype, exact):
    """For every scale of the file; its margins have no effect, being taken from all scores."""
    record = golden("afc_lsc_nca.npz")
    found = sorted(key.removesuffix("_loss") for key in record if re.fullmatch(r"nca\d+_loss", key))
    assert found
    for name in found:
        scores = tensor(record["logits"]).to(dtype).requires_grad_()
        scale = tensor(record[f"{name}_scale"]).to(dtype).requires_grad_()
        loss = nca(scores, torch.as_tensor(record["labels"]), scale)
        loss.backward()
        for value, key in ((loss, "loss"), (scores.grad, "grad_sim"), (scale.grad, "grad_scale")):
            expected = record[f"{name}_{key}"]
            np.testing.assert_allclose(value.detach(), expected, rtol=exact, atol=exact)


@BOTH
def test_parts_of_the_baselines_losses(golden, dtype, exact):
    record = golden("loss_baselines.npz")
    step, current = Step(record), record["ssil_n_current"]
    old = step.classes_per_step[:-1]

    def read(name: str) -> Tensor:
        return tensor(record[name]).to(dtype)

    def labels(name: str) -> Tensor:
        return torch.as_tensor(record[name])

    logits, teacher, ssil = read("logits"), read("old_logits"), read("ssil_logits")
    exemplars = labels("ssil_labels_exemplar")
    both = torch.cat([labels("ssil_labels_current"), exemplars])
    separate = separated_softmax(ssil, both, current=current, old_classes=step.old_classes)
    previous = F.cross_entropy(ssil[current:, : step.old_classes], exemplars)
    new = (separate * len(both) - previous * len(exemplars)) / current
    parts = {
        "lwf_kd": task_distillation(logits, teacher, old, temperature=record["T"]),
        "lwf_ce": F.cross_entropy(
            logits[:, step.old_classes :], labels("labels_new_only") - step.old_classes
        ),
        "icarl_ce": F.cross_entropy(logits, labels("labels_all")),
        "icarl_distill": sigmoid_distillation(logits[:, : step.old_classes], teacher, "official"),
        "ssil_kd": task_distillation(ssil, read("ssil_old_logits"), old, temperature=record["T"]),
        "ssil_ce": separate,
        "ssil_ce_previous": previous,
        "ssil_ce_current": new,
    }
    for name, value in parts.items():
        assert value.dtype == dtype
        assert value.item() == pytest.approx(record[name], rel=exact, abs=exact), name


def test_margins_count_for_the_true_class_only(golden):
    """The authors' margin has no effect, since it is taken from every score."""
    record = golden("afc_lsc_nca.npz")
    scores, labels = tensor(record["logits"]), torch.as_tensor(record["labels"])
    scale = tensor(2.0)
    y = 2 * (scores - 0.6 * torch.nn.functional.one_hot(labels, scores.shape[1]))
    y = (y - y.max(dim=1, keepdim=True).values).numpy()
    rows = np.arange(len(labels))
    others = np.exp(y).sum(axis=1) - np.exp(y[rows, labels])
    expected = np.mean(-y[rows, labels] + np.log(1 + others))
    assert nca(scores, labels, scale, 0.6).item() == pytest.approx(expected, abs=1e-12)
    assert nca(scores, labels, scale, 0.6).item() > nca(scores, labels, scale).item()


def test_importance_of_a_dead_teacher_is_finite(golden, golden_network):
    """Where no gradient reaches a feature, nothing is distilled, and nothing becomes NaN."""
    record = golden("afc_discrepancy_audio_visual.npz")
    method = made(AFCLSC)
    method.network = golden_network(record, "new.", "audio-visual")
    method.teacher = golden_network(record, "old.", "audio-visual").requires_grad_(False)
    for name in ("audio_proj", "visual_proj"):
        getattr(method.teacher, name).bias.fill_(-1e6)
    assert torch.isfinite(method.loss(batch_of(record, "", torch.float64), Step(record)))


@pytest.mark.parametrize("name", RECORDS)
def test_bad_settings_are_refused(name):
    settings = registry.load("methods", name).Settings
    for field in fields(settings):
        if field.type in ("int", "float", "int | None") and field.name != "margin":
            with pytest.raises(ValueError, match=field.name):
                settings(**{field.name: 0 if "int" in str(field.type) else math.nan})
