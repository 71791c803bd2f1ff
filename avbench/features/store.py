"""Frozen features of a benchmark's clips on disk, laid out for reading them fast.

A folder with `audio.npy` (clips, dim) and `visual.npy` (clips, frames * cells, dim), both float16
or float32 in C order, `index.parquet` (clip_id, row, SHA-256 of its features) and `store.json`.
Rows follow the manifest, which keeps the clips of one split and step next to each other. Where
clips could not be encoded, `failed.json` says which and why.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from avbench.features.rows import Floats, RowFile, RowReader, Rows
from avbench.manifests.benchmark import Benchmark
from avbench.resources import replacing
from avbench.types import AvbenchError, Report, silent

_FORMAT = 1
HALF = np.dtype("<f2")
_DTYPES: dict[str, np.dtype[Any]] = {"float16": HALF, "float32": np.dtype("<f4")}
_KEYS = {
    "format": int,
    "preset": dict,
    "preset_hash": str,
    "fingerprint": str,
    "dim": int,
    "frames": int,
    "cells": int,
    "clips": int,
    "clips_hash": str,
    "features_hash": str,
}

_BYTES_AT_A_TIME = 64 << 20


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """The features of the clips of one benchmark under one preset.

    It may be pickled, and read in forked processes, such as the workers of a `DataLoader`: a copy
    opens the place again, and refuses other features than these.

    Attributes:
        place: The folder or the URL where it lies.
        preset: Every choice the features depend on; `preset["name"]` is the preset's name.
        fingerprint: Fingerprint of the manifest that gave the order of the rows.
        dim: Width of the audio descriptor and of a visual token, d.
        frames: Temporal positions of the visual tokens.
        cells: Spatial positions of each; token `frame * cells + cell` is one cell of one frame.
        clip_ids: The clip of every row.
        features_hash: SHA-256 over the digests of all clips, in hexadecimal.
        failed: Why clips that were there have no features, by clip.
        dtype: Of the features, float16 or float32.
    """

    place: str
    preset: dict[str, Any]
    fingerprint: str
    dim: int
    frames: int
    cells: int
    clip_ids: tuple[str, ...]
    features_hash: str
    failed: dict[str, str]
    dtype: np.dtype[Any]
    _fs: AbstractFileSystem
    _root: str
    _audio: RowReader
    _visual: RowReader

    @classmethod
    def open(
        cls, place: Path | str, *, remedy: str = "make it with avbench prepare"
    ) -> FeatureStore:
        """Open a store without reading its features.

        Args:
            place: Where the store lies: a folder, or a URL that fsspec opens.
            remedy: What to do when there is none, for the message.

        Raises:
            AvbenchError: If there is no store, or a part of it is missing, corrupt or cut short.
        """
        fs, root = _locate(place)
        try:
            content = fs.cat_file(f"{root}/store.json")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise AvbenchError(f"no features in {place}: {remedy}") from error
        except Exception as error:  # file systems raise what they like
            raise _unreachable(place, error) from error
        info = _read_info(f"{place}/store.json", content)
        clip_ids = _read_index(fs, root)
        if len(clip_ids) != info["clips"] or hash_clips(clip_ids) != info["clips_hash"]:
            raise _broken(f"{root}/index.parquet", "its clips are not those of store.json")
        clips, dim, tokens = info["clips"], info["dim"], info["frames"] * info["cells"]
        dtype = _DTYPES[info.get("dtype", "float16")]
        return cls(
            place=str(place),
            preset=info["preset"],
            fingerprint=info["fingerprint"],
            dim=dim,
            frames=info["frames"],
            cells=info["cells"],
            clip_ids=clip_ids,
            features_hash=info["features_hash"],
            failed=_read_failed(fs, root),
            dtype=dtype,
            _fs=fs,
            _root=root,
            _audio=_reader(fs, f"{root}/audio.npy", (clips, dim), dtype),
            _visual=_reader(fs, f"{root}/visual.npy", (clips, tokens, dim), dtype),
        )

    @classmethod
    def of(cls, benchmark: Benchmark, preset: str) -> FeatureStore:
        """Open the features of a benchmark under a preset.

        Raises:
            AvbenchError: As `open`, the message saying how to make them; or if they are of another
                preset than their folder says.
        """
        option = "" if preset == benchmark.spec.preset else f" --preset {preset}"
        remedy = f"run avbench prepare {benchmark.argument}{option}"
        if preset == "released":
            remedy = f"run avbench features import {benchmark.argument} FILES"
        store = cls.open(store_folder(benchmark, preset), remedy=remedy)
        if store.preset_name != preset:
            raise AvbenchError(
                f"{store.place}: holds features of preset {store.preset_name}, not {preset}:"
                f" move it away and {remedy}"
            )
        return store

    @cached_property
    def preset_name(self) -> str:
        """Name of the preset."""
        return str(self.preset["name"])

    @cached_property
    def preset_hash(self) -> str:
        """SHA-256 of the preset; features with different hashes must not be compared."""
        return hash_preset(self.preset)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder or self.place, self.features_hash)

    def rows_of(self, clip_ids: Sequence[str]) -> Rows:
        """Return the row of every clip asked for, -1 where the store lacks it."""
        found = (self._row_of.get(clip_id, -1) for clip_id in clip_ids)
        return np.fromiter(found, np.int64, len(clip_ids))

    @property
    def folder(self) -> Path | None:
        """The folder; None where it is not on a disk of this machine."""
        return Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def reader(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RowReader:
        """Open another array that lies beside the features.

        Args:
            name: Of its file.
            shape: Of the array.
            dtype: Of its numbers.

        Raises:
            AvbenchError: If it is missing, or another array.
        """
        return _reader(self._file_system(), f"{self._root}/{name}", shape, dtype)

    def read(self, row: int) -> tuple[Floats, Floats]:
        """Read one clip: audio (dim,) and visual tokens (frames * cells, dim)."""
        rows = np.array([row])
        return self.audio(rows)[0], self.visual(rows)[0]

    def audio(self, rows: Rows, out: Floats | None = None) -> Floats:
        """Read audio descriptors, in the order asked for: (n, dim).

        Args:
            rows: Which clips, (n,).
            out: Where to put them; None for new memory.
        """
        return self._audio.read(rows, out)

    def visual(self, rows: Rows, out: Floats | None = None) -> Floats:
        """Read visual tokens, in the order asked for: (n, frames * cells, dim).

        Args:
            rows: Which clips, (n,).
            out: Where to put them; None for new memory.
        """
        return self._visual.read(rows, out)

    def damaged(self, report: Report = silent) -> list[str]:
        """Read all features; return the clips whose features are not those that were written.

        Args:
            report: Called as clips are read.

        Raises:
            AvbenchError: If features or checksums cannot be read, or if those of an early version
                of avbench are damaged, which kept no checksums of single clips.
        """
        size = (1 + self.frames * self.cells) * self.dim * self.dtype.itemsize
        at_a_time = max(1, _BYTES_AT_A_TIME // size)
        found: list[bytes] = []
        with ThreadPoolExecutor() as pool:
            while len(found) < len(self):
                rows = np.arange(len(found), min(len(found) + at_a_time, len(self)))
                found += pool.map(digest, self.audio(rows), self.visual(rows))
                report("checking features", len(found), len(self))
        written = _read_digests(self._file_system(), self._root)
        if _hash_digests(written or found) != self.features_hash:
            part = "index.parquet" if written else "visual.npy"
            raise _broken(f"{self._root}/{part}", "not what was written")
        return [c for c, w, f in zip(self.clip_ids, written or found, found, strict=True) if w != f]

    def _file_system(self) -> AbstractFileSystem:
        """Return the file system; in a forked process, one of its own."""
        return copy.copy(self._fs)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {clip_id: row for row, clip_id in enumerate(self.clip_ids)}


def store_folder(benchmark: Benchmark, preset: str) -> Path:
    """Return where the features of a benchmark under a preset lie."""
    return benchmark.home / "features" / preset


def hash_preset(preset: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a preset's canonical JSON, in hexadecimal."""
    canonical = json.dumps(preset, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hash_clips(clip_ids: Sequence[str]) -> str:
    """Return the SHA-256 of clip ids, one a line, in hexadecimal."""
    return hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()


@contextmanager
def create(
    folder: Path,
    *,
    preset: Mapping[str, Any],
    fingerprint: str,
    clip_ids: Sequence[str],
    dim: int,
    frames: int,
    cells: int,
    dtype: Literal["float16", "float32"] = "float16",
) -> Iterator[StoreWriter]:
    """Write a store, whole or not at all; it replaces what stood there.

    Args:
        folder: Where it shall stand.
        preset: Every choice the features depend on, as JSON can hold it, with a `name`.
        fingerprint: Fingerprint of the manifest.
        clip_ids: The clips, in the manifest's order; every one must be written.
        dim: Width of a descriptor.
        frames: Temporal positions.
        cells: Spatial positions.
        dtype: In which precision features are kept.

    Raises:
        AvbenchError: If a clip was not written, or the disk refuses.
    """
    with replacing(folder, folder=True) as temporary:
        with (
            RowFile(temporary / "audio.npy", (dim,), _DTYPES[dtype]) as audio,
            RowFile(temporary / "visual.npy", (frames * cells, dim), _DTYPES[dtype]) as visual,
        ):
            writer = StoreWriter(clip_ids, audio, visual)
            yield writer
            digests = writer.digests(folder)
            audio.seal(len(clip_ids))
            visual.seal(len(clip_ids))
        seal(
            temporary,
            preset=preset,
            fingerprint=fingerprint,
            clip_ids=clip_ids,
            digests=digests,
            dim=dim,
            frames=frames,
            cells=cells,
            dtype=dtype,
        )


def seal(
    folder: Path,
    *,
    preset: Mapping[str, Any],
    fingerprint: str,
    clip_ids: Sequence[str],
    digests: Sequence[bytes],
    dim: int,
    frames: int,
    cells: int,
    dtype: str = "float16",
    failed: Mapping[str, str] | None = None,
) -> None:
    """Make a store of a folder that holds sealed `audio.npy` and `visual.npy`.

    Args:
        folder: The folder.
        preset: As for `create`.
        fingerprint: As for `create`.
        clip_ids: The clip of every row.
        digests: What writing each row gave, see `write_row`.
        dim: As for `create`.
        frames: As for `create`.
        cells: As for `create`.
        dtype: As for `create`.
        failed: Why other clips have no features, by clip.
    """
    rows = pa.array(range(len(clip_ids)), pa.int64())
    sums = pa.array(digests, pa.binary(hashlib.sha256().digest_size))
    index = pa.table({"clip_id": pa.array(clip_ids, pa.string()), "row": rows, "sha256": sums})
    pq.write_table(index, folder / "index.parquet", compression="zstd")
    if failed:
        text = json.dumps(dict(sorted(failed.items())), indent=1)
        (folder / "failed.json").write_text(text + "\n", encoding="utf-8")
    info = {
        "format": _FORMAT,
        "preset": dict(preset),
        "preset_hash": hash_preset(preset),
        "fingerprint": fingerprint,
        "dim": dim,
        "frames": frames,
        "cells": cells,
        "clips": len(clip_ids),
        "clips_hash": hash_clips(clip_ids),
        "dtype": dtype,
        "features_hash": _hash_digests(digests),
    }
    (folder / "store.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


class StoreWriter:
    """Takes the features of one clip at a time, in any order, from one thread."""

    def __init__(self, clip_ids: Sequence[str], audio: RowFile, visual: RowFile) -> None:
        self._clip_ids = clip_ids
        self._digests: dict[int, bytes] = {}
        self._audio, self._visual = audio, visual

    def write(self, row: int, audio: npt.NDArray[Any], visual: npt.NDArray[Any]) -> None:
        """Write one clip.

        Args:
            row: Its position among the clips of the store.
            audio: (dim,) floats.
            visual: (frames * cells, dim) floats.

        Raises:
            AvbenchError: If a shape is wrong or a value is not finite in the store's precision.
        """
        clip_id = self._clip_ids[row]
        numbers = self._audio.cast(audio, clip_id), self._visual.cast(visual, clip_id)
        self._digests[row] = write_row(self._audio, self._visual, row, *numbers)

    def digests(self, folder: Path) -> list[bytes]:
        """Return the digest of every row, whatever order they were written in.

        Raises:
            AvbenchError: If a clip is missing.
        """
        for row, clip_id in enumerate(self._clip_ids):
            if row not in self._digests:
                raise AvbenchError(f"{folder}: no features were written for clip {clip_id}")
        return [self._digests[row] for row in range(len(self._clip_ids))]


def write_row(audio: RowFile, visual: RowFile, row: int, sound: Floats, sight: Floats) -> bytes:
    """Write the features of a clip and return their digest."""
    audio.write(row, sound)
    visual.write(row, sight)
    return digest(sound, sight)


def digest(sound: Floats, sight: Floats) -> bytes:
    """Return the SHA-256 of the features of one clip."""
    together = hashlib.sha256(sound.tobytes())
    together.update(sight.data)
    return together.digest()


def _hash_digests(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _reopen(place: Path | str, features_hash: str) -> FeatureStore:
    """Open a store that was pickled."""
    store = FeatureStore.open(place, remedy="put the features back")
    if store.features_hash != features_hash:
        raise AvbenchError(f"{place}: holds other features than it did: open it again")
    return store


def _locate(place: Path | str) -> tuple[AbstractFileSystem, str]:
    if isinstance(place, Path):
        return LocalFileSystem(), str(place.absolute())
    try:
        fs, root = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise AvbenchError(f"{place}: cannot be opened ({error}): check the address") from error
    return fs, root.rstrip("/")


def _unreachable(place: Path | str, error: Exception) -> AvbenchError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return AvbenchError(f"{place}: cannot be read ({cause}): check the path or the connection")


def _broken(path: str, cause: str) -> AvbenchError:
    folder = path.rpartition("/")[0]
    return AvbenchError(f"{path}: {cause}; delete {folder} and prepare the features again")


def _read_info(path: str, content: bytes) -> dict[str, Any]:
    try:
        info = json.loads(content)
    except ValueError as error:
        raise _broken(path, "not readable as JSON") from error
    if not isinstance(info, dict) or any(type(info.get(k)) is not t for k, t in _KEYS.items()):
        raise _broken(path, "does not describe features")
    if info["preset"].get("dim", info["dim"]) != info["dim"]:
        raise _broken(path, f"width {info['dim']}, but its preset has {info['preset']['dim']}")
    if info["format"] != _FORMAT:
        raise _broken(path, f"format {info['format']}, but this avbench reads format {_FORMAT}")
    if "name" not in info["preset"] or hash_preset(info["preset"]) != info["preset_hash"]:
        raise _broken(path, "the preset does not match its hash")
    if info.get("dtype", "float16") not in _DTYPES:
        raise _broken(path, f"features of type {info['dtype']}, not {' or '.join(_DTYPES)}")
    return info


def _read_failed(fs: AbstractFileSystem, root: str) -> dict[str, str]:
    path = f"{root}/failed.json"
    try:
        failed = json.loads(fs.cat_file(path))
    except FileNotFoundError:
        return {}
    except Exception as error:  # file systems raise what they like
        raise _broken(path, "not readable as JSON") from error
    if not isinstance(failed, dict) or not all(isinstance(why, str) for why in failed.values()):
        raise _broken(path, "does not say which clips failed and why")
    return failed


def _read_index(fs: AbstractFileSystem, root: str) -> tuple[str, ...]:
    path = f"{root}/index.parquet"
    try:
        index = _read_table(fs, path)
        rows = index["row"].to_pylist()
        clip_ids = tuple(index["clip_id"].cast(pa.string()).to_pylist())
    except Exception as error:  # file systems raise what they like
        raise _broken(path, "not a readable index of clips") from error
    if rows != list(range(len(rows))) or len({*clip_ids} - {None}) != len(rows):
        raise _broken(path, "rows or clips are out of order or appear twice")
    return clip_ids


def _read_digests(fs: AbstractFileSystem, root: str) -> list[bytes]:
    """Return the digest of every clip; none if the store is too old to have them."""
    path = f"{root}/index.parquet"
    try:
        index = _read_table(fs, path)
        return index["sha256"].to_pylist() if "sha256" in index.column_names else []
    except Exception as error:  # file systems raise what they like
        raise _broken(path, "not a readable index of clips") from error


def _read_table(fs: AbstractFileSystem, path: str) -> pa.Table:
    # Not by pq.read_table: its threads sometimes abort a process that ends soon after.
    with pq.ParquetFile(pa.BufferReader(fs.cat_file(path))) as file:
        return file.read(use_threads=False)


def _reader(
    fs: AbstractFileSystem, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> RowReader:
    try:
        return RowReader(fs, path, shape, dtype)
    except ValueError as error:
        raise _broken(path, str(error)) from error
    except FileNotFoundError as error:
        raise _broken(path, "missing") from error
    except Exception as error:  # file systems raise what they like
        raise _unreachable(path, error) from error
