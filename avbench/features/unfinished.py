"""A store in the making: filled clip by clip, and gone on with after being killed at any moment."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avbench.features.rows import Floats, RowFile
from avbench.features.store import HALF, digest, hash_preset, seal, write_row
from avbench.resources import writing
from avbench.types import Report, silent


@dataclass(frozen=True)
class Entry:
    """What became of one clip.

    Attributes:
        clip_id: The clip.
        mtime_ns: When its file was last written.
        row: Where its features are; -1 if it has none.
        digest: SHA-256 of its features, in hexadecimal; empty if it has none.
        failed: Why it has none.
    """

    clip_id: str
    mtime_ns: int
    row: int
    digest: str = ""
    failed: str = ""


class Unfinished:
    """A folder of features, and beside it a journal that says whose they are.

    Features are written before the journal's line about them, and looked at again before they are
    trusted: what a killed process or machine left half-written counts as not there.

    Attributes:
        folder: The features.
        preset_hash: Of the preset that made them.
        entries: What became of the clips so far, in order; rows are those that did not fail.
    """

    def __init__(
        self, folder: Path, preset_hash: str, dim: int, tokens: int, report: Report = silent
    ) -> None:
        self.folder, self.preset_hash = folder, preset_hash
        self._journal = _journal(folder)
        self._row = 0
        self._head = json.dumps({"preset_hash": preset_hash, "dim": dim, "tokens": tokens}) + "\n"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._audio = RowFile(folder / "audio.npy", (dim,), HALF)
            self._visual = RowFile(folder / "visual.npy", (tokens, dim), HALF)
            self.entries = self._read(report)

    def close(self) -> None:
        """Close its files."""
        for file in (self._audio, self._visual):
            file.close()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every clip that has features, as found when the journal was read."""
        return {entry.clip_id: entry.row for entry in self.entries if not entry.failed}

    def read(self, row: int) -> tuple[Floats, Floats]:
        """Read one clip: audio (dim,) and visual tokens (tokens, dim), float16."""
        return self._audio.read(row), self._visual.read(row)

    def cast(self, clip_id: str, audio: Any, visual: Any) -> tuple[Floats, Floats]:
        """Return features of a clip as they will be written.

        Raises:
            NotFinite: If a value is not finite in half precision.
            AvbenchError: If a shape is wrong.
        """
        return self._audio.cast(audio, clip_id), self._visual.cast(visual, clip_id)

    def append(
        self,
        batch: Iterable[tuple[str, int, tuple[Floats, Floats] | str]],
        rows: Mapping[str, int] | None = None,
    ) -> None:
        """Write a batch: clip, time of its file, and its features or why it has none.

        Args:
            batch: The clips.
            rows: Where their features go; by default one after the other.

        Raises:
            AvbenchError: If the disk refuses.
        """
        row, added = self._row, []
        with writing(self.folder):
            for clip_id, mtime_ns, outcome in batch:
                if isinstance(outcome, str):
                    added.append(Entry(clip_id, mtime_ns, -1, failed=outcome))
                    continue
                at = rows[clip_id] if rows else row
                written = write_row(self._audio, self._visual, at, *outcome)
                added.append(Entry(clip_id, mtime_ns, at, written.hex()))
                row += 1
            # One line, whole or not there: what is encoded in other company may differ in bits.
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps([asdict(entry) for entry in added]) + "\n")
        self.entries += added
        self._row = row

    def finish(
        self,
        target: Path,
        *,
        preset: Mapping[str, Any],
        fingerprint: str,
        dim: int,
        frames: int,
        cells: int,
    ) -> None:
        """Make a store of it, in place of what stood there.

        Args:
            target: Where it shall stand.
            preset: As `create` of a store takes it, like the rest.
            fingerprint: Of the manifest.
            dim: Width of a descriptor.
            frames: Temporal positions.
            cells: Spatial positions.

        Raises:
            AvbenchError: If the disk refuses.
        """
        made = [entry for entry in self.entries if not entry.failed]
        there = sorted(made, key=lambda entry: entry.row)
        with writing(target):
            self._audio.seal(len(there))
            self._visual.seal(len(there))
            self.close()
            seal(
                self.folder,
                preset=preset,
                fingerprint=fingerprint,
                clip_ids=[entry.clip_id for entry in there],
                digests=[bytes.fromhex(entry.digest) for entry in there],
                dim=dim,
                frames=frames,
                cells=cells,
                failed={entry.clip_id: entry.failed for entry in self.entries if entry.failed},
            )
            # As old as the newest clip it knows: one replaced while this ran is newer.
            newest = max(entry.mtime_ns for entry in self.entries)
            os.utime(self.folder / "store.json", ns=(newest, newest))
            replaced = target.with_name(f".replaced-{target.name}")
            shutil.rmtree(replaced, ignore_errors=True)
            if target.exists():
                target.replace(replaced)
            self.folder.replace(target)
        shutil.rmtree(replaced, ignore_errors=True)

    def _read(self, report: Report) -> list[Entry]:
        """Read the journal up to the first thing in it that does not hold, and end it there."""
        there = self._journal.is_file()
        lines = self._journal.read_text(encoding="utf-8").splitlines(True) if there else []
        entries: list[Entry] = []
        kept = [self._head]
        for line in lines[1:] if lines[:1] == kept else []:
            batch = _batch(line)
            made = [entry for entry in batch if not entry.failed]
            if not batch or any(entry.digest != self._digest(entry.row) for entry in made):
                break
            self._row += len(made)
            entries += batch
            kept.append(line)
            report("checking what was extracted", len(kept) - 1, len(lines) - 1)
        if kept != lines:
            self._journal.write_text("".join(kept), encoding="utf-8")
        return entries

    def _digest(self, row: int) -> str:
        return digest(*self.read(row)).hex()


