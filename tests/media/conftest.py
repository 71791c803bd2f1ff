"""Videos whose every second is known, and benchmarks over them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avbench.manifests.benchmark import Benchmark
from tests.helpers.server import MediaServer
from tests.helpers.videos import write_video

TOML = """
name = "few"
classes = 2
classes_per_step = 1
clip_seconds = {seconds}
sources = {sources}
annotations = "few.csv"
"""


@pytest.fixture
def video() -> Callable[..., Path]:
    return write_video


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaServer]:
    """Give a web server, short pauses, and download slots that no other run holds."""
    monkeypatch.setattr("avbench.media.sources.download._BACKOFF_S", 0.02)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with MediaServer() as server:
        yield server


@pytest.fixture
def few(tmp_path: Path) -> Callable[..., Benchmark]:
    """Make a benchmark of given clip ids, in two classes that can be rendered."""

    def make(
        clip_ids: list[str], *, sources: tuple[str, ...] = (), seconds: float = 1.0
    ) -> Benchmark:
        lines = ["clip_id,label,class_index,split"]
        for n, clip_id in enumerate(clip_ids):
            label = ("disk thud", "ring bell")[n % 2]
            lines.append(f"{clip_id},{label},{n % 2},train")
        folder = tmp_path / "benchmark"
        folder.mkdir(exist_ok=True)
        (folder / "few.csv").write_text("\n".join(lines) + "\n")
        toml = TOML.format(seconds=seconds, sources=list(sources))
        (folder / "few.toml").write_text(toml)
        return Benchmark.load(str(folder / "few.toml"))

    return make
