"""Feature stores of random numbers, written as fast as the disk takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avbench.features.store import create
from avbench.manifests.benchmark import Benchmark

# Clips whose features differ; the others repeat them, moved by one number each.
_DIFFERENT = 64


def write_store(
    folder: Path, benchmark: Benchmark, *, dim: int = 768, frames: int = 8, cells: int = 196
) -> None:
    """Write features of every clip of a benchmark, as preset `synthetic`.

    Args:
        folder: Where.
        benchmark: Whose clips.
        dim: Width of a descriptor.
        frames: Temporal positions.
        cells: Spatial positions.
    """
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((_DIFFERENT, dim), dtype=np.float32).astype(np.float16)
    visual = rng.standard_normal((_DIFFERENT, frames * cells * dim), dtype=np.float32)
    visual = visual.astype(np.float16)
    with create(
        folder,
        preset={"name": "synthetic", "clip_seconds": float(benchmark.spec.clip_seconds)},
        fingerprint=benchmark.manifest.fingerprint,
        clip_ids=benchmark.manifest.clip_ids,
        dim=dim,
        frames=frames,
        cells=cells,
    ) as writer:
        for row in range(len(benchmark.manifest)):
            one, shift = row % _DIFFERENT, row // _DIFFERENT
            tokens = np.roll(visual[one], shift).reshape(frames * cells, dim)
            writer.write(row, np.roll(audio[one], shift), tokens)


def table_benchmark(folder: Path, clips: int, *, classes: int, steps: int) -> Benchmark:
    """Make a benchmark of so many clips, of which 8 of 10 are for training.

    Args:
        folder: Where its table and TOML go.
        clips: How many.
        classes: In how many classes.
        steps: In how many steps.
    """
    splits = ["train"] * 8 + ["val", "test"]
    lines = [
        f"{n:06d},class {n % classes},{n % classes},{splits[n // classes % 10]}"
        for n in range(clips)
    ]
    table = "\n".join(["clip_id,label,class_index,split", *lines]) + "\n"
    (folder / "clips.csv").write_text(table, encoding="utf-8")
    (folder / "synthetic.toml").write_text(
        f'name = "synthetic"\nclasses = {classes}\nclasses_per_step = {classes // steps}\n'
        'memory = 200\nclip_seconds = 1.0\nannotations = "clips.csv"\npreset = "synthetic"\n',
        encoding="utf-8",
    )
    return Benchmark.load(str(folder / "synthetic.toml"))
