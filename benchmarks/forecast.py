"""What a clip costs in an epoch: the rule of thumb of `avbench reproduce --dry-run`.

Random features in the shapes of two presets, three epochs, one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
from pathlib import Path

import numpy as np

from avbench import registry
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.forecast import Expected, clips_seen, numbers
from avbench.features import store
from avbench.learning.method import resolve_settings
from avbench.manifests.benchmark import Benchmark
from benchmarks import timing

SHAPES = {"filterbank": (8, 25, 128, 60), "avcil": (8, 196, 768, 20)}
RUNS = (
    ("finetune", "visual"),
    ("finetune", "audio"),
    ("finetune", "audio-visual"),
    ("avcil", "audio-visual"),
    ("afc-nme", "audio-visual"),
    ("oracle", "audio-visual"),
)
TOML = """
name = "random"
classes = 8
classes_per_step = 4
memory = 32
clip_seconds = 1.0
annotations = "random.csv"
"""
EPOCHS = {"epochs": "3"}


def main() -> None:
    """Print the table."""
    quick = timing.arguments(__doc__, "the small shape alone").parse_args().quick
    rows = []
    for name in ["filterbank"] if quick else SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(name, *SHAPES[name], Path(scratch))
    print(timing.table(["features", "run", "s a clip and epoch", "ns a number"], rows))


def measure(
    name: str, frames: int, cells: int, dim: int, per_class: int, folder: Path
) -> list[list[str]]:
    """Return the rows of one shape."""
    os.environ["AVBENCH_HOME"] = str(folder / "home")
    splits = ("train", "train", "train", "val", "test")
    rows = [f"c{c}-{i},class {c},{c},{splits[i % 5]}" for c in range(8) for i in range(per_class)]
    (folder / "random.csv").write_text("\n".join(["clip_id,label,class_index,split", *rows]) + "\n")
    (folder / "random.toml").write_text(TOML)
    benchmark = Benchmark.load(str(folder / "random.toml"))
    manifest, random = benchmark.manifest, np.random.default_rng(0)
    with store.create(
        store.store_folder(benchmark, "filterbank"),
        preset={"name": "filterbank", "clip_seconds": 1.0},
        fingerprint=manifest.fingerprint,
        clip_ids=manifest.clip_ids,
        dim=dim,
        frames=frames,
        cells=cells,
    ) as writer:
        for row in range(len(manifest)):
            visual = random.standard_normal((frames * cells, dim))
            writer.write(row, random.standard_normal(dim), visual)
    found = []
    # To import and compile all that is needed.
    evaluate(benchmark, "avcil", seeds=[0], out=folder / "warm", settings=EPOCHS)
    for method, modality in RUNS:
        out = folder / f"{method}-{modality}"
        result = evaluate(benchmark, method, seeds=[0], out=out, modality=modality, settings=EPOCHS)
        method_class = registry.load("methods", method)
        settings = resolve_settings(method_class, method, "random", modality, EPOCHS)
        memory = result.config["memory"]
        run = Expected(out, method_class, modality, settings, memory, [0])
        seconds = result.seconds[0] / clips_seen(benchmark, run)
        each = seconds / numbers(frames, cells, dim, modality)
        cost = [f"{seconds:.1e}", f"{1e9 * each:.0f}"]
        found.append([name, f"{method}, {modality}", *cost])
    return found


if __name__ == "__main__":
    main()
