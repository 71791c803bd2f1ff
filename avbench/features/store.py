"""Frozen features of a benchmark's clips on disk, laid out for reading them fast.

A folder with `audio.npy` (clips, dim) and `visual.npy` (clips, frames * cells, dim), both float16
in C order so that they can be mapped into memory, `index.parquet` (clip_id, row) and `store.json`.
Rows follow the manifest, which keeps the clips of one split and step next to each other. Where
clips could not be encoded, `failed.json` says which and why.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

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
        failed: Why clips that were there have no features, by clip.
    """

    folder: Path
    preset: dict[str, Any]
    fingerprint: str
    dim: int
    frames: int
    cells: int
    clip_ids: tuple[str, ...]
    features_hash: str
    failed: dict[str, str]
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
            failed=_read_failed(folder / "failed.json"),
            _audio=_map(folder / "audio.npy", (clips, dim)),
            _visual=_map(folder / "visual.npy", (clips, tokens, dim)),
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
                f"{store.folder}: holds features of preset {store.preset_name}, not {preset}:"
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

    def rows_of(self, clip_ids: Sequence[str]) -> Rows:
        """Return the row of every clip asked for, -1 where the store lacks it."""
        found = (self._row_of.get(clip_id, -1) for clip_id in clip_ids)
        return np.fromiter(found, np.int64, len(clip_ids))

    def read(self, row: int) -> tuple[Half, Half]:
        """Read one clip: audio (dim,) and visual tokens (frames * cells, dim), float16."""
        return self._audio[row], self._visual[row]

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
    with replacing(folder, folder=True) as temporary:
        with (
            RowFile(temporary / "audio.npy", (dim,)) as audio,
            RowFile(temporary / "visual.npy", (frames * cells, dim)) as visual,
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
        failed: Why other clips have no features, by clip.
    """
    rows = pa.array(range(len(clip_ids)), pa.int64())
    index = pa.table({"clip_id": pa.array(clip_ids, pa.string()), "row": rows})
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
        "features_hash": hashlib.sha256(b"".join(digests)).hexdigest(),
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
            AvbenchError: If a shape is wrong or a value is not finite in half precision.
        """
        clip_id = self._clip_ids[row]
        halves = self._audio.halved(audio, clip_id), self._visual.halved(visual, clip_id)
        self._digests[row] = write_row(self._audio, self._visual, row, *halves)

    def digests(self, folder: Path) -> list[bytes]:
        """Return the digest of every row, whatever order they were written in.

        Raises:
            AvbenchError: If a clip is missing.
        """
        for row, clip_id in enumerate(self._clip_ids):
            if row not in self._digests:
                raise AvbenchError(f"{folder}: no features were written for clip {clip_id}")
        return [self._digests[row] for row in range(len(self._clip_ids))]


class NotFinite(AvbenchError):  # noqa: N818 - a finding, not a fault
    """Features of a clip that half precision cannot hold."""


class RowFile:
    """A .npy file written row by row: a full disk raises, where a memory map would crash.

    Args:
        path: The file, begun if it is not there.
        shape: Of one row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self._shape = path, shape
        self._size = int(np.prod(shape)) * _DTYPE.itemsize
        # Without a buffer: what a full disk refused must not be tried again when it is closed.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._start = len(self._header(0))

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def halved(self, values: npt.NDArray[Any], clip_id: str) -> Half:
        """Return features of a clip as they will be written.

        Raises:
            NotFinite: If a value is not finite in half precision.
            AvbenchError: If their shape is wrong.
        """
        what = f"{self._path.stem} features of clip {clip_id}"
        if values.shape != self._shape:
            raise AvbenchError(
                f"{what}: shape {values.shape}, not {self._shape}: correct the encoder"
            )
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(values, dtype=_DTYPE)
        if not np.isfinite(half).all():
            raise NotFinite(f"{what}: not finite in half precision: check the clip or the encoder")
        return half

    def write(self, row: int, half: Half) -> None:
        """Write a row."""
        self._write(self._start + row * self._size, half.tobytes())

    def read(self, row: int) -> Half:
        """Read a row; zeros stand for what was never written."""
        self._file.seek(self._start + row * self._size)
        content = self._file.read(self._size).ljust(self._size, b"\0")
        return np.frombuffer(content, _DTYPE).reshape(self._shape)

    def seal(self, rows: int) -> None:
        """Make it an array of so many rows."""
        self._write(0, self._header(rows))
        self._file.truncate(self._start + rows * self._size)

    def _write(self, start: int, content: bytes) -> None:
        self._file.seek(start)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _header(self, rows: int) -> bytes:
        """Its length does not depend on the number of rows."""
        header = {"descr": _DTYPE.str, "fortran_order": False, "shape": (rows, *self._shape)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        return buffer.getvalue()


def write_row(audio: RowFile, visual: RowFile, row: int, sound: Half, sight: Half) -> bytes:
    """Write the features of a clip and return their digest."""
    audio.write(row, sound)
    visual.write(row, sight)
    return digest(sound, sight)


def digest(sound: Half, sight: Half) -> bytes:
    """Return the SHA-256 of the features of one clip."""
    together = hashlib.sha256(sound.tobytes())
    together.update(sight.data)
    return together.digest()


def _broken(path: Path, cause: str) -> AvbenchError:
    return AvbenchError(f"{path}: {cause}; delete {path.parent} and prepare the features again")


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, "not readable as JSON") from error
    if not isinstance(info, dict) or any(type(info.get(k)) is not t for k, t in _KEYS.items()):
        raise _broken(path, "does not describe features")
    if info["preset"].get("dim", info["dim"]) != info["dim"]:
        raise _broken(path, f"width {info['dim']}, but its preset has {info['preset']['dim']}")
    if info["format"] != _FORMAT:
        raise _broken(path, f"format {info['format']}, but this avbench reads format {_FORMAT}")
    if "name" not in info["preset"] or hash_preset(info["preset"]) != info["preset_hash"]:
        raise _broken(path, "the preset does not match its hash")
    return info


def _read_failed(path: Path) -> dict[str, str]:
    try:
        failed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _broken(path, "not readable as JSON") from error
    if not isinstance(failed, dict) or not all(isinstance(why, str) for why in failed.values()):
        raise _broken(path, "does not say which clips failed and why")
    return failed


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
