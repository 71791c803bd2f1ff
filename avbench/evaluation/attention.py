"""Where a network looks, guided by sound, after each step: the paper's Figures 3 and 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from avbench import registry
from avbench.evaluation.compare import read_run
from avbench.evaluation.metrics import Floats
from avbench.evaluation.plots import plot_attention
from avbench.evaluation.result import Result
from avbench.features.decode import decode
from avbench.features.store import FeatureStore
from avbench.learning.gradient import GradientMethod
from avbench.learning.method import Method, Setup
from avbench.manifests.benchmark import Benchmark
from avbench.media.places import file_name, places_of
from avbench.types import AvbenchError, UsageError

_SIDE = 224
# A temporal position of the visual tokens is a tubelet of this many pictures.
_TUBELET = 2


@dataclass(frozen=True)
class Attention:
    """Attention over a clip after each of T steps, mean over channels.

    Attributes:
        spatial: Weight of each cell within its frame (Eq. 2), (T, L, g, g); sums to 1 over cells.
        temporal: Weight of each frame (Eq. 3), (T, L); sums to 1 over frames.
    """

    spatial: Floats
    temporal: Floats


def attention(run: Path, benchmark: Benchmark, clip_id: str, *, seed: int) -> Attention:
    """Compute the audio-guided attention of a run's networks over a clip.

    Args:
        run: A run directory, with checkpoints.
        benchmark: What the run was made on.
        clip_id: A clip of the benchmark that has features.
        seed: One of the run's.

    Raises:
        UsageError: If the run's method has no attention, or there is no such clip or seed.
        AvbenchError: If features or checkpoints are missing, or are not those of the run.
    """
    result = read_run(run)
    method = _method(result)
    if seed not in result.seeds:
        raise UsageError(f"{run} has no seed {seed}: choose of {', '.join(map(str, result.seeds))}")
    store, row = _features(result, benchmark, clip_id)
    audio, visual = (
        torch.from_numpy(of(np.array([row])).astype(np.float32))
        for of in (store.audio, store.visual)
    )
    side = math.isqrt(store.cells)
    setup = Setup(
        store.dim, store.frames, "audio-visual", seed, torch.device("cpu"), lambda _: None
    )
    spatial, temporal = [], []
    for step in range(benchmark.spec.steps):
        path = run / f"seed-{seed}" / f"step-{step + 1}.safetensors"
        try:
            learned = method(method.Settings(**result.config["settings"]), setup)
            learned.restore(load_file(path), benchmark.manifest.classes_per_step[: step + 1])
        except FileNotFoundError as error:
            raise AvbenchError(f"no checkpoint {path}: run avbench evaluate again") from error
        except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise AvbenchError(
                f"{path}: not a checkpoint of {result.name} as it is: run avbench evaluate again"
            ) from error
        learned.network.eval()
        with torch.no_grad():
            out = learned.network(audio, visual, maps=True)
        spatial.append(out.spatial[0].mean(dim=-1).reshape(store.frames, side, side).numpy())
        temporal.append(out.temporal[0].mean(dim=-1).numpy())
    return Attention(np.stack(spatial).astype(np.float64), np.stack(temporal).astype(np.float64))


def draw_attention(
    run: Path, clip_id: str, out: Path, *, seed: int | None = None, benchmark: str | None = None
) -> Attention:
    """Draw the attention after each step over the frames of a clip.

    Args:
        run: A run directory, with checkpoints.
        clip_id: A clip of the benchmark, of any split; its file must be in `$AVBENCH_HOME`.
        out: A .png or .svg.
        seed: One of the run's; None for its first.
        benchmark: A name, or the path of a TOML; None for the name the run says.

    Returns:
        What is drawn.

    Raises:
        UsageError: As `attention`, and if `out` has another suffix.
        AvbenchError: As `attention`, if the clip is not there or cannot be decoded, or the place
            cannot be written to.
    """
    if out.suffix not in (".png", ".svg"):
        raise UsageError(f"--out {out}: give a name that ends in .png or .svg")
    result = read_run(run)
    _method(result)
    chosen = Benchmark.load(benchmark or result.config["benchmark"])
    seed = result.seeds[0] if seed is None else seed
    found = attention(run, chosen, clip_id, seed=seed)
    clips, name = places_of(chosen).clips, file_name(clip_id)
    if not clips.has(name):
        raise AvbenchError(f"no clip {clips}/{name}: run avbench prepare {chosen.argument}")
    frames = _TUBELET * found.temporal.shape[1]
    with clips.opened(name) as path:
        clip = decode(path, frames=frames, height=_SIDE, width=_SIDE, sample_rate=16_000)
    label = chosen.manifest.table["label"][chosen.manifest.clip_ids.index(clip_id)].as_py()
    title = f"{result.label}, seed {seed}: {clip_id} ({label})"
    plot_attention(clip.pictures[::_TUBELET], found.spatial, found.temporal, out, title=title)
    return found


def _method(result: Result) -> type[GradientMethod]:
    """Return the class of an audio-visual method that has the network's attention."""
    method: type[Method] = registry.load("methods", str(result.config["method"]))
    if not issubclass(method, GradientMethod):
        raise UsageError(f"{result.name} has no audio-guided attention: take a run of avcil")
    if result.config["modality"] != "audio-visual":
        raise UsageError(f"{result.name} has no audio-guided attention: take an audio-visual run")
    return method


def _features(result: Result, benchmark: Benchmark, clip_id: str) -> tuple[FeatureStore, int]:
    """Return the features the run was made from, and the row of a clip."""
    config = result.config
    if config["fingerprint"] != benchmark.manifest.fingerprint:
        raise UsageError(
            f"the run was made on another {config['benchmark']}: give it with --benchmark"
        )
    if clip_id not in benchmark.manifest.clip_ids:
        raise UsageError(f"{benchmark.name} has no clip {clip_id!r}: see avbench splits show")
    store = FeatureStore.of(benchmark, config["preset"])
    if store.features_hash != config["features_hash"]:
        raise AvbenchError(f"{store.place}: not the features the run was made from")
    row = int(store.rows_of([clip_id])[0])
    if row < 0:
        raise AvbenchError(f"{clip_id} has no features: run avbench prepare {benchmark.argument}")
    if math.isqrt(store.cells) ** 2 != store.cells:
        raise AvbenchError(
            f"{store.place}: {store.cells} cells a frame are no square grid: use other features"
        )
    return store, row
