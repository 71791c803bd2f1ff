"""`avbench features`: bring published features into the store, and check what is there."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from avbench.cli.output import json_option, print_json, progress


@click.group()
def features() -> None:
    """Import frozen features that others made, and check those that are there.

    Those of the encoders of `avbench list` are made by `avbench prepare`.

    \b
    Examples:
      avbench features import ave-ci AVE/
      avbench features verify ave-ci --preset released
    """


@features.command("import")
@click.argument("benchmark")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def import_command(benchmark: str, files: tuple[Path, ...], as_json: bool) -> None:
    """Import the features that the authors of AV-CIL published, as preset `released`.

    FILES are a folder with audio_pretrained_feature_dict.npy and visual_pretrained_feature_dict.npy
    or visual_features.h5 somewhere in it, or these files, or the parts of the authors' zip in
    order. Nothing in them is executed, and no joined copy is written. Exit code 1 if any clip has
    no features.

    \b
    Examples:
      avbench features import ave-ci AVE.zip
      avbench features import ks-ci kinetics-sounds.zip.part1 kinetics-sounds.zip.part2 ...
      avbench features import vs100-ci /data/VGGSound_100
      avbench evaluate --method avcil --benchmark ave-ci --preset released
    """
    from avbench.features.released.importer import import_released
    from avbench.manifests.benchmark import Benchmark

    chosen = Benchmark.load(benchmark).base
    with progress() as report:
        imported = import_released(chosen, files, report=report)
    total, ready = len(chosen.manifest), len(imported.store)
    if as_json:
        print_json(
            {
                "benchmark": chosen.name,
                "clips": total,
                "ready": ready,
                "missing": imported.missing,
                "strangers": imported.strangers,
                "features": imported.store.place,
            }
        )
    else:
        click.echo(f"{ready:,} of {total:,} clips are ready, with released features")
        for what, clips in imported.missing.items():
            examples = ", ".join(clips[:3]) + (", ..." if len(clips) > 3 else "")
            click.echo(f"  {len(clips):,} have {what} ({examples})")
        if imported.strangers:
            click.echo(f"  {imported.strangers:,} ids in the files are not of {chosen.name}")
        click.echo(f"in {imported.store.place}")
    if ready < total:
        sys.exit(1)


@features.command("verify")
@click.argument("benchmark")
@click.option("--preset", help="Which features.  [default: the benchmark's]")
@json_option
def verify_command(benchmark: str, preset: str | None, as_json: bool) -> None:
    """Read all features of a benchmark and check that they are those that were written.

    So are the means of tokens that runs of sight alone keep beside them. Exit code 1 if any clip's
    are not.

    \b
    Examples:
      avbench features verify toy-ci
      avbench features verify ave-ci --preset released
    """
    from avbench.features.means import damaged_means
    from avbench.features.store import FeatureStore
    from avbench.manifests.benchmark import Benchmark

    chosen = Benchmark.load(benchmark).base
    store = FeatureStore.of(chosen, preset or chosen.spec.preset)
    with progress() as report:
        damaged = store.damaged(report)
        means = [] if damaged else damaged_means(store, report)
    rows = store.rows_of(damaged).tolist()
    if as_json:
        print_json(
            {
                "benchmark": chosen.name,
                "preset": store.preset_name,
                "features": store.place,
                "clips": len(store),
                "damaged": dict(zip(damaged, rows, strict=True)),
                "damaged_means": means,
            }
        )
    else:
        for clip_id, row in zip(damaged, rows, strict=True):
            click.echo(f"{store.place}: row {row}, clip {clip_id}: not what was written")
        click.echo(f"{len(store) - len(damaged):,} of {len(store):,} clips are whole")
        if damaged:
            remedy = "import them again"
            if store.preset_name != "released":
                remedy = f"touch their .mp4 files and run avbench prepare {chosen.argument}"
            click.echo(f"next:  {remedy}")
        if means:
            path = f"{store.place}/means.npy"
            click.echo(f"{path}: means of {len(means):,} clips ({means[0]}, ...) are wrong")
            click.echo(f"next:  delete {path}, which is made again when needed")
    if damaged or means:
        sys.exit(1)
