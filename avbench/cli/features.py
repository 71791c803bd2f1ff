"""`avbench features`: bring published features into the store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from avbench.cli.output import json_option, print_json, progress


@click.group()
def features() -> None:
    """Frozen features that others made.

    Those of the encoders of `avbench list` are made by `avbench prepare`.

    \b
    Example:
      avbench features import ave-ci AVE/
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
                "features": str(imported.store.folder),
            }
        )
    else:
        click.echo(f"{ready:,} of {total:,} clips are ready, with released features")
        for what, clips in imported.missing.items():
            examples = ", ".join(clips[:3]) + (", ..." if len(clips) > 3 else "")
            click.echo(f"  {len(clips):,} have {what} ({examples})")
        if imported.strangers:
            click.echo(f"  {imported.strangers:,} ids in the files are not of {chosen.name}")
        click.echo(f"in {imported.store.folder}")
    if ready < total:
        sys.exit(1)
