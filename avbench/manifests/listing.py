"""What benchmarks there are, told fast: no row of a manifest is read."""

from __future__ import annotations

from typing import Any

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import read_summary
from avbench.manifests.spec import shipped_names


def benchmarks() -> list[dict[str, Any]]:
    """Return name, title, sizes and prepared feature presets of every shipped benchmark.

    Raises:
        AvbenchError: If a manifest is missing or corrupt.
    """
    rows = []
    for name in shipped_names():
        benchmark = Benchmark.load(name)
        summary = read_summary(benchmark.manifest_path)
        stores = benchmark.home.glob("features/*/store.json")
        rows.append(
            {
                "name": name,
                "title": benchmark.spec.title,
                "classes": benchmark.spec.classes,
                "steps": benchmark.spec.steps,
                "clips": sum(summary["counts"].values()),
                **summary["counts"],
                "memory": benchmark.spec.memory,
                "fingerprint": summary["fingerprint"],
                "prepared": sorted(path.parent.name for path in stores),
            }
        )
    return rows
