"""What an evaluation found, as a record and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avbench.evaluation.metrics import METRICS, AccuracyMatrix, accuracy_per_step
from avbench.evaluation.statistics import Summary, summarise
from avbench.resources import read_json
from avbench.types import AvbenchError

FORMAT = 1

_CONFIG = {
    "access",
    "benchmark",
    "fingerprint",
    "memory",
    "method",
    "modality",
    "preset",
    "preset_hash",
    "version",
}


@dataclass(frozen=True)
class Result:
    """One method on one benchmark, over seeds.

    Attributes:
        config: Everything that decides the numbers: benchmark, fingerprint, method, access,
            modality, settings, preset, memory.
        coverage: Share of the benchmark's clips that had features, per split.
        test_clips_hash: SHA-256 of the ids of the test clips used.
        matrices: Counts of correct predictions, per seed.
        seconds: Wall time, per seed.
        memory: What the exemplar memory held after each step, `clips` and `bytes`, per seed.
    """

    config: dict[str, Any]
    coverage: dict[str, float]
    test_clips_hash: str
    matrices: dict[int, AccuracyMatrix]
    seconds: dict[int, float]
    memory: dict[int, list[dict[str, int]]]

    @property
    def seeds(self) -> list[int]:
        """The seeds run."""
        return list(self.matrices)

    @property
    def name(self) -> str:
        """The method, with its modality where that is not audio-visual."""
        return run_name(self.config["method"], self.config["modality"])

    def metric(self, name: str) -> Summary:
        """Summarise one of `METRICS` over seeds, as a fraction."""
        return Summary.of([float(METRICS[name](matrix)) for matrix in self.matrices.values()])

    def to_json(self) -> dict[str, Any]:
        """Return the record for `result.json`."""
        return {
            "format": FORMAT,
            "config": self.config,
            "coverage": self.coverage,
            "test_clips_hash": self.test_clips_hash,
            "metrics": summarise(self.matrices.values()),
            "runs": [
                {
                    "seed": seed,
                    "seconds": round(self.seconds[seed], 3),
                    "memory": self.memory[seed],
                    "accuracy_per_step": accuracy_per_step(matrix).tolist(),
                    "correct": matrix.correct.tolist(),
                    "total": matrix.total.tolist(),
                }
                for seed, matrix in self.matrices.items()
            ],
        }

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a `result.json`.

        Raises:
            AvbenchError: If the file is missing or is not a result.
        """
        record = read_json(path, remedy="run avbench evaluate again")
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}, not {FORMAT}")
            missing = _CONFIG - {*record["config"]}
            if missing or not record["runs"]:
                raise ValueError(f"{', '.join(sorted(missing)) or 'runs'} missing")
            if not all(0 <= run["seed"] < 2**31 for run in record["runs"]):
                raise ValueError("a seed is out of range")
            return cls(
                config=record["config"],
                coverage={split: float(share) for split, share in record["coverage"].items()},
                test_clips_hash=record["test_clips_hash"],
                matrices={
                    int(run["seed"]): AccuracyMatrix(
                        np.array(run["correct"], dtype=np.int64),
                        np.array(run["total"], dtype=np.int64),
                    )
                    for run in record["runs"]
                },
                seconds={int(run["seed"]): float(run["seconds"]) for run in record["runs"]},
                memory={int(run["seed"]): list(run["memory"]) for run in record["runs"]},
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise AvbenchError(f"{path}: not a result of avbench ({error})") from error


def run_name(method: str, modality: str) -> str:
    """Return the name of a method with its modality, where that is not audio-visual."""
    return method if modality == "audio-visual" else f"{method}-{modality}"
