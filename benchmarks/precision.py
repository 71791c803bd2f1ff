"""Accuracy of AV-CIL with features and products in other precisions.

    python -m benchmarks.precision [--features SET.npz --results RESULTS.json] [--seeds N]

On toy-ci, rendered and encoded here, or on a set as `parity.py` takes it, whose numbers may be in
half precision to begin with. Products in bfloat16 are computed on a CPU made to accept them. "Same"
is the share of predictions, over all seeds and steps, that are those of float32 throughout.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from avbench import registry
from avbench.evaluation.evaluator import evaluate
from avbench.features import store
from avbench.features.encoders.filterbank import FilterbankEncoder
from avbench.features.store import FeatureStore
from avbench.learning import gradient
from avbench.manifests.benchmark import Benchmark
from avbench.media.places import file_name, places_of
from avbench.media.prepare import prepare_clips
from avbench.types import silent
from benchmarks import parity, timing

METRICS = ("mean_accuracy", "average_forgetting", "last_accuracy")
# Features as stored, products as computed.
PRECISIONS: tuple[tuple[Literal["float32", "float16"], str], ...] = (
    ("float32", "float32"),
    ("float16", "float32"),
    ("float16", "bfloat16"),
)

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def toy(home: Path) -> tuple[Benchmark, Arrays]:
    """Render toy-ci; return it and its features, in single precision."""
    os.environ["AVBENCH_HOME"] = str(home)
    benchmark = Benchmark.load("toy-ci")
    prepare_clips(benchmark, workers=os.cpu_count() or 1, report=silent)
    encoder, clips = FilterbankEncoder(), places_of(benchmark).clips
    found = []
    for clip_id in benchmark.manifest.clip_ids:
        with clips.opened(file_name(clip_id)) as path:
            found.append(encoder.read(path))
    audio, visual = (np.stack(values) for values in zip(*found, strict=True))
    return benchmark, (audio, visual)


def given_set(
    features: Path, results: Path, folder: Path
) -> tuple[Benchmark, Arrays, dict[str, str]]:
    """Return the benchmark of a set, its features, and the settings its results name."""
    _, settings, classes_per_step = parity.read_results(results)
    benchmark = parity.make_benchmark(features, folder, classes_per_step)
    written = FeatureStore.of(benchmark, "parity")
    rows = np.arange(len(written))
    known = {field.name for field in fields(registry.load("methods", "avcil").Settings)}
    chosen = {key: value for key, value in settings.items() if key in known}
    return benchmark, (written.audio(rows), written.visual(rows)), chosen


def lay_out(benchmark: Benchmark, arrays: Arrays, folder: Path, dtype: Any) -> None:
    """Store features in a precision."""
    audio, visual = arrays
    frames = parity.FRAMES
    with store.create(
        folder,
        preset={"name": "precision", "clip_seconds": float(benchmark.spec.clip_seconds)},
        fingerprint=benchmark.manifest.fingerprint,
        clip_ids=benchmark.manifest.clip_ids,
        dim=audio.shape[1],
        frames=frames,
        cells=visual.shape[1] // frames,
        dtype=dtype,
    ) as writer:
        for row in range(len(audio)):
            writer.write(row, audio[row], visual[row])


def compare(
    benchmark: Benchmark, arrays: Arrays, folder: Path, settings: Mapping[str, str], seeds: int
) -> Iterator[list[str]]:
    """Yield what AV-CIL scores in every precision."""
    gradient.has_amx = lambda: True
    first: np.ndarray[Any, Any] | None = None
    for stored, product in PRECISIONS:
        place = folder / stored
        if not place.exists():
            lay_out(benchmark, arrays, place, stored)
        out = folder / f"{stored}-{product}"
        result = evaluate(
            benchmark,
            "avcil",
            seeds=range(seeds),
            out=out,
            features=str(place),
            settings={**settings, "precision": product},
        )
        predicted = np.concatenate(
            [
                pq.ParquetFile(out / f"seed-{seed}" / "predictions.parquet")
                .read(["prediction"])["prediction"]
                .to_numpy()
                for seed in range(seeds)
            ]
        )
        first = predicted if first is None else first
        found = [result.metric(metric) for metric in METRICS]
        scores = [f"{100 * each.mean:.2f} ± {100 * (each.std or 0):.2f}" for each in found]
        yield [benchmark.name, stored, product, *scores, f"{100 * (predicted == first).mean():.1f}"]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "one seed, one epoch")
    parser.add_argument("--features", type=Path, metavar="SET.npz")
    parser.add_argument("--results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if (given.features is None) != (given.results is None):
        parser.error("--features and --results go together")
    quick = {"epochs": "1"} if given.quick else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings: dict[str, str] = {}
        if given.features:
            benchmark, arrays, settings = given_set(given.features, given.results, folder)
        else:
            benchmark, arrays = toy(folder / "home")
        header = ["benchmark", "stored", "products", "mean accuracy, %", "average forgetting, %"]
        header += ["last accuracy, %", "same, %"]
        seeds = 1 if given.quick else given.seeds
        timing.show(header, compare(benchmark, arrays, folder, settings | quick, seeds))


if __name__ == "__main__":
    main()
