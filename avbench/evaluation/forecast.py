"""What runs will cost, from runs that are finished or from a rule of thumb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avbench.features.store import FeatureStore
from avbench.learning.method import Method
from avbench.manifests.benchmark import Benchmark
from avbench.resources import read_json
from avbench.types import Modality

# Seconds of one CPU core in an epoch for every number that a clip has for a network: of sight alone
# those of its mean. benchmarks/README.md has what was measured.
_SECONDS_A_NUMBER: dict[Modality, float] = {"audio": 2e-7, "visual": 2e-7, "audio-visual": 5e-8}


@dataclass(frozen=True)
class Expected:
    """A run to be forecast.

    Attributes:
        out: The run directory.
        method_class: The method.
        modality: What it looks at.
        settings: Its settings, resolved.
        memory: Capacity of its memory.
        seeds: To be run.
    """

    out: Path
    method_class: type[Method]
    modality: Modality
    settings: Any
    memory: int
    seeds: Sequence[int]

    def epochs(self, benchmark: Benchmark) -> int:
        """Return the epochs of a seed, over all steps."""
        return benchmark.spec.steps * int(getattr(self.settings, "epochs", 1))

    def epochs_done(self, benchmark: Benchmark) -> int:
        """Return the epochs that are done, of all seeds: a log has a line for each."""
        total, done = self.epochs(benchmark), 0
        for seed in self.seeds:
            if (self.out / f"seed-{seed}").is_dir():
                done += total
            else:
                done += min(total, _lines(self.out / f"unfinished-seed-{seed}" / "log.jsonl"))
        return done


@dataclass(frozen=True)
class Forecast:
    """What a run will cost.

    Attributes:
        epochs: Of all seeds and steps.
        epochs_done: How many of them are done.
        seconds: Wall time of what is left; None where nothing tells.
        basis: What the time follows from.
    """

    epochs: int
    epochs_done: int
    seconds: float | None
    basis: str


def forecast(
    benchmark: Benchmark, store: FeatureStore | None, runs: Sequence[Expected], *, device: str
) -> list[Forecast]:
    """Forecast what is left of some runs.

    The time of a seed is that of the run's finished seeds; else it follows from the finished runs
    of the same input, by the clips they see in all epochs; else from a rule of thumb, which there
    is for one core of a CPU only.

    Args:
        benchmark: What is learned.
        store: Its features; None where there are none yet.
        runs: Of one benchmark.
        device: What they compute on.
    """
    seconds = [_seconds(run) for run in runs]
    clips = [clips_seen(benchmark, run) for run in runs]
    rates: dict[Modality, list[float]] = {}
    for run, took, seen in zip(runs, seconds, clips, strict=True):
        if took:
            rates.setdefault(run.modality, []).append(float(np.mean(took)) / seen)
    found = []
    for run, took, seen in zip(runs, seconds, clips, strict=True):
        a_seed, done = run.epochs(benchmark), run.epochs_done(benchmark)
        each: float | None
        if took:
            each, basis = float(np.mean(took)), "its finished seeds"
        elif run.modality in rates:
            each, basis = seen * float(np.mean(rates[run.modality])), "runs of the same input"
        elif store and device == "cpu":
            each, basis = seen * _rule_of_thumb(store, run.modality), "a rule of thumb, on one core"
        else:
            each, basis = None, f"nothing: {'no run is finished' if store else 'no features'} yet"
        epochs = len(run.seeds) * a_seed
        left = None if each is None else (epochs - done) / a_seed * each
        found.append(Forecast(epochs, done, left, basis))
    return found


def _seconds(run: Expected) -> list[float]:
    """Return what every finished seed took."""
    found = []
    for folder in sorted(run.out.glob("seed-*")):
        cost: Mapping[str, Any] = read_json(
            folder / "cost.json", remedy=f"delete {folder} and run again"
        )
        found.append(sum(step["seconds"] for step in cost["steps"]))
    return found


def clips_seen(benchmark: Benchmark, run: Expected) -> int:
    """Return how many clips one seed trains on or validates, counted anew in every epoch."""
    manifest, steps = benchmark.manifest, benchmark.spec.steps
    train, val = (
        np.bincount(manifest.step_of_row[manifest.rows(split)], minlength=steps)
        for split in ("train", "val")
    )
    if run.method_class.access == "joint":
        trained = train.cumsum()
    else:
        earlier = train.cumsum() - train
        trained = train + np.minimum(run.memory, earlier)
    each_epoch = int(trained.sum() + val.cumsum().sum())
    return each_epoch * int(getattr(run.settings, "epochs", 1))


def _rule_of_thumb(store: FeatureStore, modality: Modality) -> float:
    """Return the seconds a clip takes in an epoch."""
    return _SECONDS_A_NUMBER[modality] * numbers(store.frames, store.cells, store.dim, modality)


def numbers(frames: int, cells: int, dim: int, modality: Modality) -> int:
    """Return how many numbers a clip has for a network."""
    return dim * (frames * cells if modality == "audio-visual" else 1)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
