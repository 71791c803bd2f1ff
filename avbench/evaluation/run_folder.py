"""The files of a run: what each step leaves, and what a killed run can go on from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from avbench.evaluation import predictions
from avbench.evaluation.cost import Meter
from avbench.evaluation.result import Config, Environment, SeedRun, StepCost
from avbench.learning.method import Log
from avbench.learning.stream import Questions, Rows
from avbench.manifests.benchmark import Benchmark
from avbench.resources import read_json, replacing, write_json
from avbench.types import AvbenchError, ProtocolError

# Once it is there, a seed is whole.
LAST_WRITTEN = "predictions.parquet"
_IN_THE_MIDDLE = "epoch.safetensors"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what a run left that was ended at once."""
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json", remedy="choose another --out")
        return {"benchmark", "fingerprint", "method"} <= config.keys()
    return all(path.name.startswith((".lock", ".partial-")) for path in folder.iterdir())


def claim(out: Path, config: Config, seeds: Sequence[int], *, force: bool) -> None:
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
        if folder.name.startswith("unfinished") and not holds_work(folder):
            shutil.rmtree(folder)
    held = [folder for folder in held if folder.is_dir()]
    if held:
        known = read_json(path, remedy=f"delete {out} and run again")
        differ = sorted(k for k in {**config, **known} if config.get(k) != known.get(k))
        if differ and not force:
            raise AvbenchError(
                f"{out} holds a run that differs in {', '.join(differ)}:"
                " choose another --out, or replace it by avbench evaluate --force"
            )
        for old in held:
            if differ or (force and old.name.startswith("unfinished")):
                shutil.rmtree(old)
    if force or any(not (out / f"seed-{seed}").is_dir() for seed in seeds):
        # They would speak of other seeds than the folder holds, should this run fail.
        for name in ("result.json", "accuracy.png", "matrix.png"):
            (out / name).unlink(missing_ok=True)
    write_json(path, config)


def read_run(
    folder: Path, seed: int, benchmark: Benchmark, *, partial: bool
) -> tuple[pa.Table, SeedRun]:
    """Read what a finished seed predicted, and what follows from it."""
    remedy = f"delete {folder} and run again"
    cost = read_json(folder / "cost.json", remedy=remedy)
    environment = read_json(folder / "environment.json", remedy=remedy)
    # Earlier versions of avbench kept one, of where the seed ended.
    environments = environment.get("steps", [environment])
    try:
        table = predictions.read(folder / LAST_WRITTEN)
        matrix = predictions.matrix(table, benchmark.manifest, partial=partial)
        run = SeedRun(
            seed=seed,
            cost=[StepCost(**step) for step in cost["steps"]],
            environments=[Environment(**each) for each in environments],
            correct=matrix.correct.tolist(),
            total=matrix.total.tolist(),
        )
    except (KeyError, TypeError, ValueError, AvbenchError) as error:
        reason = str(error).splitlines()[0]
        raise AvbenchError(f"{folder} does not hold a whole run ({reason}): {remedy}") from error
    return table, run


def write_step(
    folder: Path, number: int, predicted: Rows, state: Mapping[str, Tensor], record: dict[str, Any]
) -> dict[str, str | None]:
    """Keep a finished step; its JSON comes last and says that the others are whole.

    Predictions lie there as they were made, without the clips and the labels they are of: a method
    that finds the file learns nothing from it.

    Returns:
        SHA-256 of the files written, by name.
    """
    names = [f"step-{number}.{suffix}" for suffix in ("parquet", "safetensors", "json")]
    with replacing(folder / names[0]) as temporary:
        pq.write_table(pa.table({"prediction": predicted}), temporary, compression="zstd")
    # Written by Python, whose errors say which file and why.
    (folder / names[1]).write_bytes(save(_on_cpu(state)))
    hashes = {name: _hash(folder / name) for name in names[:2]}
    write_json(folder / names[2], {**record, "sha256": hashes})
    return hashes | {names[2]: _hash(folder / names[2])}


def finished_steps(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str | None]]:
    """Return the records of the steps a folder holds, from the first on, and its files' hashes.

    Raises:
        AvbenchError: If a file is not as the step left it.
    """
    records: list[dict[str, Any]] = []
    hashes: dict[str, str | None] = {}
    remedy = f"delete {folder} and run again"
    while (path := folder / f"step-{len(records) + 1}.json").is_file():
        record = read_json(path, remedy=remedy)
        if not {"exemplars", "logged", "cost", "environment", "sha256"} <= record.keys():
            raise AvbenchError(f"{path}: not a finished step: {remedy}")
        for name, expected in record["sha256"].items():
            if _hash(folder / name) != expected:
                raise AvbenchError(f"{folder / name}: not what was written: {remedy}")
        hashes |= record["sha256"] | {path.name: _hash(path)}
        records.append(record)
    return records, hashes


def check_unchanged(folder: Path, hashes: Mapping[str, str | None]) -> None:
    """Refuse what finished steps left if anything of it has changed since.

    Raises:
        ProtocolError: Naming the file.
    """
    for name, expected in hashes.items():
        if _hash(folder / name) != expected:
            raise ProtocolError(
                f"{folder / name} was changed after its step: only avbench may write there;"
                f" delete {folder} and run again"
            )


