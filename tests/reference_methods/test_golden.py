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
from avbench.learning.teaching import Lessons
from reference_methods.afc import AFCLSC, discrepancy, shares
from reference_methods.finetune import FineTuning
from reference_methods.icarl import ICaRLFC, sigmoid_distillation
from reference_methods.lwf import LwF
from reference_methods.ssil import SSIL
from tests.helpers.golden import EXACT, PRECISIONS, Step, batch_of, close, labels_of, tensor

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


def made(
    method_class: type[GradientMethod], modality: str = "audio-visual", **settings: Any
) -> Any:
    setup = Setup(1, 8, modality, 0, torch.device("cpu"), print)
    return method_class(method_class.Settings(**settings), setup)


def test_every_reference_method_has_a_record():
    """Whoever registers a method here brings the numbers it must meet."""
    points = registry.registered("methods")
    ours = {name for name, point in points.items() if point.value.startswith("reference_methods.")}
    assert ours == RECORDS.keys()


class Trajectory:
    """The golden training steps of a method."""

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
        method.lessons = Lessons(method.teacher, Step(self.record))
        return method

    def run(self, method: Any, dtype: torch.dtype) -> Any:
        """Train, yielding number and loss after each backward pass."""
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

    def last(self) -> dict[str, Tensor]:
        """Return the weights after the last step."""
        return self.network(self.record, "w3.", self.modality).state_dict()


@pytest.fixture(
    params=[(n, m) for n in RECORDS for m in registry.load("methods", n).modalities],
    ids="-".join,
)
def trajectory(request, golden, golden_network) -> Trajectory:
    return Trajectory(*request.param, golden, golden_network)


def test_three_adam_steps(trajectory):
    method = trajectory.method(torch.float64)
    for number, loss in trajectory.run(method, torch.float64):
        close(loss, trajectory.record[f"loss{number}"])
    expected = trajectory.last()
    for key, value in method.network.state_dict().items():
        close(value, expected[key])


def test_each_adam_step_in_single_precision(trajectory):
    """Loss and gradients of every step, from the weights that double precision has there.

    A run left to itself in single precision soon has other weights: Adam makes steps of the
    learning rate out of gradients that are rounding alone. Where a feature is almost zero, or
    almost the teacher's, its direction has fewer digits: one number in twenty may lack one.
    """
    record, single = trajectory.record, torch.float32
    exact, alike = trajectory.method(torch.float64), trajectory.method(single)
    off = []
    for number, loss in trajectory.run(exact, torch.float64):
        alike.network.load_state_dict(exact.network.state_dict())
        found = alike.loss(batch_of(record, f"b{number}.", single), Step(record))
        close(found, loss, single)
        alike.network.zero_grad()
        found.backward()
        for one, other in zip(alike.network.parameters(), exact.network.parameters(), strict=True):
            off.append(
                (one.grad - other.grad).abs().flatten() / other.grad.abs().max().clamp_min(1)
            )
    assert torch.cat(off).max() <= 10 * EXACT[single]
    assert (torch.cat(off) > EXACT[single]).double().mean() <= 0.05


def stated(method_class: type[GradientMethod], logits: Any, teacher: Any, **settings: Any) -> Any:
    """Return a method whose networks give these scores."""
    method = made(method_class, **settings)
    method.network = lambda audio, visual: Output(logits, tensor(0))
    method.taught = lambda batch: Output(teacher, tensor(0))
    return method


