"""What every method must do, checked on small benchmarks made on the spot."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
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
from avbench.evaluation.holdings import bytes_held, clips_held
from avbench.evaluation.metrics import AccuracyMatrix, accuracy_per_step
from avbench.evaluation.run import Run
from avbench.features import store
from avbench.features.rows import Floats
from avbench.learning.method import Declaration, Method, Setup, resolve_settings
from avbench.learning.replay import PairedSettings
from avbench.learning.snapshot import CannotKeepError
from avbench.learning.stream import _OPEN, Rows, Task
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, Modality, Report, Split, UsageError, silent

_DIM, _FRAMES, _CELLS = 16, 2, 2

# Enough to learn what is made here, where a method has no defaults of its own.
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
        traceback: Where it raised what; None if nothing but avbench did.
        replaced: Settings that were replaced to be quick, such as "epochs=10, not 200".
    """

    name: str
    modality: Modality
    failure: str | None
    traceback: str | None = None
    replaced: tuple[str, ...] = ()


def check_method(
    method: str,
    *,
    modality: Modality | None = None,
    settings: Mapping[str, str] | None = None,
    names: Iterable[str] | None = None,
    report: Report = silent,
) -> list[Check]:
    """Check a method, with every modality it takes.

    Its own defaults stay. Those it has from avbench's shared settings, and what its recipe says of
    epochs, batches and the learning rate, are replaced by others that make the checks quick.

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
        given = _quick(method_class) | dict(settings or {})
        own = resolve_settings(method_class, name, "default", each, settings or {})
        resolved = resolve_settings(method_class, name, "default", each, given)
        replaced = tuple(
            f"{key}={getattr(resolved, key)}, not {getattr(own, key)}"
            for key in given
            if getattr(resolved, key) != getattr(own, key)
        )
        with TemporaryDirectory() as folder:
            subject = _Subject(method_class, name, each, resolved, Path(folder))
            for number, check in enumerate(chosen):
                report(f"{name}, {each}", number, len(chosen))
                failure, trace = _failure(CHECKS[check], subject)
                results.append(Check(check, each, failure, trace, replaced))
            report(f"{name}, {each}", len(chosen), len(chosen))
    return results


def _quick(method_class: type[Method]) -> dict[str, str]:
    """Return the settings that replace defaults which a method has from avbench."""
    shared = {f.name: f.default for f in fields(PairedSettings)}
    own = {f.name: f.default for f in fields(method_class.Settings)}
    return {key: value for key, value in _QUICK.items() if key in own and own[key] == shared[key]}


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
        checkpoint_epochs: int = 0,
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
            checkpoint_epochs=checkpoint_epochs,
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
    turned: bool = False,
) -> _World:
    """Make a benchmark whose clips are a class mean, heard and seen, plus noise.

    If it is turned, its test clips are the opposite of what they would be otherwise.
    """
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
    tested = set(manifest.rows("test").tolist())
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
            sign = -1 if turned and row in tested else 1
            writer.write(row, sign * audio, sign * visual)
    return _World(benchmark, store.FeatureStore.open(folder / "features"))


def _failure(check: Callable[[_Subject], None], subject: _Subject) -> tuple[str | None, str | None]:
    """Return what a method did instead of what it must, and where it raised something."""
    try:
        check(subject)
    except AvbenchError as error:
        return str(error), None
    except Exception as error:  # whatever a method may raise
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    return None, None


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

    assert subject.plain_run.is_dir()  # by then all is there that is compiled or cached once
    (train, step_of), (val, step_of_val) = rows_of("train"), rows_of("val")
    hidden = {"audio": "visual", "visual": "audio"}.get(subject.modality)

    def learn(self: Any, task: Task) -> None:
        allowed = {*_OPEN[task.train].rows, *_OPEN[task.exemplars].rows}
        earlier = [train[step_of == step] for step in range(task.step)]
        kept = clips_held(self, watched, earlier) - allowed
        if kept:
            raise BrokenPromiseError(
                f"it keeps copies of {len(kept)} clips of earlier steps outside the memory"
            )
        watched.rows.clear()
        with _files_written(subject.folder) as written:
            super(method_class, self).learn(task)
        if written:
            raise BrokenPromiseError(
                f"it wrote {written[0]} while it learned: what it learns goes into state()"
            )
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
    def learn(self: Any, task: Task) -> None:
        super(late, self).learn(task)
        if task.step == 1:
            raise KeyboardInterrupt

    def begin(self: Any, settings: Any, setup: Setup) -> None:
        def log(record: dict[str, Any]) -> None:
            setup.log(record)
            logged.append(record.get("step"))
            if logged.count(1) == 2:
                raise KeyboardInterrupt

        super(early, self).__init__(settings, replace(setup, log=log))

    logged: list[Any] = []
    late = subject.derived(learn=learn)
    early = subject.derived(__init__=begin)
    for when, method_class, kept in (
        # Without what was kept in the middle, which may hold what restore() forgets.
        ("right after it learned a step", late, (0,)),
        # A method that keeps no epochs, or of which they cannot be kept, begins the step anew.
        ("in the middle of a step", early, (1, 0)),
    ):
        for every in kept:
            folder = subject.folder / f"stopped {when}, {every}"
            logged.clear()
            try:
                subject.run(
                    subject.plain,
                    method_class=method_class,
                    folder=folder,
                    checkpoint_epochs=every,
                )
            except CannotKeepError:
                continue
            except KeyboardInterrupt:
                subject.run(subject.plain, folder=folder)
            _same(subject.plain_run, folder, f"a run that was stopped {when} and taken up")
            break


def _learns_nothing_from_test_clips(subject: _Subject) -> None:
    turned = _world(subject.folder / "turned", [2, 2, 2], memory=12, turned=True)
    learned = _states(subject.plain_run)
    if _states(subject.run(turned)) != learned and _states(subject.run(subject.plain)) == learned:
        raise BrokenPromiseError(
            "it learns something else where test clips are others: they must not teach"
        )


def _holds_no_more_for_more_clips(subject: _Subject) -> None:
    def held(name: str, train: int) -> int:
        def learn(self: Any, task: Task) -> None:
            super(method_class, self).learn(task)
            sizes.append(bytes_held(self))

        sizes: list[int] = []
        method_class = subject.derived(learn=learn)
        world = _world(subject.folder / name, [2, 2], memory=8, train=lambda _: train)
        subject.run(world, method_class=method_class)
        return sizes[-1]

    clips = 10
    more, extra = held("many", 2 * clips) - held("few", clips), 4 * clips
    # A note a batch may be taken, half of what is heard in a clip may not.
    if more >= _DIM * extra:
        raise BrokenPromiseError(
            f"it holds {more} bytes more where there are {extra} more clips: what grows with the"
            " clips seen belongs into the memory, task.remember"
        )


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
    "learns nothing from test clips": _learns_nothing_from_test_clips,
    "holds no more where there are more clips": _holds_no_more_for_more_clips,
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


def _states(run: Path) -> list[bytes]:
    """Return what a run learned, step by step."""
    return [path.read_bytes() for path in sorted(run.glob("step-*.safetensors"))]


_written: list[list[str]] = []
"""Where the files go that Python opens for writing, for those who watch just now."""


@contextmanager
def _files_written(folder: Path) -> Iterator[list[str]]:
    """Yield a list that gets the files that are written, but for those in a folder."""
    _watch_files()
    opened: list[str] = []
    found: list[str] = []
    _written.append(opened)
    try:
        yield found
    finally:
        _written.remove(opened)
        ours = (str(folder), "/dev/", "/proc/")
        found += [p for p in opened if not p.startswith(ours) and "__pycache__" not in p]


@cache
def _watch_files() -> None:
    """Begin to note files that Python opens for writing; there is no way to end it."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _written:
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR):
                for opened in _written:
                    opened.append(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100

    sys.addaudithook(note)


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
