"""`avbench leaderboard` and `avbench submit`: who did what, provably."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from avbench.cli.arguments import workers_option
from avbench.cli.output import json_option, print_json, print_table, progress
from avbench.types import AvbenchError, UsageError

if TYPE_CHECKING:
    from avbench.leaderboard.ranking import Place
    from avbench.leaderboard.submit import Candidate

_boards_option = click.option(
    "--boards",
    type=click.Path(path_type=Path),
    default=Path("leaderboards"),
    show_default=True,
    help="The folder leaderboards/ of a checkout.",
)


@click.group()
def leaderboard() -> None:
    """Show, check and render the leaderboards.

    \b
    Examples:
      avbench leaderboard show vs100-ci
      avbench leaderboard check
      avbench leaderboard render
    """


@leaderboard.command()
@click.argument("benchmark")
@json_option
def show(benchmark: str, as_json: bool) -> None:
    """Show the leaderboard of a benchmark, as it comes with avbench.

    Verified entries were computed from predictions kept beside the board, and compete where
    features, clips and protocol are equal; ties share a rank. The others are as reported.

    \b
    Examples:
      avbench leaderboard show vs100-ci
      avbench leaderboard show toy-ci --json
    """
    from avbench.leaderboard.board import shipped_board
    from avbench.leaderboard.render import ranked_board, row
    from avbench.resources import shipped

    found = ranked_board(shipped_board(benchmark), shipped("leaderboards"))
    if as_json:
        print_json([row(place) for place in found])
        return
    if not found:
        click.echo(f"no entries on {benchmark} yet")
        return
    _print_places(found)


@leaderboard.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--base", metavar="REV", help="A git revision, of which every entry must remain.")
@workers_option
@json_option
def check(files: tuple[Path, ...], base: str | None, workers: int, as_json: bool) -> None:
    """Recompute every entry from its predictions; exit code 1 if anything differs.

    FILES are boards, by default all of leaderboards/ with the pages made from them.

    \b
    Examples:
      avbench leaderboard check
      avbench leaderboard check leaderboards/toy-ci.json --base origin/main
    """
    from avbench.leaderboard import check as checking

    folder = Path("leaderboards")
    boards = list(files) or sorted(folder.glob("*.json"))
    if not boards:
        raise AvbenchError("no leaderboards/*.json here: run it in a checkout, or name the files")
    with progress() as report:
        found = checking.check(boards, base=base, workers=workers, report=report)
    problems = list(found.problems)
    if not files:
        problems += checking.strays(folder)
        if not problems:
            problems += checking.check_pages(folder)
    found = checking.Findings(found.verified, tuple(problems))
    if as_json:
        print_json(found.to_json())
    else:
        for problem in found.problems:
            line = f"{problem.file}: {problem.message}"
            click.echo("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
        outcome = f"{len(problems)} problem(s)" if problems else "all as they must be"
        click.echo(f"{len(boards)} board(s), {found.verified} entries recomputed: {outcome}")
    if found.problems:
        sys.exit(1)


@leaderboard.command()
@_boards_option
def render(boards: Path) -> None:
    """Make README.md and index.html of the boards, and bring boards into today's format.

    \b
    Example:
      avbench leaderboard render
    """
    from avbench.leaderboard import render as rendering
    from avbench.leaderboard.board import rewrite
    from avbench.leaderboard.submit import refuse_installed
    from avbench.resources import replacing

    refuse_installed(boards)
    for path in rewrite(boards):
        click.echo(path)
    for name, text in rendering.render(boards).items():
        with replacing(boards / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        click.echo(boards / name)


@click.command()
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[RUN|BUNDLE]")
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Predictions of any framework, as `avbench score` reads them, with a column seed.",
)
@click.option("--metadata", type=click.Path(path_type=Path), help="What --init wrote, filled in.")
@click.option("--init", type=click.Path(path_type=Path), help="Write a metadata file to fill in.")
@click.option("--benchmark", help="Of the predictions, for --init.")
@click.option("--output", type=click.Path(path_type=Path), help="Write a bundle to be sent.")
@_boards_option
@json_option
def submit(
    source: Path | None,
    predictions: Path | None,
    metadata: Path | None,
    init: Path | None,
    benchmark: str | None,
    output: Path | None,
    boards: Path,
    as_json: bool,
) -> None:
    """Add an entry to a leaderboard, recomputing its numbers from its predictions.

    In a checkout, to be sent as a pull request; or, with --output, as a bundle that a maintainer
    takes in.

    \b
    Examples:
      avbench submit runs/toy-ci/avcil --init entry.toml
      avbench submit runs/toy-ci/avcil --metadata entry.toml
      avbench submit runs/toy-ci/avcil --metadata entry.toml --output bundle.zip
      avbench submit bundle.zip
      avbench submit --init entry.toml --benchmark ks-ci
      avbench submit --predictions predictions.parquet --metadata entry.toml
    """
    from avbench.leaderboard import submit as submitting
    from avbench.leaderboard.render import row

    if init is not None:
        _init(init, source, benchmark)
        return
    if benchmark is not None:
        raise UsageError("--benchmark goes with --init: the metadata file names it")
    if output is not None and output.exists():
        raise UsageError(f"--output {output}: something is there already: give another name")
    candidate = _candidate(source, predictions, metadata)
    if output is None:
        place = submitting.add(candidate, boards)
    else:
        _, place = submitting.consider(candidate, boards)
        submitting.to_bundle(candidate, output)
    if as_json:
        print_json(row(place))
        return
    _print_places([place])
    name, board = candidate.entry.name, candidate.entry.benchmark
    if output is None:
        click.echo(f"{name} is on {boards / board}.json; next: avbench leaderboard render")
    else:
        click.echo(f"{name} would stand so on {board}: send {output}")


def _candidate(source: Path | None, predictions: Path | None, metadata: Path | None) -> Candidate:
    from avbench.leaderboard import submit as submitting

    if predictions is None and source is None:
        raise UsageError("give a run, a bundle or --predictions")
    if predictions is not None and source is not None:
        raise UsageError("give either a run or bundle, or --predictions")
    if source is not None and not source.is_dir():
        if metadata is not None:
            raise UsageError(f"{source} is not a run: a bundle has its metadata inside")
        return submitting.from_bundle(source)
    if metadata is None:
        raise UsageError("give --metadata FILE: avbench submit --init FILE writes one")
    about = submitting.read_metadata(metadata)
    if predictions is not None:
        return submitting.from_predictions(predictions, about)
    assert source is not None
    return submitting.from_run(source, about)


def _init(path: Path, run: Path | None, benchmark: str | None) -> None:
    from avbench.leaderboard import submit as submitting
    from avbench.leaderboard.evidence import layout_of
    from avbench.manifests.benchmark import Benchmark
    from avbench.resources import replacing

    if (run is None) == (benchmark is None):
        raise UsageError("--init goes with a run or with --benchmark, one of them")
    if path.exists():
        raise AvbenchError(f"{path} is there already: choose another name")
    if run is not None:
        facts = submitting.facts_of_run(run)
    else:
        facts = submitting.facts_of(Benchmark.load(benchmark or ""))
    layout_of(facts["benchmark"])  # refuses what has no board before anybody fills in a form
    with replacing(path) as temporary:
        temporary.write_text(submitting.template(facts), encoding="utf-8")
    click.echo(f"{path}: fill it in, then give it as --metadata")


def _print_places(places: list[Place]) -> None:
    from avbench.leaderboard.entry import Reported
    from avbench.leaderboard.ranking import unequal_values
    from avbench.leaderboard.render import (
        accuracy_text,
        forgetting_text,
        kept_text,
        standing_text,
    )

    columns = ["rank", "entry", "input", "features", "values", "mean accuracy"]
    columns += ["average forgetting", "exemplars + checkpoint, MB"]
    rows = []
    for place in places:
        entry = place.entry
        source = f": {entry.source}" if isinstance(entry, Reported) else ""
        rows.append(
            [
                place.shown,
                entry.name,
                entry.modality,
                place.features,
                place.values,
                accuracy_text(place),
                forgetting_text(place),
                kept_text(place),
                standing_text(place) + source,
            ]
        )
    print_table([*columns, "standing"], rows)
    for warning in unequal_values(places):
        click.echo(f"Warning: {warning}.", err=True)
