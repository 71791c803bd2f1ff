"""What every method must do, checked on small benchmarks made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avbench import registry
from avbench.evaluation import predictions
from avbench.evaluation.evaluator import check_method_class
from avbench.evaluation.metrics import AccuracyMatrix, accuracy_per_step
from avbench.evaluation.run import Run
from avbench.features import store
from avbench.features.rows import Floats
from avbench.learning.memory import ExemplarMemory
from avbench.learning.method import Declaration, Method, resolve_settings
from avbench.learning.picked import Picked, tensor
from avbench.learning.stream import _OPEN, Clips, Rows, Task
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, Modality, Report, Split, UsageError, silent

_DIM, _FRAMES, _CELLS = 16, 2, 2

# Enough to learn what is made here, for the settings that a method has.
_QUICK = {"epochs": "10", "batch_size": "8", "exemplar_batch_size": "4", "learning_rate": "0.01"}


class BrokenPromiseError(AvbenchError):
    """A method does not do what every method must."""


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: What a method must do.
        modality: What it looked at.
        failure: What it did instead; None if it passed.
    """

    name: str
    modality: Modality
    failure: str | None


def check_method(
    method: str,
    *,
    modality: Modality | None = None,
    settings: Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    report: Report = silent,
) -> list[Check]:
    """Check a method, with every modality it takes.

    Args:
        method: A registered method, or `path/to/file.py:ClassName`.
        modality: Only this one.
        settings: Settings as text, over those that make the checks quick.
        names: Only these of `CHECKS`.
        report: Called as checks are done.

    Returns:
        One record a check and modality.

    Raises:
        UsageError: If a name or a setting does not exist.
        AvbenchError: If the class is not a method.
    """
    method_class: type[Method] = registry.load("methods", method)
    name = registry.short_name(method)
    check_method_class(method_class, name)
    modalities = Declaration.of(method_class, name).modalities
    if modality not in (None, *modalities):
        raise UsageError(f"{name} takes {' or '.join(modalities)}, not {modality}")
    chosen = list(CHECKS) if names is None else list(names)
    wanted = [m for m in modalities if modality in (None, m)]
    results: list[Check] = []
    for each in wanted:
        known = {f.name for f in fields(method_class.Settings)}
        given = {k: v for k, v in _QUICK.items() if k in known} | dict(settings or {})
        resolved = resolve_settings(method_class, name, "default", each, given)
        with TemporaryDirectory() as folder:
            subject = _Subject(method_class, name, each, resolved, Path(folder))
            for number, check in enumerate(chosen):
                report(f"{name}, {each}", number, len(chosen))
                results.append(Check(check, each, _failure(CHECKS[check], subject)))
            report(f"{name}, {each}", len(chosen), len(chosen))
    return results


@dataclass
class _Subject:
    """A method under test; benchmarks, features and runs are made when first asked for."""

    method_class: type[Method]
    name: str
    modality: Modality
    settings: Any
    folder: Path
    runs: int = field(default=0, init=False)

    @cached_property
    def plain(self) -> _World:
        """Three steps of two classes that are easy to tell apart."""
        return _world(self.folder / "plain", [2, 2, 2], memory=12)

    @cached_property
    def plain_run(self) -> Path:
        """A run on it."""
        return self.run(self.plain)

    def run(
        self,
        world: _World,
        *,
        method_class: type[Method] | None = None,
        folder: Path | None = None,
    ) -> Path:
        """Run the method; return the folder that holds the run."""
        if folder is None:
            folder = self.folder / f"run-{self.runs}"
            self.runs += 1
        method_class = method_class or self.method_class
        declared = Declaration.of(method_class, self.name)
        capacity = world.benchmark.spec.memory if declared.uses_memory else 0
        run = Run(
            world.benchmark,
            world.store,
            method_class,
            declared,
            self.settings,
            self.modality,
            capacity,
            seed=0,
            device=torch.device("cpu"),
            # From disk all reading is seen.
            residency="disk" if isinstance(world.store, _Watched) else None,
        )
        run.write(folder, self.name, silent)
        return folder

    def derived(self, **members: Any) -> type[Method]:
        """Return the method with some of its members replaced."""
        return type(self.name, (self.method_class,), {"__module__": __name__} | members)


@dataclass(frozen=True)
class _World:
    """A benchmark with features."""

    benchmark: Benchmark
    store: store.FeatureStore

    def matrix(self, run: Path) -> AccuracyMatrix:
        table = predictions.read(run / "predictions.parquet")
        return predictions.matrix(table, self.benchmark.manifest)

    @property
    def chance(self) -> npt.NDArray[np.float64]:
        """Accuracy of guessing among the seen classes, per step."""
        return 1 / np.array(list(accumulate(self.benchmark.spec.classes_per_step)), dtype=float)


