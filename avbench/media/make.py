"""Making clips in a worker: acquire, trim, validate."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.ledger import SHORT, STILL, Failure, Outcome
from avbench.media.originals import KEPT, Originals
from avbench.media.places import journal_dir, request, sha256, video_key
from avbench.media.probe import TOLERANCE_S, InvalidClip, opened, validate
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    Source,
    SourceFile,
    is_remote,
    open_source,
)
from avbench.media.trim import trim
from avbench.resources import writing
from avbench.types import AvbenchError

_OPENED: dict[tuple[str, str], Source] = {}
_OPENING = Lock()


@dataclass(frozen=True)
class Piece:
    """Work for one worker: the clips of one video, and the file if it is there already."""

    clips: tuple[Clip, ...]
    file: SourceFile | None


@dataclass(frozen=True)
class Maker:
    """Makes clips, in a worker, which may be another process.

    What would stop every clip is returned, and no further clip is begun: raising it at once would
    leave the other workers writing while the folder is being cleaned.
    """

    spec: BenchmarkSpec
    network: Network
    home: Path
    scratch: Path
    source_text: str = ""
    acquire_only: bool = False
    keep_originals: bool = False

    @property
    def source(self) -> Source:
        """The source, opened once in every process."""
        key = (str(self.scratch), self.source_text)
        with _OPENING:
            if key not in _OPENED:
                # Those of an earlier run may not know what has come since.
                for old in [k for k in _OPENED if k[0] != key[0]]:
                    del _OPENED[old]
                _OPENED[key] = (
                    Originals(self.home, self.spec)
                    if self.source_text == KEPT
                    else open_source(self.source_text, self.spec, self.network)
                )
            return _OPENED[key]

    @property
    def stop_file(self) -> Path:
        """As soon as it exists, no clip is begun any more."""
        return self.scratch / "stop"

    def __call__(self, piece: Piece) -> list[Outcome | Exception]:
        """Make the clips of a piece, as far as none of them finds what would stop them all."""
        outcomes: list[Outcome | Exception] = []
        kept: dict[str, Path] = {}  # videos this piece has put among the originals
        try:
            with tempfile.TemporaryDirectory(
                dir=self.scratch, ignore_cleanup_errors=True
            ) as folder:
                for clip in piece.clips:
                    if not self.stop_file.exists():
                        outcomes.append(self._make(clip, piece.file, Path(folder), kept))
        except (AvbenchError, OSError) as error:
            # Another process may not know how to unpickle what a library raises.
            outcomes.append(error if isinstance(error, AvbenchError) else OSError(*error.args))
        finally:
            if piece.file and piece.file.path.is_relative_to(self.scratch):
                piece.file.path.unlink(missing_ok=True)
        return outcomes

    def failed(self, clip: Clip, failure: Failure, reason: str, detail: str = "") -> Outcome:
        """Return the outcome of a clip that could not be made."""
        return Outcome(
            clip.clip_id,
            "failed",
            self.source_text,
            request(clip, self.spec),
            failure=failure,
            reason=reason,
            detail=detail,
        )

    def _make(
        self, clip: Clip, file: SourceFile | None, folder: Path, kept: dict[str, Path]
    ) -> Outcome:
        began = time.monotonic()
        given = folder / "source"
        try:
            with writing(self.home / "clips"):
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
                    self._keep(clip, found, kept)
        except ClipUnavailable as error:
            failure: Failure = "permanent" if error.permanent else "transient"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        except InvalidClip as error:
            # A video will not have sound the next time it is downloaded.
            lasting = error.lasting and is_remote(self.source)
            failure = "permanent" if lasting else "invalid"
            outcome = self.failed(clip, failure, error.reason, error.detail)
        return replace(outcome, seconds=time.monotonic() - began)

    def _keep(self, clip: Clip, found: SourceFile, kept: dict[str, Path]) -> None:
        if found.path in kept.values():
            return
        movable = found.path.is_relative_to(self.scratch)
        originals = replace(self, source_text=KEPT).source
        assert isinstance(originals, Originals)
        there = originals.keep(clip, found, movable=movable)
        if there.path.parent.name == "videos":
            kept[video_key(clip)] = there.path

    def _cut(self, clip: Clip, found: SourceFile, folder: Path) -> Outcome:
        name = f"{clip.clip_id}.mp4"
        trim(found.path, folder / name, start_s=found.start_s, seconds=self.spec.clip_seconds)
        info = validate(folder / name, seconds=self.spec.clip_seconds)
        size, digest = (folder / name).stat().st_size, sha256(folder / name)
        is_short = info.video_s < self.spec.clip_seconds - TOLERANCE_S
        outcome = Outcome(
            clip_id=clip.clip_id,
            status="ok",
            source=self.source_text,
            request=request(clip, self.spec),
            reason=SHORT if is_short else STILL if info.still else "",
            detail=f"{info.video_s:.2f} s" if is_short else "",
            bytes=size,
            sha256=digest,
        )
        # Should the driver be killed before it writes the ledger, the next one reads this.
        note = journal_dir(self.home) / f"{clip.clip_id}.json"
        note.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        # Only what is whole and valid ever gets the name of a clip.
        (folder / name).replace(self.home / "clips" / name)
        return outcome
