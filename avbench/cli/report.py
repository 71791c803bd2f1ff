"""`avbench report` and `avbench attention`: runs to read and to print."""

from __future__ import annotations

from pathlib import Path

import click

from avbench.cli.output import json_option, print_json


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report"),
    show_default=True,
    help="Folder for the pages, the LaTeX rows and the figures.",
)
@json_option
def report(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write a report of runs: Markdown, one HTML file, LaTeX rows, figures in PNG and SVG.

    Says who is best and who ties with it. Runs of other manifests, features or clips get a table of
    their own. Every number is checked against the predictions.

    \b
    Examples:
      avbench report runs/toy-ci/avcil runs/toy-ci/finetune runs/toy-ci/oracle
      avbench report runs/toy-ci/avcil --out report/avcil --json
    """
    from avbench.evaluation.report import report as write_report

    groups = write_report(runs, out)
    if as_json:
        print_json({"groups": [group.to_json() for group in groups]})
        return
    for group in groups:
        partial = f" (PARTIAL: {group.partial} of the clips)" if group.partial else ""
        click.echo(f"{group.title}{partial}:")
        for row in group.rows:
            click.echo(f"  {row.label}: {row.standing}")
    if len(groups) > 1:
        click.echo("These runs are not all comparable: each group has a table of its own.")
    click.echo(f"read:     {out / 'report.html'} (one file), {out / 'report.md'}")
    click.echo(f"print:    {out / 'table.tex'}, {out / 'figures'}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--clip",
    required=True,
    metavar="ID",
    help="A clip, such as the first column of `avbench splits show BENCHMARK --split test`.",
)
@click.option("--seed", type=int, help="Which of the run's networks.  [default: the first]")
@click.option(
    "--benchmark", help="The TOML of a benchmark of your own.  [default: the run's, by name]"
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A .png or .svg to write."
)
@json_option
def attention(
    run: Path, clip: str, seed: int | None, benchmark: str | None, out: Path, as_json: bool
) -> None:
    """Draw the audio-guided attention over a clip's frames after each step.

    Heat is spatial attention, a frame is the fainter the less temporal attention it has (the number
    under it). Runs the networks of a run's checkpoints on the clip's features.

    \b
    Example:
      avbench attention runs/toy-ci/avcil --clip disk-thud-040 --out attention.png
    """
    from avbench.evaluation.attention import draw_attention

    found = draw_attention(run, clip, out, seed=seed, benchmark=benchmark)
    if as_json:
        print_json({"spatial": found.spatial.tolist(), "temporal": found.temporal.tolist()})
    else:
        click.echo(f"attention of {clip} after {len(found.temporal)} steps: {out}")
