"""`avbench compare`: whether one run is better than another."""

from __future__ import annotations

from pathlib import Path

import click

from avbench.cli.output import json_option, percent, percent_interval, print_json, print_table


@click.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@json_option
def compare(run_a: Path, run_b: Path, as_json: bool) -> None:
    """Say which of two runs is better, or that they are a tie.

    Differences are paired over the seeds both runs have and over test clips. A run is better where
    two 95 % intervals leave out 0: over seeds (t), and over seeds and test clips (bootstrap). Runs
    of other manifests, features or clips are refused.

    \b
    Examples:
      avbench compare runs/toy-ci/avcil runs/toy-ci/finetune
      avbench compare runs/toy-ci/avcil runs/short --json
    """
    from avbench.evaluation.compare import compare as compare_runs

    found = compare_runs(run_a, run_b)
    if as_json:
        print_json(found.to_json())
        return
    config = found.a.config
    click.echo(f"A: {found.a.label}, {run_a}")
    click.echo(f"B: {found.b.label}, {run_b}")
    seeds = ", ".join(map(str, found.seeds))
    click.echo(f"{config['benchmark']}, {config['preset']} features, seeds {seeds}, in %")
    click.echo()
    rows = [
        [
            name.replace("_", " "),
            percent(difference.a),
            percent(difference.b),
            percent(difference.difference),
            percent_interval(difference.over_seeds),
            percent_interval(difference.over_seeds_and_clips),
            difference.better,
        ]
        for name, difference in found.differences.items()
    ]
    over = ["95 % over seeds", "95 % over seeds and clips"]
    print_table(["metric", "A", "B", "A - B", *over, "better"], rows)
    better = found.differences["mean_accuracy"].better
    verdict = "a tie" if better == "tie" else f"{better} is better"
    click.echo(f"By mean accuracy: {verdict}.")
    if len(found.seeds) == 1:
        click.echo(
            "One seed in common: this is about these two runs, and says nothing of other seeds."
        )
