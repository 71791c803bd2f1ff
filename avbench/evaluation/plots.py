"""Figures fit for a paper: PNG or SVG by suffix, the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avbench.evaluation.compare import check_comparable
from avbench.evaluation.metrics import (
    AccuracyMatrix,
    Floats,
    accuracy_per_step,
    forgetting_per_step,
)
from avbench.evaluation.result import Result
from avbench.resources import replacing

# Okabe and Ito: told apart by colour-blind readers too. With the markers, by those of grey prints.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>PX"

# Names are names: "$" in one is no mathematics. The salt makes the ids within an SVG repeat.
_styled = rc_context({"svg.hashsalt": "avbench", "text.parse_math": False})


def plot_accuracy(
    results: Sequence[Result], path: Path, *, labels: Sequence[str] | None = None
) -> None:
    """Draw accuracy over seen classes against step, one line a method, as in the paper's Figure 4.

    The line is the mean over seeds, the band one standard deviation.

    Args:
        results: Of one benchmark.
        path: A .png or .svg.
        labels: Name of each line; None for those of the results.

    Raises:
        AvbenchError: If results are not comparable, or the place cannot be written to.
    """
    check_comparable(results)
    _plot_steps(results, path, labels, accuracy_per_step, "accuracy on seen classes (%)", (0, 100))


def plot_forgetting(
    results: Sequence[Result], path: Path, *, labels: Sequence[str] | None = None
) -> None:
    """Draw forgetting (Eq. 16's F_t) against step, as `plot_accuracy` draws accuracy.

    Results of joint access have nothing to forget and are left out; the others keep their colours.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    _plot_steps(results, path, labels, forgetting_per_step, "forgetting (points)", None)


@_styled
def _plot_steps(
    results: Sequence[Result],
    path: Path,
    labels: Sequence[str] | None,
    per_step: Callable[[AccuracyMatrix], Floats],
    quantity: str,
    limits: tuple[float, float] | None,
) -> None:
    figure, axes = _figure(6.0, 3.8)
    names = labels or [result.label for result in results]
    for number, (result, label) in enumerate(zip(results, names, strict=True)):
        if per_step is forgetting_per_step and result.config["access"] == "joint":
            continue
        curves = 100 * np.stack([per_step(matrix) for matrix in result.matrices.values()])
        # What is known from the second step on only ends at the last one all the same.
        last = next(iter(result.matrices.values())).steps
        steps = np.arange(last - curves.shape[1], last) + 1
        dashes = "-" if result.config["modality"] == "audio-visual" else "--"
        _plot_band(axes, number, steps, curves, label=label, linestyle=dashes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel=quantity, ylim=limits)
    axes.set_title(results[0].config["benchmark"])
    axes.legend(fontsize="small")
    _save(figure, path)


@_styled
def plot_memory(sizes: Sequence[int], results: Sequence[Result], path: Path) -> None:
    """Draw mean accuracy against the size of the exemplar memory, as in the paper's Figure 6.

    Args:
        sizes: Of the memory, in clips, one a result.
        results: Of one method on one benchmark.
        path: A .png or .svg.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    figure, axes = _figure(5.0, 3.5)
    summaries = [result.metric("mean_accuracy") for result in results]
    mean, spread = (
        100 * np.array([getattr(summary, what) for summary in summaries])
        for what in ("mean", "std")
    )
    axes.errorbar(sizes, mean, yerr=np.nan_to_num(spread), color=_COLOURS[0], marker="o", capsize=3)
    axes.set(xlabel="memory size (clips)", ylabel="mean accuracy (%)")
    axes.set_title(f"{results[0].label} on {results[0].config['benchmark']}")
    _save(figure, path)


@_styled
def plot_cost(results: Sequence[Result], path: Path, *, labels: Sequence[str]) -> None:
    """Draw mean accuracy against the wall time of a seed.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    figure, axes = _figure(6.0, 3.8)
    for number, (result, label) in enumerate(zip(results, labels, strict=True)):
        accuracy = result.metric("mean_accuracy")
        axes.errorbar(
            float(np.mean(list(result.seconds.values()))),
            100 * accuracy.mean,
            yerr=100 * np.nan_to_num(accuracy.std),
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="none",
            capsize=3,
            label=label,
        )
    axes.set_xscale("log")
    axes.set(xlabel="seconds a seed", ylabel="mean accuracy (%)")
    axes.set_title(results[0].config["benchmark"])
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_matrix(result: Result, path: Path, *, label: str | None = None) -> None:
    """Draw the accuracy matrix: after which step (rows), on which step's classes (columns).

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    values = np.mean([matrix.accuracy for matrix in result.matrices.values()], axis=0)
    title = f"{label or result.label} on {result.config['benchmark']}"
    _plot_cells(values, path, title, "test clips of step", "after step", "accuracy (%)")


def plot_confusion(shares: Floats, path: Path, *, title: str) -> None:
    """Draw which step's classes are taken for which after the last step.

    Args:
        shares: Entry [i, j] is the share of step i's test clips predicted as a class of step j.
        path: A .png or .svg.
        title: Over the figure.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    _plot_cells(shares, path, title, "predicted class of step", "class of step", "share (%)")


@_styled
def _plot_cells(
    values: Floats, path: Path, title: str, columns: str, rows: str, quantity: str
) -> None:
    steps = len(values)
    size = 2.0 + 0.45 * steps
    figure, axes = _figure(size + 0.8, size, grid=False)
    image = axes.imshow(100 * values, vmin=0, vmax=100, cmap="viridis")
    for (row, column), value in np.ndenumerate(100 * values):
        if not np.isnan(value):
            colour = "white" if value < 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
    ticks = np.arange(steps)
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    axes.set_yticks(ticks, [str(t + 1) for t in ticks])
    axes.set(xlabel=columns, ylabel=rows)
    axes.set_title(title)
    figure.colorbar(image, label=quantity)
    _save(figure, path)


@_styled
def plot_attention(
    pictures: npt.NDArray[np.uint8], spatial: Floats, temporal: Floats, path: Path, *, title: str
) -> None:
    """Draw attention over the frames of a clip after each step, as in the paper's Figures 3 and 5.

    Heat is spatial attention, on one scale for the whole figure; a frame is the fainter, the less
    temporal attention it has beside the strongest of its row. The number is its temporal weight.

    Args:
        pictures: (L, height, width, 3), RGB.
        spatial: Weight of every cell within its frame, (T, L, g, g).
        temporal: Weight of every frame, (T, L).
        path: A .png or .svg.
        title: Over the figure.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    steps, frames = temporal.shape
    figure = Figure(figsize=(1.2 * frames + 1, 1.4 * steps + 0.5), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    height, width = pictures.shape[1:3]
    extent = (0, width, height, 0)
    grid = figure.subplots(steps, frames, squeeze=False)
    for (step, frame), axes in np.ndenumerate(grid):
        strength = float(temporal[step, frame] / temporal[step].max())
        axes.imshow(pictures[frame], extent=extent, alpha=strength)
        axes.imshow(
            spatial[step, frame],
            extent=extent,
            cmap="inferno",
            interpolation="bilinear",
            alpha=0.5 * strength,
            vmin=float(spatial.min()),
            vmax=float(spatial.max()),
        )
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"{temporal[step, frame]:.3f}", fontsize="small")
        if frame == 0:
            axes.set_ylabel(f"after step {step + 1}", fontsize="small")
    _save(figure, path)


def _figure(width: float, height: float, *, grid: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    if grid:
        axes.grid(alpha=0.3)
    return figure, axes


def _plot_band(axes: Axes, number: int, steps: Any, curves: Floats, **line: Any) -> None:
    """Draw the mean of some curves, and one deviation around it."""
    colour = _COLOURS[number % len(_COLOURS)]
    mean = curves.mean(axis=0)
    axes.plot(steps, mean, color=colour, marker=_MARKERS[number % len(_MARKERS)], **line)
    if len(curves) > 1:
        spread = curves.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15)


def _save(figure: Figure, path: Path) -> None:
    # Without a date and the version of what drew it, equal figures have equal bytes.
    unsaid = {".svg": {"Date": None, "Creator": None}}.get(path.suffix, {"Software": None})
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=300, metadata=unsaid)
