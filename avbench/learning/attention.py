"""Audio-guided attention over the cells of a frame (paper, Eq. 2), token by token.

With tokens x_c, keys p_c = tanh(W x_c + b) and the query q = tanh(W_a a + b_a) of a clip's sound,
the map over the cells c of a frame, channel by channel, is A_c = exp(q p_c) / Z with Z the sum of
exp(q p_c). As |q p_c| <= 1, no maximum has to be taken off first: one pass over the tokens gives
Z, the scores u = sum of A_c p_c and the values v = sum of A_c x_c. The gradient needs one more:

    ds_c = A_c (du (p_c - u) + dv (x_c - v)) + exp(q p_c) dZ
    dp_c = q ds_c + A_c du,    dq = sum of p_c ds_c

so that maps are never kept, only keys; and where keys would take too much memory, not even these:
they are made again from the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from avbench.learning import kernel
from avbench.learning.lending import Lender
from avbench.learning.picked import Picked, parts_of, rows_of, tensor
from avbench.learning.residency import fits

# Tokens worked on at a time: few enough for a processor's cache, enough to fill a GPU.
_TOKENS = {"cpu": 2048, "cuda": 1 << 17}
# From torch, as numpy's does not begin where vectors do.
_KEYS = Lender(lambda size: torch.empty(size, dtype=torch.uint8).numpy())


class Attended(NamedTuple):
    """What attention over cells makes of the tokens of B clips of L frames.

    Attributes:
        scores: u, the keys pooled by the map, (B, L, d).
        values: v, the tokens pooled by the map, (B, L, d).
        entropy: Of the map, log Z - q u, in nats, (B, L, d).
        cross_entropy: Of the map relative to the reference R, minus the sum of R_c log A_c, for
            the last E clips, (E, L, d); None without a reference.
        maps: A, (B, L, S, d); None where it was not asked for.
    """

    scores: Tensor
    values: Tensor
    entropy: Tensor
    cross_entropy: Tensor | None = None
    maps: Tensor | None = None


def attend(
    query: Tensor,
    tokens: Tensor | Picked,
    weight: Tensor,
    bias: Tensor,
    reference: Tensor | Picked | None = None,
    *,
    product: torch.dtype | None = None,
) -> Attended:
    """Attend to the cells of every frame without keeping maps.

    Args:
        query: q, (B, d), between -1 and 1.
        tokens: x, (B, L, S, d), in any precision, read where they lie. No gradient reaches them:
            they are frozen.
        weight: W, (d, d).
        bias: b, (d,).
        reference: R, maps of the last E clips, (E, L, S, d), as a teacher gives them.
        product: In which precision W x and its gradient are multiplied; None for that of W.

    Raises:
        ValueError: If tokens or the reference ask for a gradient, or shapes do not fit.
    """
    if isinstance(tokens, Tensor):
        if tokens.requires_grad:
            raise ValueError("no gradient reaches frozen tokens: ask for maps, or detach them")
        tokens = Picked(tokens)
    if isinstance(reference, Tensor):
        if reference.requires_grad:
            raise ValueError("no gradient reaches the reference: detach it")
        reference = Picked(reference)
    # Kernels would read what lies behind too short an array.
    clips, *of_clip = tokens.shape
    if query.shape != (clips, of_clip[-1]) or bias.shape != (of_clip[-1],):
        raise ValueError(f"query {tuple(query.shape)} or bias {tuple(bias.shape)} of other tokens")
    if reference is not None and (len(reference) > clips or [*reference.shape[1:]] != of_clip):
        raise ValueError(
            f"reference {tuple(reference.shape)} of other tokens than {tuple(tokens.shape)}"
        )
    scores, values, sums, referred = _Pooling.apply(  # type: ignore[no-untyped-call]
        query, tokens, weight, bias, reference, product or weight.dtype, torch.is_grad_enabled()
    )
    log_sums, q = sums.log(), query[:, None]
    entropy = log_sums - q * scores
    if reference is None:
        return Attended(scores, values, entropy)
    first = len(query) - len(reference)
    return Attended(scores, values, entropy, log_sums[first:] - q[first:] * referred)


def attend_with_maps(
    query: Tensor,
    tokens: Tensor | Picked,
    weight: Tensor,
    bias: Tensor,
    *,
    product: torch.dtype | None = None,
) -> Attended:
    """Attend to the cells of every frame and keep the maps: as `attend`, but all by its definition.

    Gradients reach everything, maps and tokens included.
    """
    tokens = tensor(tokens).to(weight.dtype)
    product = product or weight.dtype
    keys = torch.tanh(F.linear(tokens.to(product), weight.to(product)).to(weight.dtype) + bias)
    maps = torch.softmax(query[:, None, None] * keys, dim=2)
    scores, values = (maps * keys).sum(dim=2), (maps * tokens).sum(dim=2)
    return Attended(scores, values, torch.special.entr(maps).sum(dim=2), maps=maps)


class _Pooling(torch.autograd.Function):
    """u, v, Z, and the keys pooled by the reference, with the gradients above."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        tokens: Picked,
        weight: Tensor,
        bias: Tensor,
        reference: Picked | None,
        product: torch.dtype,
        learning: bool,
    ) -> tuple[Tensor, ...]:
        clips, frames, cells, dim = tokens.shape
        # Kernels know no other numbers, nor strides.
        query, bias = query.contiguous(), bias.to(query.dtype).contiguous()
        referring = 0 if reference is None else len(reference)
        scores, values, sums = (query.new_empty(clips, frames, dim) for _ in range(3))
        referred = query.new_empty(referring, frames, dim)
        size = _chunk(tokens)
        kept = learning and fits(tokens.shape.numel() * query.element_size(), tokens.device)
        shape = (clips if kept else size, frames, cells, dim)
        keys = _lent(query, shape) if kept else query.new_empty(shape)
        work = query.new_empty(size, frames, cells, dim)
        for own, refers in _chunks(clips, referring, size):
            x = work[: own.stop - own.start].copy_(rows_of(tokens, own))
            p = keys[own] if kept else keys[: len(x)]
            _project(x, weight, product, p)
            r = _reference(reference, refers, x)
            pooled = referred[refers] if refers else None
            _forward(p, bias, x, query[own], r, scores[own], values[own], sums[own], pooled)
        if learning:
            ctx.product = product
            # Apart, so that autograd lets go of them, and sees if somebody changes them.
            held, ctx.rows = parts_of(tokens)
            maps, ctx.maps_rows = (None, None) if reference is None else parts_of(reference)
            kept_keys = keys if kept else None
            ctx.save_for_backward(query, held, weight, bias, maps, kept_keys, scores, values, sums)
        return scores, values, sums, referred

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, held, weight, bias, maps, keys, scores, values, sums = ctx.saved_tensors
        tokens = Picked(held, ctx.rows)
        reference = None if maps is None else Picked(maps, ctx.maps_rows)
        d_scores, d_values, d_sums, d_referred = (g.contiguous() for g in gradients)
        clips, frames, cells, dim = tokens.shape
        size = _chunk(tokens)
        work, d_projected = (query.new_empty(size, frames, cells, dim) for _ in range(2))
        d_query, d_bias = (torch.empty_like(scores) for _ in range(2))
        d_weight = torch.zeros_like(weight)
        again = query.new_empty(size if keys is None else 0, frames, cells, dim)
        for own, refers in _chunks(clips, len(d_referred), size):
            x = work[: own.stop - own.start].copy_(rows_of(tokens, own))
            d = d_projected[: len(x)]
            r = _reference(reference, refers, x)
            p = again[: len(x)] if keys is None else keys[own]
            if keys is None:
                _project(x, weight, ctx.product, p)
                u, v, z = (torch.empty_like(scores[own]) for _ in range(3))
                _forward(p, bias, x, query[own], None, u, v, z, None)
            _backward(
                p,
                x,
                query[own],
                r,
                scores[own],
                values[own],
                sums[own],
                d_scores[own],
                d_values[own],
                d_sums[own],
                None if refers is None else d_referred[refers],
                d,
                d_bias[own],
                d_query[own],
            )
            if ctx.product == x.dtype:
                d_weight.addmm_(d.view(-1, dim).t(), x.view(-1, dim))
            else:
                d_weight += d.view(-1, dim).t().to(ctx.product) @ x.view(-1, dim).to(ctx.product)
        return d_query.sum(dim=1), None, d_weight, d_bias.sum(dim=(0, 1)), None, None, None


