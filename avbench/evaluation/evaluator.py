"""Runs a method through a benchmark and keeps the evidence."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.plots import plot_accuracy, plot_matrix
from avbench.evaluation.result import FORMAT, Bootstrap, Config, Result
from avbench.evaluation.run import Run
from avbench.evaluation.run_folder import claim, holds_work, is_run, promote, read_run
from avbench.features.store import FeatureStore, hash_clips, store_folder
from avbench.learning.gradient import GradientMethod
from avbench.learning.method import Declaration, Method, resolve_settings
from avbench.manifests.benchmark import Benchmark
from avbench.resources import alone, write_json, writing
from avbench.types import (
    SPLITS,
    AvbenchError,
    Modality,
    Report,
    Residency,
    Split,
    UsageError,
    silent,
)

Coverage = dict[Split, float]


def evaluate(
    benchmark: Benchmark,
    method: str,
    *,
    seeds: Sequence[int],
    out: Path,
    modality: Modality | None = None,
    preset: str | None = None,
    features: str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_missing: bool = False,
    force: bool = False,
    checkpoint_epochs: int = 0,
    tensorboard: bool = False,
    residency: Residency | None = None,
    profile: bool = False,
    report: Report = silent,
) -> Result:
    """Evaluate a method on a benchmark over seeds.

    Writes a run directory: `config.json`, `result.json`, `accuracy.png`, `matrix.png`, and per seed
    `predictions.parquet`, `exemplars.json`, `cost.json`, `environment.json`, `log.jsonl` and a
    checkpoint per step. Seeds the directory holds already, from the same configuration, are not run
    again; one that was killed goes on after its last finished step.

    Args:
        benchmark: What to evaluate on; its features must be prepared.
        method: A registered method.
        seeds: One run each.
        out: The run directory.
        modality: What the method may look at; None for the method's default.
        preset: Which features; None for the benchmark's default, or for those at `features`.
        features: Where they lie, a folder or a URL that fsspec opens; None for the benchmark's own
            place.
        settings: Settings as text, over the method's recipe.
        device: A torch device.
        allow_missing: Go on where clips have no features; the result says which share had.
        force: Run these seeds again even if `out` holds them, and replace a run of another
            configuration.
        checkpoint_epochs: Also keep a step in the middle, every so many epochs; 0 for never.
        profile: Measure what the time goes into; on a GPU that takes some more of it.
        tensorboard: Also log to `tensorboard/` in the run directory.
        residency: Where a step's features lie: "device", "ram" or "disk"; None to choose by what
            fits. Results do not depend on it.
        report: Called as training proceeds.

    Returns:
        What `result.json` holds.

    Raises:
        UsageError: If a name or a setting does not exist.
        AvbenchError: If features are missing, `out` holds another run, or a disk refuses.
        ProtocolError: If the method breaks the protocol.
    """
    if tensorboard and not find_spec("tensorboard"):
        raise UsageError("TensorBoard is not installed: pip install 'avbench[tensorboard]'")
    seeds = checked_seeds(seeds)
    method_class: type[Method] = registry.load("methods", method)
    name = registry.short_name(method)
    check_method_class(method_class, name)
    if checkpoint_epochs and method_class.learn is not GradientMethod.learn:
        raise UsageError(f"{name} does not train by the shared loop: leave --checkpoint-epochs out")
    declared = Declaration.of(method_class, name)
    modality = _modality(declared, name, modality)
    resolved = resolve_settings(method_class, name, benchmark.base.name, modality, settings or {})
    torch_device = _device(device)
    store = open_store(benchmark, preset, features)
    coverage = coverage_of(benchmark, store, allow_missing)
    variant = benchmark.spec.variant
    config: Config = {
        "benchmark": benchmark.name,
        "variant": variant.text if variant else None,
        "fingerprint": benchmark.manifest.fingerprint,
        "method": name,
        "method_hash": _source_hash(method_class),
        "access": declared.access,
        "modality": modality,
        "settings": asdict(resolved),
        "memory": memory_of(benchmark, name, declared, resolved),
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
        raise AvbenchError(f"settings of {name} do not fit into JSON: {error}") from error
    if out.exists() and not (out.is_dir() and is_run(out)):
        raise AvbenchError(f"{out} is not a run directory: choose another --out")
    with alone(out, "using this run directory"), writing(out):
        claim(out, config, seeds, force=force)
        runs = {}
        for seed in seeds:
            folder = out / f"seed-{seed}"
            if folder.is_dir() and not force:
                report(f"{out.name}, seed {seed} (kept from an earlier run)", 1, 1)
            else:
                run = Run(
                    benchmark,
                    store,
                    method_class,
                    declared,
                    resolved,
                    modality,
                    config["memory"],
                    seed,
                    torch_device,
                    checkpoint_epochs,
                    out / "tensorboard" / f"seed-{seed}" if tensorboard else None,
                    residency,
                    profile,
                )
                unfinished = out / f"unfinished-seed-{seed}"
                try:
                    run.write(unfinished, f"{out.name}, seed {seed}", report)
                except BaseException:
                    if not holds_work(unfinished):
                        shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                promote(unfinished, folder)
            runs[seed] = read_run(folder, seed, benchmark, partial=allow_missing)
        test = [benchmark.manifest.clip_ids[row] for row in benchmark.manifest.rows("test")]
        here = [clip for clip, row in zip(test, store.rows_of(test), strict=True) if row >= 0]
        result = Result(
            format=FORMAT,
            config={**config},
            coverage=coverage,
            test_clips_hash=hash_clips(here),
            bootstrap=Bootstrap.of(predictions.outcomes([table for table, _ in runs.values()])),
            runs=[run for _, run in runs.values()],
        )
        write_json(out / "result.json", result.to_json())
        plot_accuracy([result], out / "accuracy.png")
        plot_matrix(result, out / "matrix.png")
    return result


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Return seeds as a list.

    Raises:
        UsageError: If there is none, one is there twice, or one is out of range.
    """
    found = [int(seed) for seed in seeds]
    if not found or len(set(found)) != len(found) or not all(0 <= s < 2**31 for s in found):
        raise UsageError("give different seeds, at least one, between 0 and 2147483647")
    return found


