"""Runs a method through a benchmark and keeps the evidence."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import random
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.metrics import AccuracyMatrix
from avbench.evaluation.plots import plot_accuracy, plot_matrix
from avbench.evaluation.result import Result
from avbench.features.store import FeatureStore, hash_clips, store_folder
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method, Setup, resolve_settings
from avbench.learning.stream import ProtocolError, Rows, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.resources import alone, read_json, replacing, write_json, writing
from avbench.types import SPLITS, AvbenchError, Modality, Report, UsageError, silent

Coverage = dict[str, float]

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)
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
    name = registry.short_name(method)
    check_method_class(method_class, name)
    modality = _modality(method_class, name, modality)
    resolved = resolve_settings(method_class, name, benchmark.base.name, modality, settings or {})
    torch_device = _device(device)
    preset = preset or benchmark.spec.preset
    if (
        preset not in registry.registered("encoders")
        and not store_folder(benchmark, preset).is_dir()
    ):
        raise registry.unknown("preset", preset, list(registry.registered("encoders")))
    store = FeatureStore.of(benchmark, preset)
    _check_preset(store, preset)
    coverage = _coverage(benchmark, store, allow_missing)
    config = {
        "benchmark": benchmark.name,
        "fingerprint": benchmark.manifest.fingerprint,
        "method": name,
        "method_hash": _source_hash(method_class),
        "access": method_class.access,
        "modality": modality,
        "settings": asdict(resolved),
        "memory": _memory(benchmark, name, method_class, resolved),
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
                run = Run(
                    benchmark,
                    store,
                    method_class,
                    resolved,
                    modality,
                    config["memory"],
                    seed,
                    torch_device,
                )
                unfinished = out / f"unfinished-seed-{seed}"
                try:
                    run.write(unfinished, f"{out.name}, seed {seed}", report)
                except BaseException:
                    if not _finished_steps(unfinished):
                        shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                _promote(unfinished, folder)
            runs[seed] = _read_run(folder, benchmark, partial=allow_missing)
        test = [benchmark.manifest.clip_ids[row] for row in benchmark.manifest.rows("test")]
        here = [clip for clip, row in zip(test, store.rows_of(test), strict=True) if row >= 0]
        result = Result(
            config=config,
            coverage=coverage,
            test_clips_hash=hash_clips(here),
            matrices={seed: matrix for seed, (matrix, _, _) in runs.items()},
            seconds={seed: seconds for seed, (_, seconds, _) in runs.items()},
            memory={seed: memory for seed, (_, _, memory) in runs.items()},
        )
        write_json(out / "result.json", result.to_json())
        plot_accuracy([result], out / "accuracy.png")
        plot_matrix(result, out / "matrix.png")
    return result


@dataclass(frozen=True)
class Run:
    """One seed of one method.

    Attributes:
        benchmark: What is learned.
        store: Its features.
        method_class: The method.
        settings: Its settings.
        modality: What it may look at.
        capacity: Of the exemplar memory, in clips.
        seed: Source of all randomness.
        device: Where it computes.
    """

    benchmark: Benchmark
    store: FeatureStore
    method_class: type[Method]
    settings: Any
    modality: Modality
    capacity: int
    seed: int
    device: torch.device

    def write(self, folder: Path, title: str, report: Report) -> None:
        """Learn and predict step by step, keeping everything in a folder.

        Steps that the folder holds already are taken up, not learned again.
        """
        memory = ExemplarMemory(self.capacity) if self.method_class.uses_memory else None
        stream = TaskStream(
            self.benchmark.manifest,
            self.store,
            modality=self.modality,
            joint=self.method_class.access == "joint",
            memory=memory,
            device=self.device,
        )
        total = self.benchmark.spec.steps * getattr(self.settings, "epochs", 1)
        folder.mkdir(exist_ok=True)
        done = _finished_steps(folder)
        log_path = folder / "log.jsonl"
        logged = done[-1]["logged"] if done else 0
        _keep_lines(log_path, logged)
        before = done[-1]["seconds"] if done else 0.0
        report(title, min(logged, total), total)
        with log_path.open("a", encoding="utf-8") as log_file:

            def log(record: dict[str, Any]) -> None:
                nonlocal logged
                logged += 1
                log_file.write(json.dumps(record) + "\n")
                report(title, min(logged, total), total)

            setup = Setup(
                self.store.dim, self.store.frames, self.modality, self.seed, self.device, log
            )
            begun = time.perf_counter()
            _seed_everything(self.seed, len(done))
            method = self.method_class(self.settings, setup)
            if done:
                stream.resume({int(c): clips for c, clips in done[-1]["exemplars"].items()})
                path = folder / f"step-{len(done)}.safetensors"
                classes = self.benchmark.manifest.classes_per_step[: len(done)]
                method.restore(_read_state(path, self.device), classes)
            for task in stream.since(len(done)):
                _seed_everything(self.seed, task.step)
                with _explained(folder, task.step, self.settings):
                    method.learn(task)
                    predicted = self._predict(method, stream, task)
                log_file.flush()
                use = stream.memory_use()
                record = {
                    "step": task.step,
                    "memory": {"clips": use.clips, "bytes": use.bytes},
                    "exemplars": stream.exemplars(),
                    "logged": logged,
                    "seconds": before + time.perf_counter() - begun,
                }
                _write_step(folder, task.step + 1, predicted, method.state(), record)
        report(title, total, total)
        _summarise(folder, self.benchmark.spec.steps)

    def _predict(self, method: Method, stream: TaskStream, task: Task) -> pa.Table:
        clips, rows = stream.test(task.step)
        predicted = _checked(method.predict(clips), len(rows), task.seen_classes)
        clips.close()
        return _table(self.benchmark.manifest, task.step, rows, predicted)


def _write_step(
    folder: Path, number: int, predicted: pa.Table, state: Mapping[str, Tensor], record: Any
) -> None:
    """Keep a finished step; its JSON comes last and says that the others are whole."""
    predictions.write(folder / f"step-{number}.parquet", predicted)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # Written by Python, whose errors say which file and why.
    (folder / f"step-{number}.safetensors").write_bytes(save(tensors))
    write_json(folder / f"step-{number}.json", record)


def _finished_steps(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the steps a folder holds, from the first on."""
    records: list[dict[str, Any]] = []
    while (path := folder / f"step-{len(records) + 1}.json").is_file():
        record = read_json(path, remedy=f"delete {folder} and run again")
        if not {"exemplars", "logged", "memory", "seconds"} <= record.keys():
            raise AvbenchError(f"{path}: not a finished step: delete {folder} and run again")
        records.append(record)
    return records


