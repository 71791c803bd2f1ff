"""Time and memory of a step against the number of clips, up to 200,000, of a small shape.

AV-CIL, two steps of one epoch each, features read from disk; each number of clips in a process of
its own. Writes the plot into docs/.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from avbench.evaluation.evaluator import evaluate
from benchmarks import timing
from benchmarks.synthetic import table_benchmark, write_store

PLOT = Path(__file__).parents[1] / "docs" / "growth.png"


def measure(clips: int) -> list[str]:
    """Run once; return clips, seconds a step and peak memory in MB."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        benchmark = table_benchmark(folder, clips, classes=20, steps=2)
        write_store(folder / "store", benchmark, dim=64, frames=2, cells=4)
        result = evaluate(
            benchmark,
            "avcil",
            seeds=[0],
            out=folder / "run",
            features=str(folder / "store"),
            settings={"epochs": "1"},
            residency="disk",
        )
    cost = result.runs[0].cost
    seconds = sum(step.seconds for step in cost) / len(cost)
    return [f"{seconds:.3f}", f"{max(step.peak_memory_bytes for step in cost) / 1e6:.0f}"]


def draw(clips: list[int], seconds: list[float], memory: list[float], path: Path) -> None:
    """Draw both over the number of clips."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(clips, seconds, marker="o")
    left.set(
        xlabel="clips",
        ylabel="time of a step, s",
        ylim=(0, 1.1 * max(seconds)),
        xlim=(0, 1.05 * max(clips)),
    )
    right.plot(clips, memory, marker="o", color="tab:orange")
    right.set(
        xlabel="clips",
        ylabel="peak memory, MB",
        ylim=(0, 1.1 * max(memory)),
        xlim=(0, 1.05 * max(clips)),
    )
    for axes in (left, right):
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print a Markdown table and draw."""
    parser = timing.arguments(__doc__, "up to 2,000 clips, without the plot")
    parser.add_argument("--one", type=int, metavar="CLIPS", help="only this many")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.one:
        print(" ".join(measure(options.one)))
        return
    counts = [1_000, 2_000] if options.quick else [12_500, 25_000, 50_000, 100_000, 200_000]
    found: dict[int, list[tuple[float, float]]] = {clips: [] for clips in counts}
    for _ in range(1 if options.quick else options.runs):
        for clips in counts:
            seconds, memory = timing.alone("benchmarks.growth", "--one", str(clips)).split()
            found[clips].append((float(seconds), float(memory)))
    rows, middles = [], []
    for clips, samples in found.items():
        seconds, memory = zip(*samples, strict=True)
        middles.append((sorted(seconds)[len(seconds) // 2], max(memory)))
        per_clip = [1e6 * each / clips for each in seconds]
        rows.append([f"{clips:,}", timing.spread(seconds), timing.spread(per_clip, 0), max(memory)])
    print(timing.table(["clips", "step, s", "µs a clip", "peak memory, MB"], rows))
    if not options.quick:
        draw(counts, *map(list, zip(*middles, strict=True)), PLOT)


if __name__ == "__main__":
    main()
