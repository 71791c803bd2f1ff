"""Where the clips of a benchmark lie, and the names they go by there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.resources import writing

_SAFE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def clips_dir(benchmark: Benchmark) -> Path:
    """Return the folder of a benchmark's clips."""
    return benchmark.home / "clips"


def journal_dir(home: Path) -> Path:
    """Return the folder of what was made, but may not be in the ledger yet."""
    return home / "journal"


def request(clip: Clip, spec: BenchmarkSpec) -> str:
    """Say what is asked for: a clip of another time or length is another clip."""
    return f"{clip.youtube_id} {clip.start_s} {clip.end_s} {float(spec.clip_seconds)}"


def requests_of(benchmark: Benchmark) -> dict[str, str]:
    """Return what is asked for as each clip of a benchmark: a row that says else is outdated."""
    return {clip.clip_id: request(clip, benchmark.spec) for clip in benchmark.manifest}


def video_key(clip: Clip) -> str:
    """Return a file name for a video whose id comes from somebody's table."""
    video = clip.youtube_id or clip.clip_id
    return video if _SAFE.fullmatch(video) else hashlib.sha256(video.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[Path]:
    """Return the files of a folder, by name; links count as what they lead to."""
    return sorted(path for path in folder.glob("*") if path.is_file())


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a folder, by name."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def put_aside(clip_ids: Iterable[str], benchmark: Benchmark) -> None:
    """Move clips cut to another time or length away: they may be hard to replace."""
    folder = benchmark.home / "replaced"
    for clip_id in clip_ids:
        path = clips_dir(benchmark) / f"{clip_id}.mp4"
        if path.is_file():
            with writing(folder):
                folder.mkdir(exist_ok=True)
                path.replace(folder / path.name)


@contextmanager
def scratch_folder(home: Path) -> Iterator[Path]:
    """Give an empty folder on the clips' file system, and leave none behind."""
    for left in home.glob("scratch*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with writing(home / "scratch"):
        path = Path(tempfile.mkdtemp(prefix="scratch-", dir=home))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # not empty: the next run reads it
            journal_dir(home).rmdir()
