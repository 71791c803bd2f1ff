"""A training iteration of every method against the authors' way, at the shapes of real features.

    python -m benchmarks.training [--method NAME ...] [--modality NAME ...] [--turns N]

A second step on made-up features, 1568 tokens of 768 a clip, in batches of 16 new clips and 8
exemplars; of sight alone, which is fast enough, in the paper's of 256 and 128. Epochs of ours and
of `plain.py` by turns in one process, each with its own way of reading features, warm. "Shipped" is
with malloc as it comes, "tuned" with one that returns no memory to the system, which the authors'
way would need. What ours computes once a step falls into its first epoch, which is told apart. The
other tables have the most memory each needs in the paper's batches, 17 GB at most, in a process of
its own, beside what that held before it learned and the features of the step, which lie in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from avbench import registry
from avbench.features import store
from avbench.learning.gradient import GradientMethod
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup
from avbench.learning.network import AudioVisualNet
from avbench.learning.residency import columns
from avbench.learning.stream import Batch, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.types import Modality
from benchmarks import plain, timing

ALLOCATORS = {"tuned": timing.TUNED, "shipped": {}}
CLASSES, PER_STEP = 4, 2
# New clips and exemplars a batch, to measure time by; memory by the paper's.
PAPER = (256, 128)
BATCHES = {"audio-visual": (16, 8), "visual": PAPER}

Ways = Sequence[tuple[str, str]]


def lay_out(folder: Path, *, per_class: int, cells: int, dim: int) -> None:
    """Write features as avbench keeps them and as the authors do, with equal numbers."""
    lines = ["clip_id,label,class_index,split"]
    for index in range(CLASSES):
        splits = ["train"] * per_class + ["val", "test"]
        lines += [f"c{index}-{i:03d},c{index},{index},{split}" for i, split in enumerate(splits)]
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    (folder / "set.toml").write_text(
        f'name = "speed"\nclasses = {CLASSES}\nclasses_per_step = {PER_STEP}\n'
        'clip_seconds = 10.0\nannotations = "set.csv"\npreset = "speed"\n'
    )
    benchmark = load(folder)
    random = np.random.default_rng(0)
    sounds = {}
    with (
        store.create(
            store.store_folder(benchmark, "speed"),
            preset={"name": "speed", "clip_seconds": 10.0},
            fingerprint=benchmark.manifest.fingerprint,
            clip_ids=benchmark.manifest.clip_ids,
            dim=dim,
            frames=plain.FRAMES,
            cells=cells,
        ) as writer,
        h5py.File(folder / "visual.h5", "w") as file,
    ):
        for row, clip in enumerate(benchmark.manifest.clip_ids):
            sound = random.standard_normal(dim).astype(np.float16)
            shape = (plain.FRAMES * cells, dim)
            sight = random.standard_normal(shape, dtype=np.float32).astype(np.float16)
            writer.write(row, sound, sight)
            file[clip] = sight.astype(np.float32)
            sounds[clip] = sound.astype(np.float32)
    np.savez(folder / "audio.npz", **sounds)


def load(folder: Path) -> Benchmark:
    """Return the benchmark of a folder, whose features lie there too."""
    os.environ["AVBENCH_HOME"] = str(folder / "home")
    return Benchmark.load(str(folder / "set.toml"))


def plain_copy(network: AudioVisualNet) -> plain.Network:
    """Return a network of the authors' kind with the weights of ours."""
    state = network.state_dict()
    dim = state["classifier.new" if "classifier.new" in state else "classifier.weight"].shape[1]
    if "classifier.new" in state:
        old, new = (len(state[f"classifier.{part}"]) // plain.PROXIES for part in ("old", "new"))
        classifier: torch.nn.Module = plain.LocalSimilarity(dim, old, new)
    else:
        classifier = torch.nn.Linear(dim, len(state["classifier.bias"]))
    copied = plain.Network(network.modality, dim, classifier).to(next(network.parameters()).dtype)
    copied.load_state_dict(state)
    return copied


class Theirs:
    """A step in the authors' way, from where a method of ours has started it.

    Args:
        name: Of the method.
        method: The method.
        folder: Where the features lie.
        batch: New clips a batch.
        exemplars: Exemplars a batch; there are two batches of them.
    """

    def __init__(
        self, name: str, method: GradientMethod, folder: Path, batch: int, exemplars: int
    ) -> None:
        self.name, self.loss, self.sizes = name, plain.LOSSES[name], (batch, exemplars)
        assert method.teacher is not None
        self.network, self.teacher = plain_copy(method.network), plain_copy(method.teacher)
        settings = method.settings
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        manifest = load(folder).manifest
        train = [manifest.clip_ids[row] for row in manifest.rows("train")]
        old = [clip for clip in train if class_of(clip) < PER_STEP]
        self.new = features(folder, [clip for clip in train if class_of(clip) >= PER_STEP])
        per_class = len(old) // PER_STEP
        self.old = features(
            folder, [clip for i, clip in enumerate(old) if i % per_class < exemplars]
        )

    def train(self) -> None:
        """Train for an epoch."""
        batches = plain.batches(self.name, self.new, self.old, *self.sizes)
        step = plain.Step(PER_STEP, PER_STEP)
        plain.train(self.loss, self.network, self.teacher, self.optimizer, step, batches)


def class_of(clip: str) -> int:
    """Return the class that the name of a clip tells."""
    return int(clip[1 : clip.index("-")])


def features(folder: Path, clips: Sequence[str]) -> plain.Features:
    """Return features of clips as the authors read them."""
    with np.load(folder / "audio.npz") as archive:
        audio = {clip: torch.from_numpy(archive[clip]) for clip in clips}
    return plain.Features(folder / "visual.h5", audio, {clip: class_of(clip) for clip in clips})


def by_turns(method: type[GradientMethod], start: Callable[[GradientMethod], Theirs]) -> Any:
    """Return a method that trains in the authors' way, too, after each epoch of a second step."""

    class ByTurns(method):  # type: ignore[misc, valid-type]
        def start(self, task: Task) -> None:
            self.ours: list[timing.Sample] = []
            super().start(task)
            self.ours.clear()  # AFC goes through its batches to begin with
            if task.step:
                self.theirs, self.plain = start(self), []

        def batches(self, task: Task) -> Iterator[Batch]:
            # A batch has been trained on when the next is asked for.
            with timing.timed(self.ours):
                yield from super().batches(task)

        def validate(self, task: Task) -> float | None:
            if task.step:
                with timing.timed(self.plain):
                    self.theirs.train()
            return None

    return ByTurns


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one method in this process.

    Returns:
        Seconds of CPU and wall of every epoch, `ours` and `plain`, or of one way the most `memory`
        needed in MB; and how many `clips` an epoch has.
    """
    (name,), (modality,) = given.method, given.modality
    method_class = registry.load("methods", name)
    batch, exemplars = given.batch, given.exemplars
    benchmark = load(folder)
    found = store.FeatureStore.of(benchmark, "speed")
    means = modality == "visual" and method_class.mean_of_tokens
    stream = TaskStream(
        benchmark.manifest,
        found,
        modality=modality,
        joint=False,
        memory=ExemplarMemory(2 * exemplars) if method_class.uses_memory else None,
        device=torch.device("cpu"),
        residency="ram",
        mean_of_tokens=means,
    )
    sizes = {"batch_size": batch}
    if name in plain.PAIRED:
        sizes["exemplar_batch_size"] = exemplars
    settings = method_class.Settings(epochs=1, **sizes)
    setup = Setup(found.dim, found.frames, modality, 0, torch.device("cpu"), dict)

    def start(method: GradientMethod) -> Theirs:
        return Theirs(name, method, folder, batch, exemplars)

    both = given.way == "both"
    method = (by_turns(method_class, start) if both else method_class)(settings, setup)
    steps = iter(stream)
    task = next(steps)
    before = timing.held_mb() - features_mb(found, modality, means, task)
    if given.way == "plain":
        method.start(task)  # the network alone
    else:
        method.learn(task)
    task = next(steps)
    epochs = given.turns + 1 if both else 1  # the first warms up
    method.settings = replace(settings, epochs=epochs)
    if given.way == "plain":
        method.start(task)
        theirs = start(method)
        for _ in range(epochs):
            theirs.train()
    else:
        method.learn(task)
    if not both:
        return {"memory": timing.peak_mb() - before - features_mb(found, modality, means, task)}
    clips = len(task.train) + (2 * exemplars if method_class.uses_memory else 0)
    return {"ours": method.ours, "plain": method.plain, "clips": clips}


def features_mb(found: store.FeatureStore, modality: Modality, means: bool, task: Task) -> float:
    """Return how much memory the features of a step take, in MB."""
    readable = columns(found, modality, mean_of_tokens=means)
    a_clip = sum(column.bytes for column in readable if column is not None)
    return (len(task.train) + len(task.val) + len(task.exemplars)) * a_clip / 1e6


def main() -> None:
    """Measure every method in processes of its own and print Markdown tables."""
    parser = timing.arguments(__doc__, "one method, few tokens, times alone")
    parser.add_argument("--method", nargs="+", choices=plain.LOSSES, default=[*plain.LOSSES])
    parser.add_argument("--modality", nargs="+", choices=BATCHES, default=[*BATCHES])
    parser.add_argument("--turns", type=int, default=5)
    for hidden in ("--batch", "--exemplars"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("both", "ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given, given.folder)))
        return
    if given.quick:
        given.method, given.modality, given.turns = ["avcil"], ["audio-visual"], 1
    cells, dim = (4, 32) if given.quick else (196, 768)
    for modality in given.modality:
        ways = [
            (method, modality)
            for method in given.method
            if modality in registry.load("methods", method).modalities
        ]
        clocks = ["plain, CPU ms a clip", "ours", "CPU, times less", "wall, times less"]
        header = ["method", "input", "malloc", *clocks, "ours once a step, CPU ms a clip"]
        with laid_out(given, (4, 2) if given.quick else BATCHES[modality], cells, dim) as folder:
            timing.show(header, times(given, folder, ways))
        print()
        if not given.quick:
            header = ["method", "input", "plain, MB", "ours, MB", "times less"]
            with laid_out(given, PAPER, cells, dim) as folder:
                timing.show(header, memory(given, folder, ways))
            print()


@contextmanager
def laid_out(
    given: argparse.Namespace, batches: tuple[int, int], cells: int, dim: int
) -> Iterator[Path]:
    """Lay out two batches of new clips, in two classes, while in use; return where."""
    given.batch, given.exemplars = batches
    with tempfile.TemporaryDirectory() as name:
        lay_out(Path(name), per_class=given.batch, cells=cells, dim=dim)
        yield Path(name)


def times(given: argparse.Namespace, folder: Path, ways: Ways) -> Iterator[list[str]]:
    """Yield times, and how many times less ours are."""
    for (method, modality), allocator in product(ways, ["tuned"] if given.quick else ALLOCATORS):
        found = alone(given, folder, method, modality, "both", ALLOCATORS[allocator])
        (first, *ours), (_, *theirs) = (
            [timing.Sample(*each) for each in found[way]] for way in ("ours", "plain")
        )
        a_clip = [
            timing.spread([1000 * sample.cpu / found["clips"] for sample in samples])
            for samples in (theirs, ours)
        ]
        once = first.cpu - statistics.median(sample.cpu for sample in ours)
        less, added = timing.ratios(theirs, ours), f"{1000 * once / found['clips']:.1f}"
        yield [method, modality, allocator, *a_clip, *less, added]


def memory(given: argparse.Namespace, folder: Path, ways: Ways) -> Iterator[list[str]]:
    """Yield the most memory that each way needs."""
    for way in ways:
        theirs, ours = (
            alone(given, folder, *way, which, {})["memory"] for which in ("plain", "ours")
        )
        yield [*way, f"{theirs:,.0f}", f"{ours:,.0f}", f"{theirs / ours:.1f}"]


def alone(
    given: argparse.Namespace,
    folder: Path,
    method: str,
    modality: str,
    way: str,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Return what `measure` finds in a process of its own."""
    options = {"method": method, "modality": modality, "way": way, "folder": folder}
    options |= {key: getattr(given, key) for key in ("turns", "batch", "exemplars")}
    texts = [f"--{key}={value}" for key, value in options.items()]
    found = timing.alone("benchmarks.training", *texts, environment=environment)
    return dict(json.loads(found))


if __name__ == "__main__":
    main()
