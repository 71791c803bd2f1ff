"""Attention without maps against its definition; the kernel in C and what replaces it."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from avbench.learning import attention, kernel, residency
from avbench.learning.attention import attend, attend_with_maps
from avbench.learning.lending import Lender
from avbench.learning.picked import Picked
from tests.helpers.attention import EXACT, by_definition, compare, inputs, with_gradients

WAYS = {"double": torch.float64, "c": torch.float32, "torch": torch.float32}


@pytest.fixture(params=WAYS)
def dtype(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernel, "load", lambda: None)
    elif request.param == "c" and kernel.load() is None:
        pytest.skip("no C compiler")
    return WAYS[request.param]


@pytest.mark.parametrize("referring", [0, 2, 5])
@pytest.mark.parametrize("tokens_at_a_time", [1, 50, 10_000])
def test_outputs_and_gradients_are_those_of_the_definition(
    dtype, referring, tokens_at_a_time, monkeypatch
):
    monkeypatch.setitem(attention._TOKENS, "cpu", tokens_at_a_time)
    expected = with_gradients(by_definition, *inputs(torch.float64, referring=referring))
    found = with_gradients(attend, *inputs(dtype, referring=referring))
    compare(found, expected, EXACT[dtype])


@pytest.mark.parametrize("referring", [0, 2])
def test_keys_made_again_are_the_same_to_the_last_bit(dtype, referring, monkeypatch):
    monkeypatch.setitem(attention._TOKENS, "cpu", 50)
    kept = with_gradients(attend, *inputs(dtype, referring=referring))
    monkeypatch.setattr(residency, "memory_limit", lambda: 0)
    again = with_gradients(attend, *inputs(dtype, referring=referring))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_keys_are_kept_only_where_memory_allows(monkeypatch):
    query, tokens, weight, bias, _ = inputs(torch.float32)

    def kept(limit):
        monkeypatch.setattr(residency, "memory_limit", lambda: limit)
        out = attend(query.requires_grad_(), tokens, weight, bias)
        saved = out.values.grad_fn.saved_tensors
        return [x.shape for x in saved if x is not None].count(tokens.shape) - 1  # but tokens

    assert (kept(4 * tokens.nbytes), kept(4 * tokens.nbytes - 1)) == (1, 0)


def test_at_full_width(dtype):
    sizes = {"clips": 2, "frames": 8, "cells": 196, "dim": 768, "referring": 1}
    expected = with_gradients(by_definition, *inputs(torch.float64, **sizes))
    compare(with_gradients(attend, *inputs(dtype, **sizes)), expected, EXACT[dtype])


def test_gradients_by_finite_differences():
    query, tokens, weight, bias, reference = inputs(torch.float64, dim=4, cells=3)
    learned = [x.requires_grad_() for x in (query, weight, bias)]
    torch.autograd.gradcheck(lambda q, w, b: attend(q, tokens, w, b, reference)[:4], learned)


def test_half_precision_tokens_are_read_as_they_are(dtype):
    query, tokens, *others = inputs(dtype)
    halves = tokens.half()
    found = with_gradients(attend, query, halves, *others)
    expected = with_gradients(attend, query, halves.to(dtype), *others)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("tokens_at_a_time", [1, 50, 10_000])
def test_tokens_and_references_are_read_where_they_lie(dtype, tokens_at_a_time, monkeypatch):
    monkeypatch.setitem(attention._TOKENS, "cpu", tokens_at_a_time)
    query, tokens, weight, bias, reference = inputs(dtype)
    rows, referred = np.array([6, 7, 2, 0, 9]), np.array([4, 1])
    many, maps = (torch.full((10, *x.shape[1:]), 7, dtype=dtype) for x in (tokens, reference))
    many[rows], maps[referred] = tokens, reference
    found = with_gradients(attend, query, Picked(many, rows), weight, bias, Picked(maps, referred))
    expected = with_gradients(attend, query, tokens, weight, bias, reference)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    one, other = (attend_with_maps(query, x, weight, bias) for x in (Picked(many, rows), tokens))
    assert torch.equal(one.maps, other.maps)


def test_graphs_that_live_side_by_side_do_not_share_keys(dtype):
    """The memory of keys is used again, but not while a graph needs it."""
    draws = [[x.clone() for x in inputs(dtype)] for _ in range(3)]
    for number, (query, *_) in enumerate(draws):
        query.mul_(0.5**number)
    expected = [with_gradients(attend, *given) for given in draws]
    outs = []
    for query, tokens, *others in draws:
        learned = [x.requires_grad_() for x in (query, *others[:2])]
        out = attend(learned[0], tokens, *learned[1:], others[2])
        outs.append((learned, [x for x in out[:4] if x is not None]))
    for (learned, found), wanted in zip(outs, expected, strict=True):
        generator = torch.Generator().manual_seed(1)
        sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in found).backward()
        gradients = [x.grad for x in learned]
        assert all(torch.equal(*pair) for pair in zip(gradients, wanted[4:], strict=True))


def test_memory_of_keys_is_used_again(dtype, monkeypatch):
    made = []
    lender = Lender(lambda size: made.append(size) or np.empty(size, np.uint8))
    monkeypatch.setattr(attention, "_KEYS", lender)
    given = inputs(dtype)
    for _ in range(3):
        with_gradients(attend, *given)
    assert made == [given[1].nbytes]


def test_a_graph_may_be_kept_and_then_lets_go_of_the_tokens(dtype):
    query, *given = inputs(dtype)
    arrays = [given[place].numpy() for place in (0, 3)]
    alive = [weakref.ref(array) for array in arrays]
    tokens, reference = map(torch.from_numpy, arrays)
    out = attend(query.requires_grad_(), tokens, *given[1:3], reference)
    loss = sum(x.sum() for x in out[:4])
    del arrays, tokens, reference, out
    loss.backward(retain_graph=True)
    once, query.grad = query.grad, None
    gc.collect()
    assert all(ref() is not None for ref in alive)
    loss.backward()
    assert torch.equal(query.grad, once)
    gc.collect()
    assert all(ref() is None for ref in alive)  # though the loss is still here
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("place", [1, 4])
def test_what_is_changed_before_the_backward_pass_is_told(dtype, place):
    given = inputs(dtype)
    out = attend(given[0].requires_grad_(), *given[1:])
    given[place].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(x.sum() for x in out[:4]).backward()


def test_other_numbers_and_strides_than_kernels_read(dtype):
    query, tokens, weight, bias, reference = inputs(dtype)
    halves = reference.half()
    strided = torch.stack([bias, bias], dim=1)[:, 0]
    found = with_gradients(attend, query, tokens, weight, strided, halves)
    expected = with_gradients(attend, query, tokens, weight, bias, halves.to(dtype))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    doubled = attend(query, tokens, weight, bias.double()).scores
    assert torch.equal(doubled, attend(query, tokens, weight, bias).scores)


def test_without_gradients_nothing_changes(dtype, monkeypatch):
    given = inputs(dtype)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(attention, "_lent", None)  # keys are not kept
        found = attend(*given)
    expected = attend(given[0].requires_grad_(), *given[1:])
    assert expected.scores.requires_grad
    assert not found.scores.requires_grad
    assert all(torch.equal(*pair) for pair in zip(found[:4], expected[:4], strict=True))


def test_no_clips_at_all(dtype):
    out = attend(*inputs(dtype, clips=0, referring=0))
    assert out.values.shape == (0, 3, 19)


def test_extreme_and_wrong_numbers(dtype):
    query, tokens, weight, bias, _ = inputs(dtype)
    out = attend(query, 1e4 * tokens, weight, bias)
    expected = attend_with_maps(query, 1e4 * tokens, weight, bias)
    torch.testing.assert_close(out.scores, expected.scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.values, expected.values, rtol=1e-5, atol=1e-5)
    # A run that diverges must show it.
    bias[0] = float("nan")
    assert attend(query, tokens, weight, bias).scores[..., 0].isnan().all()
    assert attend(query, tokens, weight, bias).scores[..., 1:].isfinite().all()


def test_threads_change_no_bit():
    query, tokens, _, bias, _ = inputs(torch.float32, clips=9)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = [torch.empty(9, 3, 19) for _ in range(3)]
            attention._forward(tokens.clone(), bias, tokens, query, None, *out, None)
            found += [torch.stack(out)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_shapes_that_do_not_fit_are_refused(dtype):
    query, tokens, weight, bias, reference = inputs(dtype)
    for wrong in (query[:1], query[:, :-1]):
        with pytest.raises(ValueError, match="query"):
            attend(wrong, tokens, weight, bias)
    with pytest.raises(ValueError, match="bias"):
        attend(query, tokens, weight, bias[:-1])
    for other in (reference[:, :, 1:], torch.cat([reference] * 3)):
        with pytest.raises(ValueError, match="reference"):
            attend(query, tokens, weight, bias, other)


def test_tokens_that_ask_for_a_gradient_are_refused():
    query, tokens, weight, bias, _ = inputs(torch.float64)
    with pytest.raises(ValueError, match="frozen tokens"):
        attend(query, tokens.requires_grad_(), weight, bias)
    with pytest.raises(ValueError, match="the reference: detach"):
        attend(query, tokens.detach(), weight, bias, tokens[:2])


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Load the kernel as a new process with an empty cache would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return kernel.load.__wrapped__


@pytest.mark.skipif(kernel.load() is None, reason="no C compiler")
def test_processes_may_compile_side_by_side(fresh, tmp_path):
    before = torch.get_rng_state()
    found = []
    threads = [threading.Thread(target=lambda: found.append(fresh())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert None not in found
    (file,) = (tmp_path / "cache/avbench/kernels").iterdir()
    assert torch.equal(torch.get_rng_state(), before)
    changed = file.stat().st_mtime_ns
    fresh()
    assert file.stat().st_mtime_ns == changed


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true", "'"])
def test_without_a_working_compiler_torch_does_it(fresh, tmp_path, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    assert fresh() is None
    (record,) = caplog.records
    assert "plain torch" in record.message
    assert "\n" not in record.message
    assert not list(tmp_path.glob("cache/avbench/kernels/*"))


@pytest.mark.skipif(kernel.load() is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ("r[i] += reference", "r[i] -= reference", "reference"),
        ("d[i] *= 1 - key", "d[i] *= 1 + key", "gradient"),
        ("u[i] += e * p", "u[i] += e", "scores"),
        ("db[i] += d[i]", "db[i] = d[i]", "gradient of the bias"),
    ],
)
def test_a_kernel_that_computes_wrong_numbers_is_not_used(
    fresh, tmp_path, monkeypatch, caplog, right, wrong, what
):
    source = kernel._SOURCE.read_text()
    assert source.count(right) == 1
    monkeypatch.setattr(kernel, "_SOURCE", tmp_path / "attention.c")
    kernel._SOURCE.write_text(source.replace(right, wrong))
    assert fresh() is None
    assert f"gets {what} wrong" in caplog.text
    assert not list(tmp_path.glob("cache/avbench/kernels/*"))


def test_without_a_place_to_compile_torch_does_it(monkeypatch, caplog, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert kernel.load.__wrapped__() is None
    assert len(caplog.records) == 1


def test_products_in_bfloat16_are_close_and_everything_else_is_not_rounded(dtype):
    given = inputs(dtype, dim=48, frames=4)
    expected = with_gradients(by_definition, *inputs(torch.float64, dim=48, frames=4))
    found = with_gradients(partial(attend, product=torch.bfloat16), *given)
    compare(found, expected, 0.02)
    with pytest.raises(AssertionError):
        compare(found, expected, 1e-4)
    assert {x.dtype for x in found} == {dtype}
    maps = attend_with_maps(*given[:4], product=torch.bfloat16)
    compare(maps[:3], found[:3], 1e-5)
