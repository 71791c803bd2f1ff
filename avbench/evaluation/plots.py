"""The two figures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from avbench.evaluation.compare import check_comparable
from avbench.evaluation.metrics import accuracy_per_step
from avbench.evaluation.result import Result
from avbench.resources import replacing

# Okabe and Ito: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_accuracy(results: Sequence[Result], path: Path) -> None:
    """Draw accuracy over seen classes against step, one line a method, as in the paper's Figure 4.

    The line is the mean over seeds, the band one standard deviation.

    Raises:
        AvbenchError: If results are not comparable, or the place cannot be written to.
    """
    check_comparable(results)
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, result in enumerate(results):
        curves = 100 * np.stack([accuracy_per_step(m) for m in result.matrices.values()])
        steps = np.arange(1, curves.shape[1] + 1)
        mean = curves.mean(axis=0)
        colour = _COLOURS[number % len(_COLOURS)]
        dashes = "-" if result.config["modality"] == "audio-visual" else "--"
        axes.plot(steps, mean, color=colour, linestyle=dashes, marker="o", label=result.label)
        if len(curves) > 1:
            spread = curves.std(axis=0, ddof=1)
            axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15)
        axes.set_xticks(steps)
    axes.set(xlabel="step", ylabel="accuracy on seen classes (%)", ylim=(0, 100))
    axes.set_title(results[0].config["benchmark"])
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_matrix(result: Result, path: Path) -> None:
    """Draw the accuracy matrix: after which step (rows), on which step's classes (columns).

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    values = 100 * np.mean([m.accuracy for m in result.matrices.values()], axis=0)
    steps = len(values)
    size = 2.0 + 0.45 * steps
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
    ticks = np.arange(steps)
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    axes.set_yticks(ticks, [str(t + 1) for t in ticks])
    axes.set(xlabel="test clips of step", ylabel="after step")
    axes.set_title(f"{result.label} on {result.config['benchmark']}")
    figure.colorbar(image, label="accuracy (%)")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
