"""Runs a method through a benchmark and keeps the evidence."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.plots import plot_accuracy, plot_matrix
from avbench.evaluation.result import (
    FORMAT,
    Bootstrap,
    Config,
    Environment,
    ExemplarUse,
    GitState,
    Result,
    SeedRun,
    StepCost,
)
from avbench.features.store import FeatureStore, hash_clips, store_folder
from avbench.learning.gradient import GradientMethod
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method, Setup, resolve_settings
from avbench.learning.stream import ProtocolError, Rows, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.resources import alone, read_json, replacing, write_json, writing
from avbench.types import SPLITS, AvbenchError, Modality, Report, Split, UsageError, silent

Coverage = dict[Split, float]

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)
_RECORDED = ("avbench", "av", "numpy", "pyarrow", "safetensors", "torch")

# Once it is there, a seed is whole.
_LAST_WRITTEN = "predictions.parquet"
_IN_THE_MIDDLE = "epoch.safetensors"


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
    checkpoint_epochs: int = 0,
    tensorboard: bool = False,
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
        preset: Which features; None for the benchmark's default.
        settings: Settings as text, over the method's recipe.
        device: A torch device.
        allow_missing: Go on where clips have no features; the result says which share had.
        force: Run these seeds again even if `out` holds them, and replace a run of another
            configuration.
        checkpoint_epochs: Also keep a step in the middle, every so many epochs; 0 for never.
        tensorboard: Also log to `tensorboard/` in the run directory.
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
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= s < 2**31 for s in seeds):
        raise UsageError("give different seeds, at least one, between 0 and 2147483647")
    method_class: type[Method] = registry.load("methods", method)
    name = registry.short_name(method)
    check_method_class(method_class, name)
    if checkpoint_epochs and method_class.learn is not GradientMethod.learn:
        raise UsageError(f"{name} does not train by the shared loop: leave --checkpoint-epochs out")
    modality = _modality(method_class, name, modality)
    resolved = resolve_settings(method_class, name, benchmark.base.name, modality, settings or {})
    torch_device = _device(device)
    preset = preset or benchmark.spec.preset
    store = _open_store(benchmark, preset)
    coverage = _coverage(benchmark, store, allow_missing)
    variant = benchmark.spec.variant
    config: Config = {
        "benchmark": benchmark.name,
        "variant": variant.text if variant else None,
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
                    checkpoint_epochs,
                    out / "tensorboard" / f"seed-{seed}" if tensorboard else None,
                )
                unfinished = out / f"unfinished-seed-{seed}"
                try:
                    run.write(unfinished, f"{out.name}, seed {seed}", report)
                except BaseException:
                    if not _holds_work(unfinished):
                        shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                _promote(unfinished, folder)
            runs[seed] = _read_run(folder, seed, benchmark, partial=allow_missing)
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
        checkpoint_epochs: Every how many epochs a step is kept in the middle; 0 for never.
        events: Where TensorBoard's files go; None for nowhere.
    """

    benchmark: Benchmark
    store: FeatureStore
    method_class: type[Method]
    settings: Any
    modality: Modality
    capacity: int
    seed: int
    device: torch.device
    checkpoint_epochs: int = 0
    events: Path | None = None

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
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left)
        if (folder / _LAST_WRITTEN).is_file():  # killed while tidying up
            _tidy(folder)
            return
        write_json(folder / "environment.json", _environment(self.method_class).model_dump())
        done = _finished_steps(folder)
        checkpoint = _EpochCheckpoint(folder, self.checkpoint_epochs, self.device, step=len(done))
        middle = checkpoint.begun()
        log_path = folder / "log.jsonl"
        logged = middle["logged"] if middle else done[-1]["logged"] if done else 0
        _keep_lines(log_path, logged)
        report(title, min(logged, total), total)
        with log_path.open("a", encoding="utf-8") as log_file, _events(self.events, logged) as show:

            def log(record: dict[str, Any]) -> None:
                nonlocal logged
                logged += 1
                log_file.write(json.dumps(record) + "\n")
                log_file.flush()
                show(record, logged)
                checkpoint.logged = logged
                report(title, min(logged, total), total)

            setup = Setup(
                self.store.dim,
                self.store.frames,
                self.modality,
                self.seed,
                self.device,
                log,
                checkpoint,
            )
            _seed_everything(self.seed, len(done))
            method = self.method_class(self.settings, setup)
            if done:
                stream.resume({int(c): clips for c, clips in done[-1]["exemplars"].items()})
                path = folder / f"step-{len(done)}.safetensors"
                classes = self.benchmark.manifest.classes_per_step[: len(done)]
                method.restore(_read_state(path, self.device), classes)
            for task in stream.since(len(done)):
                checkpoint.step, checkpoint.meter = task.step, _Meter(self.device)
                if middle and middle["step"] == task.step:
                    checkpoint.meter.add(middle["cost"])
                _seed_everything(self.seed, task.step)
                with _explained(folder, task.step, self.settings):
                    method.learn(task)
                    predicted = self._predict(method, stream, task)
                state = method.state()
                use = stream.memory_use()
                cost = StepCost(
                    **checkpoint.meter.read(),
                    trainable_parameters=_trainable(method),
                    stored_parameters=sum(tensor.numel() for tensor in state.values()),
                    exemplars=ExemplarUse(clips=use.clips, bytes=use.bytes),
                )
                record = {
                    "step": task.step,
                    "exemplars": stream.exemplars(),
                    "logged": logged,
                    "cost": cost.model_dump(),
                }
                _write_step(folder, task.step + 1, predicted, state, record)
        report(title, total, total)
        _summarise(folder, self.benchmark.spec.steps)
        _tidy(folder)

    def _predict(self, method: Method, stream: TaskStream, task: Task) -> pa.Table:
        clips, rows = stream.test(task.step)
        predicted = _checked(method.predict(clips), len(rows), task.seen_classes)
        clips.close()
        return _table(self.benchmark.manifest, task.step, rows, predicted)


