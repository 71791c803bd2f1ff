"""What is learned is counted wherever it is, and is in the checkpoint or the run ends."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from avbench import registry
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.stored import check_stored, stored_bytes, trainable
from avbench.learning.stream import ProtocolError
from reference_methods.finetune import FineTuning

QUICK = {"epochs": "1", "batch_size": "8"}


class Holding:
    """A method as far as the search goes: an object with attributes."""

    def __init__(self, **held):
        vars(self).update(held)


def closed_over(thing):
    return lambda: thing


@pytest.mark.parametrize(
    ("hide", "place"),
    [
        (lambda net: net, "held.weight"),
        (lambda net: [net], "held.0.weight"),
        (lambda net: {"a": (net,)}, "held.a.0.weight"),
        (lambda net: Holding(inside={net}), "held.inside.0.weight"),
        (lambda net: nn.ModuleList([net]), "held.0.weight"),
        (lambda net: partial(print, net), "held.0.weight"),
        (closed_over, "held.thing.weight"),
        (lambda net: net.forward, "held.self.weight"),
        (lambda net: net.weight, "held"),
    ],
)
def test_what_gradients_reach_is_found_wherever_it_is_held(hide, place):
    net = nn.Linear(2, 3, bias=False)
    method = Holding(held=hide(net))
    assert list(trainable(method)) == [place]
    check_stored(trainable(method), {"any": net.weight.detach().clone()})
    check_stored(trainable(method), {"half": net.weight.half()})
    with pytest.raises(ProtocolError, match=f"^{place} is trainable, but in no checkpoint: let"):
        check_stored(trainable(method), {"any": torch.zeros(3, 2), "other": torch.zeros(6)})
    net.requires_grad_(False)
    assert trainable(method) == {}


def test_a_module_may_hold_others_that_it_does_not_register():
    outer = nn.Linear(2, 2, bias=False)
    outer.hidden = [nn.Linear(2, 2, bias=False)]
    assert set(trainable(Holding(net=outer))) == {"net.weight", "net.hidden.0.weight"}


def test_networks_of_a_class_and_no_optimizers():
    class Shared(Holding):
        net = nn.Linear(1, 1, bias=False)

    old = nn.Parameter(torch.ones(1))
    method = Shared(optimizer=torch.optim.SGD([old], lr=1.0))
    assert list(trainable(method)) == ["net.weight"]


def test_bytes_are_counted_by_name_in_their_precision():
    state = {
        "net.weight": torch.zeros(2, 3),
        "net.bias": torch.zeros(2, dtype=torch.float16),
        "means": torch.zeros(5, dtype=torch.float64),
        "none": torch.empty(0),
    }
    assert stored_bytes(state) == {"net": 28, "means": 40, "none": 0}


class Experts(FineTuning):
    """Keeps a network a step in a list, and statistics."""

    kept: bool

    def start(self, task):
        super().start(task)
        self.experts = [*getattr(self, "experts", []), nn.Linear(3, 2)]
        self.covariance = torch.eye(4)

    def state(self):
        experts = {
            f"experts.{number}.{name}": tensor
            for number, expert in enumerate(self.experts)
            for name, tensor in expert.state_dict().items()
        }
        return super().state() | {"covariance": self.covariance} | (experts if self.kept else {})


class Keeping(Experts):
    kept = True


class Forgetting(Experts):
    kept = False


@pytest.fixture
def benchmark(tiny, with_features):
    made = tiny()
    with_features(made)
    return made


def run(benchmark, method, out: Path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "load", lambda group, name: method)
        return evaluate(benchmark, "own", seeds=[0], out=out, settings=QUICK)


def test_a_result_says_what_a_method_stores_by_name(benchmark, tmp_path, monkeypatch):
    result = run(benchmark, Keeping, tmp_path / "run", monkeypatch)
    for step, cost in enumerate(result.runs[0].cost):
        weights = load_file(tmp_path / "run" / "seed-0" / f"step-{step + 1}.safetensors")
        assert cost.stored_bytes["experts"] == 4 * 8 * (step + 1)
        assert cost.stored_bytes["covariance"] == 4 * 16
        assert sum(cost.stored_bytes.values()) == sum(w.nbytes for w in weights.values())
        assert cost.trainable_parameters == cost.stored_parameters - 16
    assert result.stored_bytes == result.runs[0].cost[-1].stored_bytes


def test_a_run_whose_checkpoint_lacks_a_network_ends(benchmark, tmp_path, monkeypatch):
    with pytest.raises(ProtocolError, match="experts.0.(weight|bias) is trainable, but in no"):
        run(benchmark, Forgetting, tmp_path / "run", monkeypatch)


def test_it_is_shown_beside_the_exemplars(tiny, with_features, avbench):
    store = with_features(tiny())
    arguments = ["--benchmark", "tiny.toml", "--features", store.folder]
    arguments += ["--set", "epochs=1", "--set", "batch_size=8"]
    text = avbench("evaluate", "--method", "icarl-nme", *arguments).stdout
    assert "exemplars of icarl-nme: at most 12 clips, 0.0 MB" in text
    assert "checkpoint of icarl-nme: at most 0.0 MB (audio_proj 0.0, " in text
    assert "class_means 0.0)" in text
