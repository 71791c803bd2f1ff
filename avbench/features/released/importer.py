"""Bringing the published features of a benchmark into its store."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import numpy.typing as npt

from avbench.features import unfinished
from avbench.features.released import PRESET
from avbench.features.released.archive import (
    AUDIO,
    NAMES,
    VISUAL,
    VISUAL_HDF5,
    Found,
    loose,
    need_room,
    published,
)
from avbench.features.released.dictionary import Refused, read_items
from avbench.features.rows import Floats
from avbench.features.store import FeatureStore, hash_clips, store_folder
from avbench.manifests.benchmark import Benchmark
from avbench.resources import alone
from avbench.types import AvbenchError, Report

_DIM, _FRAMES, _CELLS = 768, 8, 196
_SOUND, _SIGHT = (_DIM,), (_FRAMES * _CELLS, _DIM)

# What zipfile and h5py raise over damaged files; the latter has no errors of its own.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError, ArithmeticError),
    *(zipfile.BadZipFile, zlib.error),
)

_AT_A_TIME = 32
_TOGETHER = 8
"""Clips between two lines of the journal: as many are read again after a kill."""

Arrays = Iterator[tuple[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        store: The features.
        missing: Clips of the benchmark without features, by what is missing.
        strangers: How many ids in the files are none of the benchmark's clips.
    """

    store: FeatureStore
    missing: dict[str, list[str]]
    strangers: int


def import_released(benchmark: Benchmark, files: Sequence[Path], *, report: Report) -> Imported:
    """Import the features the authors published, reading the files as a stream.

    A killed import that is run again writes only the clips that are not there yet, and ends with
    the bytes of one that was left alone.

    Args:
        benchmark: Whose features; of one derived from another, those of the other.
        files: As `published` takes them.
        report: Called as clips are done.

    Raises:
        UsageError: If a path does not exist.
        AvbenchError: If a file is missing, damaged, hostile or of other features, if no clip has
            both kinds, or the disk refuses.
    """
    benchmark = benchmark.base
    folder = store_folder(benchmark, PRESET)
    with (
        alone(folder.parent, f"importing features of {benchmark.name}"),
        published(files) as found,
    ):
        heard, seen = _source(found, (AUDIO,)), _source(found, (VISUAL, VISUAL_HDF5))
        with _opened(seen) as sight:
            sound = _Dictionary.of(heard, _SOUND)
            return _import(benchmark, folder, files, sound, sight, report)


def _import(
    benchmark: Benchmark,
    folder: Path,
    files: Sequence[Path],
    heard: _Dictionary,
    seen: _Table,
    report: Report,
) -> Imported:
    clip_ids = benchmark.manifest.clip_ids
    ours = set(clip_ids)
    heard_ids, sound = set(), {}
    for clip_id, array in heard.items(None):
        heard_ids.add(clip_id)
        if clip_id in ours:
            sound[clip_id] = array
    report("reading names", 0, 1)
    names = seen.names()
    report("reading names", 1, 1)
    there = [clip_id for clip_id in clip_ids if clip_id in sound and clip_id in names]
    if not there:
        example = next(iter(names), "none")
        raise AvbenchError(
            f"{seen.where}: no features of {benchmark.name}: its ids are such as {example}:"
            " name the benchmark they are of"
        )
    preset = {
        "name": PRESET,
        "version": 1,
        "dim": _DIM,
        "clip_seconds": float(benchmark.spec.clip_seconds),
    }
    # What a killed import of the same files into the same rows left is gone on with.
    states = _states(files)
    time_ns = max(time_ns for _, _, time_ns in states)
    same = preset | {"files": states, "clips_hash": hash_clips(there)}
    shape = _DIM, _FRAMES * _CELLS
    with ExitStack() as stack:
        left = unfinished.find(folder, same, *shape, report)
        for each in left:
            stack.callback(each.close)
        done = len(left[-1].entries) if left else 0
        room = 2 * _DIM * (1 + _FRAMES * _CELLS) * (len(there) - done)
        need_room(folder.parent, room, "store them")
        if left:
            target = left[-1]
        else:
            unfinished.clear(folder)
            target = unfinished.begin(folder, same, *shape)
            stack.callback(target.close)
        rows = {clip_id: row for row, clip_id in enumerate(there)}

        def features() -> Iterator[tuple[str, int, tuple[Floats, Floats]]]:
            try:
                for clip_id, tokens in seen.items(rows.keys() - target.rows.keys()):
                    yield clip_id, time_ns, target.cast(clip_id, sound[clip_id], tokens)
            except AvbenchError:
                unfinished.clear(folder)  # of these files nothing will come
                raise

        made = features()
        report("features", done, len(there))
        while done < len(there):
            target.append(islice(made, _TOGETHER), rows)
            if len(target.entries) == done:
                raise AvbenchError(f"{seen.where}: it has changed: run the same command again")
            done = len(target.entries)
            report("features", done, len(there))
        target.finish(
            folder,
            preset=preset,
            fingerprint=benchmark.manifest.fingerprint,
            dim=_DIM,
            frames=_FRAMES,
            cells=_CELLS,
        )
        unfinished.clear(folder)
    missing = {
        "no audio features": [i for i in clip_ids if i not in sound and i in names],
        "no visual features": [i for i in clip_ids if i in sound and i not in names],
        "no features": [i for i in clip_ids if i not in sound and i not in names],
    }
    return Imported(
        store=FeatureStore.open(folder),
        missing={what: clips for what, clips in missing.items() if clips},
        strangers=len((heard_ids | names) - ours),
    )