@contextmanager
def _events(folder: Path | None, done: int) -> Iterator[Callable[[dict[str, Any], int], None]]:
    """Yield what shows a line of the log in TensorBoard, by its number; lines cut off vanish."""
    if folder is None:
        yield lambda _record, _number: None
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    def show(record: dict[str, Any], number: int) -> None:
        for key, value in record.items():
            if isinstance(value, int | float):
                writer.add_scalar(key, value, number)

    writer = SummaryWriter(str(folder), purge_step=done + 1)
    try:
        yield show
    finally:
        writer.close()


def _write_step(
    folder: Path, number: int, predicted: pa.Table, state: Mapping[str, Tensor], record: Any
) -> None:
    """Keep a finished step; its JSON comes last and says that the others are whole."""
    predictions.write(folder / f"step-{number}.parquet", predicted)
    # Written by Python, whose errors say which file and why.
    (folder / f"step-{number}.safetensors").write_bytes(save(_on_cpu(state)))
    write_json(folder / f"step-{number}.json", record)


def _finished_steps(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the steps a folder holds, from the first on."""
    records: list[dict[str, Any]] = []
    while (path := folder / f"step-{len(records) + 1}.json").is_file():
        record = read_json(path, remedy=f"delete {folder} and run again")
        if not {"exemplars", "logged", "cost"} <= record.keys():
            raise AvbenchError(f"{path}: not a finished step: delete {folder} and run again")
        records.append(record)
    return records


def _holds_work(folder: Path) -> bool:
    """Whether a folder holds something that a killed run can go on from."""
    return any((folder / name).is_file() for name in ("step-1.json", _IN_THE_MIDDLE, _LAST_WRITTEN))


def _summarise(folder: Path, steps: int) -> None:
    """Bring what the steps left into the files of a finished run."""
    records = _finished_steps(folder)
    kept = [{key: record[key] for key in ("step", "exemplars")} for record in records]
    write_json(folder / "exemplars.json", kept)
    write_json(folder / "cost.json", {"steps": [record["cost"] for record in records]})
    parts = [folder / f"step-{number + 1}.parquet" for number in range(steps)]
    tables = [predictions.read(part) for part in parts]
    predictions.write(folder / _LAST_WRITTEN, pa.concat_tables(tables))


def _tidy(folder: Path) -> None:
    """Delete what the files of a finished run replace."""
    left = (folder.glob(pattern) for pattern in ("step-*.parquet", "step-*.json", _IN_THE_MIDDLE))
    for path in chain.from_iterable(left):
        path.unlink()


def _promote(unfinished: Path, folder: Path) -> None:
    """Put a finished run in place of what stood there, so that no kill loses it."""
    if folder.exists():
        os.replace(folder, Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)) / "old")
    os.replace(unfinished, folder)


def _keep_lines(path: Path, count: int) -> None:
    """Cut a log back to its first lines."""
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, sum(len(line) for line in lines[:count]))


class _Meter:
    """Measures a step: time, and memory of the process and on its GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = time.perf_counter()
        self._before: dict[str, Any] = {}
        with suppress(OSError):  # where the system has this, a peak is of the step alone
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def add(self, before: dict[str, Any]) -> None:
        """Count what the step cost before it was killed."""
        self._before = before

    def read(self) -> dict[str, Any]:
        """Return the costs so far."""
        gpu = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        peaks = {"peak_memory_bytes": _peak_memory(), "peak_gpu_memory_bytes": gpu}
        return {
            "seconds": self._before.get("seconds", 0.0) + time.perf_counter() - self._begun,
            **{k: v if v is None else max(v, self._before.get(k) or 0) for k, v in peaks.items()},
        }


def _peak_memory() -> int:
    """Return the most memory this process had resident, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _trainable(method: Method) -> int:
    """Count the parameters that gradients reach, in the modules a method holds."""
    modules = [value for value in vars(method).values() if isinstance(value, nn.Module)]
    parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return sum(parameter.numel() for parameter in parameters.values())


@dataclass
class _EpochCheckpoint:
    """Keeps a step in the middle, in one file of an unfinished run."""

    folder: Path
    every: int
    device: torch.device
    step: int
    logged: int = 0
    meter: _Meter = field(init=False)

    def due(self, epochs: int) -> bool:
        return self.every > 0 and epochs % self.every == 0

    def write(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        known = {"step": self.step, "logged": self.logged, "cost": self.meter.read()}
        metadata = {"avbench": json.dumps(known | {"training": record})}
        with replacing(self.folder / _IN_THE_MIDDLE) as temporary:
            temporary.write_bytes(save(_on_cpu(tensors), metadata))

    def begun(self) -> dict[str, Any] | None:
        """Return what is known of this step, if it was kept in the middle."""
        path = self.folder / _IN_THE_MIDDLE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                known: dict[str, Any] = json.loads(file.metadata()["avbench"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _no_checkpoint(path) from error
        # One of an earlier step is left where a run is killed right after that step.
        return known if known["step"] == self.step else None

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        known = self.begun()
        if known is None:
            return None
        return _read_state(self.folder / _IN_THE_MIDDLE, self.device), known["training"]


def _read_state(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise _no_checkpoint(path) from error


def _no_checkpoint(path: Path) -> AvbenchError:
    return AvbenchError(f"{path}: not a checkpoint: delete {path.parent} and run again")


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous, sharing nothing."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


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
    folder: Path, seed: int, benchmark: Benchmark, *, partial: bool
) -> tuple[pa.Table, SeedRun]:
    """Read what a finished seed predicted, and what follows from it."""
    remedy = f"delete {folder} and run again"
    cost = read_json(folder / "cost.json", remedy=remedy)
    environment = read_json(folder / "environment.json", remedy=remedy)
    try:
        table = predictions.read(folder / _LAST_WRITTEN)
        matrix = predictions.matrix(table, benchmark.manifest, partial=partial)
        run = SeedRun(
            seed=seed,
            cost=[StepCost(**step) for step in cost["steps"]],
            environment=Environment(**environment),
            correct=matrix.correct.tolist(),
            total=matrix.total.tolist(),
        )
    except (KeyError, TypeError, ValueError, AvbenchError) as error:
        reason = str(error).splitlines()[0]
        raise AvbenchError(f"{folder} does not hold a whole run ({reason}): {remedy}") from error
    return table, run


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


def _open_store(benchmark: Benchmark, preset: str) -> FeatureStore:
    """Open the features of a preset; refuse those that are not what their place says."""
    known = list(registry.registered("encoders"))
    if preset not in known and not store_folder(benchmark, preset).is_dir():
        raise registry.unknown("preset", preset, known)
    store = FeatureStore.of(benchmark, preset)
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
    return store


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what a run left that was ended at once."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", remedy="choose another --out")
        return {"benchmark", "fingerprint", "method"} <= config.keys()
    return all(path.name.startswith((".lock", ".partial-")) for path in folder.iterdir())


def _claim(out: Path, config: Config, seeds: Sequence[int], *, force: bool) -> None:
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
        if folder.name.startswith("unfinished") and not _holds_work(folder):
            shutil.rmtree(folder)
    held = [folder for folder in held if folder.is_dir()]
    if held:
        known = read_json(path, remedy=f"delete {out} and run again")
        differ = sorted(k for k in {**config, **known} if config.get(k) != known.get(k))
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


def _environment(method_class: type[Method]) -> Environment:
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        machine=platform.machine(),
        cpu_count=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        packages={name: version(name) for name in _RECORDED},
        git=_git_state(Path(inspect.getfile(method_class)).resolve()),
    )


@cache
def _git_state(file: Path) -> GitState | None:
    """Return the state of the checkout that tracks a file, as it was when first asked."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        modified = git("status", "--porcelain", "--untracked-files=no") != ""
        return GitState(commit=git("rev-parse", "HEAD"), modified=modified)
    except (OSError, subprocess.SubprocessError):
        return None