def _source_hash(method_class: type[Method]) -> str:
    """Return the SHA-256 of the files that define a method: an edited one is another method."""
    classes = [c for c in inspect.getmro(method_class) if c.__module__ not in ("builtins", "abc")]
    sources = [Path(inspect.getfile(c)).read_bytes() for c in classes]
    return hashlib.sha256(b"\n".join(sources)).hexdigest()


def check_method_class(method_class: type[Method], name: str) -> None:
    """Refuse a class that lacks what every method has.

    Raises:
        AvbenchError: Naming what it lacks.
    """
    duties = [*Method.__annotations__, "learn", "predict", "state", "restore"]
    lacking = [duty for duty in duties if not hasattr(method_class, duty)]
    if lacking:
        raise AvbenchError(f"{name} is no method, it lacks {', '.join(lacking)}: add them")
    if not is_dataclass(method_class.Settings):
        raise AvbenchError(f"{name}.Settings is no dataclass: make it one, of fields with defaults")


def _modality(declared: Declaration, name: str, asked: Modality | None) -> Modality:
    if asked is None:
        return declared.modalities[0]
    if asked not in declared.modalities:
        can = " or ".join(declared.modalities)
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


def coverage_of(benchmark: Benchmark, store: FeatureStore, allow_missing: bool) -> Coverage:
    """Return the share of clips with features per split; refuse gaps nobody asked for.

    Raises:
        AvbenchError: If features are missing, or of other clips or another manifest.
    """
    manifest = benchmark.manifest
    remedy = f"run avbench prepare {benchmark.argument}"
    if store.preset.get("clip_seconds") != float(benchmark.spec.clip_seconds):
        raise AvbenchError(f"{store.place}: features of clips of another length: {remedy}")
    if store.fingerprint != benchmark.base.manifest.fingerprint:
        raise AvbenchError(f"{store.place}: features of another version of the manifest: {remedy}")
    present = store.rows_of(manifest.clip_ids) >= 0
    rows = {split: manifest.rows(split) for split in SPLITS}
    coverage: Coverage = {s: float(present[r].mean()) if len(r) else 1.0 for s, r in rows.items()}
    if not present.all() and not allow_missing:
        missing = int((~present).sum())
        raise AvbenchError(
            f"{missing} of {len(present)} clips have no features in {store.place}:"
            f" {remedy}, or pass --allow-missing"
        )
    tested = np.bincount(manifest.step_of_row[rows["test"]][present[rows["test"]]])
    for step in range(benchmark.spec.steps):
        if step >= len(tested) or tested[step] == 0:
            raise AvbenchError(f"step {step + 1} of {benchmark.name} has no test clip: add some")
    return coverage


def memory_of(benchmark: Benchmark, name: str, declared: Declaration, settings: Any) -> int:
    """Return the capacity of the exemplar memory.

    Raises:
        AvbenchError: If it has no place for every class.
    """
    if not declared.uses_memory:
        return 0
    chosen = getattr(settings, "memory", None)
    capacity = benchmark.spec.memory if chosen is None else int(chosen)
    classes = benchmark.spec.classes
    if capacity < classes:
        raise AvbenchError(
            f"{name} keeps exemplars, but memory = {capacity} of {benchmark.name} has no place for"
            f" each of {classes} classes: give it more"
        )
    return capacity


def open_store(benchmark: Benchmark, preset: str | None, place: str | None = None) -> FeatureStore:
    """Open the features of a preset.

    Args:
        benchmark: Whose features.
        preset: Which; None for the benchmark's default, or for those at `place`.
        place: A folder or a URL; None for the benchmark's own place.

    Raises:
        UsageError: If there is no such preset.
        AvbenchError: If there are no features, or not those that their place says.
    """
    if place is not None:
        store = FeatureStore.open(place, remedy="give --features a folder or address of features")
        if preset not in (None, store.preset_name):
            raise AvbenchError(
                f"{place}: features of preset {store.preset_name}, not {preset}: leave --preset out"
            )
        return store
    preset = preset or benchmark.spec.preset
    known = list(registry.registered("encoders"))
    if preset not in known and not store_folder(benchmark, preset).is_dir():
        raise registry.unknown("preset", preset, known)
    store = FeatureStore.of(benchmark, preset)
    remedy = f"delete {store.place} and prepare the features again"
    if store.preset_name != preset:
        raise AvbenchError(
            f"{store.place}: features of preset {store.preset_name}, not {preset}: {remedy}"
        )
    if store.preset.get("dim", store.dim) != store.dim:
        raise AvbenchError(
            f"{store.place}: features {store.dim} wide, but {preset} makes"
            f" {store.preset['dim']}: {remedy}"
        )
    return store
