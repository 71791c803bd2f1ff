"""Frozen features of a benchmark's clips on disk, laid out for reading them fast.

A folder with `audio.npy` (clips, dim) and `visual.npy` (clips, frames * cells, dim), both float16
in C order so that they can be mapped into memory, `index.parquet` (clip_id, row) and `store.json`.
Rows follow the manifest, which keeps the clips of one split and step next to each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avbench.manifests.benchmark import Benchmark
from avbench.resources import replacing
from avbench.types import AvbenchError

_FORMAT = 1
_DTYPE = np.dtype("<f2")
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

Half = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """The features of the clips of one benchmark under one preset.

    Attributes:
        folder: Where it lies.
        preset: Every choice the features depend on; `preset["name"]` is the preset's name.
        fingerprint: Fingerprint of the manifest that gave the order of the rows.
        dim: Width of the audio descriptor and of a visual token, d.
        frames: Temporal positions of the visual tokens.
        cells: Spatial positions of each; token `frame * cells + cell` is one cell of one frame.
        clip_ids: The clip of every row.
        features_hash: SHA-256 over the bytes of all features, in hexadecimal.
    """

    folder: Path
    preset: dict[str, Any]
    fingerprint: str
    dim: int
    frames: int
    cells: int
    clip_ids: tuple[str, ...]
    features_hash: str
    _audio: Half
    _visual: Half

    @classmethod
    def open(cls, folder: Path, *, remedy: str = "make it with avbench prepare") -> FeatureStore:
        """Open a store without reading its features.

        Args:
            folder: Where the store lies.
            remedy: What to do when there is none, for the message.

        Raises:
            AvbenchError: If there is no store, or a part of it is missing, corrupt or cut short.
        """
        if not (folder / "store.json").is_file():
            raise AvbenchError(f"no features in {folder}: {remedy}")
        info = _read_info(folder / "store.json")
        clip_ids = _read_index(folder / "index.parquet")
        if len(clip_ids) != info["clips"] or hash_clips(clip_ids) != info["clips_hash"]:
            raise _broken(folder / "index.parquet", "its clips are not those of store.json")
        clips, dim, tokens = info["clips"], info["dim"], info["frames"] * info["cells"]
        return cls(
            folder=folder,
            preset=info["preset"],
            fingerprint=info["fingerprint"],
            dim=dim,
            frames=info["frames"],
            cells=info["cells"],
            clip_ids=clip_ids,
            features_hash=info["features_hash"],
            _audio=_map(folder / "audio.npy", (clips, dim)),
            _visual=_map(folder / "visual.npy", (clips, tokens, dim)),
        )

    @classmethod
    def of(cls, benchmark: Benchmark, preset: str) -> FeatureStore:
        """Open the features of a benchmark under a preset.

        Raises:
            AvbenchError: As `open`; the message says how to make them.
        """
        option = "" if preset == benchmark.spec.preset else f" --preset {preset}"
        remedy = f"run avbench prepare {benchmark.argument}{option}"
        return cls.open(store_folder(benchmark, preset), remedy=remedy)

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

    def rows_of(self, clip_ids: Sequence[str]) -> Rows:
        """Return the row of every clip asked for, -1 where the store lacks it."""
        found = (self._row_of.get(clip_id, -1) for clip_id in clip_ids)
        return np.fromiter(found, np.int64, len(clip_ids))

    def audio(self, rows: Rows) -> Half:
        """Read audio descriptors, in the order asked for: (n, dim) float16."""
        return np.asarray(self._audio[rows])

    def visual(self, rows: Rows) -> Half:
        """Read visual tokens, in the order asked for: (n, frames * cells, dim) float16."""
        return np.asarray(self._visual[rows])

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

    Raises:
        AvbenchError: If a clip was not written, or the disk refuses.
    """
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
    }
    with replacing(folder, folder=True) as temporary:
        with (
            (temporary / "audio.npy").open("wb") as audio,
            (temporary / "visual.npy").open("wb") as visual,
        ):
            writer = StoreWriter(clip_ids, (dim,), (frames * cells, dim), audio, visual)
            yield writer
            writer.check_complete(folder)
            info["features_hash"] = writer.features_hash
        rows = pa.array(range(len(clip_ids)), pa.int64())
        index = pa.table({"clip_id": pa.array(clip_ids, pa.string()), "row": rows})
        pq.write_table(index, temporary / "index.parquet", compression="zstd")
        (temporary / "store.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


class StoreWriter:
    """Takes the features of one clip at a time, in any order, from one thread."""

    def __init__(
        self,
        clip_ids: Sequence[str],
        audio_shape: tuple[int, ...],
        visual_shape: tuple[int, ...],
        audio: BinaryIO,
        visual: BinaryIO,
    ) -> None:
        self._clip_ids = clip_ids
        self._written = np.zeros(len(clip_ids), dtype=bool)
        self._digests = np.zeros((len(clip_ids), 32), dtype=np.uint8)
        self._audio = _Rows(audio, len(clip_ids), audio_shape)
        self._visual = _Rows(visual, len(clip_ids), visual_shape)

    def write(self, row: int, audio: npt.NDArray[Any], visual: npt.NDArray[Any]) -> None:
        """Write one clip.

        Args:
            row: Its position among the clips of the store.
            audio: (dim,) floats.
            visual: (frames * cells, dim) floats.

        Raises:
            AvbenchError: If a shape is wrong or a value is not finite in half precision.
        """
        name = self._clip_ids[row]
        digest = hashlib.sha256()
        digest.update(self._audio.write(row, audio, f"audio features of clip {name}"))
        digest.update(self._visual.write(row, visual, f"visual features of clip {name}"))
        self._digests[row] = np.frombuffer(digest.digest(), dtype=np.uint8)
        self._written[row] = True

    @property
    def features_hash(self) -> str:
        """SHA-256 over the digests of all rows, whatever order they were written in."""
        return hashlib.sha256(self._digests.tobytes()).hexdigest()

    def check_complete(self, folder: Path) -> None:
        """Raise if a clip is missing."""
        if not self._written.all():
            first = self._clip_ids[int(np.argmin(self._written))]
            raise AvbenchError(f"{folder}: no features were written for clip {first}: encode it")


class _Rows:
    """A .npy file written row by row: a full disk raises, where a memory map would crash."""

    def __init__(self, file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
        self._file, self._shape = file, shape
        header = {"descr": _DTYPE.str, "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        self._start = file.tell()
        self._size = int(np.prod(shape)) * _DTYPE.itemsize
        file.truncate(self._start + count * self._size)

    def write(self, row: int, values: npt.NDArray[Any], what: str) -> bytes:
        if values.shape != self._shape:
            raise AvbenchError(
                f"{what}: shape {values.shape}, not {self._shape}: correct the encoder"
            )
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(values, dtype=_DTYPE)
        if not np.isfinite(half).all():
            raise AvbenchError(
                f"{what}: not finite in half precision: check the clip or the encoder"
            )
        self._file.seek(self._start + row * self._size)
        content = half.tobytes()
        self._file.write(content)
        return content


def _broken(path: Path, cause: str) -> AvbenchError:
    return AvbenchError(f"{path}: {cause}; delete {path.parent} and prepare the features again")


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, "not readable as JSON") from error
    if not isinstance(info, dict) or any(type(info.get(k)) is not t for k, t in _KEYS.items()):
        raise _broken(path, "does not describe features")
    if info["format"] != _FORMAT:
        raise _broken(path, f"format {info['format']}, but this avbench reads format {_FORMAT}")
    if "name" not in info["preset"] or hash_preset(info["preset"]) != info["preset_hash"]:
        raise _broken(path, "the preset does not match its hash")
    return info


def _read_index(path: Path) -> tuple[str, ...]:
    try:
        index = pq.read_table(path)
        rows = index["row"].to_pylist()
        clip_ids = tuple(index["clip_id"].cast(pa.string()).to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _broken(path, "not a readable index of clips") from error
    if rows != list(range(len(rows))) or len({*clip_ids} - {None}) != len(rows):
        raise _broken(path, "rows or clips are out of order or appear twice")
    return clip_ids


def _map(path: Path, shape: tuple[int, ...]) -> Half:
    try:
        # Unlike np.load, takes nothing but a plain array.
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise _broken(path, "missing, cut short or not an array") from error
    if array.shape != shape or array.dtype != _DTYPE or not array.flags.c_contiguous:
        raise _broken(path, f"holds {array.dtype} {array.shape}, not float16 {shape}")
    return array
