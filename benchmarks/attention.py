"""Attention token by token, by kernel and in plain torch, against its definition, which keeps maps.

    python -m benchmarks.attention [--clips N] [--runs N]

Forward and backward, 1568 tokens of width 768 a clip, a reference map for a third of the clips; the
tokens in half precision, in single for the definition. Both with the C library's allocator as it
comes and with one that keeps what it was given ("tuned"), each form's peak memory in a process of
its own. The floor is the two products of matrices that no form can do without. Where there is a
GPU, the same on it, in Triton instead of C.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from avbench.learning import kernel
from avbench.learning.attention import Attended, attend, attend_with_maps
from benchmarks import timing

FRAMES, CELLS, DIM = 8, 196, 768


def definition(
    query: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, reference: Tensor
) -> Attended:
    """Attend by the definition, the cross-entropy from maps."""
    out = attend_with_maps(query, tokens, weight, bias)
    assert out.maps is not None
    logs = out.maps[len(query) - len(reference) :].log()
    return out._replace(cross_entropy=-(reference * logs).sum(dim=2))


def iteration(
    form: Callable[..., Attended],
    query: Tensor,
    tokens: Tensor,
    *others: Tensor,
    by_kernel: bool = False,
) -> None:
    """Run forward and backward."""
    found = kernel.load, kernel.load_triton
    try:
        if not by_kernel:
            kernel.load = lambda: None  # type: ignore[assignment]
            kernel.load_triton = lambda _: None  # type: ignore[assignment]
        out = form(query, tokens, *others)
        assert out.cross_entropy is not None
        (out.values.sum() + out.scores.sum() + out.cross_entropy.sum()).backward()
    finally:
        kernel.load, kernel.load_triton = found
    finish(tokens)


def floor(tokens: Tensor, weight: Tensor) -> None:
    """Multiply what has to be multiplied: clip by clip on a CPU, all at once on a GPU."""
    matrices = tokens.view(1 if tokens.is_cuda else len(tokens), -1, DIM)
    projected = torch.empty_like(matrices[0])
    for matrix in matrices:
        torch.mm(matrix, weight.t(), out=projected)
        torch.mm(projected.t(), matrix)
    finish(tokens)


def finish(tensor: Tensor) -> None:
    """Wait for the GPU a tensor is on."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def ways(clips: int, device: str = "cpu") -> dict[str, Callable[[], None]]:
    """Return what is compared, by name."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    query = draw(clips, DIM).tanh().requires_grad_()
    weight = (draw(DIM, DIM) / math.sqrt(DIM)).requires_grad_()
    bias = draw(DIM).requires_grad_()
    # One by one: what is drawn must not be the peak of memory.
    halves = torch.stack([draw(FRAMES, CELLS, DIM).half() for _ in range(clips)])
    singles = halves.float()
    maps = [draw(FRAMES, CELLS, DIM).softmax(dim=1) for _ in range(clips // 3)]
    reference = torch.stack(maps)
    others = (weight, bias, reference)
    return {
        "definition": partial(iteration, definition, query, singles, *others),
        "plain torch": partial(iteration, attend, query, halves, *others),
        {"cpu": "C", "cuda": "Triton"}[device]: partial(
            iteration, attend, query, halves, *others, by_kernel=True
        ),
        "floor": partial(floor, singles, weight.detach()),
    }


def print_times(clips: int, runs: int) -> None:
    """Print a line for each way: its name, times and ratios."""
    samples = timing.by_turns(ways(clips), runs)
    for name, of_way in samples.items():
        ms = timing.spread([1e3 * s.cpu / clips for s in of_way], 1)
        print("|".join([name, ms, *timing.ratios(samples["definition"], of_way)]))


def print_gpu(clips: int, runs: int) -> None:
    """Print a table of times on the GPU."""
    samples = timing.by_turns(ways(clips, "cuda"), runs)
    rows = []
    for name, of_way in samples.items():
        ms = timing.spread([1e3 * s.wall / clips for s in of_way], 3)
        rows.append([name, ms, timing.ratios(samples["definition"], of_way)[1]])
    table = timing.table(["way", "wall, ms a clip", "wall, times less"], rows)
    print(f"{torch.cuda.get_device_name()}\n\n{table}\n")


def print_peak(clips: int, name: str) -> None:
    """Print how much memory a way takes beside its input, in MB a clip."""
    way = ways(clips)[name]
    before = timing.held_mb()
    way()
    print(f"{(timing.peak_mb() - before) / clips:.1f}")


def main() -> None:
    """Print a table for each allocator."""
    parser = timing.arguments(__doc__, "three clips, one turn")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--times", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.clips, options.runs = 3, 1
    if options.times:
        print_times(options.clips, options.runs)
        return
    if options.peak:
        print_peak(options.clips, options.peak)
        return
    if kernel.load() is None:
        raise SystemExit("no C compiler: nothing to compare")
    given = ["--clips", str(options.clips), "--runs", str(options.runs)]
    header = ["way", "CPU, ms a clip", "CPU, times less", "wall, times less", "peak, MB a clip"]
    print(f"{options.clips} clips, {torch.get_num_threads()} thread(s)\n")
    for allocator, environment in (("as it comes", {}), ("tuned", timing.TUNED)):
        found = timing.alone("benchmarks.attention", "--times", *given, environment=environment)
        rows = [line.split("|") for line in found.splitlines()]
        for row in rows:
            own = ("--peak", row[0], *given)
            row.append(timing.alone("benchmarks.attention", *own, environment=environment).strip())
        print(f"Allocator: {allocator}\n\n{timing.table(header, rows)}\n")
    if torch.cuda.is_available():
        print_gpu(options.clips, options.runs)


if __name__ == "__main__":
    main()
