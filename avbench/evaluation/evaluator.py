"""Runs a method through a benchmark and keeps the evidence."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import save_file

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.metrics import AccuracyMatrix
from avbench.evaluation.plots import plot_accuracy, plot_matrix
from avbench.evaluation.result import Result, read_json, write_json
from avbench.features.store import FeatureStore, hash_clips
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method, Setup, resolve_settings
from avbench.learning.stream import ProtocolError, Rows, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.resources import replacing, writing
from avbench.types import SPLITS, AvbenchError, Modality, Report, UsageError, silent

Coverage = dict[str, float]

_RECORDED = ("avbench", "torch", "numpy", "pyarrow", "safetensors")


def evaluate(
    benchmark: Benchmark,
    method: str,
    *,
    seeds: Sequence[int],
    out: Path,
    modality: Modality | None = None,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_missing: bool = False,
    force: bool = False,
    report: Report = silent,
) -> Result:
    """Evaluate a method on a benchmark over seeds.

    Writes a run directory: `config.json`, `environment.json`, `result.json`, `accuracy.png`,
    `matrix.png`, and per seed `predictions.parquet`, `log.jsonl` and a checkpoint per step. Seeds
    the directory holds already, from the same configuration, are not run again.

    Args:
        benchmark: What to evaluate on; its features must be prepared.
        method: A registered method.
        seeds: One run each.
        out: The run directory.
        modality: What the method may look at; None for the method's default.
        preset: Which features; None for the benchmark's default.
        settings: Settings as text, over the method's recipe.
        device: A torch device.
        allow_missing: Go on where clips have no features; the result says which share had.
        force: Run again what `out` holds, and replace a run of another configuration.
        report: Called as training proceeds.

    Raises:
        UsageError: If a name or a setting does not exist.
        AvbenchError: If features are missing, `out` holds another run, or a disk refuses.
        ProtocolError: If the method breaks the protocol.
    """
    method_class: type[Method] = registry.load("methods", method)
    modality = _modality(method_class, method, modality)
    resolved = resolve_settings(method_class, method, benchmark.name, modality, settings or {})
    torch_device = _device(device)
    store = FeatureStore.of(benchmark, preset or benchmark.spec.preset)
    coverage = _coverage(benchmark, store, allow_missing)
    config = {
        "benchmark": benchmark.name,
        "fingerprint": benchmark.manifest.fingerprint,
        "method": method,
        "access": method_class.access,
        "modality": modality,
        "settings": asdict(resolved),
        "memory": benchmark.spec.memory if method_class.uses_memory else 0,
        "preset": store.preset_name,
        "preset_hash": store.preset_hash,
        "device": torch_device.type,
        "version": version("avbench"),
    }
    _claim(out, config, force=force)

    runs = {}
    for seed in seeds:
        folder = out / f"seed-{seed}"
        if folder.is_dir():
            report(f"{out.name}, seed {seed} (kept from an earlier run)", 1, 1)
        else:
            run = _Run(benchmark, store, method_class, resolved, modality, seed, torch_device)
            with replacing(folder) as temporary:
                temporary.mkdir()
                run.write(temporary, f"{out.name}, seed {seed}", report)
        runs[seed] = _read_run(folder, benchmark)
    test_clips = [benchmark.manifest.clip_ids[r] for r in benchmark.manifest.rows("test")]
    present = [c for c, row in zip(test_clips, store.rows_of(test_clips), strict=True) if row >= 0]
    result = Result(
        config=config,
        coverage=coverage,
        test_clips_hash=hash_clips(present),
        matrices={seed: matrix for seed, (matrix, _) in runs.items()},
        seconds={seed: seconds for seed, (_, seconds) in runs.items()},
    )
    write_json(out / "result.json", result.to_json())
    plot_accuracy([result], out / "accuracy.png")
    plot_matrix(result, out / "matrix.png")
    return result


@dataclass(frozen=True)
class _Run:
    """One seed of one method."""

    benchmark: Benchmark
    store: FeatureStore
    method_class: type[Method]
    settings: Any
    modality: Modality
    seed: int
    device: torch.device

    def write(self, folder: Path, title: str, report: Report) -> None:
        """Learn and predict step by step, keeping everything in a folder."""
        manifest = self.benchmark.manifest
        memory = ExemplarMemory(self.benchmark.spec.memory if self.method_class.uses_memory else 0)
        stream = TaskStream(
            manifest,
            self.store,
            modality=self.modality,
            joint=self.method_class.access == "joint",
            memory=memory,
            device=self.device,
        )
        total = self.benchmark.spec.steps * getattr(self.settings, "epochs", 1)
        tables = []
        begun = time.perf_counter()
        report(title, 0, total)
        with (folder / "log.jsonl").open("w", encoding="utf-8") as log_file:
            logged = 0

            def log(record: dict[str, Any]) -> None:
                nonlocal logged
                logged += 1
                log_file.write(json.dumps(record) + "\n")
                report(title, min(logged, total), total)

            setup = Setup(
                self.store.dim, self.store.frames, self.modality, self.seed, self.device, log
            )
            method = self.method_class(self.settings, setup)
            for task in stream:
                method.learn(task)
                clips, rows = stream.test(task.step)
                predicted = _checked(method.predict(clips), len(rows), task.seen_classes)
                tables.append(_table(manifest, task.step, rows, predicted))
                state = {k: v.detach().cpu().contiguous() for k, v in method.state().items()}
                save_file(state, folder / f"step-{task.step + 1}.safetensors")
        report(title, total, total)
        predictions.write(folder / "predictions.parquet", pa.concat_tables(tables))
        write_json(folder / "timing.json", {"seconds": time.perf_counter() - begun})


def _read_run(folder: Path, benchmark: Benchmark) -> tuple[AccuracyMatrix, float]:
    table = predictions.read(folder / "predictions.parquet")
    timing = read_json(folder / "timing.json")
    return predictions.matrix(table, benchmark.manifest), float(timing["seconds"])


def _table(manifest: Manifest, step: int, rows: Rows, predicted: Rows) -> pa.Table:
    columns = {
        "step": np.full(len(rows), step),
        "clip_id": manifest.table["clip_id"].take(rows),
        "label": manifest.class_indices[rows],
        "prediction": predicted,
    }
    return pa.table(columns).cast(predictions.SCHEMA)


def _checked(predicted: npt.NDArray[np.int64], count: int, seen: int) -> npt.NDArray[np.int64]:
    predicted = np.asarray(predicted)
    if predicted.shape != (count,) or not np.issubdtype(predicted.dtype, np.integer):
        raise ProtocolError(
            f"predict must return {count} integers, not {predicted.dtype} {predicted.shape}"
        )
    if count and not (predicted.min() >= 0 and predicted.max() < seen):
        raise ProtocolError(f"predict returned a class outside the {seen} seen so far")
    return predicted.astype(np.int64)


def _modality(method_class: type[Method], name: str, asked: Modality | None) -> Modality:
    if asked is None:
        return method_class.modalities[0]
    if asked not in method_class.modalities:
        can = " or ".join(method_class.modalities)
        raise UsageError(f"{name} does not work on {asked} input; it takes {can}")
    return asked


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here: try cpu") from error
    return device


def _coverage(benchmark: Benchmark, store: FeatureStore, allow_missing: bool) -> Coverage:
    """Return the share of clips with features per split; refuse gaps nobody asked for."""
    manifest = benchmark.manifest
    remedy = f"run avbench prepare {benchmark.argument}"
    if store.fingerprint != manifest.fingerprint:
        raise AvbenchError(f"{store.folder}: features of another version of the manifest: {remedy}")
    present = store.rows_of(manifest.clip_ids) >= 0
    rows = {split: manifest.rows(split) for split in SPLITS}
    coverage: Coverage = {s: float(present[r].mean()) if len(r) else 1.0 for s, r in rows.items()}
    if not present.all() and not allow_missing:
        missing = int((~present).sum())
        raise AvbenchError(
            f"{missing} of {len(present)} clips have no features in {store.folder}:"
            f" {remedy}, or pass --allow-missing"
        )
    return coverage


def _claim(out: Path, config: dict[str, Any], *, force: bool) -> None:
    """Make the run directory ours, or keep what an equal configuration left there."""
    path = out / "config.json"
    if path.is_file() and not force and read_json(path) != config:
        raise AvbenchError(
            f"{out} holds a run of another configuration: choose another --out, or pass --force"
        )
    if out.exists() and not path.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise AvbenchError(f"{out} is not a run directory: choose another --out")
    if force:
        with writing(out):
            for old in (*out.glob("seed-*"), *out.glob(".partial-*")):
                shutil.rmtree(old)
    write_json(path, config)
    write_json(out / "environment.json", _environment())


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in _RECORDED},
    }
