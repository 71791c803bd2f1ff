"""Compare every reference method with the authors' code on a set of features.

    python benchmarks/parity.py --features SET.npz --results RESULTS.json

SET.npz holds `visual` (clips, 8 * cells, dim), `audio` (clips, dim), `vid`, `label` and `split`;
RESULTS.json what the authors' scripts scored on it: `runs` by "method|modality|seed", and a `note`
with the settings. Prints one line a method and modality, and exits with 1 if any disagrees: if mean
accuracy or average forgetting differ by more than 2 points and more than two standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from avbench import registry
from avbench.evaluation.metrics import METRICS, AccuracyMatrix
from avbench.features import store
from avbench.learning.classifiers import LocalSimilarityClassifier
from avbench.learning.gradient import GradientMethod
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Setup, resolve_settings
from avbench.learning.replay import HerdedReplay, NearestMean, PairedReplay
from avbench.learning.stream import Batch, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.types import MODALITIES, AvbenchError, Modality
from reference_methods.afc import AFCLSC

FRAMES = 8
POINTS = 2.0
COMPARED = ("mean_accuracy", "average_forgetting")

# How the note of a results file spells the settings, and what they are called here.
NOTED = {
    "epochs": r"(\d+) epochs",
    "batch_size": r"train batch (\d+)",
    "exemplar_batch_size": r"exemplar batch (\d+)",
    "memory": r"memory (\d+)",
    "learning_rate": r"\blr ([\d.e-]+)",
    "weight_decay": r"weight decay ([\d.e-]+)",
    "lambda_vad": r"\blam ([\d.]+)",
    "lambda_instance": r"\blam_I ([\d.]+)",
    "lambda_class": r"\blam_C ([\d.]+)",
    "temperature": r"\btau ([\d.]+)",
    "lambda_disc": r"\blam_disc ([\d.]+)",
}


@dataclass(frozen=True)
class Theirs:
    """What the authors' code scored with one method on one modality, in percent, a seed each."""

    seeds: list[int]
    scores: dict[str, list[float]]


def read_results(path: Path) -> tuple[dict[tuple[str, str], Theirs], dict[str, str], list[int]]:
    """Return scores by method and modality, settings, and classes per step."""
    record = json.loads(path.read_text(encoding="utf-8"))
    grouped: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for key, run in record["runs"].items():
        method, modality, seed = key.split("|")
        grouped[method, modality][int(seed)] = run
    theirs = {}
    for key, runs in grouped.items():
        seeds = sorted(seed for seed, run in runs.items() if run["mean_acc"] is not None)
        if not seeds:
            raise ValueError(f"{path}: no seed of {key[0]}, {key[1]} has a mean_acc")
        scores = {"mean_accuracy": [100 * runs[seed]["mean_acc"] for seed in seeds]}
        forgetting = [runs[seed]["avg_forgetting"] for seed in seeds]
        # A bound has none; of any other method all seeds have one.
        if any(value is not None for value in forgetting):
            scores["average_forgetting"] = [100 * value for value in forgetting]
        theirs[key] = Theirs(seeds, scores)
    # A run that failed on the way knows fewer steps.
    first = max(record["runs"].values(), key=lambda run: len(run["steps"]))
    seen = [0, *(max(step["label"]) + 1 for step in first["steps"])]
    found = {name: re.search(pattern, record.get("note", "")) for name, pattern in NOTED.items()}
    settings = {name: match[1].rstrip(".") for name, match in found.items() if match}
    if "epochs" in first:
        settings["epochs"] = str(first["epochs"])
    return theirs, settings, np.diff(seen).tolist()


