"""`avbench splits`: build, verify, audit and show the split manifests."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from avbench import resources
from avbench.cli.output import json_option, print_json, print_table
from avbench.types import SPLITS, Split, UsageError

if TYPE_CHECKING:
    from avbench.manifests.benchmark import Benchmark


@click.group()
def splits() -> None:
    """Build, verify, audit and show the split manifests.

    BENCHMARK is a name from `avbench list`, or the path of a TOML of your own. Options behind a
    colon make a variant of it.

    \b
    Examples of variants:
      ave-ci:seed=3               classes in the order of hashing seed and label
      ks-ci:order=alphabetical    classes by name
      vs100-ci:steps=20           twenty steps of one size
      vs100-ci:steps=50+5x10      a step of 50 classes, then five steps of 10
      vs100-ci:first=50           the same, written shorter
      vs100-ci:seed=3,steps=20    both
    """


@splits.command()
@click.argument("benchmarks", nargs=-1, metavar="[BENCHMARK]...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="A Parquet file.  [default: splits/NAME.parquet]"
)
@json_option
def build(benchmarks: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Build manifests from their tables of annotations; without BENCHMARK, all that are shipped.

    \b
    Examples:
      avbench splits build                        every file of splits/, anew
      avbench splits build vs100-ci:steps=20 --out twenty.parquet
      avbench splits build pets.toml
    """
    from avbench.manifests.builder import build as build_manifest
    from avbench.manifests.spec import load_spec, shipped_names

    specs = [load_spec(name) for name in benchmarks or shipped_names()]
    if out and len(specs) > 1:
        raise UsageError("--out names one file: build one benchmark at a time, or leave it out")
    if out and out.suffix != ".parquet":
        raise UsageError(f"--out {out}: end it in .parquet")
    # All before any is written: what fails writes nothing.
    manifests = [build_manifest(spec) for spec in specs]
    rows = []
    for manifest in manifests:
        path = out or Path("splits") / f"{manifest.name}.parquet"
        manifest.write(path)
        rows.append(
            {
                "benchmark": manifest.name,
                "path": str(path),
                "clips": len(manifest),
                "fingerprint": manifest.fingerprint,
            }
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['path']}: {row['clips']:,} clips, fingerprint {row['fingerprint']}")


@splits.command()
@click.argument("names", nargs=-1, metavar="[BENCHMARK|FILE]...")
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Rebuild manifests and compare; without BENCHMARK or FILE, all that are shipped.

    FILE is a manifest somebody gave you (.parquet), of a benchmark or of a variant.

    \b
    Examples:
      avbench splits verify
      avbench splits verify vs100-ci twenty.parquet
    """
    from avbench.manifests.builder import verify as verify_file
    from avbench.manifests.spec import shipped_names

    rows = []
    for name in names or shipped_names():
        path = Path(name)
        if path.suffix.lower() != ".parquet":
            if name not in shipped_names():
                raise UsageError(
                    f"{name}: give the name of a shipped benchmark, or a manifest file (.parquet);"
                    " any other is built anew wherever it is used"
                )
            path = resources.shipped("splits") / f"{name}.parquet"
        manifest, rebuilt = verify_file(path)
        scope = "" if rebuilt else "  (its own fingerprint only: not a benchmark of avbench)"
        rows.append(
            {"benchmark": manifest.name, "fingerprint": manifest.fingerprint, "rebuilt": rebuilt}
        )
        if not as_json:
            click.echo(f"ok  {manifest.name}  {manifest.fingerprint}{scope}")
    if as_json:
        print_json(rows)


@splits.command()
@click.argument("benchmark")
@click.option("--out", type=click.Path(path_type=Path), help="Write to a file, .md or .json.")
@json_option
def audit(benchmark: str, out: Path | None, as_json: bool) -> None:
    """Say what is wrong with a split: leaks, overlaps, imbalance, missing times.

    \b
    Examples:
      avbench splits audit vs100-ci
      avbench splits audit pets.toml --out pets-audit.md
      avbench splits audit vs100-ci --json
    """
    if out and out.suffix not in (".md", ".json"):
        raise UsageError(f"--out {out}: end it in .md or .json")
    from avbench.manifests.audit import audit as audit_manifest
    from avbench.manifests.benchmark import Benchmark
    from avbench.manifests.spec import shipped_names

    chosen = Benchmark.load(benchmark)
    shipped = [Benchmark.load(name) for name in shipped_names()]
    others = [other.manifest for other in shipped if other.base.name != chosen.base.name]
    found = audit_manifest(chosen.manifest, others=others)
    if out and out.suffix == ".json":
        resources.write_json(out, found.to_json())
    elif out:
        with resources.replacing(out) as temporary:
            temporary.write_text(found.to_markdown(), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
    elif out:
        faults = found.faults()
        click.echo(f"{out}: {len(faults)} thing(s) wrong with {found.benchmark}")
    else:
        click.echo(found.to_markdown(), nl=False)


@splits.command()
@click.argument("benchmark")
@click.option("--step", type=click.IntRange(min=1), help="The clips of one step, counted from 1.")
@click.option("--split", type=click.Choice(SPLITS), help="The clips of one split.")
@json_option
def show(benchmark: str, step: int | None, split: Split | None, as_json: bool) -> None:
    """Show steps, classes and sizes of a benchmark; with --step or --split, the clips.

    In JSON, clips are the rows of the manifest, whose steps count from 0.

    \b
    Examples:
      avbench splits show vs100-ci:steps=20
      avbench splits show ave-ci --step 2 --split test
    """
    from avbench.manifests.benchmark import Benchmark

    chosen = Benchmark.load(benchmark)
    manifest, steps = chosen.manifest, chosen.spec.steps
    if step and step > steps:
        raise UsageError(f"--step {step}: {chosen.name} has {steps} steps")
    if not (step or split):
        _overview(chosen, as_json)
        return
    rows = [
        row
        for row in manifest.table.to_pylist()
        if step in (None, row["step"] + 1) and split in (None, row["split"])
    ]
    if as_json:
        print_json(rows)
        return
    columns = ["clip_id", "youtube_id", "start_s", "end_s", "step", "split", "label"]
    shown = [row | {"step": row["step"] + 1} for row in rows]
    cells = [["-" if row[column] is None else row[column] for column in columns] for row in shown]
    print_table(columns, cells)
    click.echo(f"{len(rows):,} clips")


def _overview(chosen: Benchmark, as_json: bool) -> None:
    spec, manifest = chosen.spec, chosen.manifest
    if as_json:
        facts = {"title": spec.title, "notes": spec.notes, "columns": spec.columns}
        print_json(manifest.summary() | facts)
        return
    click.echo(f"{manifest.name}: {spec.title}")
    click.echo(f"{len(manifest):,} clips, {spec.classes} classes, {spec.steps} steps")
    click.echo(f"fingerprint  {manifest.fingerprint}")
    if spec.notes:
        click.echo(f"note         {spec.notes}")
    click.echo()
    names, rows = iter(manifest.labels), []
    for step, size in enumerate(manifest.classes_per_step):
        sizes = [f"{count:,}" for count in manifest.counts[step]]
        rows.append([step + 1, size, *sizes, "; ".join(islice(names, size))])
    print_table(["step", "classes", *SPLITS, "names"], rows)
    if spec.columns:
        print_table(["column", "comes from"], list(spec.columns.items()))