@PRECISIONS
@pytest.mark.parametrize(
    ("method_class", "key", "labels"),
    [
        (FineTuning, "ft", "labels_new_only"),
        (LwF, "lwf", "labels_new_only"),
        (ICaRLFC, "icarl", "labels_all"),
        (SSIL, "ssil", None),
    ],
)
def test_loss_and_its_gradient(golden, method_class, key, labels, dtype):
    record = golden("loss_baselines.npz")
    prefix = "ssil_" if labels is None else ""
    logits = tensor(record[f"{prefix}logits"], dtype).requires_grad_()
    teacher = tensor(record[f"{prefix}old_logits"], dtype)
    distils = {"distillation_temperature": record["T"]} if key in ("lwf", "ssil") else {}
    method = stated(method_class, logits, teacher, **distils)
    if labels is None:
        chosen = labels_of(record, "ssil_")
        current = record["ssil_n_current"]
        assert len(chosen) == current + record["ssil_n_exemplar"]
    else:
        chosen = torch.as_tensor(record[labels])
        current = len(chosen)
    loss = method.loss(Batch(None, None, chosen, current), Step(record))
    close(loss, record[f"{key}_loss"], dtype)
    loss.backward()
    close(logits.grad, record[f"{key}_grad"], dtype)


def test_icarls_own_distillation(golden):
    record = golden("loss_baselines.npz")
    logits, teacher = tensor(record["logits"]), tensor(record["old_logits"])
    method = stated(ICaRLFC, logits, teacher, icarl_distill="single_sigmoid")
    labels = torch.as_tensor(record["labels_all"])
    loss = method.loss(Batch(None, None, labels, len(labels)), Step(record))
    close(loss, record["icarl_ce"] + record["icarl_distill_single_sigmoid__not_official"])


def test_icarls_own_classification(golden):
    """Algorithm 3 in NumPy: every class for itself and alike, the old ones towards the teacher."""
    record = golden("loss_baselines.npz")
    labels, step = torch.as_tensor(record["labels_all"]), Step(record)
    logits, teacher = tensor(record["logits"]), tensor(record["old_logits"])
    own = {"icarl_classify": "sigmoid", "icarl_distill": "single_sigmoid"}
    method = stated(ICaRLFC, logits, teacher, **own)
    loss = method.loss(Batch(None, None, labels, len(labels)), step)

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    g, q, y = sigmoid(record["logits"]), sigmoid(record["old_logits"]), record["labels_all"]
    entropies = []
    for i, j in np.ndindex(g.shape):
        target = q[i, j] if j < step.old_classes else float(y[i] == j)
        entropies.append(-target * np.log(g[i, j]) - (1 - target) * np.log(1 - g[i, j]))
    close(loss, np.mean(entropies))


@pytest.mark.parametrize("method_class", [LwF, SSIL])
def test_the_papers_distillation(golden, method_class):
    """Eq. 13: KL(new || old) without temperature, added to the rest of the loss."""
    record = golden("loss_baselines.npz")
    prefix = "ssil_" if method_class is SSIL else ""
    logits, teacher = tensor(record[f"{prefix}logits"]), tensor(record[f"{prefix}old_logits"])
    labels = labels_of(record, "ssil_") if prefix else torch.as_tensor(record["labels_new_only"])
    own = {"kl_direction": "paper", "distillation_temperature": 1.0}
    method = stated(method_class, logits, teacher, **own)
    loss = method.loss(Batch(None, None, labels, record["ssil_n_current"]), Step(record))
    expected = record["ssil_ce"] if prefix else record["lwf_ce"]
    per_step = record["class_num_per_step"]
    for first in range(0, Step(record).old_classes, per_step):
        new, old = (np.exp(x[:, first : first + per_step].numpy()) for x in (logits, teacher))
        new, old = new / new.sum(1, keepdims=True), old / old.sum(1, keepdims=True)
        expected += (new * np.log(new / old)).sum() / len(new)
    close(loss, expected)


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


