"""`avbench prepare` and `avbench status`: from a name to clips and features."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from avbench.cli.arguments import backend_option, scheduler_option, workers_option
from avbench.cli.output import json_option, print_json, print_table, progress
from avbench.types import SPLITS, Split, UsageError

if TYPE_CHECKING:
    from avbench.manifests.benchmark import Benchmark
    from avbench.media.backend import Backend
    from avbench.media.plan import Choice, Downloads, Stage

_DONE: dict[str | None, str] = {"acquire": "have their original", "validate": "are sound"}
_STAGES = ("acquire", "trim", "validate", "features")
_STAGES_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("preset", "weights", "device", "batch_size"), ("features",)),
    **dict.fromkeys(
        ("sources", "keep_originals", "retry_refused", "backend", "scheduler"), ("acquire", "trim")
    ),
    **dict.fromkeys(
        ("cookies", "browser", "proxy", "rate", "max_height", "sleep", "timeout", "retries"),
        ("acquire",),
    ),
    "downloads": ("acquire",),
}
"""Where an option does anything if there is a stage; others do in every stage."""

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_BYTES = re.compile(r"(\d{1,9})([KMG]?)", re.IGNORECASE)


class _Rate(click.ParamType[int]):
    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _BYTES.fullmatch(value)
        if not found or not int(found[1]):
            self.fail(f"{value!r}: give bytes per second, such as 500K or 2M", param, ctx)
        return int(found[1]) * _UNITS[found[2].upper()]


class _Seconds(click.FloatRange):
    """Seconds up to an hour, and no number that is none."""

    def __init__(self, least: float) -> None:
        super().__init__(least, 3600)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


@click.command()
@click.argument("benchmark")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME[:ARGUMENT]",
    help="Where clips come from; given several times, the first that has a clip gives it."
    "  [default: the benchmark's]",
)
@click.option("--preset", help="Encoder preset of the features.  [default: the benchmark's]")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Folder of the encoders' weights.  [default: from the Hugging Face hub]",
)
@click.option("--device", help="Where encoders compute.  [default: cuda if there is one, or cpu]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Clips encoded at a time.  [default: 32 on cuda, 8 elsewhere]",
)
@click.option("--stage", type=click.Choice(_STAGES), help="Do this stage only.")
@click.option("--dry-run", is_flag=True, help="Say what there is to do, and what it takes.")
@click.option("--split", type=click.Choice(SPLITS), help="Only the clips of this split.")
@click.option("--step", type=click.IntRange(min=1), help="Only those of this step, from 1.")
@click.option("--limit", type=click.IntRange(1, 10**9), help="Only so many, the first.")
@click.option("--keep-originals", is_flag=True, help="Keep what was fetched, for another cut.")
@click.option("--retry-refused", is_flag=True, help="Ask again for what is gone for good.")
@workers_option
@backend_option
@scheduler_option
@click.option("--cookies", type=click.Path(path_type=Path), help="File of cookies for downloads.")
@click.option("--cookies-from-browser", "browser", help="Such as firefox or chrome.")
@click.option("--proxy", metavar="URL", help="Proxy for downloads.")
@click.option("--rate", type=_Rate(), help="Most bytes per second of a download, such as 2M.")
@click.option(
    "--max-height", type=click.IntRange(min=72), default=360, show_default=True, help="In lines."
)
@click.option("--sleep", type=_Seconds(0), default=1.0, show_default=True, help="Pause, seconds.")
@click.option(
    "--timeout",
    type=_Seconds(0.1),
    default=30.0,
    show_default=True,
    help="Seconds without data after which a download has failed.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Of a download that failed for a while.",
)
@click.option(
    "--downloads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="At a time on a host.",
)
@json_option
def prepare(
    benchmark: str,
    sources: tuple[str, ...],
    preset: str | None,
    weights: Path | None,
    device: str | None,
    batch_size: int | None,
    stage: Stage | None,
    dry_run: bool,
    split: Split | None,
    step: int | None,
    limit: int | None,
    keep_originals: bool,
    retry_refused: bool,
    workers: int,
    backend: Backend,
    scheduler: str | None,
    cookies: Path | None,
    browser: str | None,
    proxy: str | None,
    rate: int | None,
    max_height: int,
    sleep: float,
    timeout: float,
    retries: int,
    downloads: int,
    as_json: bool,
) -> None:
    """Get, cut and check the clips of a benchmark, then extract features.

    BENCHMARK is a name from `avbench list`, or the path of a TOML of your own; a variant, such as
    ave-ci:seed=3, shares the clips and features of its benchmark. Whatever stopped a run, the same
    command goes on where it was. Clips and features go to $AVBENCH_HOME (~/.cache/avbench). Exit
    code 1 if any clip is missing; `avbench status` says which and why.

    \b
    Sources:
      youtube             by yt-dlp
      url:TEMPLATE        such as url:https://mirror/{youtube_id}_{start}.mp4
      archive:PATH        zip, tar, tar.gz, their parts, or a folder of them
      folder:DIR          videos, or clips already cut, in any sub-folder
      render              the clips of toy-ci, drawn here

    \b
    Examples:
      avbench prepare toy-ci
      avbench prepare vs100-ci --dry-run
      avbench prepare vs100-ci --source archive:/data/vggsound --source youtube
      avbench prepare ave-ci --split test --limit 20
      avbench prepare ave-ci --source archive:AVE.zip --preset avcil --device cuda
      avbench prepare my-benchmark.toml --source folder:clips
    """
    from avbench.features.encoder import open_encoder
    from avbench.features.extract import extract
    from avbench.manifests.benchmark import Benchmark
    from avbench.media.check import check_clips, put_outdated_aside
    from avbench.media.plan import Choice
    from avbench.media.prepare import prepare_clips
    from avbench.media.sources.base import Network

    _check_options(click.get_current_context(), stage)
    asked = Benchmark.load(benchmark)
    chosen = asked.base
    choice = Choice(split, step and step - 1, limit)
    if chosen is not asked:
        click.echo(f"{asked.name} shares the clips and features of {chosen.name}.", err=True)
    if dry_run:
        _plan(
            asked,
            sources,
            choice,
            stage,
            preset,
            workers,
            keep_originals=keep_originals,
            as_json=as_json,
        )
        return
    wanted = choice.of(asked)
    name = preset or asked.spec.preset
    # Before any clip: it may turn out that there are no weights.
    needed = stage in (None, "features")
    encoder = open_encoder(name, chosen, device=device, weights=weights) if needed else None
    failed: dict[str, list[str]] = {}
    store, ready = None, 0
    with progress() as report:
        if stage == "validate":
            sound, damaged = check_clips(asked, workers=workers, report=report, choice=choice)
            ready, failed = len(sound), {"damaged": damaged} if damaged else {}
        elif stage != "features":
            _explain_sources(chosen, sources)
            prepared = prepare_clips(
                asked,
                sources=sources,
                workers=workers,
                report=report,
                choice=choice,
                network=Network(
                    cookies=cookies,
                    browser=browser,
                    proxy=proxy,
                    rate=rate,
                    height=max_height,
                    sleep_s=sleep,
                    timeout_s=timeout,
                    retries=retries,
                    downloads=downloads,
                ),
                backend=backend,
                scheduler=scheduler,
                stage=stage,
                keep_originals=keep_originals,
                retry_refused=retry_refused,
            )
            failed, ready = prepared.failed, prepared.ok + prepared.already
        if stage == "features":
            put_outdated_aside(asked)
        if encoder and (stage == "features" or ready):
            store = extract(chosen, encoder, workers=workers, batch_size=batch_size, report=report)
            for clip_id in wanted:
                if clip_id in store.failed:
                    failed.setdefault(store.failed[clip_id], []).append(clip_id)
            ready = int((store.rows_of(wanted) >= 0).sum())
    done = f"are ready, with {name} features" if store else _DONE.get(stage, "are ready")
    if as_json:
        features = store.place if store else None
        counts = {"clips": len(wanted), "ready": ready, "failed": failed}
        print_json({"benchmark": chosen.name, **counts, "features": features})
    else:
        click.echo(f"{ready:,} of {len(wanted):,} clips {done}")
        _print_failed(chosen, failed)
    if ready < len(wanted):
        sys.exit(1)


@click.command()
@click.argument("benchmark")
@click.option("--export", type=click.Path(path_type=Path), help="All clips, to .parquet or .csv.")
@json_option
def status(benchmark: str, export: Path | None, as_json: bool) -> None:
    """Show how far a benchmark is prepared, what failed, and why.

    Works while `avbench prepare` runs.

    \b
    Examples:
      avbench status vs100-ci
      avbench status vs100-ci --export clips.parquet
    """
    if export and export.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--export {export}: end it in .parquet or .csv")
    from avbench.manifests.benchmark import Benchmark
    from avbench.media.status import export_clips, status_of

    chosen = Benchmark.load(benchmark)
    if export:
        count = export_clips(chosen, export)
        click.echo(f"{export}: {count:,} clips", err=True)
    found = status_of(chosen)
    if as_json:
        print_json(asdict(found))
        return
    share = found.ready / found.clips
    click.echo(f"{found.benchmark}: {found.ready:,} of {found.clips:,} clips ready ({share:.1%})")
    click.echo(f"  {found.waiting:,} not tried yet, {found.acquired:,} with their original only")
    click.echo(f"  {found.bytes / 1e9:.2f} GB, {found.seconds / 3600:.2f} hours of work so far")
    if found.rate:
        hours = found.eta_s / 3600 if found.eta_s is not None else 0
        click.echo(f"  {3600 * found.rate:,.0f} clips an hour; {hours:.1f} hours to go")
    if found.last_run:
        click.echo(f"  last run {found.last_run.started}; {found.last_run.tools}")
    click.echo()
    if found.kept:
        print_table(["kept, though", "clips"], [[*item] for item in found.kept.items()])
    if found.failures:
        print_table(
            ["failed", "kind", "clips", "such as"],
            [[f.reason, f.failure, f.clips, f.example] for f in found.failures],
        )


def _check_options(ctx: click.Context, stage: Stage | None) -> None:
    """Refuse what was typed and would be ignored."""
    if stage is None:
        return
    for option in ctx.command.params:
        name = str(option.name)
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if typed and stage not in _STAGES_OF.get(name, _STAGES):
            raise UsageError(f"--stage {stage} has no use for {option.opts[0]}: leave it out")


def _explain_sources(chosen: Benchmark, given: tuple[str, ...]) -> None:
    if not given and chosen.spec.source_notes:
        click.echo(chosen.spec.source_notes.strip(), err=True)


def _print_failed(chosen: Benchmark, failed: dict[str, list[str]]) -> None:
    for reason, clips in failed.items():
        examples = ", ".join(clips[:3]) + (", ..." if len(clips) > 3 else "")
        click.echo(f"  {len(clips):,} failed: {reason} ({examples})")
    if failed:
        click.echo(f"particulars: avbench status {chosen.argument} --export status.csv")
    click.echo(f"in {chosen.home}")
    if chosen.spec.notes:
        click.echo(f"note: {chosen.spec.notes}")


def _plan(
    asked: Benchmark,
    sources: tuple[str, ...],
    choice: Choice,
    stage: Stage | None,
    preset: str | None,
    workers: int,
    *,
    keep_originals: bool,
    as_json: bool,
) -> None:
    from avbench.features.extract import bytes_to_come
    from avbench.media.places import places_of
    from avbench.media.plan import plan_clips
    from avbench.resources import lacking_bytes

    if stage == "validate":
        raise UsageError("--dry-run says what is to be made: leave out --stage validate")
    chosen, name = asked.base, preset or asked.spec.preset
    if stage != "features":
        _explain_sources(chosen, sources)
    plan = plan_clips(asked, sources=sources, choice=choice, stage=stage)
    extracting = stage in (None, "features")
    features = bytes_to_come(chosen, name, plan.coming) if extracting else 0
    clips = places_of(chosen).clips.local
    needs = [(chosen.home, features or 0), *([(clips, plan.bytes)] if clips else [])]
    lacking, hours = lacking_bytes(needs), plan.hours(workers)
    if as_json:
        sizes = {"bytes": plan.bytes, "features_bytes": features, "lacking_bytes": lacking}
        print_json(asdict(plan) | sizes | {"hours": round(hours, 3)})
        return
    click.echo(f"{chosen.name}: {plan.clips:,} clips, {plan.already:,} are there")
    for source, count in plan.todo.items():
        click.echo(f"  {count:,} to get from {source}{_downloading(plan.downloads.get(source))}")
    if plan.refused:
        click.echo(f"  {plan.refused:,} that no source has (--retry-refused asks again)")
    if stage == "trim" and plan.left_out:
        click.echo(f"  {plan.left_out:,} to download first (--stage acquire)")
    if stage == "acquire" or keep_originals:
        click.echo("  originals, whose size is not known before")
    if stage in (None, "trim"):
        basis = _basis(plan.bytes_measured_on, "clips")
        click.echo(f"  {plan.bytes / 1e9:.1f} GB of clips ({basis})")
    if extracting:
        size = "unknown size" if features is None else f"{features / 1e9:.1f} GB"
        click.echo(f"  {size} of {name} features")
    free = plan.free_bytes
    click.echo("  room unknown" if free is None else f"  {free / 1e9:.1f} GB are free")
    if stage != "features":
        basis = _basis(plan.seconds_measured_on, "clips")
        click.echo(f"  {hours:.1f} hours on {workers} workers (cutting {basis}), features apart")
    if lacking:
        click.echo(
            f"warning: {lacking / 1e9:.1f} GB more disk is needed: free some, choose fewer clips"
            " (--split, --step, --limit), or set AVBENCH_HOME or AVBENCH_STORAGE to another disk"
        )


def _downloading(found: Downloads | None) -> str:
    if found is None:
        return ""
    if found.seconds_each is None:
        return f": {found.videos:,} videos to download, in unknown time"
    hours = found.videos * found.seconds_each / 3600
    basis = _basis(found.measured_on, "videos")
    return f": {found.videos:,} videos to download in {hours:.1f} hours ({basis})"


def _basis(measured_on: int, what: str) -> str:
    return f"as {measured_on:,} {what} so far" if measured_on else "by rule of thumb"
