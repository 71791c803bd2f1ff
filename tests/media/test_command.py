"""What is typed after `avbench prepare` reaches the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from avbench.cli.prepare import prepare
from avbench.manifests.benchmark import Benchmark
from avbench.media.plan import Choice, Plan
from avbench.media.sources.base import Network
from avbench.types import AvbenchError, UsageError


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the command with what it calls taken down, up to where it would begin."""

    def run(*arguments: str) -> dict[str, Any]:
        taken: dict[str, Any] = {}

        def stop(benchmark: Benchmark, **options: Any) -> None:
            taken.update(options, benchmark=benchmark.name)
            raise AvbenchError("far enough")

        monkeypatch.setattr("avbench.media.prepare.prepare_clips", stop)
        monkeypatch.setattr("avbench.media.check.check_clips", stop)
        result = CliRunner().invoke(prepare, ["toy-ci", *arguments])
        assert isinstance(result.exception, AvbenchError), result.output
        return taken

    return run


def test_defaults(given: Callable[..., dict[str, Any]]) -> None:
    taken = given()
    del taken["report"], taken["workers"]
    assert taken == {
        "benchmark": "toy-ci",
        "sources": (),
        "choice": Choice(),
        "network": Network(),
        "backend": "threading",
        "scheduler": None,
        "stage": None,
        "keep_originals": False,
        "retry_refused": False,
    }


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--backend dask", "backend", "dask"),
        ("--backend loky", "backend", "loky"),
        ("--scheduler tcp://h:1", "scheduler", "tcp://h:1"),
        ("--keep-originals", "keep_originals", True),
        ("--retry-refused", "retry_refused", True),
        ("--stage acquire", "stage", "acquire"),
        ("--stage trim", "stage", "trim"),
        ("--workers 7", "workers", 7),
        ("--stage validate --workers 7", "workers", 7),
        ("--source youtube --source folder:x", "sources", ("youtube", "folder:x")),
        ("--split val", "choice", Choice(split="val")),
        ("--step 1", "choice", Choice(step=0)),
        ("--step 4", "choice", Choice(step=3)),
        ("--limit 5", "choice", Choice(limit=5)),
        ("--stage validate --limit 5", "choice", Choice(limit=5)),
        ("--cookies c.txt", "network", Network(cookies=Path("c.txt"))),
        ("--cookies-from-browser firefox", "network", Network(browser="firefox")),
        ("--proxy http://p:1", "network", Network(proxy="http://p:1")),
        ("--rate 9", "network", Network(rate=9)),
        ("--rate 500K", "network", Network(rate=512_000)),
        ("--rate 2m", "network", Network(rate=2_097_152)),
        ("--rate 1G", "network", Network(rate=1_073_741_824)),
        ("--max-height 720", "network", Network(height=720)),
        ("--sleep 0", "network", Network(sleep_s=0)),
        ("--timeout 5", "network", Network(timeout_s=5)),
        ("--retries 0", "network", Network(retries=0)),
        ("--downloads 2", "network", Network(downloads=2)),
    ],
)
def test_an_option_arrives(
    given: Callable[..., dict[str, Any]], arguments: str, name: str, value: object
) -> None:
    assert given(*arguments.split())[name] == value


@pytest.mark.parametrize(
    "arguments",
    ["--step 0", "--rate 0", "--rate 5T", "--rate -1", "--sleep nan", "--backend mpi", "--limit 0"],
)
def test_an_option_that_is_none(arguments: str) -> None:
    result = CliRunner().invoke(prepare, ["toy-ci", *arguments.split()])
    assert result.exit_code == 2
    assert arguments.split(maxsplit=1)[0] in result.output


FETCHING = ["--source youtube", "--keep-originals", "--retry-refused"]
PLACES = ["--backend dask", "--backend threading", "--scheduler tcp://h:1"]
ENCODING = ["--preset filterbank", "--weights w", "--device cpu", "--batch-size 8"]
NETWORK = [
    "--cookies c.txt",
    "--cookies-from-browser firefox",
    "--proxy http://p:1",
    "--rate 9",
    "--max-height 360",
    "--sleep 1",
    "--timeout 30",
    "--retries 3",
    "--downloads 1",
]


@pytest.mark.parametrize(
    ("stage", "option"),
    [("acquire", option) for option in ENCODING]
    + [("trim", option) for option in ENCODING + NETWORK]
    + [("validate", option) for option in ENCODING + NETWORK + FETCHING + PLACES]
    + [("features", option) for option in NETWORK + FETCHING + PLACES],
)
def test_an_option_a_stage_would_ignore_is_refused(stage: str, option: str) -> None:
    result = CliRunner().invoke(prepare, ["toy-ci", "--stage", stage, *option.split()])
    assert isinstance(result.exception, UsageError)
    name = option.split(maxsplit=1)[0]
    assert str(result.exception) == f"--stage {stage} has no use for {name}: leave it out"


@pytest.mark.parametrize("stage", ["acquire", "trim"])
@pytest.mark.parametrize("option", [*FETCHING, *PLACES])
def test_an_option_a_stage_uses_is_taken(
    given: Callable[..., dict[str, Any]], stage: str, option: str
) -> None:
    assert given("--stage", stage, *option.split())["stage"] == stage


def test_a_plan_divides_the_work_by_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(
        clips=7300,
        already=100,
        todo={"render": 7000, "kept": 200},
        refused=0,
        downloads={},
        bytes_each=1e6,
        bytes_measured_on=100,
        seconds_each=2.0,
        seconds_measured_on=100,
        free_bytes=5_000_000_000,
    )
    monkeypatch.setattr("avbench.media.plan.plan_clips", lambda *_, **__: plan)
    for workers, hours in ((1, 4.0), (4, 1.0)):
        options = ["toy-ci", "--dry-run", "--workers", str(workers)]
        told = json.loads(CliRunner().invoke(prepare, [*options, "--json"]).output)
        assert (told["hours"], told["bytes"]) == (hours, 7_200_000_000)
        printed = CliRunner().invoke(prepare, options).output
        assert f"{hours} hours on {workers} workers" in printed
        assert "7.2 GB of clips (as 100 clips so far)" in printed
        assert "5.0 GB are free" in printed


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal(avbench: Callable[..., Any]) -> None:
    arguments = ("prepare", "toy-ci", "--limit", "2")
    shown = avbench(*arguments, env={"FORCE_COLOR": "1", "TERM": "dumb"}).stderr
    assert "preparing clips" in shown
    assert "2/2" in shown
    assert "features" in shown
    assert "preparing clips" not in avbench(*arguments).stderr
