"""What an object holds comes back as it was, or is refused with its name."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, deque

import numpy as np
import pytest
import torch
from torch import nn

from avbench.learning.snapshot import Snapshot
from avbench.types import AvbenchError


class Tracker:
    def __init__(self):
        self.total = torch.zeros(2)


class Holder:
    """As a step begins; what is set later comes from `work`."""

    def __init__(self):
        self.network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.alias = self.network[0].weight
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.generators = [
            random.Random(0),
            np.random.default_rng(0),
            np.random.Generator(np.random.MT19937(0)),
            np.random.RandomState(0),
            torch.Generator().manual_seed(0),
        ]
        self.tracker = Tracker()
        self.activate = torch.relu
        self.recent = deque(maxlen=2)

    def work(self):
        self.network(torch.arange(6.0).reshape(3, 2)).square().sum().backward()
        self.optimizer.step()
        self.network[0].note = "not in the state of a module"
        plain, *numpy, tensor = self.generators
        self.drawn = [plain.random(), *(g.random() for g in numpy)]
        torch.rand(3, generator=tensor)
        self.tracker.total = self.tracker.total + 1
        self.tracker.again = self.tracker
        self.recent.extend([1, 2, 3])
        self.arrays = {"a": np.arange(3, dtype=">u2"), 1: np.float16(0.5), (0, True): np.array("x")}
        self.small = torch.ones((), dtype=torch.bfloat16), torch.empty(0, 3), torch.tensor(True)
        self.both = [self.small[0], self.small[0]]
        self.counts, self.seen = Counter("aab"), frozenset({1.5, None})

    def drawing(self):
        plain, *numpy, tensor = self.generators
        return plain.random(), *(g.random() for g in numpy), torch.rand(1, generator=tensor).item()


def taken_up(first, second):
    """Put an object away and give another what it held, by way of a text."""
    tensors, record = first[0].write()
    second[0].read({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(record)))
    return second[1]


def begun(holder=Holder, apart=()):
    owner = holder()
    return Snapshot(owner, apart), owner


def test_all_that_is_held_comes_back():
    torch.manual_seed(0)
    one = begun()
    one[1].work()
    held = one[1]
    other = taken_up(one, begun())
    assert held.network.state_dict().keys() == other.network.state_dict().keys()
    for key, value in held.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[key], value, rtol=0, atol=0)
    assert other.network[0].note == held.network[0].note
    assert other.drawn == held.drawn
    torch.testing.assert_close(other.tracker.total, torch.ones(2), rtol=0, atol=0)
    assert other.recent == deque([2, 3], maxlen=2)
    assert other.recent.maxlen == 2
    assert [a.dtype for a in other.arrays.values()] == [a.dtype for a in held.arrays.values()]
    assert [*other.arrays] == ["a", 1, (0, True)]
    assert other.arrays["a"].tolist() == [0, 1, 2]
    assert [(t.dtype, t.shape) for t in other.small] == [(t.dtype, t.shape) for t in held.small]
    assert other.small[2].item() is True
    assert other.counts == Counter("aab")
    assert other.seen == frozenset({1.5, None})
    assert held.drawing() == other.drawing()
    # And goes on alike: momentum, and who shares what with whom.
    assert other.alias is other.network[0].weight
    assert other.both[0] is other.both[1] is other.small[0]
    assert other.tracker.again is other.tracker
    for each in (held, other):
        each.optimizer.step()
    torch.testing.assert_close(other.alias, held.alias, rtol=0, atol=0)


def late(self):
    self.late = Tracker()


def trained(self):
    self.late = nn.Parameter(torch.ones(1))


def grown(self):
    self.network.append(nn.Linear(2, 2))


def opaque(self):
    self.late = iter([1, 2])


def limited(self):
    self.late = deque(maxlen=1)


def objects(self):
    self.late = np.array([object()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (late, "self.late, a Tracker"),
        (trained, "self.late, a Parameter"),
        (grown, "self.network.2, a Linear"),
        (opaque, "self.late, a list_iterator"),
        (limited, "self.late, a deque"),
        (objects, "self.late, a ndarray"),
    ],
)
def test_what_cannot_be_kept_is_named(change, message):
    snapshot, owner = begun()
    change(owner)
    with pytest.raises(AvbenchError, match=f"--checkpoint-epochs cannot keep {message}: make it"):
        snapshot.write()


class Locked(Holder):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_what_is_out_of_reach_is_refused_even_if_it_was_there():
    snapshot, _ = begun(Locked)
    with pytest.raises(AvbenchError, match="self.lock, a lock"):
        snapshot.write()
    owner = Locked()
    Snapshot(owner, apart=[owner.lock]).write()


def test_an_object_that_is_not_made_again_is_named():
    one, other = begun(Locked, ()), begun()
    one[1].lock = None
    one[1].tracker, other[1].tracker = Tracker(), None
    first = Snapshot(one[1], ()), one[1]
    second = Snapshot(other[1], ()), other[1]
    with pytest.raises(AvbenchError, match=r"self.tracker is made by neither restore\(\) nor"):
        taken_up(first, second)