@PRECISIONS
@pytest.mark.parametrize("modality", ["audio-visual", "audio", "visual"])
def test_afcs_discrepancy(golden, golden_network, modality, dtype):
    record = golden(f"afc_discrepancy_{modality.replace('-', '_')}.npz")
    method = made(AFCLSC, modality, lambda_disc=record["lam_disc"])
    method.network = golden_network(record, "new.", modality).to(dtype)
    method.teacher = golden_network(record, "old.", modality).to(dtype).requires_grad_(False)
    method.lessons = Lessons(method.teacher, Step(record))
    method.network.classifier.old.requires_grad_()
    batch, step = batch_of(record, "", dtype), Step(record)

    out = method.network(batch.audio, batch.visual)
    close(out.logits, record["new_logits"], dtype)
    close(method.teacher(batch.audio, batch.visual).logits, record["old_logits"], dtype)
    for network, key in ((method.network, "loss_cls"), (method.teacher, "prev_loss_cls")):
        logits = network(batch.audio, batch.visual).logits
        close(nca(logits, batch.labels, network.classifier.scale), record[key], dtype)
    old, importance = method.importance(batch)
    weights = shares(importance)
    if modality == "audio-visual":
        order = ("visual_pooled", "audio", "visual")
        for number, name in enumerate(order):
            close(importance[number], record[f"I_{name}"], dtype)
            close(weights[number], record[f"norm_I_{name}"], dtype)
            part = discrepancy(*([x[number]] for x in (out.stages, old, weights)))
            close(part, record[f"loss_I_{name}"], dtype)
    close(discrepancy(out.stages, old, weights), record["loss_disc"], dtype)
    close(math.sqrt(step.seen_classes / step.classes_per_step[-1]), record["lam_t"])

    loss = method.loss(batch, step)
    close(loss, record["loss"], dtype)
    loss.backward()
    gradients = {k: p.grad for k, p in method.network.named_parameters()}
    gradients["classifier.old"] = method.network.classifier.old.grad
    expected = golden_gradients(record)
    assert gradients.keys() == expected.keys()
    for key, value in gradients.items():
        close(value, expected[key], dtype)


def golden_gradients(record: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients of a record under our names."""
    names = {
        "classifier.fc1.weight": "classifier.old",
        "classifier.fc2.weight": "classifier.new",
        "classifier.factor": "classifier.scale",
    }
    given = {k.removeprefix("grad."): v for k, v in record.items() if k.startswith("grad.")}
    return {names.get(k, k): v for k, v in given.items()}


@PRECISIONS
def test_nca_and_its_gradients(golden, dtype):
    """For every scale of the file; its margins have no effect, being taken from all scores."""
    record = golden("afc_lsc_nca.npz")
    found = sorted(key.removesuffix("_loss") for key in record if re.fullmatch(r"nca\d+_loss", key))
    assert found
    for name in found:
        scores = tensor(record["logits"], dtype).requires_grad_()
        scale = tensor(record[f"{name}_scale"], dtype).requires_grad_()
        loss = nca(scores, torch.as_tensor(record["labels"]), scale)
        loss.backward()
        close(loss, record[f"{name}_loss"], dtype)
        close(scores.grad, record[f"{name}_grad_sim"], dtype)
        close(scale.grad, record[f"{name}_grad_scale"], dtype)


@PRECISIONS
def test_parts_of_the_baselines_losses(golden, dtype):
    record = golden("loss_baselines.npz")
    step, current = Step(record), record["ssil_n_current"]
    old = step.classes_per_step[:-1]

    def read(name: str) -> Tensor:
        return tensor(record[name], dtype)

    def labels(name: str) -> Tensor:
        return torch.as_tensor(record[name])

    logits, teacher, ssil = read("logits"), read("old_logits"), read("ssil_logits")
    exemplars = labels("ssil_labels_exemplar")
    both = labels_of(record, "ssil_")
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
        close(value, record[name], dtype)


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
    method.lessons = Lessons(method.teacher, Step(record))
    assert torch.isfinite(method.loss(batch_of(record, "", torch.float64), Step(record)))


@pytest.mark.parametrize("name", RECORDS)
def test_bad_settings_are_refused(name):
    settings = registry.load("methods", name).Settings
    for field in fields(settings):
        if field.type in ("int", "float", "int | None") and field.name != "margin":
            with pytest.raises(ValueError, match=field.name):
                settings(**{field.name: 0 if "int" in str(field.type) else math.nan})
