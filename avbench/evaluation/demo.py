"""Class-incremental learning on rendered clips, in a few minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avbench import registry
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.plots import plot_accuracy
from avbench.evaluation.result import Result, run_name
from avbench.features.extract import extract
from avbench.manifests.benchmark import Benchmark
from avbench.media.prepare import prepare_clips
from avbench.types import Modality, Report, silent

RUNS: tuple[tuple[str, Modality], ...] = (
    ("oracle", "audio-visual"),
    ("oracle", "audio"),
    ("oracle", "visual"),
    ("avcil", "audio-visual"),
    ("finetune", "audio-visual"),
)


def run_demo(
    out: Path, *, seeds: Sequence[int], workers: int, report: Report = silent
) -> list[Result]:
    """Prepare toy-ci, run the bounds and AV-CIL, and draw accuracy per step.

    Args:
        out: Folder for the run directories and `accuracy.png`.
        seeds: Seeds of every method.
        workers: Clips prepared at a time.
        report: Called as the work proceeds.

    Returns:
        One result per line of `RUNS`.

    Raises:
        AvbenchError: As preparing and evaluating do.
    """
    benchmark = Benchmark.load("toy-ci")
    prepare_clips(benchmark, workers=workers, report=report)
    encoder = registry.load("encoders", benchmark.spec.preset)()
    extract(benchmark, encoder, workers=workers, report=report)
    results = [
        evaluate(
            benchmark,
            method,
            seeds=seeds,
            out=out / run_name(method, modality),
            modality=modality,
            force=True,
            report=report,
        )
        for method, modality in RUNS
    ]
    plot_accuracy(results, out / "accuracy.png")
    return results
