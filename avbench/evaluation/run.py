"""One seed of one method: learning and predicting step by step."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from avbench.evaluation import predictions
from avbench.evaluation.cost import Meter, environment_of, packages
from avbench.evaluation.result import ExemplarUse, StepCost
from avbench.evaluation.run_folder import (
    LAST_WRITTEN,
    EpochCheckpoint,
    MethodCheckpoint,
    MethodLog,
    check_unchanged,
    finished_steps,
    keep_lines,
    read_predictions,
    read_state,
    summarise,
    tidy,
    write_step,
)
from avbench.evaluation.stored import checked_state, stored_bytes
from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Declaration, Method, Setup
from avbench.learning.stopwatch import Stopwatch
from avbench.learning.stream import Rows, Task, TaskStream
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, Modality, ProtocolError, Report, Residency

# How often accuracy on validation clips may be measured in a step of fewer epochs: each time tells
# something of their labels.
_QUESTIONS = 200
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)


@dataclass(frozen=True)
class Run:
    """One seed of one method.

    Attributes:
        benchmark: What is learned.
        store: Its features.
        method_class: The method.
        declared: What it declares.
        settings: Its settings; the method gets a copy.
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
    declared: Declaration
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
        epochs = getattr(self.settings, "epochs", 1)
        stream = self._stream(questions=max(_QUESTIONS, epochs))
        total = self.benchmark.spec.steps * epochs
        folder.mkdir(exist_ok=True)
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left)
        if (folder / LAST_WRITTEN).is_file():  # killed while tidying up
            tidy(folder)
            return
        environment = environment_of(self.method_class)
        done, hashes = finished_steps(folder)
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
                MethodLog(log),
                MethodCheckpoint(checkpoint),
                stopwatch,
            )
            _seed_everything(self.seed, len(done))
            method = self.method_class(copy.deepcopy(self.settings), setup)
            if done:
                self._restore(method, stream, folder, done)
            for task in stream.since(len(done)):
                checkpoint.step, checkpoint.meter = task.step, Meter(self.device, stopwatch)
                checkpoint.questions = stream.questions
                if middle and middle["step"] == task.step:
                    checkpoint.meter.add(middle["cost"])
                    stream.questions.asked = middle.get("questions", 0)
                _seed_everything(self.seed, task.step)
                with _explained(folder, task.step, self.settings):
                    method.learn(task)
                    state, trained = _learned(method)
                    with stopwatch("validation"):
                        predicted = self._predict(method, state, stream, task)
                cost = StepCost(
                    **checkpoint.meter.read(),
                    trainable_parameters=trained,
                    stored_parameters=sum(tensor.numel() for tensor in state.values()),
                    stored_bytes=stored_bytes(state),
                    exemplars=ExemplarUse(**stream.memory_use()._asdict()),
                    residency=stream.residency,
                    validation_questions=stream.questions.asked,
                )
                record = {
                    "step": task.step,
                    "exemplars": stream.exemplars(),
                    "logged": logged,
                    "cost": cost.model_dump(),
                    # By now more may be loaded.
                    "environment": environment.model_dump() | {"packages": packages()},
                }
                hashes |= write_step(folder, task.step + 1, predicted, state, record)
                done.append(record)
        report(title, total, total)
        check_unchanged(folder, hashes)
        summarise(folder, done, [self._table(folder, stream, step) for step in range(len(done))])
        tidy(folder)

    def _stream(self, *, questions: int) -> TaskStream:
        return TaskStream(
            self.benchmark.manifest,
            self.store,
            modality=self.modality,
            joint=self.declared.access == "joint",
            memory=ExemplarMemory(self.capacity) if self.declared.uses_memory else None,
            device=self.device,
            residency=self.residency,
            mean_of_tokens=self.modality == "visual" and self.declared.mean_of_tokens,
            questions=questions,
        )

    def _restore(
        self, method: Method, stream: TaskStream, folder: Path, done: Sequence[dict[str, Any]]
    ) -> None:
        """Bring a method and its memory to where the last finished step left them."""
        stream.resume({int(c): clips for c, clips in done[-1]["exemplars"].items()})
        path = folder / f"step-{len(done)}.safetensors"
        classes = self.benchmark.manifest.classes_per_step[: len(done)]
        method.restore(read_state(path, self.device), classes)

    def _predict(
        self, method: Method, state: Mapping[str, Tensor], stream: TaskStream, task: Task
    ) -> Rows:
        """Let a copy of the method predict, so that what it learns of test clips ends with it."""
        clips, rows = stream.test(task.step)
        copied = _copied(method)
        predicted = _checked(copied.predict(clips), len(rows), task.seen_classes)
        clips.close()
        for each in (copied, method):
            if changed := _changed(state, each.state()):
                raise ProtocolError(
                    f"predict changed {changed} at step {task.step + 1}: test clips must not teach;"
                    " let learn do all that changes state()"
                )
        return predicted

    def _table(self, folder: Path, stream: TaskStream, step: int) -> pa.Table:
        """Return the predictions after a step with their clips and labels, in manifest order."""
        _, rows = stream.test(step)
        order, manifest = np.argsort(rows), self.benchmark.manifest
        rows = rows[order]
        columns = {
            "step": np.full(len(rows), step),
            "clip_id": manifest.table["clip_id"].take(rows),
            "label": manifest.class_indices[rows],
            "prediction": read_predictions(folder, step + 1)[order],
        }
        return pa.table(columns).cast(predictions.SCHEMA)


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


def _learned(method: Method) -> tuple[dict[str, Tensor], int]:
    """Return what was learned as it is now, and the number of its trainable parameters."""
    state, trained = checked_state(method)
    # What a method gives changes with it.
    return {name: tensor.detach().clone() for name, tensor in state.items()}, trained


def _copied(method: Method) -> Method:
    try:
        return copy.deepcopy(method)
    except (AvbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a method may hold
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise AvbenchError(
            f"{type(method).__name__} cannot be copied, and a copy is what predicts ({reason}):"
            " let it hold detached tensors, and no generator, lock or open file"
        ) from error


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """Return the name of something learned that is no longer what it was; None if there is none."""
    for name in (*before, *after):
        if name not in before or name not in after or not _equal(before[name], after[name]):
            return name
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same to the bit, NaN included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    bits = (t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (one, other))
    return torch.equal(*bits)


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


def _checked(predicted: npt.NDArray[np.int64], count: int, seen: int) -> npt.NDArray[np.int64]:
    predicted = np.asarray(predicted)
    if predicted.shape != (count,) or not np.issubdtype(predicted.dtype, np.integer):
        raise ProtocolError(
            f"predict must return {count} integers, not {predicted.dtype} {predicted.shape}"
        )
    if count and not (predicted.min() >= 0 and predicted.max() < seen):
        raise ProtocolError(f"predict returned a class outside the {seen} seen so far")
    return predicted.astype(np.int64)