def _world(
    folder: Path,
    classes_per_step: list[int],
    *,
    memory: int,
    train: Callable[[int], int] = lambda _: 12,
    val: Callable[[int], int] = lambda _: 4,
    test: int = 6,
    meaningless: bool = False,
) -> _World:
    """Make a benchmark whose clips are a class mean, heard and seen, plus noise."""
    classes = sum(classes_per_step)
    folder.mkdir()
    lines = ["clip_id,label,class_index,split"]
    for index in range(classes):
        for split, count in (("train", train(index)), ("val", val(index)), ("test", test)):
            lines += [f"{split}-{index}-{i},class {index},{index},{split}" for i in range(count)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "check.toml").write_text(
        f'name = "check"\nclasses = {classes}\nclasses_per_step = {classes_per_step}\n'
        f'memory = {memory}\nclip_seconds = 1.0\nannotations = "clips.csv"\npreset = "check"\n',
        encoding="utf-8",
    )
    benchmark = Benchmark.load(str(folder / "check.toml"))
    manifest = benchmark.manifest
    rng = np.random.default_rng(classes)
    means = 2 * rng.standard_normal((2, classes, _DIM))
    shown = manifest.class_indices
    if meaningless:
        shown = rng.permutation(shown)
    with store.create(
        folder / "features",
        preset={"name": "check", "clip_seconds": 1.0},
        fingerprint=manifest.fingerprint,
        clip_ids=manifest.clip_ids,
        dim=_DIM,
        frames=_FRAMES,
        cells=_CELLS,
    ) as writer:
        for row, index in enumerate(shown):
            audio = means[0, index] + rng.standard_normal(_DIM)
            visual = means[1, index] + rng.standard_normal((_FRAMES * _CELLS, _DIM))
            writer.write(row, audio, visual)
    return _World(benchmark, store.FeatureStore.open(folder / "features"))


def _failure(check: Callable[[_Subject], None], subject: _Subject) -> str | None:
    try:
        check(subject)
    except AvbenchError as error:
        return str(error)
    except Exception as error:  # whatever a method may raise
        return f"{type(error).__name__}: {error}"
    return None


def _learns(subject: _Subject) -> None:
    world = subject.plain
    accuracy = accuracy_per_step(world.matrix(subject.plain_run))
    if accuracy[0] < 0.8 or accuracy.mean() < world.chance.mean() + 0.15:
        shown = ", ".join(f"{value:.2f}" for value in accuracy)
        raise BrokenPromiseError(f"its accuracy is {shown} over the steps of an easy benchmark")


def _guesses_without_meaning(subject: _Subject) -> None:
    # 320 test clips in all: a standard error of about 0.03.
    world = _world(
        subject.folder / "meaningless",
        [2, 2],
        memory=12,
        test=80,
        meaningless=True,
    )
    accuracy = accuracy_per_step(world.matrix(subject.run(world)))
    if np.abs(accuracy - world.chance).mean() > 0.12:
        raise BrokenPromiseError(
            f"its accuracy is {accuracy.mean():.2f} where labels mean nothing, and guessing gives"
            f" {world.chance.mean():.2f}: it knows test labels"
        )


def _reads_what_it_may(subject: _Subject) -> None:
    world, watched = subject.plain, _Watched.over(subject.plain.store)
    manifest = world.benchmark.manifest

    def rows_of(split: Split) -> tuple[Rows, Rows]:
        rows = manifest.rows(split)
        in_store = world.store.rows_of([manifest.clip_ids[row] for row in rows])
        return in_store, manifest.step_of_row[rows]

    (train, step_of), (val, step_of_val) = rows_of("train"), rows_of("val")
    hidden = {"audio": "visual", "visual": "audio"}.get(subject.modality)

    def learn(self: Any, task: Task) -> None:
        allowed = {*_OPEN[task.train].rows, *_OPEN[task.exemplars].rows}
        earlier = {int(row) for row in train[step_of < task.step]} - allowed
        kept = _copied(self, watched, sorted(earlier))
        if kept:
            raise BrokenPromiseError(
                f"it keeps copies of {len(kept)} clips of earlier steps outside the memory"
            )
        watched.rows.clear()
        super(method_class, self).learn(task)
        seen = {*val[step_of_val <= task.step]}
        for kind, rows in watched.rows.items():
            foreign = rows - allowed - seen
            if foreign:
                raise BrokenPromiseError(
                    f"at step {task.step + 1} it read {len(foreign)} clips that are neither D_t,"
                    " exemplars nor validation clips"
                )
            if rows and kind == hidden:
                raise BrokenPromiseError(f"it read {kind} features of {subject.modality} input")

    # Means are read from elsewhere, unseen.
    method_class = subject.derived(learn=learn, mean_of_tokens=False)
    subject.run(_World(world.benchmark, watched), method_class=method_class)


