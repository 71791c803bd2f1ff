"""Benchmark suite and dataset toolkit for audio-visual class-incremental learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

    from avbench.evaluation.score import Score

__version__ = "0.1.0"


def score(predictions: Path | str | pd.DataFrame | pa.Table, *, benchmark: str) -> Score:
    """Check predictions of any framework against a benchmark and measure them.

    `avbench score --benchmark NAME --describe` prints the columns they must have.

    Args:
        predictions: A Parquet or CSV file, a pandas DataFrame or a pyarrow Table with one row per
            step and test clip of the classes seen by then.
        benchmark: A name such as ks-ci, the path of a TOML, or a variant such as ks-ci:seed=3.

    Example:
        >>> avbench.score("predictions.parquet", benchmark="ks-ci").metric("mean_accuracy").mean

    Raises:
        PredictionsError: If the predictions break the contract; it lists every violation.
        UsageError: If there is no such benchmark, or the file is neither Parquet nor CSV.
        AvbenchError: If the file cannot be read.
    """
    from avbench.evaluation.score import score as score_against
    from avbench.manifests.benchmark import Benchmark

    return score_against(predictions, Benchmark.load(benchmark))
