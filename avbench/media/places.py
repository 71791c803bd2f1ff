"""Where the media of a benchmark lie, and the names they go by there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from avbench import resources
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.storage import Folder

_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Places:
    """The folders of a benchmark's media.

    Attributes:
        base: Where those of all benchmarks lie: a path or an address.
        name: The benchmark.
    """

    base: str
    name: str

    @property
    def clips(self) -> Folder:
        """Clips, by id."""
        return self._folder("clips")

    @property
    def replaced(self) -> Folder:
        """Clips that were put aside: they may be hard to replace."""
        return self._folder("replaced")

    @property
    def whole_originals(self) -> Folder:
        """Whole videos that were kept."""
        return self._folder("originals/videos")

    @property
    def cut_originals(self) -> Folder:
        """Other originals that were kept."""
        return self._folder("originals/clips")

    @property
    def journal(self) -> Folder:
        """What was made, but may not be in the ledger yet."""
        return self._folder("journal")

    def _folder(self, name: str) -> Folder:
        return Folder(self.base, f"{self.name}/{name}")


def places_of(benchmark: Benchmark) -> Places:
    """Return where the media of a benchmark lie: of a derived one, those of the other."""
    return Places(resources.storage(), benchmark.base.name)


def file_name(clip_id: str) -> str:
    """Return the name of a clip's file."""
    return f"{clip_id}.mp4"


def request(clip: Clip, spec: BenchmarkSpec, *, by_label: bool = False) -> str:
    """Say what is asked for: a clip of another time or length is another clip.

    Args:
        clip: The clip.
        spec: Its benchmark.
        by_label: Whether it is asked of a source that goes by labels: then one of another label is
            another clip as well.
    """
    asked = f"{clip.youtube_id} {clip.start_s} {clip.end_s} {float(spec.clip_seconds)}"
    return f"{asked} {clip.label}" if by_label else asked


def requests_of(clip: Clip, spec: BenchmarkSpec) -> tuple[str, str]:
    """Return all that may be asked for as a clip: what was made for anything else is outdated."""
    return request(clip, spec), request(clip, spec, by_label=True)


def video_key(clip: Clip) -> str:
    """Return a file name for a video whose id comes from somebody's table."""
    video = clip.youtube_id or clip.clip_id
    return video if _SAFE.fullmatch(video) else hashlib.sha256(video.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