def _hash(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_predictions(folder: Path, number: int) -> Rows:
    """Return the classes predicted after a step, in the order the clips were shown in."""
    with pq.ParquetFile(folder / f"step-{number}.parquet") as file:
        return np.asarray(file.read(use_threads=False)["prediction"], dtype=np.int64)


def holds_work(folder: Path) -> bool:
    """Whether a folder holds something that a killed run can go on from."""
    return any((folder / name).is_file() for name in ("step-1.json", _IN_THE_MIDDLE, LAST_WRITTEN))


def summarise(
    folder: Path, records: Sequence[Mapping[str, Any]], tables: Sequence[pa.Table]
) -> None:
    """Bring what the steps left into the files of a finished run."""
    kept = [{key: record[key] for key in ("step", "exemplars")} for record in records]
    write_json(folder / "exemplars.json", kept)
    for name in ("cost", "environment"):
        write_json(folder / f"{name}.json", {"steps": [record[name] for record in records]})
    predictions.write(folder / LAST_WRITTEN, pa.concat_tables(tables))


def tidy(folder: Path) -> None:
    """Delete what the files of a finished run replace."""
    left = (folder.glob(pattern) for pattern in ("step-*.parquet", "step-*.json", _IN_THE_MIDDLE))
    for path in chain.from_iterable(left):
        path.unlink()


def promote(unfinished: Path, folder: Path) -> None:
    """Put a finished run in place of what stood there, so that no kill loses it."""
    if folder.exists():
        os.replace(folder, Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)) / "old")
    os.replace(unfinished, folder)


def keep_lines(path: Path, count: int) -> None:
    """Cut a log back to its first lines."""
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, sum(len(line) for line in lines[:count]))


@dataclass
class EpochCheckpoint:
    """Keeps a step in the middle, in one file of an unfinished run."""

    folder: Path
    every: int
    device: torch.device
    environment: Environment
    step: int
    logged: int = 0
    meter: Meter = field(init=False)
    questions: Questions = field(init=False)

    def due(self, epochs: int) -> bool:
        """Whether a step is kept after so many epochs."""
        return self.every > 0 and epochs % self.every == 0

    def write(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep what training goes on from, in place of what was kept before."""
        known = {"step": self.step, "logged": self.logged, "cost": self.meter.read()}
        known["questions"] = self.questions.asked
        known["environment"] = self.environment.model_dump()
        metadata = {"avbench": json.dumps(known | {"training": record})}
        with replacing(self.folder / _IN_THE_MIDDLE) as temporary:
            temporary.write_bytes(save(_on_cpu(tensors), metadata))

    def begun(self) -> dict[str, Any] | None:
        """Return what is known of this step, if it was kept in the middle by the same code."""
        path = self.folder / _IN_THE_MIDDLE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                known: dict[str, Any] = json.loads(file.metadata()["avbench"])
            # Earlier versions of avbench did not say by which code.
            began = Environment(**known["environment"]) if "environment" in known else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _no_checkpoint(path) from error
        # One of an earlier step is left where a run is killed right after that step.
        ours = began is not None and not began.other_code(self.environment)
        return known if ours and known["step"] == self.step else None

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what training goes on from, if this step was kept in the middle."""
        known = self.begun()
        if known is None:
            return None
        return read_state(self.folder / _IN_THE_MIDDLE, self.device), known["training"]


# Kept apart, so that no attribute or closure of what a method is handed leads to a file.
_LOGS: WeakKeyDictionary[MethodLog, Log] = WeakKeyDictionary()
_CHECKPOINTS: WeakKeyDictionary[MethodCheckpoint, EpochCheckpoint] = WeakKeyDictionary()


class MethodLog:
    """The log as a method is handed it: it takes records, and leads nowhere.

    Args:
        write: Keeps a record.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, write: Log) -> None:
        _LOGS[self] = write

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __call__(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        _LOGS[self](record)


class MethodCheckpoint:
    """A checkpoint as a method is handed it: as `Checkpoint`, and it leads nowhere.

    Args:
        checkpoint: What keeps the step.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, checkpoint: EpochCheckpoint) -> None:
        _CHECKPOINTS[self] = checkpoint

    def __deepcopy__(self, _: object) -> Self:
        return self

    def due(self, epochs: int) -> bool:
        """Return whether the user asked for a checkpoint after so many epochs of a step."""
        return _CHECKPOINTS[self].due(epochs)

    def write(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep what training goes on from, in place of what was kept before."""
        _CHECKPOINTS[self].write(tensors, record)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what training goes on from, if this step was kept in the middle."""
        return _CHECKPOINTS[self].read()


def read_state(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint.

    Raises:
        AvbenchError: If the file is no checkpoint.
    """
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise _no_checkpoint(path) from error


def _no_checkpoint(path: Path) -> AvbenchError:
    return AvbenchError(f"{path}: not a checkpoint: delete {path.parent} and run again")


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous, sharing nothing."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
