"""The runs that a table or figure of the AV-CIL paper needs, and the numbers it prints for them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from avbench.evaluation.result import run_name
from avbench.manifests.benchmark import Benchmark
from avbench.types import Modality

Suite = Literal["table1", "table2", "table3", "figure4", "figure6"]
SUITES: tuple[Suite, ...] = get_args(Suite)

# The method of the paper, which Table 3 and Figure 6 are about, and the parts Table 3 switches.
_OURS = "avcil"
_PARTS = ("i_avss", "c_avss", "vad")
# Sizes of the memory where the paper has no Figure 6, as shares of the benchmark's.
_SHARES = (0.25, 0.5, 0.75, 1.0, 1.5)


@dataclass(frozen=True)
class Cell:
    """One run of a table or figure.

    Attributes:
        method: A registered method.
        modality: What it looks at.
        settings: What differs from its recipe.
        paper: What the paper prints for it, in percent, by metric.
    """

    method: str
    modality: Modality = "audio-visual"
    settings: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, which is that of its run directory: such as `avcil,vad=false`."""
        changes = [f"{key}={value}" for key, value in self.settings.items()]
        return ",".join([run_name(self.method, self.modality), *changes])


def cells(suite: Suite, benchmark: Benchmark) -> list[Cell]:
    """Return the runs of a table or figure, in the paper's order.

    Of a benchmark that the paper does not have they are the same runs, without numbers. A variant
    has the numbers of what it varies: `paper_table.caveats` says that they are not comparable.
    """
    name = paper_name(benchmark)
    makers = {
        "table1": _methods,
        "table2": _modalities,
        "table3": _ablation,
        "figure4": _methods,
        "figure6": _memory_sizes,
    }
    return makers[suite](name, benchmark)


def paper_name(benchmark: Benchmark) -> str | None:
    """Return what the paper's numbers of a benchmark are filed under; None if it has none."""
    root = benchmark.spec.variant_of or benchmark.spec
    return root.name if root.is_shipped and root.name in paper()["table1"] else None


@cache
def paper() -> dict[str, Any]:
    """Return the numbers the paper prints, as `paper.toml` has them."""
    return tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))


def _rows(table: str, name: str | None) -> tuple[dict[str, Any], bool]:
    """Return a table's rows for a benchmark, or for another if it has none; and which it is."""
    tables = paper()[table]
    known = name in tables
    return tables[name if known else "ave-ci"], known


def _methods(name: str | None, _: Benchmark) -> list[Cell]:
    rows, known = _rows("table1", name)
    return [Cell(method, paper=numbers if known else {}) for method, numbers in rows.items()]


def _modalities(name: str | None, _: Benchmark) -> list[Cell]:
    rows, known = _rows("table2", name)
    return [
        Cell(method, modality, paper={"mean_accuracy": accuracy} if known else {})
        for method, numbers in rows.items()
        for modality, accuracy in numbers.items()
    ]


def _ablation(name: str | None, _: Benchmark) -> list[Cell]:
    rows, known = _rows("table3", name)
    found = []
    for present, accuracy in rows.items():
        off = {part: "false" for part in _PARTS if part not in present.split("+")}
        found.append(Cell(_OURS, settings=off, paper={"mean_accuracy": accuracy} if known else {}))
    return found


def _memory_sizes(name: str | None, benchmark: Benchmark) -> list[Cell]:
    usual, least = benchmark.spec.memory, benchmark.spec.classes
    sizes = paper()["figure6"].get(name) or sorted(
        {max(least, round(share * usual)) for share in _SHARES}
    )
    numbers = paper()["table1"][name][_OURS] if name else {}
    return [
        Cell(_OURS, paper=numbers) if size == usual else Cell(_OURS, settings={"memory": str(size)})
        for size in sizes
    ]
