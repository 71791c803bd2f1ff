"""Element-wise part of audio-guided attention on a GPU; see attention.py for the equations.

As in attention.c, arrays are contiguous, start at the same clip, and rows are the L frames of all
clips. A program has one row and some channels, and goes through the cells a few at a time. What it
sums up stays in registers until the end, and no other program adds to it: results are the same to
the bit every time.

The number of cells, the same in a whole set of features, is known when a kernel is compiled.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A tile of cells and channels. Each of a program's four warps reads 512 bytes of two cells, in
# loads of 128 bits. Twice as much would take 150 registers a thread: too few programs side by side
# to hide how long memory takes.
_TILE = {"some": 8, "block": 128}


@triton.jit
def _tanh(x):
    """Return tanh to rounding, as a difference from 0, not as a ratio: all that sums of keys need.

    Triton's own is a call that its interpreter does not know. The power is never above one, so
    that nothing overflows; NaN stays NaN.
    """
    power = tl.exp(-2 * tl.abs(x))
    size = (1 - power) / (1 + power)
    return tl.where(x < 0, -size, size)


@triton.jit
def _pool(
    projected, bias, tokens, query, reference, scores, values, sums, referred,
    frames, dim, cells: tl.constexpr, some: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write keys in place of `projected`, what they pool, and the sums of exp."""
    row = tl.program_id(0).to(tl.int64)  # all rows together have more than 2^31 numbers
    channel = tl.program_id(1) * block + tl.arange(0, block)
    real = channel < dim
    b = tl.load(bias + channel, real, 0)
    q = tl.load(query + row // frames * dim + channel, real, 0)
    z = tl.zeros((some, block), b.dtype)
    u, v, r = z, z, z
    for start in range(0, cells, some):
        cell = start + tl.arange(0, some)
        inside = (cell < cells)[:, None]
        at = row * cells * dim + (cell[:, None] * dim + channel)
        x = tl.load(tokens + at, inside & real, 0)
        p = _tanh(tl.load(projected + at, inside & real, 0) + b)
        tl.store(projected + at, p, inside & real)
        e = tl.where(inside, tl.exp(q * p), 0)
        z += e
        u += e * p
        v += e * x
        if reference is not None:
            r += tl.load(reference + at, inside & real, 0) * p
    own = row * dim + channel
    total = tl.sum(z, 0)
    tl.store(sums + own, total, real)
    tl.store(scores + own, tl.sum(u, 0) / total, real)
    tl.store(values + own, tl.sum(v, 0) / total, real)
    if reference is not None:
        tl.store(referred + own, tl.sum(r, 0), real)


@triton.jit
def _differentiate(
    keys, tokens, query, reference, scores, values, sums, d_scores, d_values, d_sums, d_referred,
    d_projected, d_bias, d_query,
    frames, dim, cells: tl.constexpr, some: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write gradients of the above; those of the query and the bias a row each, to be added up."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    real = channel < dim
    own = row * dim + channel
    q = tl.load(query + row // frames * dim + channel, real, 0)
    u = tl.load(scores + own, real, 0)
    v = tl.load(values + own, real, 0)
    # Each is only needed over Z: a division a channel, not a token.
    z = tl.load(sums + own, real, 1)
    du = tl.load(d_scores + own, real, 0) / z
    dv = tl.load(d_values + own, real, 0) / z
    dz = tl.load(d_sums + own, real, 0)
    if reference is not None:
        dr = tl.load(d_referred + own, real, 0)
    dq = tl.zeros((some, block), q.dtype)
    db = dq
    for start in range(0, cells, some):
        cell = start + tl.arange(0, some)
        inside = (cell < cells)[:, None]
        at = row * cells * dim + (cell[:, None] * dim + channel)
        p = tl.load(keys + at, inside & real, 0)
        x = tl.load(tokens + at, inside & real, 0)
        e = tl.where(inside, tl.exp(q * p), 0)
        ds = e * (du * (p - u) + dv * (x - v) + dz)
        d = q * ds + e * du
        if reference is not None:
            d += tl.load(reference + at, inside & real, 0) * dr
        d *= 1 - p * p
        tl.store(d_projected + at, d, inside & real)
        dq += ds * p
        db += d
    tl.store(d_query + own, tl.sum(dq, 0), real)
    tl.store(d_bias + own, tl.sum(db, 0), real)


def attention_forward(projected: Tensor, *others: Tensor | None) -> None:
    """Turn W x into keys, and pool them: arguments are those of `_forward` in attention.py."""
    _launch(_pool, projected, *others)


def attention_backward(keys: Tensor, *others: Tensor | None) -> None:
    """Write gradients: arguments are those of `_backward` in attention.py."""
    _launch(_differentiate, keys, *others)


def _launch(program: triton.JITFunction, first: Tensor, *others: Tensor | None) -> None:
    clips, frames, cells, dim = first.shape
    grid = (clips * frames, triton.cdiv(dim, _TILE["block"]))
    with torch.cuda.device_of(first):
        program[grid](first, *others, frames, dim, cells, **_TILE)