def _summarise(folder: Path, steps: int) -> None:
    """Bring what the steps left into the files of a finished run."""
    records = _finished_steps(folder)
    parts = [folder / f"step-{number + 1}.parquet" for number in range(steps)]
    tables = [predictions.read(part) for part in parts]
    predictions.write(folder / "predictions.parquet", pa.concat_tables(tables))
    write_json(
        folder / "exemplars.json",
        [{key: record[key] for key in ("step", "memory", "exemplars")} for record in records],
    )
    write_json(folder / "timing.json", {"seconds": records[-1]["seconds"]})
    write_json(folder / "environment.json", _environment())
    for number in range(steps):
        (folder / f"step-{number + 1}.parquet").unlink()
        (folder / f"step-{number + 1}.json").unlink()


def _promote(unfinished: Path, folder: Path) -> None:
    """Put a finished run in place of what stood there."""
    with replacing(folder, folder=True) as temporary:
        temporary.rmdir()
        os.replace(unfinished, temporary)


def _keep_lines(path: Path, count: int) -> None:
    """Cut a log back to the lines of finished steps."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    path.write_text("".join(lines[:count]), encoding="utf-8")


def _read_state(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise AvbenchError(
            f"{path}: not a checkpoint: delete {path.parent} and run again"
        ) from error


def _seed_everything(seed: int, step: int) -> None:
    """Seed the global generators, for methods that draw on them; alike after a resumption."""
    torch.manual_seed((seed << 16) + step)
    np.random.seed((seed * 65_537 + step) % 2**32)  # noqa: NPY002
    random.seed((seed << 16) + step)


@contextmanager
def _explained(folder: Path, step: int, settings: Any) -> Iterator[None]:
    """Add the last good checkpoint to what stops a step, and say what needs less memory."""
    kept = f"; the last good checkpoint is {folder / f'step-{step}.safetensors'}" if step else ""
    try:
        yield
    except ProtocolError:
        raise
    except AvbenchError as error:
        raise type(error)(f"{error}{kept}") from error
    except (MemoryError, RuntimeError) as error:
        out = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out and not _OUT_OF_MEMORY.search(str(error)):
            raise
        sizes = [
            f"{name} (now {value})"
            for name, value in asdict(settings).items()
            if name.endswith("batch_size")
        ]
        remedy = f"reduce {' or '.join(sizes)} with --set" if sizes else "use a larger machine"
        raise AvbenchError(f"out of memory at step {step + 1}: {remedy}{kept}") from error


def _read_run(
    folder: Path, benchmark: Benchmark, *, partial: bool
) -> tuple[AccuracyMatrix, float, list[dict[str, int]]]:
    remedy = f"delete {folder} and run again"
    timing = read_json(folder / "timing.json", remedy=remedy)
    try:
        table = predictions.read(folder / "predictions.parquet")
        matrix = predictions.matrix(table, benchmark.manifest, partial=partial)
        seconds = float(timing["seconds"])
        kept = json.loads((folder / "exemplars.json").read_text(encoding="utf-8"))
        memory = [dict(record["memory"]) for record in kept]
    except (KeyError, OSError, TypeError, ValueError, AvbenchError) as error:
        raise AvbenchError(f"{folder} does not hold a whole run ({error}): {remedy}") from error
    return matrix, seconds, memory


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


def _memory(benchmark: Benchmark, name: str, method_class: type[Method], settings: Any) -> int:
    """Return the capacity of the exemplar memory; refuse one without a place for every class."""
    if not method_class.uses_memory:
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


def _check_preset(store: FeatureStore, preset: str) -> None:
    """Refuse features that are not what their place says."""
    remedy = f"delete {store.folder} and prepare the features again"
    if store.preset_name != preset:
        raise AvbenchError(
            f"{store.folder}: features of preset {store.preset_name}, not {preset}: {remedy}"
        )
    if store.preset.get("dim", store.dim) != store.dim:
        raise AvbenchError(
            f"{store.folder}: features {store.dim} wide, but {preset} makes"
            f" {store.preset['dim']}: {remedy}"
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what a run left that was ended at once."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", remedy="choose another --out")
        return {"benchmark", "fingerprint", "method"} <= config.keys()
    return all(path.name.startswith((".lock", ".partial-")) for path in folder.iterdir())


def _claim(out: Path, config: dict[str, Any], seeds: Sequence[int], *, force: bool) -> None:
    """Make the run directory ours, keeping the seeds of an equal configuration."""
    path = out / "config.json"
    held = [
        folder
        for folder in out.iterdir()
        if re.fullmatch(r"(unfinished-)?seed-\d+", folder.name)
        and folder.is_dir()
        and not folder.is_symlink()
    ]
    for folder in held:
        # Where not a step was finished there is nothing to lose, nor to take up.
        if folder.name.startswith("unfinished") and not _finished_steps(folder):
            shutil.rmtree(folder)
    held = [folder for folder in held if folder.is_dir()]
    if held:
        known = read_json(path, remedy=f"delete {out} and run again")
        differ = sorted(key for key in config | known if config.get(key) != known.get(key))
        if differ and not force:
            raise AvbenchError(
                f"{out} holds a run that differs in {', '.join(differ)}:"
                " choose another --out, or pass --force to replace it"
            )
        for old in held:
            if differ or (force and old.name.startswith("unfinished")):
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