def make_benchmark(features: Path, folder: Path, classes_per_step: list[int]) -> Benchmark:
    """Lay a set of features out as a benchmark of its own."""
    os.environ["AVBENCH_HOME"] = str(folder / "home")
    with np.load(features, allow_pickle=False) as archive:
        data = {key: archive[key] for key in ("visual", "audio", "vid", "label", "split")}
    rows = zip(data["vid"], data["label"], data["split"], strict=True)
    lines = [f"{vid},class {label},{label},{split}" for vid, label, split in rows]
    folder.mkdir(parents=True, exist_ok=True)
    header = "clip_id,label,class_index,split"
    (folder / "set.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "set.toml").write_text(
        f'name = "parity"\nclasses = {sum(classes_per_step)}\nannotations = "set.csv"\n'
        f'classes_per_step = {classes_per_step}\nclip_seconds = 10.0\npreset = "parity"\n'
    )
    benchmark = Benchmark.load(str(folder / "set.toml"))
    number_of = {str(vid): number for number, vid in enumerate(data["vid"])}
    with store.create(
        store.store_folder(benchmark, "parity"),
        preset={"name": "parity", "clip_seconds": 10.0},
        fingerprint=benchmark.manifest.fingerprint,
        clip_ids=benchmark.manifest.clip_ids,
        dim=data["audio"].shape[1],
        frames=FRAMES,
        cells=data["visual"].shape[1] // FRAMES,
    ) as writer:
        for row, clip_id in enumerate(benchmark.manifest.clip_ids):
            number = number_of[clip_id]
            writer.write(row, data["audio"][number], data["visual"][number])
    return benchmark


def replaying(method: type[GradientMethod]) -> type[GradientMethod]:
    """Return a method that consumes random numbers in the order of the authors' scripts.

    They seed once per run, and torch's loaders draw a number whenever they are iterated over, used
    or not. With the same numbers, runs can be compared one by one; what is learned stays the same.
    """

    class Replaying(method):  # type: ignore[misc, valid-type]
        def seed(self, step: int) -> None:
            self.epoch = 0
            if step == 0:
                torch.manual_seed(self.setup.seed)
                np.random.seed(self.setup.seed)  # noqa: NPY002
                self.random.seed(self.setup.seed)

        def kmeans_seed(self) -> None:
            return None

        def start(self, task: Task) -> None:
            if issubclass(method, AFCLSC) and task.step:
                # Their old proxies are drawn before they are copied.
                size = LocalSimilarityClassifier.PROXIES * task.old_classes
                torch.empty(size, self.setup.dim).normal_()
            super().start(task)

        def batches(self, task: Task) -> Iterator[Batch]:
            iterated = 3 if issubclass(method, PairedReplay) and task.step else 1
            for _ in range(iterated):
                draw()
            yield from super().batches(task)

        def ready(self, task: Task) -> None:
            if issubclass(method, NearestMean) and self.epoch < self.settings.epochs:
                draw()
            self.epoch += 1
            super().ready(task)

        def validate(self, task: Task) -> float | None:
            draw()
            return super().validate(task)

        def finish(self, task: Task) -> None:
            if issubclass(method, HerdedReplay) and not issubclass(method, NearestMean):
                draw()
            super().finish(task)

    return Replaying


def draw() -> None:
    """Draw what a loader draws when it is iterated over."""
    torch.empty((), dtype=torch.int64).random_()


def run_ours(
    toml: Path, name: str, modality: Modality, seed: int, given: dict[str, str]
) -> dict[str, float]:
    """Run a method here with one seed; return its scores, in percent."""
    torch.set_num_threads(1)
    os.environ["AVBENCH_HOME"] = str(toml.parent / "home")
    benchmark = Benchmark.load(str(toml))
    method_class = registry.load("methods", name)
    known = {field.name for field in fields(method_class.Settings)}
    chosen = {key: value for key, value in given.items() if key in known}
    settings = resolve_settings(method_class, name, benchmark.name, modality, chosen)
    features = store.FeatureStore.of(benchmark, "parity")
    device = torch.device("cpu")
    uses_memory = method_class.uses_memory
    stream = TaskStream(
        benchmark.manifest,
        features,
        modality=modality,
        joint=method_class.access == "joint",
        memory=ExemplarMemory(int(given["memory"])) if uses_memory else None,
        device=device,
    )
    setup = Setup(features.dim, FRAMES, modality, seed, device, dict)
    method = replaying(method_class)(settings, setup)
    steps, rows, predicted = [], [], []
    for task in stream:
        method.learn(task)
        draw()
        clips, of_step = stream.test(task.step)
        predicted.append(method.predict(clips))
        rows.append(of_step)
        steps.append(np.full(len(of_step), task.step))
    manifest, tested = benchmark.manifest, np.concatenate(rows)
    matrix = AccuracyMatrix.from_predictions(
        np.concatenate(steps),
        manifest.step_of_row[tested],
        manifest.class_indices[tested],
        np.concatenate(predicted),
    )
    return {metric: 100 * METRICS[metric](matrix) for metric in COMPARED}


