"""The command line: parse, call the library, print. Heavy imports wait for their command."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from avbench import __version__, registry
from avbench.cli.arguments import (
    device_option,
    read_seeds,
    read_settings,
    seeds_option,
    settings_option,
    workers_option,
)
from avbench.cli.compare import compare
from avbench.cli.features import features as features_command
from avbench.cli.leaderboard import leaderboard, submit
from avbench.cli.output import json_option, print_json, print_table, progress
from avbench.cli.prepare import prepare, status
from avbench.cli.report import attention, report
from avbench.cli.reproduce import reproduce
from avbench.cli.score import score
from avbench.cli.splits import splits
from avbench.types import MODALITIES, RESIDENCIES, AvbenchError, Modality, Residency

if TYPE_CHECKING:
    from avbench.evaluation.result import Result

_DEFAULT_BENCHMARK = "vs100-ci"

# Before torch is imported: threads that spin while they wait lose most of a shared machine's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _Group(click.Group):
    """Turns the library's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AvbenchError as error:
            _fail(ctx, str(error), error.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "avbench"
            _fail(ctx, f"{error.format_message()} See {command} --help.", error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "stopped by Ctrl-C: the same command goes on from here", 1)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe is gone
        except OSError as error:
            _fail(ctx, str(error), 1)


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    """Say in one line what is wrong, whatever a name in it holds."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    click.echo(f"Error: {line}", err=True)
    ctx.exit(code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="avbench")
def main() -> None:
    """Audio-visual class-incremental learning: data, methods, metrics.

    \b
    Examples:
      avbench demo                                        see it work in minutes
      avbench list                                        what there is
      avbench prepare toy-ci                              clips and features
      avbench evaluate --method avcil --benchmark toy-ci --seeds 0,1,2
    """


for command in (
    *(prepare, status, features_command, splits),
    *(score, compare, report, attention, reproduce, leaderboard, submit),
):
    main.add_command(command)


@main.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """Show benchmarks, methods, encoders and sources.

    \b
    Examples:
      avbench list
      avbench list --json
    """
    from avbench.manifests.listing import benchmarks

    rows = benchmarks()
    plugins = {
        group: {name: point.value for name, point in registry.registered(group).items()}
        for group in ("methods", "encoders", "sources")
    }
    if as_json:
        print_json({"benchmarks": rows, **plugins})
        return
    columns = ["benchmark", "classes", "steps", "clips", "memory", "features", "title"]
    print_table(
        columns,
        [
            [
                row["name"],
                row["classes"],
                row["steps"],
                f"{row['clips']:,}",
                row["memory"],
                ", ".join(row["prepared"]) or "-",
                row["title"],
            ]
            for row in rows
        ],
    )
    for group, points in plugins.items():
        print_table([group.removesuffix("s"), "from"], [[n, value] for n, value in points.items()])


@main.command()
@click.option(
    "--method", required=True, help="A method from `avbench list`, or path/to/file.py:ClassName."
)
@click.option(
    "--benchmark",
    help="A name, the path of a TOML, or a variant of either such as ave-ci:seed=3."
    f"  [default: {_DEFAULT_BENCHMARK}]",
)
@seeds_option
@click.option("--modality", type=click.Choice(MODALITIES), help="What the method may look at.")
@settings_option
@click.option("--preset", help="Which features.  [default: the benchmark's]")
@click.option(
    "--features",
    metavar="PLACE",
    help="A folder or URL of features, where they are not where avbench puts them.",
)
@device_option
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/BENCHMARK/METHOD]")
@click.option("--allow-missing", is_flag=True, help="Go on where clips have no features.")
@click.option("--force", is_flag=True, help="Run these seeds again; replace a different run.")
@click.option(
    "--checkpoint-epochs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also keep a step in the middle, every N epochs, to go on from after a kill.",
)
@click.option(
    "--residency",
    type=click.Choice(RESIDENCIES),
    help="Where a step's features lie.  [default: where they fit]",
)
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard.")
@click.option("--profile", is_flag=True, help="Say what the time goes into.")
@json_option
def evaluate(
    method: str,
    benchmark: str | None,
    seeds: str,
    modality: Modality | None,
    settings: tuple[str, ...],
    preset: str | None,
    features: str | None,
    device: str,
    out: Path | None,
    allow_missing: bool,
    force: bool,
    checkpoint_epochs: int | None,
    residency: Residency | None,
    tensorboard: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Run a method through a benchmark and measure accuracy and forgetting.

    Writes predictions, accuracy matrix, metrics, checkpoints and plots to a run directory. Stopped
    by anything, the same command goes on after the last finished step; finished seeds are kept.

    \b
    Examples:
      avbench evaluate --method avcil --benchmark toy-ci --seeds 0..9
      avbench evaluate --method oracle --benchmark toy-ci --modality audio
      avbench evaluate --method avcil --benchmark toy-ci --set epochs=5 --out runs/short
      avbench evaluate --method avcil --benchmark toy-ci:seed=3,steps=6
      avbench evaluate --method my_method.py:MyMethod --benchmark toy-ci --set memory=30
    """
    from avbench.manifests.benchmark import Benchmark

    if benchmark is None:
        benchmark = _DEFAULT_BENCHMARK
        click.echo(f"No --benchmark given: using {benchmark}.", err=True)
    # Before torch is imported: a wrong name should be told at once.
    chosen = Benchmark.load(benchmark)
    _known_method(method)
    seed_list, given = read_seeds(seeds), read_settings(settings)

    from avbench.evaluation import evaluator
    from avbench.evaluation.result import run_name

    default = registry.load("methods", method).modalities[0]
    name = run_name(registry.short_name(method), modality or default)
    run = out or Path("runs") / chosen.name / name
    kept = [seed for seed in seed_list if (run / f"seed-{seed}").is_dir() and not force]
    with progress() as report:
        result = evaluator.evaluate(
            chosen,
            method,
            seeds=seed_list,
            out=run,
            modality=modality,
            preset=preset,
            features=features,
            settings=given,
            device=device,
            allow_missing=allow_missing,
            force=force,
            checkpoint_epochs=checkpoint_epochs or 0,
            tensorboard=tensorboard,
            residency=residency,
            profile=profile,
            report=report,
        )
    if kept:
        seeds_kept = ", ".join(map(str, kept))
        click.echo(f"Kept from an earlier run: seed {seeds_kept}. --force runs again.", err=True)
    other = sorted({p.name for p in run.glob("seed-*")} - {f"seed-{s}" for s in seed_list})
    if other:
        click.echo(f"Not in this result, but in {run}: {', '.join(other)}.", err=True)
    if as_json:
        print_json(result.to_json())
        return
    _print_results([result])
    _print_profile(result)
    click.echo(f"predictions, matrix and plots: {run}")
    click.echo(f"features of a step lay {_residency(result)}")
    hashes = [result.config[key][:8] for key in ("preset_hash", "features_hash")]
    click.echo(f"features: {result.config['preset']} ({hashes[0]}), values {hashes[1]}")


@main.command("check-method")
@click.argument("method")
@click.option("--modality", type=click.Choice(MODALITIES), help="Only this one.  [default: all]")
@settings_option
@json_option
def check_method_command(
    method: str, modality: Modality | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Check that a method keeps the protocol, on small benchmarks made on the spot.

    METHOD is a name from `avbench list`, or path/to/file.py:ClassName. Exit code 1 if it does not.

    \b
    Examples:
      avbench check-method avcil
      avbench check-method my_method.py:MyMethod --modality audio
    """
    from dataclasses import asdict

    _known_method(method)
    given = read_settings(settings)
    from avbench.evaluation.protocol import check_method

    with progress() as report:
        checks = check_method(method, modality=modality, settings=given, report=report)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [[c.name, c.modality, "FAIL" if c.failure else "ok"] for c in checks]
        print_table(["check", "modality", "result"], rows)
        for check in checks:
            if check.failure:
                click.echo(f"FAIL {check.name}, {check.modality}: {check.failure}")
        if traces := [check.traceback for check in checks if check.traceback]:
            click.echo(f"\n{traces[0]}".rstrip())
        for looked_at, replaced in dict.fromkeys((c.modality, c.replaced) for c in checks):
            if replaced:
                click.echo(f"settings replaced to be quick, {looked_at}: {'; '.join(replaced)}")
    if any(check.failure for check in checks):
        sys.exit(1)


@main.command("new-method")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the package's folder goes.  [default: here]",
)
def new_method_command(name: str, out: Path) -> None:
    """Write a package to begin a method from: it works, is commented and has a test.

    \b
    Example:
      avbench new-method my-method
    """
    from avbench.evaluation.skeleton import new_method

    folder = new_method(name, out)
    click.echo(f"{folder}: a method that works, to be changed into yours")
    click.echo(f"next:  pip install -e {folder}")
    click.echo(f"       avbench check-method {name}")


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Where runs and plots go.",
)
@seeds_option
@workers_option
@json_option
def demo(out: Path, seeds: str, workers: int, as_json: bool) -> None:
    """Render toy-ci and compare fine-tuning, AV-CIL and the oracle on it.

    Takes a few minutes on two cores.

    \b
    Examples:
      avbench demo
      avbench demo --seeds 0 --out /tmp/demo
    """
    seed_list = read_seeds(seeds)
    from avbench.evaluation.demo import run_demo

    with progress() as report:
        results = run_demo(out, seeds=seed_list, workers=workers, report=report)
    if as_json:
        print_json([result.to_json() for result in results])
        return
    _print_results(results)
    click.echo(f"plot:  {out / 'accuracy.png'}")
    click.echo(f"runs:  {out} (predictions, accuracy matrix, checkpoints of each)")
    click.echo("next:  avbench evaluate --method avcil --benchmark toy-ci --set epochs=40")
    click.echo("       avbench list")


def _known_method(method: str) -> None:
    """Tell a wrong name before anything heavy is imported."""
    names = list(registry.registered("methods"))
    if method not in names and ":" not in method:
        raise registry.unknown("method", method, names)


def _print_results(results: Sequence[Result]) -> None:
    config = results[0].config
    seeds = len(results[0].seeds)
    click.echo(f"{config['benchmark']}, {config['preset']} features, {seeds} seed(s), in %")
    print_table(
        ["method", "mean accuracy", "average forgetting", "last accuracy", "s/seed", "access"],
        [
            [
                result.name,
                *(
                    _percent(result, metric)
                    for metric in ("mean_accuracy", "average_forgetting", "last_accuracy")
                ),
                f"{sum(result.seconds.values()) / seeds:.0f}",
                result.config["access"]
                + (", partial" if result.partial else "")
                + (", mixed code" if result.mixed_code else ""),
            ]
            for result in results
        ],
    )
    for result in results:
        uses = [use for memory in result.memory.values() for use in memory]
        if result.config["memory"]:
            clips, size = (max(use[key] for use in uses) for key in ("clips", "bytes"))
            click.echo(f"exemplars of {result.name}: at most {clips} clips, {size / 1e6:.1f} MB")
        if (stored := result.stored_bytes) is not None:
            parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in stored.items())
            size = sum(stored.values())
            click.echo(f"checkpoint of {result.name}: at most {size / 1e6:.1f} MB ({parts})")
        if result.partial:
            shares = ", ".join(f"{s} {100 * c:.1f} %" for s, c in result.coverage.items())
            click.echo(f"PARTIAL: {result.name} ran on part of the clips: {shares}")
        if result.mixed_code:
            differ = ", ".join(result.mixed_code)
            click.echo(
                f"MIXED CODE: steps or seeds of {result.name} differ in {differ}: it is not ranked;"
                " --force runs seeds again"
            )


def _residency(result: Result) -> str:
    """Say where features lay, step by step where it differs."""
    words = {"device": "on the device", "ram": "in RAM", "disk": "on disk"}
    lay = [words[step.residency] for run in result.runs for step in run.cost]
    return ", ".join(dict.fromkeys(lay))


def _print_profile(result: Result) -> None:
    """Print where the time of the seeds went that were run with --profile."""
    costs = [cost for run in result.runs for cost in run.cost if cost.profile is not None]
    if not costs:
        return
    total = sum(cost.seconds for cost in costs)
    spent: dict[str, float] = {}
    for cost in costs:
        for phase, seconds in (cost.profile or {}).items():
            spent[phase] = spent.get(phase, 0.0) + seconds
    spent["other"] = total - sum(spent.values())
    print_table(
        ["phase", "s", "%"],
        [[phase, f"{s:.1f}", f"{100 * s / total:.1f}"] for phase, s in spent.items()],
    )


def _percent(result: Result, metric: str) -> str:
    summary = result.metric(metric)
    joint = result.config["access"] == "joint"
    if math.isnan(summary.mean) or (joint and metric == "average_forgetting"):
        return "-"
    spread = f" ± {100 * summary.std:.2f}" if len(result.seeds) > 1 else ""
    return f"{100 * summary.mean:.2f}{spread}"
