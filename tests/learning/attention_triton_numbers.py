"""What the kernels in Triton compute: under Triton's interpreter, or on a GPU without it.

`test_attention_triton.py` runs this file in a process of its own, as Triton has to know at its
import whether it interprets; by hand: TRITON_INTERPRET=1 pytest tests/learning/FILE.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import avbench.learning
from avbench.learning import attention, attention_triton, kernel
from avbench.learning.attention import attend
from tests.helpers.attention import EXACT, by_definition, compare, inputs, with_gradients

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
GUARD = 4096


@pytest.fixture(autouse=True)
def _by_triton(monkeypatch):
    def by_triton(name, *tensors):
        getattr(attention_triton, name)(*tensors)
        return True

    monkeypatch.setattr(attention, "_by_kernel", by_triton)


def given(dtype, **sizes):
    return [None if x is None else x.to(DEVICE) for x in inputs(dtype, **sizes)]


def on_cpu(tensors):
    return [x.cpu() for x in tensors]


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"referring": 0},
        {"cells": 1, "dim": 150, "referring": 5},
        {"clips": 1, "frames": 2, "cells": 196, "dim": 128, "referring": 1},
        {"clips": 2, "cells": 17, "dim": 257, "referring": 1},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_definition(dtype, sizes, monkeypatch):
    monkeypatch.setitem(attention._TOKENS, DEVICE.type, 50)
    expected = with_gradients(by_definition, *inputs(torch.float64, **sizes))
    compare(on_cpu(with_gradients(attend, *given(dtype, **sizes))), expected, EXACT[dtype])


def test_outputs_and_gradients_are_those_of_plain_torch(monkeypatch):
    found = with_gradients(attend, *given(torch.float32, dim=150))
    monkeypatch.setattr(attention, "_by_kernel", lambda name, *tensors: False)
    compare(found, with_gradients(attend, *given(torch.float32, dim=150)), 1e-5)


def test_gradients_by_finite_differences():
    query, tokens, weight, bias, reference = given(torch.float64, clips=2, dim=4, cells=3)
    learned = [x.requires_grad_() for x in (query, weight, bias)]
    torch.autograd.gradcheck(
        lambda q, w, b: attend(q, tokens, w, b, reference)[:4], learned, fast_mode=True
    )


def test_extreme_and_wrong_numbers():
    query, tokens, weight, bias, reference = given(torch.float64)
    large = (query, 1e4 * tokens, weight, bias, reference)
    expected = with_gradients(by_definition, *large)
    single = with_gradients(attend, *(x.float() for x in large))
    for found, wanted in zip(single, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    bias[3] = float("nan")
    out = attend(query.requires_grad_(), tokens, weight, bias, reference)
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in out[:4]), query)
    for found in (*out[:4], gradient):
        assert found[..., 3].isnan().all()
        assert found[..., :3].isfinite().all()
        assert found[..., 4:].isfinite().all()


def test_tanh_from_the_smallest_number_to_infinity():
    asked = torch.cat([torch.logspace(-30, 4, 500), torch.tensor([0, float("inf")])])
    asked = torch.cat([asked, -asked]).to(DEVICE).view(1, 1, 1, -1)
    keys, zero = asked.clone(), torch.zeros_like(asked)
    out = [torch.empty_like(asked[0]) for _ in range(3)]
    attention_triton.attention_forward(keys, zero[0, 0, 0], zero, zero[0, 0], None, *out, None)
    assert (keys.double() - asked.double().tanh()).abs().max() < 1e-6


def guarded(tensor):
    """Put a tensor in front of what is not a number."""
    whole = torch.full((tensor.numel() + GUARD,), float("nan"), device=DEVICE)
    inside = whole[: tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor), whole[tensor.numel() :]


@pytest.mark.parametrize("refers", [False, True])
def test_nothing_beyond_an_array_is_used_or_written(refers):
    clips, frames, cells, dim = 2, 1, 9, 130
    query, tokens, _, bias, reference = given(
        torch.float32, clips=clips, frames=frames, cells=cells, dim=dim, referring=clips
    )
    pooled = torch.ones(clips, frames, dim)
    outs = [guarded(pooled) for _ in range(10)]
    u, v, z, r, du, dv, dz, dr, db, dq = (inside for inside, _ in outs)
    arrays = [guarded(x) for x in (query, tokens, bias, tokens, reference, tokens)]
    q, x, b, p, m, d = (inside for inside, _ in arrays)
    m, r, dr = (m, r, dr) if refers else (None, None, None)
    attention_triton.attention_forward(p, b, x, q, m, u, v, z, r)
    attention_triton.attention_backward(p, x, q, m, u, v, z, du, dv, dz, dr, d, db, dq)
    for inside, beyond in outs + arrays:
        assert inside.isfinite().all()
        assert beyond.isnan().all()


def test_right_numbers_are_trusted(caplog):
    assert kernel.load_triton.__wrapped__(DEVICE) is attention_triton
    assert not caplog.records


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("r += tl.load", "r -= tl.load", "reference wrong"),
        ("d += tl.load", "d -= tl.load", "gradient wrong"),
        ("u += e * p", "u += e", "scores wrong"),
        ("v += e * x", "v += x", "values wrong"),
        ("where(x < 0", "where(x < -1", "keys wrong"),
        ("* (p - u) + dv", "* p + dv", "gradient wrong"),
        ("db += d", "db = d", "gradient of the bias wrong"),
        ("dq += ds * p", "dq += ds", "gradient of the query wrong"),
        ("def _pool(", "def _pool(\n    more,", "plain torch"),
        ("tl.exp(-2", "tl.no_such(-2", "no_such"),
        ("import triton\n", "import no_such_triton as triton\n", "No module named"),
    ],
)
def test_kernels_that_are_wrong_or_do_not_run_are_not_used(
    right, wrong, said, tmp_path, monkeypatch, caplog
):
    source = Path(attention_triton.__file__).read_text()
    assert source.count(right) == 1
    path = tmp_path / "attention_triton.py"
    path.write_text(source.replace(right, wrong))
    monkeypatch.delitem(sys.modules, attention_triton.__name__)
    monkeypatch.delattr(avbench.learning, "attention_triton")
    monkeypatch.setattr(avbench.learning, "__path__", [str(tmp_path)])
    assert kernel.load_triton.__wrapped__(DEVICE) is None
    (record,) = caplog.records
    assert said in record.message
    assert "plain torch" in record.message
    assert "\n" not in record.message
