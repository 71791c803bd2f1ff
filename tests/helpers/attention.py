"""Attention by its definition, and what its kernels are compared on."""

from __future__ import annotations

import torch

from avbench.learning.attention import attend_with_maps

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(dtype, *, clips=5, frames=3, cells=7, dim=19, referring=2):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, tokens = draw(clips, dim).tanh(), draw(clips, frames, cells, dim)
    weight, bias = draw(dim, dim) / dim**0.5, draw(dim)
    reference = draw(referring, frames, cells, dim).softmax(dim=2) if referring else None
    given = (query, tokens, weight, bias, reference)
    return [None if x is None else x.to(dtype) for x in given]


def by_definition(query, tokens, weight, bias, reference):
    out = attend_with_maps(query, tokens, weight, bias)
    if reference is None:
        return out
    logs = out.maps[len(query) - len(reference) :].log()
    return out._replace(cross_entropy=-(reference * logs).sum(dim=2))


def with_gradients(form, query, tokens, weight, bias, reference):
    """Outputs, and gradients of something that uses all of them."""
    learned = [x.clone().requires_grad_() for x in (query, weight, bias)]
    out = form(learned[0], tokens, *learned[1:], reference)
    found = [x for x in out[:4] if x is not None]
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in found)
    total.backward()
    return [x.detach() for x in found] + [x.grad for x in learned]


def compare(found, expected, exact):
    for one, other in zip(found, expected, strict=True):
        error = (one.double() - other).abs().max()
        assert error <= exact * max(1, other.abs().max())
