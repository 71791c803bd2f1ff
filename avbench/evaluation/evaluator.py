"""Runs a method through a benchmark and keeps the evidence."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import random
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
from safetensors.torch import save

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.metrics import AccuracyMatrix
from avbench.evaluation.plots import plot_accuracy, plot_matrix
from avbench.evaluation.result import Result
from avbench.features.store import FeatureStore, hash_clips
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method, Setup, resolve_settings
from avbench.learning.stream import ProtocolError, Rows, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.resources import alone, read_json, replacing, write_json, writing
from avbench.types import SPLITS, AvbenchError, Modality, Report, UsageError, silent

Coverage = dict[str, float]

_RECORDED = ("avbench", "av", "numpy", "pyarrow", "safetensors", "torch")


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

    Writes a run directory: `config.json`, `result.json`, `accuracy.png`, `matrix.png`, and per seed
    `predictions.parquet`, `environment.json`, `log.jsonl` and a checkpoint per step. Seeds the
    directory holds already, from the same configuration, are not run again.

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
        force: Run these seeds again even if `out` holds them, and replace a run of another
            configuration.
        report: Called as training proceeds.

    Returns:
        What `result.json` holds.

    Raises:
        UsageError: If a name or a setting does not exist.
        AvbenchError: If features are missing, `out` holds another run, or a disk refuses.
        ProtocolError: If the method breaks the protocol.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= s < 2**31 for s in seeds):
        raise UsageError("give different seeds, at least one, between 0 and 2147483647")
    method_class: type[Method] = registry.load("methods", method)
    modality = _modality(method_class, method, modality)
    resolved = resolve_settings(method_class, method, benchmark.base.name, modality, settings or {})
    torch_device = _device(device)
    preset = preset or benchmark.spec.preset
    if preset not in registry.registered("encoders"):
        raise registry.unknown("preset", preset, list(registry.registered("encoders")))
    store = FeatureStore.of(benchmark, preset)
    coverage = _coverage(benchmark, store, allow_missing)
    config = {
        "benchmark": benchmark.name,
        "fingerprint": benchmark.manifest.fingerprint,
        "method": method,
        "method_hash": _source_hash(method_class),
        "access": method_class.access,
        "modality": modality,
        "settings": asdict(resolved),
        "memory": _memory(benchmark, method, method_class),
        "preset": store.preset_name,
        "preset_hash": store.preset_hash,
        "features_hash": store.features_hash,
        "clips_hash": hash_clips(store.clip_ids),
        "device": torch_device.type,
        "version": version("avbench"),
    }
    try:
        config = json.loads(json.dumps(config, allow_nan=False))  # as it will be read back
    except (TypeError, ValueError) as error:
        raise AvbenchError(f"settings of {method} do not fit into JSON: {error}") from error
    if out.exists() and not (out.is_dir() and _is_run(out)):
        raise AvbenchError(f"{out} is not a run directory: choose another --out")
    with alone(out, "using this run directory"), writing(out):
        _claim(out, config, seeds, force=force)
        runs = {}
        for seed in seeds:
            folder = out / f"seed-{seed}"
            if folder.is_dir() and not force:
                report(f"{out.name}, seed {seed} (kept from an earlier run)", 1, 1)
            else:
                run = _Run(benchmark, store, method_class, resolved, modality, seed, torch_device)
                with replacing(folder, folder=True) as temporary:
                    run.write(temporary, f"{out.name}, seed {seed}", report)
            runs[seed] = _read_run(folder, benchmark, partial=allow_missing)
        test = [benchmark.manifest.clip_ids[row] for row in benchmark.manifest.rows("test")]
        here = [clip for clip, row in zip(test, store.rows_of(test), strict=True) if row >= 0]
        result = Result(
            config=config,
            coverage=coverage,
            test_clips_hash=hash_clips(here),
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
        capacity = self.benchmark.spec.memory
        memory = ExemplarMemory(capacity) if self.method_class.uses_memory else None
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
            # For methods that draw on a global generator; steps are seeded again on their own.
            torch.manual_seed(self.seed)
            np.random.seed(self.seed)  # noqa: NPY002
            random.seed(self.seed)
            method = self.method_class(self.settings, setup)
            for task in stream:
                method.learn(task)
                clips, rows = stream.test(task.step)
                predicted = _checked(method.predict(clips), len(rows), task.seen_classes)
                clips.close()
                tables.append(_table(manifest, task.step, rows, predicted))
                state = {
                    k: v.detach().cpu().contiguous().clone() for k, v in method.state().items()
                }
                # Written by Python, whose errors say which file and why.
                (folder / f"step-{task.step + 1}.safetensors").write_bytes(save(state))
        report(title, total, total)
        predictions.write(folder / "predictions.parquet", pa.concat_tables(tables))
        write_json(folder / "timing.json", {"seconds": time.perf_counter() - begun})
        write_json(folder / "environment.json", _environment())


def _read_run(folder: Path, benchmark: Benchmark, *, partial: bool) -> tuple[AccuracyMatrix, float]:
    remedy = f"delete {folder} and run again"
    timing = read_json(folder / "timing.json", remedy=remedy)
    try:
        table = predictions.read(folder / "predictions.parquet")
        matrix = predictions.matrix(table, benchmark.manifest, partial=partial)
        seconds = float(timing["seconds"])
    except (KeyError, TypeError, ValueError, AvbenchError) as error:
        raise AvbenchError(f"{folder} does not hold a whole run ({error}): {remedy}") from error
    return matrix, seconds


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


def _source_hash(method_class: type[Method]) -> str:
    """Return the SHA-256 of the files that define a method: an edited one is another method."""
    classes = [c for c in inspect.getmro(method_class) if c.__module__ not in ("builtins", "abc")]
    sources = [Path(inspect.getfile(c)).read_bytes() for c in classes]
    return hashlib.sha256(b"\n".join(sources)).hexdigest()


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
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here: try cpu") from error
    return device


def _coverage(benchmark: Benchmark, store: FeatureStore, allow_missing: bool) -> Coverage:
    """Return the share of clips with features per split; refuse gaps nobody asked for."""
    manifest = benchmark.manifest
    remedy = f"run avbench prepare {benchmark.argument}"
    if store.preset.get("clip_seconds") != float(benchmark.spec.clip_seconds):
        raise AvbenchError(f"{store.folder}: features of clips of another length: {remedy}")
    if store.fingerprint != benchmark.base.manifest.fingerprint:
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
    tested = np.bincount(manifest.step_of_row[rows["test"]][present[rows["test"]]])
    for step in range(benchmark.spec.steps):
        if step >= len(tested) or tested[step] == 0:
            raise AvbenchError(f"step {step + 1} of {benchmark.name} has no test clip: add some")
    return coverage


def _memory(benchmark: Benchmark, name: str, method_class: type[Method]) -> int:
    """Return the capacity of the exemplar memory; refuse one without a place for every class."""
    if not method_class.uses_memory:
        return 0
    old_classes = sum(benchmark.spec.classes_per_step[:-1])
    if benchmark.spec.memory < old_classes:
        raise AvbenchError(
            f"{name} keeps exemplars, but memory = {benchmark.spec.memory} of {benchmark.name} has"
            f" no place for each of {old_classes} old classes: give it more"
        )
    return benchmark.spec.memory


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what a run left that was ended at once."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", remedy="choose another --out")
        return {"benchmark", "fingerprint", "method"} <= config.keys()
    return all(path.name.startswith((".lock", ".partial-")) for path in folder.iterdir())


def _claim(out: Path, config: dict[str, Any], seeds: Sequence[int], *, force: bool) -> None:
    """Make the run directory ours, keeping the seeds of an equal configuration."""
    path = out / "config.json"
    held = [old for old in out.glob("seed-*") if old.is_dir() and not old.is_symlink()]
    if held:
        known = read_json(path, remedy=f"delete {out} and run again")
        differ = sorted(key for key in config | known if config.get(key) != known.get(key))
        if differ and not force:
            raise AvbenchError(
                f"{out} holds a run that differs in {', '.join(differ)}:"
                " choose another --out, or pass --force to replace it"
            )
        for old in held if differ else []:
            shutil.rmtree(old)
    if force or any(not (out / f"seed-{seed}").is_dir() for seed in seeds):
        # They would speak of other seeds than the folder holds, should this run fail.
        for name in ("result.json", "accuracy.png", "matrix.png"):
            (out / name).unlink(missing_ok=True)
    write_json(path, config)


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
