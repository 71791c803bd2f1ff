"""What several tests need: golden numbers, small benchmarks, small feature stores."""

from __future__ import annotations

import json
import os
import tempfile

# Tests run small things: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from filelock import FileLock
from torch import Tensor

from avbench.features import store
from avbench.learning import kernel
from avbench.learning.classifiers import LinearClassifier, LocalSimilarityClassifier
from avbench.learning.network import AudioVisualNet
from avbench.manifests.benchmark import Benchmark
from tests.helpers.cli import run_apart, run_here

GOLDEN = Path(os.environ.get("AVBENCH_GOLDEN", Path(__file__).parent / "golden"))

TINY_TOML = """
name = "tiny"
classes = {classes}
classes_per_step = {classes_per_step}
memory = {memory}
clip_seconds = 1.0
annotations = "tiny.csv"
"""


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's data."""
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    """Compile the attention kernel before any test limits what a process may do."""
    kernel.load()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder that all workers share, once a session; nobody may change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def shared(name: str, make: Callable[[Path], None]) -> Path:
        made = folder / name
        with FileLock(folder / f"{name}.lock"):
            if not made.exists():
                making = Path(tempfile.mkdtemp(dir=folder))
                make(making)
                making.rename(made)
        return made

    return shared


@pytest.fixture(scope="session")
def toy_ci(once: Callable[..., Path]) -> Path:
    """Return a home in which toy-ci is prepared, as the README says; tests work on copies."""

    def make(home: Path) -> None:
        env = {"AVBENCH_HOME": str(home)}
        prepared = run_apart("prepare", "toy-ci", folder=home, env=env)
        assert "624 of 624 clips are ready, with filterbank features" in prepared.stdout

    return once("toy-ci", make)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    """Read a file of golden numbers."""

    def read(name: str) -> dict[str, Any]:
        if name.endswith(".json"):
            return json.loads((GOLDEN / name).read_text())
        with np.load(GOLDEN / name, allow_pickle=False) as archive:
            return {k: v.item() if v.ndim == 0 else v for k, v in archive.items()}

    return read


@pytest.fixture
def golden_network() -> Callable[..., AudioVisualNet]:
    """Build the network whose weights a golden record holds under a prefix."""

    def build(record: dict[str, Any], prefix: str, modality: str) -> AudioVisualNet:
        state = golden_weights(record, prefix)
        local = next((k for k in state if k in ("classifier.new", "classifier.old")), None)
        head = LocalSimilarityClassifier if local else LinearClassifier
        rows, dim = state[local or "classifier.weight"].shape
        per_class = LocalSimilarityClassifier.PROXIES if local else 1
        if local:
            rows = len(state["classifier.old"])
        network = AudioVisualNet(dim, rows // per_class, modality, classifier=head).double()
        if local:
            # Growing makes room for the proxies of the new classes.
            network.grow((rows + len(state["classifier.new"])) // per_class)
        network.load_state_dict(state)
        return network

    return build


def golden_weights(record: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Return weights under our names; those of heads of heads are not used."""
    names = {
        "classifier.fc1.weight": "classifier.old",
        "classifier.fc2.weight": "classifier.new",
        "classifier.factor": "classifier.scale",
    }
    state = {
        k.removeprefix(prefix): torch.as_tensor(np.asarray(v, dtype=np.float64))
        for k, v in record.items()
        if k.startswith(prefix) and not k.endswith((".fc1.factor", ".fc2.factor"))
    }
    return {names.get(k, k): v for k, v in state.items()}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Benchmark]:
    """Make a benchmark of a few classes."""

    def make(
        *, classes: int = 6, classes_per_step: Any = 2, memory: int = 12, per_class: int = 20
    ) -> Benchmark:
        lines = ["clip_id,label,class_index,split"]
        for c in range(classes):
            for i in range(per_class):
                split = ("train", "train", "train", "val", "test")[i % 5]
                lines.append(f"c{c}-{i:03d},class {c},{c},{split}")
        (tmp_path / "tiny.csv").write_text("\n".join(lines) + "\n")
        toml = TINY_TOML.format(classes=classes, classes_per_step=classes_per_step, memory=memory)
        (tmp_path / "tiny.toml").write_text(toml)
        return Benchmark.load(str(tmp_path / "tiny.toml"))

    return make


@pytest.fixture(scope="session")
def with_features() -> Callable[..., store.FeatureStore]:
    """Give a benchmark learnable features: a class mean plus noise."""

    def make(
        benchmark: Benchmark,
        *,
        dim: int = 12,
        noise: float = 0.7,
        permute: bool = False,
        keep: Callable[[str], bool] = lambda clip_id: True,
    ) -> store.FeatureStore:
        manifest = benchmark.manifest
        rng = np.random.default_rng(7)
        means = rng.standard_normal((2, benchmark.spec.classes, dim))
        classes = manifest.class_indices.copy()
        if permute:
            classes = rng.permutation(classes)
        kept = [row for row, clip_id in enumerate(manifest.clip_ids) if keep(clip_id)]
        folder = store.store_folder(benchmark, "filterbank")
        with store.create(
            folder,
            preset={"name": "filterbank", "clip_seconds": benchmark.spec.clip_seconds},
            fingerprint=manifest.fingerprint,
            clip_ids=[manifest.clip_ids[row] for row in kept],
            dim=dim,
            frames=8,
            cells=4,
        ) as writer:
            for number, row in enumerate(kept):
                audio = means[0, classes[row]] + noise * rng.standard_normal(dim)
                visual = means[1, classes[row]] + noise * rng.standard_normal((32, dim))
                writer.write(number, audio, visual)
        return store.FeatureStore.open(folder)

    return make


@pytest.fixture
def avbench(tmp_path: Path) -> Callable[..., Result]:
    """Run avbench in an empty folder with an empty home."""
    return partial(_with_home, run_here, tmp_path)


@pytest.fixture
def avbench_apart(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in a process of its own, for what only a process shows."""
    return partial(_with_home, run_apart, tmp_path)


def _with_home(
    run: Callable[..., Any],
    folder: Path,
    *arguments: object,
    env: dict[str, str] | None = None,
    **options: Any,
) -> Any:
    home = {"AVBENCH_HOME": str(folder / "home")}
    return run(*arguments, folder=folder, env=home | (env or {}), **options)
