"""Making clips in a worker: acquire, trim, validate."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.ledger import SHORT, STILL, Failure, Outcome
from avbench.media.originals import KEPT, Originals
from avbench.media.places import Places, file_name, request, sha256, video_key
from avbench.media.probe import TOLERANCE_S, InvalidClip, opened, validate
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    Source,
    SourceFile,
    goes_by_label,
    is_remote,
    open_source,
)
from avbench.media.storage import host_scratch
from avbench.media.trim import trim
from avbench.resources import writing
from avbench.types import AvbenchError

_OPENED: dict[tuple[str, str], Source] = {}
_OPENING = Lock()


@dataclass(frozen=True)
class Piece:
    """Work for one worker.

    Attributes:
        clips: Of one video.
        file: The video, if it is there already; who makes the clips removes it.
        handed: What the journal calls that file, if the worker may be on another machine.
    """

    clips: tuple[Clip, ...]
    file: SourceFile | None = None
    handed: str = ""


@dataclass(frozen=True)
class Maker:
    """Makes clips, in a worker, which may be another process.

    What would stop every clip is returned, and no further clip is begun: raising it at once would
    leave the other workers writing while the folder is being cleaned.

    Attributes:
        spec: The benchmark.
        network: How to download.
        places: Where clips go.
        run: What tells this run of `prepare` from others.
        scratch: A folder on the clips' own disk; None to use one of the host the worker is on.
        source_text: The source, as `open_source` takes it.
        acquire_only: Whether to cut nothing.
        keep_originals: Whether to keep what was fetched.
    """

    spec: BenchmarkSpec
    network: Network
    places: Places
    run: str
    scratch: Path | None
    source_text: str = ""
    acquire_only: bool = False
    keep_originals: bool = False

    @property
    def source(self) -> Source:
        """The source, opened once in every process."""
        key = (self.run, self.source_text)
        with _OPENING:
            if key not in _OPENED:
                # Those of an earlier run may not know what has come since.
                for old in [k for k in _OPENED if k[0] != key[0]]:
                    del _OPENED[old]
                _OPENED[key] = (
                    Originals(self.places, self.spec)
                    if self.source_text == KEPT
                    else open_source(self.source_text, self.spec, self.network)
                )
            return _OPENED[key]

    def stop(self) -> None:
        """Let no clip be begun any more, on whatever machine."""
        self.places.journal.write(self._stop_mark, "")

    @property
    def _stop_mark(self) -> str:
        return f"stop-{self.run}"

    def __call__(self, piece: Piece) -> list[Outcome | Exception]:
        """Make the clips of a piece, as far as none of them finds what would stop them all."""
        outcomes: list[Outcome | Exception] = []
        kept: dict[str, Path] = {}  # videos this piece has put among the originals
        try:
            with self._scratch() as folder:
                file = piece.file
                if file and piece.handed:
                    given = folder / "handed"
                    given.mkdir()
                    file = replace(file, path=self.places.journal.fetch(piece.handed, given))
                for clip in piece.clips:
                    if not self.places.journal.has(self._stop_mark):
                        outcomes.append(self._make(clip, file, folder, kept))
        except (AvbenchError, OSError) as error:
            # Another process may not know how to unpickle what a library raises.
            outcomes.append(error if isinstance(error, AvbenchError) else OSError(*error.args))
        finally:
            if piece.handed:
                self.places.journal.remove(piece.handed)
            elif piece.file:
                piece.file.path.unlink(missing_ok=True)
        return outcomes

    def asked(self, clip: Clip) -> str:
        """Return what the source is asked for as a clip."""
        source = self.source
        asked = source.asked(clip) if isinstance(source, Originals) else None
        return asked or request(clip, self.spec, by_label=goes_by_label(source))

    def failed(self, clip: Clip, failure: Failure, reason: str, detail: str = "") -> Outcome:
        """Return the outcome of a clip that could not be made."""
        return Outcome(
            clip.clip_id,
            "failed",
            self.source_text,
            self.asked(clip),
            failure=failure,
            reason=reason,
            detail=detail,
        )

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        if not self.scratch:
            with host_scratch() as folder:
                yield folder
            return
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def _make(
        self, clip: Clip, file: SourceFile | None, folder: Path, kept: dict[str, Path]
    ) -> Outcome:
        began = time.monotonic()
        given = folder / "source"
        try:
            with writing(self.places.clips.local or given):
                given.mkdir(exist_ok=True)
                if file is None and video_key(clip) in kept:
                    found = SourceFile(kept[video_key(clip)], clip.start_s)
                else:
                    found = file or self.source.fetch(clip, given)
                if self.acquire_only:
                    with opened(found.path):
                        outcome = replace(self.failed(clip, "", ""), status="acquired")
                else:
                    outcome = self._cut(clip, found, folder)
                # Only what can be used is worth keeping.
                if self.keep_originals and not isinstance(self.source, Originals):
                    self._keep(clip, found, folder, kept)
        except ClipUnavailable as error:
            failure: Failure = "permanent" if error.permanent else "transient"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        except InvalidClip as error:
            # A video will not have sound the next time it is downloaded.
            lasting = error.lasting and is_remote(self.source)
            failure = "permanent" if lasting else "invalid"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        return replace(outcome, seconds=time.monotonic() - began)

    def _keep(self, clip: Clip, found: SourceFile, folder: Path, kept: dict[str, Path]) -> None:
        if found.path in kept.values():
            return
        originals = replace(self, source_text=KEPT).source
        assert isinstance(originals, Originals)
        movable = found.path.is_relative_to(folder) or found.path.parent == self.scratch
        there = originals.keep(clip, found, self.asked(clip), movable=movable)
        if there:
            kept[video_key(clip)] = there

    def _cut(self, clip: Clip, found: SourceFile, folder: Path) -> Outcome:
        name = file_name(clip.clip_id)
        seconds = self.spec.clip_seconds
        promised_s = trim(found.path, folder / name, start_s=found.start_s, seconds=seconds)
        info = validate(folder / name, seconds=seconds, at_least_s=promised_s)
        size, digest = (folder / name).stat().st_size, sha256(folder / name)
        is_short = info.video_s < seconds - TOLERANCE_S
        outcome = Outcome(
            clip_id=clip.clip_id,
            status="ok",
            source=self.source_text,
            request=self.asked(clip),
            reason=SHORT if is_short else STILL if info.still else "",
            detail=f"{info.video_s:.2f} s" if is_short else "",
            bytes=size,
            sha256=digest,
        )
        # Should the driver be killed before it writes the ledger, the next one reads this.
        self.places.journal.write(f"{clip.clip_id}.json", json.dumps(asdict(outcome)))
        # Only what is whole and valid ever gets the name of a clip.
        self.places.clips.put(folder / name, name)
        return outcome