def _is_deterministic(subject: _Subject) -> None:
    _same(subject.plain_run, subject.run(subject.plain), "a second run with the same seed")


def _resumes(subject: _Subject) -> None:
    world, stops = subject.plain, [True]

    def learn(self: Any, task: Task) -> None:
        if task.step == 1 and stops.pop():
            stops.append(False)
            raise KeyboardInterrupt
        super(method_class, self).learn(task)

    method_class = subject.derived(learn=learn)
    folder = subject.folder / "interrupted"
    try:
        subject.run(world, method_class=method_class, folder=folder)
    except KeyboardInterrupt:
        subject.run(world, method_class=method_class, folder=folder)
    _same(subject.plain_run, folder, "a run that was stopped and taken up")


def _predicts_seen_classes(subject: _Subject) -> None:
    # The evaluator stops a run that predicts anything else.
    assert subject.plain_run.is_dir()


def _survives_odd_steps(subject: _Subject) -> None:
    world = _world(
        subject.folder / "odd",
        [1, 3, 1],
        memory=6,
        train=lambda index: 1 if index in (2, 4) else 12,
        val=lambda index: 0 if index == 2 else 4,
    )
    subject.run(world)


CHECKS: dict[str, Callable[[_Subject], None]] = {
    "predicts only classes seen": _predicts_seen_classes,
    "learns above chance": _learns,
    "guesses where labels mean nothing": _guesses_without_meaning,
    "reads only D_t, memory and validation clips": _reads_what_it_may,
    "same seed, same bytes": _is_deterministic,
    "resumes at any step with the same bytes": _resumes,
    "survives one-class and unequal steps, and a class with one clip": _survives_odd_steps,
}


def _same(one: Path, other: Path, what: str) -> None:
    """Raise if two runs differ in what they learned or predicted."""
    states = sorted(path.name for path in one.glob("step-*.safetensors"))
    for name in ("predictions.parquet", *states):
        if (one / name).read_bytes() != (other / name).read_bytes():
            raise BrokenPromiseError(
                f"{what} differs in {name}: draw all randomness from setup.seed or torch's and"
                " NumPy's generators, and let state() and restore() hold all that was learned"
            )


class _Watched(store.FeatureStore):
    """Features that remember which rows were read."""

    rows: dict[str, set[int]]

    @classmethod
    def over(cls, features: store.FeatureStore) -> _Watched:
        watched = cls(**{f.name: getattr(features, f.name) for f in fields(features)})
        object.__setattr__(watched, "rows", {})
        return watched

    def audio(self, rows: Rows, out: Floats | None = None) -> Floats:
        self.rows.setdefault("audio", set()).update(rows.tolist())
        return super().audio(rows, out)

    def visual(self, rows: Rows, out: Floats | None = None) -> Floats:
        self.rows.setdefault("visual", set()).update(rows.tolist())
        return super().visual(rows, out)


def _copied(method: Any, features: store.FeatureStore, rows: list[int]) -> set[int]:
    """Return which of some clips a method holds features of, wherever it put them."""
    if not rows:
        return set()
    owner: dict[bytes, int] = {}
    for row in rows:
        one = np.array([row])
        vectors = [*store.FeatureStore.audio(features, one)]
        vectors += [*store.FeatureStore.visual(features, one)[0]]
        owner |= {vector.tobytes(): row for vector in vectors}
    found = set()
    for array in _arrays(method, set()):
        if array.ndim and array.shape[-1] == _DIM and np.issubdtype(array.dtype, np.floating):
            with np.errstate(over="ignore"):
                vectors = [*np.ascontiguousarray(array.reshape(-1, _DIM), dtype=np.float16)]
            found |= {owner[key] for vector in vectors if (key := vector.tobytes()) in owner}
    return found


def _arrays(thing: Any, seen: set[int]) -> Iterable[npt.NDArray[Any]]:
    """Yield every array that can be reached from an object."""
    # What the evaluator handed out is closed by then.
    if id(thing) in seen or isinstance(thing, Clips | Task | ExemplarMemory | store.FeatureStore):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor | Picked):
        found = tensor(thing).detach().cpu()
        yield (found.float() if found.dtype == torch.bfloat16 else found).numpy()
    elif isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, Mapping):
        for part in [*thing.keys(), *thing.values()]:
            yield from _arrays(part, seen)
    elif isinstance(thing, list | tuple | set | frozenset):
        for part in thing:
            yield from _arrays(part, seen)
    elif isinstance(thing, torch.nn.Module) or (hasattr(thing, "__dict__") and not callable(thing)):
        yield from _arrays(vars(thing), seen)