def _project(tokens: Tensor, weight: Tensor, product: torch.dtype, out: Tensor) -> None:
    """Write W x."""
    dim = tokens.shape[-1]
    if product == tokens.dtype:
        torch.mm(tokens.view(-1, dim), weight.t(), out=out.view(-1, dim))
    else:
        out.copy_(tokens.to(product) @ weight.t().to(product))


def _reference(reference: Picked | None, some: slice | None, like: Tensor) -> Tensor | None:
    if reference is None or some is None:
        return None
    return rows_of(reference, some).to(like.dtype).contiguous()


def _lent(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return memory for keys; on a GPU, torch itself uses memory again."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size == 0:
        return like.new_empty(shape)
    return torch.from_numpy(_KEYS.lend(size)).view(like.dtype).view(shape)


def forget_keys() -> None:
    """Give back the memory that is kept for keys."""
    _KEYS.forget()


def _chunk(tokens: Picked) -> int:
    """Return how many clips are worked on at a time."""
    clips, frames, cells, _ = tokens.shape
    most = _TOKENS["cpu" if tokens.device.type == "cpu" else "cuda"]
    return max(1, min(clips, most // (frames * cells)))


def _chunks(clips: int, referring: int, size: int) -> Iterator[tuple[slice, slice | None]]:
    """Yield some clips at a time, and which references are theirs: all have one, or none has."""
    plain = clips - referring
    for start in range(0, plain, size):
        yield slice(start, min(start + size, plain)), None
    for start in range(0, referring, size):
        stop = min(start + size, referring)
        yield slice(plain + start, plain + stop), slice(start, stop)


def _forward(
    projected: Tensor,
    bias: Tensor,
    tokens: Tensor,
    query: Tensor,
    reference: Tensor | None,
    scores: Tensor,
    values: Tensor,
    sums: Tensor,
    referred: Tensor | None,
) -> None:
    """Turn W x into keys, and pool them: writes `projected`, and all from `scores` on."""
    if _by_kernel(
        "attention_forward",
        *(projected, bias, tokens, query, reference, scores, values, sums, referred),
    ):
        return
    keys = projected.add_(bias).tanh_()
    exp = (query[:, None, None] * keys).exp_()
    torch.sum(exp, dim=2, out=sums)
    torch.div((exp * keys).sum(dim=2), sums, out=scores)
    torch.div(exp.mul_(tokens).sum(dim=2), sums, out=values)
    if reference is not None and referred is not None:
        torch.sum(reference * keys, dim=2, out=referred)


def _backward(
    keys: Tensor,
    tokens: Tensor,
    query: Tensor,
    reference: Tensor | None,
    scores: Tensor,
    values: Tensor,
    sums: Tensor,
    d_scores: Tensor,
    d_values: Tensor,
    d_sums: Tensor,
    d_referred: Tensor | None,
    d_projected: Tensor,
    d_bias: Tensor,
    d_query: Tensor,
) -> None:
    """Write the gradients of W x + b, and those of bias and query, frame by frame."""
    if _by_kernel(
        "attention_backward",
        *(keys, tokens, query, reference, scores, values, sums),
        *(d_scores, d_values, d_sums, d_referred, d_projected, d_bias, d_query),
    ):
        return

    def cells(of_frame: Tensor) -> Tensor:
        return of_frame[:, :, None]

    q = query[:, None, None]
    exp = (q * keys).exp_()
    maps = exp / cells(sums)
    ds = cells(d_scores) * (keys - cells(scores)) + cells(d_values) * (tokens - cells(values))
    ds = ds.mul_(maps).add_(exp.mul_(cells(d_sums)))
    torch.sum(ds * keys, dim=2, out=d_query)
    d = torch.mul(q, ds, out=d_projected).add_(maps.mul_(cells(d_scores)))
    if reference is not None and d_referred is not None:
        d.add_(reference * cells(d_referred))
    d.mul_(1 - keys.square())
    torch.sum(d, dim=2, out=d_bias)


def _by_kernel(name: str, first: Tensor, *others: Tensor | None) -> bool:
    """Call a kernel on tensors of the same clips, `first` (clips, L, S, d), if one is for them."""
    if first.dtype != torch.float32:
        return False
    if first.device.type == "cuda" and (compiled := kernel.load_triton(first.device)) is not None:
        getattr(compiled, name)(first, *others)
        return True
    if first.device.type == "cpu" and (library := kernel.load()) is not None:
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (first, *others)]
        getattr(library, name)(*pointers, *first.shape, torch.get_num_threads())
        return True
    return False