def compare(mine: list[float], other: list[float]) -> tuple[float, float, float, float]:
    """Return both means, their difference, and how large it may be."""
    error = math.sqrt(
        sum(
            statistics.variance(scores) / len(scores) for scores in (mine, other) if len(scores) > 1
        )
    )
    a, b = statistics.fmean(mine), statistics.fmean(other)
    return a, b, a - b, max(POINTS, 2 * error)


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, required=True, metavar="SET.npz")
    parser.add_argument("--results", type=Path, required=True, metavar="RESULTS.json")
    parser.add_argument("--modality", choices=MODALITIES, help="only this one")
    parser.add_argument("--method", action="append", help="only this one; may be repeated")
    parser.add_argument("--seeds", type=int, help="how many here  [default: the authors']")
    parser.add_argument("--out", type=Path, default=Path("runs/parity"), help="where runs are kept")
    parser.add_argument("--workers", type=int, default=1, help="methods run at a time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    theirs, settings, classes_per_step = read_results(args.results)
    settings |= dict(pair.split("=", 1) for pair in args.set)
    wanted = [
        (method, modality)
        for method, modality in theirs
        if args.modality in (None, modality) and (args.method is None or method in args.method)
    ]
    missing = {"epochs", "batch_size", "memory"} - settings.keys()
    if missing:
        raise ValueError(f"{args.results}: its note lacks {', '.join(missing)}: pass --set")
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: at least 1")
    unknown = [key for key in wanted if key[0] not in registry.registered("methods")]
    wanted = [key for key in wanted if key not in unknown]
    if not wanted:
        raise ValueError(f"{args.results}: no run of such a method and modality")
    folder = args.out / args.features.stem
    make_benchmark(args.features, folder, classes_per_step)
    print(f"{args.features.name}: {settings}, classes per step {classes_per_step}", flush=True)
    columns = f"{'ours':>6} {'theirs':>7} {'differ':>7} {'allowed':>7}"
    print(f"{'':31}  {'mean accuracy':30}  {'average forgetting':30}")
    print(f"{'method':10} {'modality':13} {'seeds':>5}  {columns}  {columns}", flush=True)
    jobs = [
        (method, modality, seed)
        for method, modality in wanted
        for seed in chosen_seeds(theirs[method, modality].seeds, args.seeds)
    ]
    run = Parallel(n_jobs=args.workers, return_as="generator")
    scores: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for method, modality in unknown:
        print(f"{method:10} {modality:13} is no method of avbench  FAIL")
    failed, total = len(unknown), len(wanted) + len(unknown)
    found = run(delayed(run_ours)(folder / "set.toml", *job, settings) for job in jobs)
    for (*key, _), score, following in zip(jobs, found, [*jobs[1:], None], strict=True):
        scores[tuple(key)].append(score)
        if following is None or list(following[:2]) != key:
            failed += not show(*key, scores[tuple(key)], theirs[tuple(key)])
    print(f"{failed} of {total} disagree" if failed else f"all {total} agree")
    return min(failed, 1)


def chosen_seeds(theirs: list[int], count: int | None) -> list[int]:
    """Return the authors' seeds, and those that follow them where more are asked for."""
    wanted = len(theirs) if count is None else count
    return [*theirs, *range(theirs[-1] + 1, theirs[-1] + 1 + wanted)][:wanted]


def show(method: str, modality: str, ours: list[dict[str, float]], theirs: Theirs) -> bool:
    """Print a method's line; return whether it agrees."""
    cells, agrees = [], True
    for metric in COMPARED:
        if metric not in theirs.scores:
            cells.append(f"{'-':>30}")
            continue
        mine = [score[metric] for score in ours]
        a, b, difference, allowed = compare(mine, theirs.scores[metric])
        agrees &= abs(difference) <= allowed
        cells.append(f"{a:6.2f} {b:7.2f} {difference:+7.2f} {allowed:7.2f}")
    verdict = "ok" if agrees else "FAIL"
    print(f"{method:10} {modality:13} {len(ours):5}  {'  '.join(cells)}  {verdict}", flush=True)
    return agrees


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AvbenchError, OSError, KeyError, ValueError) as error:
        sys.exit(f"Error: {error}")