def _batch(line: str) -> list[Entry]:
    """What a line of the journal says; nothing if it is torn."""
    try:
        return [Entry(**entry) for entry in json.loads(line)] if line.endswith("\n") else []
    except (TypeError, ValueError):
        return []


def find(
    target: Path, preset: Mapping[str, Any], dim: int, tokens: int, report: Report
) -> list[Unfinished]:
    """Open what killed runs left of a store under this preset, the latest last.

    Args:
        target: Where the store shall stand.
        preset: Every choice the features depend on.
        dim: Width of a descriptor.
        tokens: Visual tokens of a clip.
        report: Called as features are read to see whether they are whole.
    """
    ours, found = hash_preset(preset), []
    for folder in _folders(target):
        first = b""
        if _journal(folder).is_file():
            with _journal(folder).open("rb") as journal:
                first = journal.readline()
        if ours.encode() in first:
            found.append(Unfinished(folder, ours, dim, tokens, report))
    return found


def begin(target: Path, preset: Mapping[str, Any], dim: int, tokens: int) -> Unfinished:
    """Begin a store that shall stand at `target`; arguments as for `find`."""
    numbers = [_number(folder) for folder in _folders(target)]
    number = max(numbers, default=0) + 1
    folder = target.with_name(f".unfinished-{target.name}-{number}")
    _journal(folder).unlink(missing_ok=True)  # of a store that was finished
    return Unfinished(folder, hash_preset(preset), dim, tokens)


def size(target: Path) -> int:
    """Return how many bytes the way to a store at `target` has written so far."""
    return sum(file.stat().st_size for folder in _folders(target)[-1:] for file in folder.iterdir())


def clear(target: Path) -> None:
    """Remove what was left of the way to a store that stands now."""
    for folder in _folders(target):
        shutil.rmtree(folder, ignore_errors=True)
    for journal in target.parent.glob(f".unfinished-{target.name}-*.jsonl"):
        journal.unlink(missing_ok=True)


def _folders(target: Path) -> Sequence[Path]:
    name = re.compile(rf"\.unfinished-{re.escape(target.name)}-\d+")
    folders = (path for path in target.parent.glob(".unfinished-*") if name.fullmatch(path.name))
    return sorted(folders, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _journal(folder: Path) -> Path:
    return folder.with_name(folder.name + ".jsonl")
