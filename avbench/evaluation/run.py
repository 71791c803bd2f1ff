"""One seed of one method: learning and predicting step by step."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from avbench.evaluation import predictions
from avbench.evaluation.cost import Meter, environment_of, packages
from avbench.evaluation.result import ExemplarUse, StepCost
from avbench.evaluation.run_folder import (
    LAST_WRITTEN,
    EpochCheckpoint,
    finished_steps,
    keep_lines,
    read_state,
    summarise,
    tidy,
    write_step,
)
from avbench.evaluation.stored import checked_state, stored_bytes
from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Method, Setup
from avbench.learning.stopwatch import Stopwatch
from avbench.learning.stream import ProtocolError, Rows, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Manifest
from avbench.types import AvbenchError, Modality, Report, Residency

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)


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
        residency: Where a step's features lie; None to choose.
        profile: Whether to measure what the time goes into.
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
    residency: Residency | None = None
    profile: bool = False

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
            residency=self.residency,
            mean_of_tokens=self.modality == "visual"
            and getattr(self.method_class, "mean_of_tokens", False),
        )
        total = self.benchmark.spec.steps * getattr(self.settings, "epochs", 1)
        folder.mkdir(exist_ok=True)
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left)
        if (folder / LAST_WRITTEN).is_file():  # killed while tidying up
            tidy(folder)
            return
        environment = environment_of(self.method_class)
        done = finished_steps(folder)
        checkpoint = EpochCheckpoint(
            folder, self.checkpoint_epochs, self.device, environment, step=len(done)
        )
        middle = checkpoint.begun()
        log_path = folder / "log.jsonl"
        logged = middle["logged"] if middle else done[-1]["logged"] if done else 0
        keep_lines(log_path, logged)
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

            stopwatch = Stopwatch(running=self.profile, device=self.device)
            setup = Setup(
                self.store.dim,
                self.store.frames,
                self.modality,
                self.seed,
                self.device,
                log,
                checkpoint,
                stopwatch,
            )
            _seed_everything(self.seed, len(done))
            method = self.method_class(self.settings, setup)
            if done:
                stream.resume({int(c): clips for c, clips in done[-1]["exemplars"].items()})
                path = folder / f"step-{len(done)}.safetensors"
                classes = self.benchmark.manifest.classes_per_step[: len(done)]
                method.restore(read_state(path, self.device), classes)
            for task in stream.since(len(done)):
                checkpoint.step, checkpoint.meter = task.step, Meter(self.device, stopwatch)
                if middle and middle["step"] == task.step:
                    checkpoint.meter.add(middle["cost"])
                _seed_everything(self.seed, task.step)
                with _explained(folder, task.step, self.settings):
                    method.learn(task)
                    with stopwatch("validation"):
                        predicted = self._predict(method, stream, task)
                state, trained = checked_state(method)
                use = stream.memory_use()
                cost = StepCost(
                    **checkpoint.meter.read(),
                    trainable_parameters=trained,
                    stored_parameters=sum(tensor.numel() for tensor in state.values()),
                    stored_bytes=stored_bytes(state),
                    exemplars=ExemplarUse(clips=use.clips, bytes=use.bytes),
                    residency=stream.residency,
                )
                record = {
                    "step": task.step,
                    "exemplars": stream.exemplars(),
                    "logged": logged,
                    "cost": cost.model_dump(),
                    # By now more may be loaded.
                    "environment": environment.model_dump() | {"packages": packages()},
                }
                write_step(folder, task.step + 1, predicted, state, record)
        report(title, total, total)
        summarise(folder, self.benchmark.spec.steps)
        tidy(folder)

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