class _Table(Protocol):
    """Arrays by name, in a file that messages call `where`."""

    @property
    def where(self) -> str: ...

    def names(self) -> set[str]:
        """Return the names."""

    def items(self, wanted: Collection[str] | None) -> Arrays:
        """Read those wanted, or all, in the file's order, checking each."""


@contextmanager
def _opened(seen: Found) -> Iterator[_Table]:
    """Open the tokens, whatever file they are in."""
    if seen.name == VISUAL:
        yield _Dictionary.of(seen, _SIGHT)
        return
    with _blamed(seen.where):
        file = seen.open_anywhere()
    with file:
        with _blamed(seen.where):
            opened = h5py.File(file, "r")
        with opened:
            yield _Hdf5(seen.where, opened, _SIGHT)


@dataclass(frozen=True)
class _Dictionary:
    """A pickled dictionary."""

    where: str
    open: Callable[[], BinaryIO]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, found: Found, shape: tuple[int, ...]) -> _Dictionary:
        return cls(found.where, found.open, shape)

    def names(self) -> set[str]:
        return {name for name, _ in self.items(None)}

    def items(self, wanted: Collection[str] | None) -> Arrays:
        with _blamed(self.where), self.open() as file:
            for name, array in read_items(file, self.shape):
                if wanted is None or name in wanted:
                    yield name, array


@dataclass(frozen=True)
class _Hdf5:
    """An HDF5 file of one dataset for each name."""

    where: str
    file: Any
    shape: tuple[int, ...]

    def names(self) -> set[str]:
        with _blamed(self.where):
            return set(self.file)

    def items(self, wanted: Collection[str] | None) -> Arrays:
        with _blamed(self.where):
            names = self.file if wanted is None else wanted
            # In the order they lie in: a disk reads so many times faster, and a zip at all. Some
            # at a time, since what describes them lies together, before or behind their numbers.
            ordered = sorted(names, key=self._place)
            for start in range(0, len(ordered), _AT_A_TIME):
                some = [(name, self._dataset(name)) for name in ordered[start : start + _AT_A_TIME]]
                for name, dataset in some:
                    yield name, dataset[()]

    def _place(self, name: str) -> int:
        """Where what a name leads to lies in the file."""
        return int(self.file.id.links.get_info(name.encode()).u)

    def _dataset(self, name: str) -> Any:
        """The dataset of a name, if it lies in this file as such."""
        if not isinstance(self.file.get(name, getlink=True), h5py.HardLink):
            raise Refused(f"{name} is a link, not features")
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise Refused(f"{name} is a group, not features")
        if dataset.shape != self.shape:
            raise Refused(f"{name} has shape {dataset.shape}, not {self.shape}")
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
            raise Refused(f"{name} is of {dataset.dtype}, not of floats")
        if dataset.external or dataset.is_virtual:
            raise Refused(f"{name} lies in another file")
        if dataset.chunks and any(c > s for c, s in zip(dataset.chunks, self.shape, strict=True)):
            raise Refused(f"{name} is in pieces of {dataset.chunks}")
        return dataset


def _states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of all files given, by which they are known again."""
    every = [file for path in files for file in (loose(path) if path.is_dir() else [path])]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in every]


def _source(found: Mapping[str, Found], names: Sequence[str]) -> Found:
    here = [name for name in names if name in found]
    if len(here) == 1:
        return found[here[0]]
    if here:
        raise AvbenchError(f"{' and '.join(here)} are both there: give the files one by one")
    raise AvbenchError(
        f"no {' or '.join(names)} in what was given: give the folder or the zip of the authors, or"
        f" its files: {', '.join(NAMES)}"
    )


@contextmanager
def _blamed(where: str) -> Iterator[None]:
    """Say in one line what is wrong with a file.

    Raises:
        AvbenchError: If it cannot be read or was refused.
    """
    try:
        yield
    except Refused as error:
        raise AvbenchError(f"{where}: {error}: get the authors' file") from error
    except _UNREADABLE as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise AvbenchError(f"{where}: cannot be read ({cause}): get it again") from error
