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

    A run is better where the 95 % interval of the difference leaves out 0. It speaks of other seeds
    and of other test clips, which the two share. Runs of other manifests, features or clips are
    refused.

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
    for name, result, run in (("A", found.a, run_a), ("B", found.b, run_b)):
        click.echo(f"{name}: {result.label}, seeds {', '.join(map(str, result.seeds))}, {run}")
    click.echo(f"{config['benchmark']}, {config['preset']} features, in %")
    values = [result.features_hash[:8] for result in (found.a, found.b)]
    click.echo(f"values of the features: A {values[0]}, B {values[1]}")
    click.echo()
    rows = [
        [
            name.replace("_", " "),
            percent(difference.a),
            percent(difference.b),
            percent(difference.difference),
            percent_interval(difference.interval),
            difference.better,
        ]
        for name, difference in found.differences.items()
    ]
    print_table(["metric", "A", "B", "A - B", "95 % interval", "better"], rows)
    better = found.differences["mean_accuracy"].better
    verdict = "a tie" if better == "tie" else f"{better} is better"
    click.echo(f"By mean accuracy: {verdict}.")
    if found.a.features_hash != found.b.features_hash:
        click.echo(
            "Warning: the features of A and B differ in their values, under the same preset:"
            " they were made on different machines, or altered.",
            err=True,
        )
    for name, result in (("A", found.a), ("B", found.b)):
        if result.mixed_code:
            differ = ", ".join(result.mixed_code)
            click.echo(f"Mixed code: steps or seeds of {name} differ in {differ}.")
    if 1 in (len(found.a.seeds), len(found.b.seeds)):
        click.echo("One seed only: this says nothing of other seeds.")
