"""The command line as a user meets it: real processes, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers.cli import AVBENCH, one_line
from tests.helpers.videos import write_video


def imported(*arguments: str) -> set[str]:
    """Return the top-level modules a command imports."""
    code = (
        "import sys\nfrom avbench.cli import main\n"
        f"try: main({list(arguments)!r})\nexcept SystemExit: pass\n"
        "print('MODULES', *{m.partition('.')[0] for m in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["list"],
        ["evaluate", "--help"],
        ["compare", "--help"],
        ["score", "--help"],
        ["leaderboard", "--help"],
        ["leaderboard", "check", "--help"],
        ["submit", "--help"],
        ["--version"],
    ],
)
def test_quick_commands_import_nothing_heavy(command):
    assert not imported(*command) & {"torch", "pandas", "av", "matplotlib", "sklearn", "timm"}


def test_help_of_every_command_has_an_example(avbench):
    for command in (
        [],
        ["list"],
        ["prepare"],
        ["status"],
        ["evaluate"],
        ["check-method"],
        ["new-method"],
        ["demo"],
        ["compare"],
        ["report"],
        ["attention"],
        ["score"],
        ["splits"],
        ["submit"],
        ["leaderboard"],
        *(["leaderboard", c] for c in ("show", "check", "render")),
        *(["splits", c] for c in ("build", "verify", "audit", "show")),
    ):
        assert "Example" in avbench(*command, "--help").stdout


def test_list(avbench):
    text = avbench("list").stdout
    for name in ("ave-ci", "ks-ci", "vs100-ci", "toy-ci", "avcil", "filterbank", "folder"):
        assert name in text
    record = json.loads(avbench("list", "--json").stdout)
    clips = {row["name"]: row["clips"] for row in record["benchmarks"]}
    official = {"ave-ci": 4079, "ks-ci": 23125, "vs100-ci": 61195, "toy-ci": 624}
    assert clips == official | {"vs100-ci-clean": 59311}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--method", "avcli", "--benchmark", "toy-ci"], "did you mean avcil"),
        (["evaluate", "--method", "avcil", "--benchmark", "toyci"], "did you mean toy-ci?"),
        (["evaluate", "--method", "avcil", "--benchmark", "toy-ci", "--seeds", "a"], "--seeds a"),
        (
            ["evaluate", "--method", "avcil", "--benchmark", "toy-ci", "--seeds", "1,1"],
            "--seeds 1,1",
        ),
        (["evaluate", "--method", "avcil", "--benchmark", "toy-ci", "--set", "x"], "KEY=VALUE"),
        (["evaluate", "--method", "avcil", "--benchmark", "toy-ci", "--set", "ep=1"], "setting"),
        (["prepare", "vs100"], "did you mean vs100-ci or"),
        (["prepare", "no.toml"], "no benchmark file no.toml"),
        (["prepare", "toy-ci", "--preset", "filterbanks"], "did you mean filterbank?"),
        (
            ["evaluate", "--method", "oracle", "--benchmark", "toy-ci", "--preset", "filterbnk"],
            "did you mean filterbank?",
        ),
        (
            ["evaluate", "--method", "oracle", "--benchmark", "toy-ci", "--seeds", "0..9999999999"],
            "at most 1,000",
        ),
        (["evaluate", "--method", "no.py:X", "--benchmark", "toy-ci"], "no file no.py"),
        (
            [
                "evaluate",
                "--method",
                "avcil",
                "--benchmark",
                "toy-ci",
                "--set",
                "kl_direction=papr",
            ],
            "did you mean paper?",
        ),
        (["check-method", "avcli"], "did you mean avcil"),
        (["check-method", "avcil", "--modality", "audio"], "avcil takes audio-visual"),
        (["check-method", "ssil", "--set", "memry=3"], "did you mean memory"),
        (["new-method", "My Method"], "lower-case words"),
        (["new-method", "avcil"], "avcil is a method already"),
        (["new-method", "torch"], "Python has a torch already"),
        (["new-method", "class"], "Python has a class already"),
        (["prepare", "toy-ci", "--source", "foldr:x"], "did you mean folder?"),
        (["prepare", "toy-ci", "--step", "5"], "toy-ci has 4 steps only"),
        (["prepare", "toy-ci", "--sleep", "nan"], "not a number of seconds"),
        (["prepare", "toy-ci", "--sleep", "inf"], "--sleep"),
        (["prepare", "toy-ci", "--workers", "2000000"], "--workers"),
        (["prepare", "toy-ci", "--limit", "1" + "0" * 24], "--limit"),
        (["prepare", "toy-ci", "--dry-run", "--source", "rendr"], "did you mean render?"),
        (["prepare", "toy-ci", "--dry-run", "--stage", "validate"], "leave out --stage validate"),
        (["prepare", "toy-ci", "--rate", "fast"], "'fast': give bytes per second, such as 500K"),
        (["prepare", "toy-ci", "--scheduler", "tcp://x:1"], "goes with --backend dask"),
        (["prepare", "ave-ci", "--source", "url:x"], "url"),
        (["prepare", "toy-ci", "--source", "folder:/no/such"], "/no/such"),
    ],
)
def test_wrong_names_get_one_line_and_exit_2(avbench, arguments, message):
    assert message in one_line(avbench(*arguments, expect=2))


def test_evaluate_without_benchmark_says_what_it_uses_and_how_to_prepare_it(avbench):
    lines = avbench("evaluate", "--method", "avcil", expect=1).stderr.splitlines()
    assert lines[0] == "No --benchmark given: using vs100-ci."
    assert len(lines) == 2
    assert "avbench prepare vs100-ci" in lines[1]


def test_prepare_says_what_it_would_do(avbench, tmp_path):
    text = avbench("prepare", "vs100-ci", "--dry-run", "--split", "test", "--step", "2").stdout
    assert "vs100-ci: 500 clips, 0 are there" in text
    assert "500 to get from youtube" in text
    last = avbench("prepare", "toy-ci", "--dry-run", "--step", "4").stdout
    assert "toy-ci: 156 clips, 0 are there" in last
    assert not (tmp_path / "home").exists()
    record = json.loads(avbench("prepare", "ks-ci", "--dry-run", "--json").stdout)
    assert record["clips"] == 23125
    assert record["todo"] == {"youtube": 23125}
    assert record["hours"] > 1


@pytest.mark.parametrize(
    ("benchmark", "better"),
    [
        ("ave-ci", "--source archive:AVE_Dataset.zip"),
        ("ks-ci", "--source archive:FOLDER"),
        ("vs100-ci-clean", "--source archive:FOLDER --source youtube"),
    ],
)
def test_prepare_explains_its_source_and_what_is_better(avbench, benchmark, better):
    arguments = ("prepare", benchmark, "--dry-run", "--limit", "1")
    first, second = avbench(*arguments).stderr.splitlines()[-2:]
    assert first.startswith("youtube is the default because")
    assert second.startswith("Better: ")
    assert second.endswith(better)
    assert "default" not in avbench(*arguments, "--source", "youtube").stderr


def test_prepare_says_what_is_missing_even_if_all_is(avbench, tiny, tmp_path):
    tiny(per_class=5)
    (tmp_path / "empty").mkdir()
    result = avbench("prepare", "tiny.toml", "--source", "folder:empty", expect=1)
    assert "0 of 30 clips are ready" in result.stdout
    assert "30 failed: not in the folder (c0-000, c0-001, c0-002, ...)" in result.stdout
    assert "tiny.toml --export status.csv" in result.stdout
    record = json.loads(
        avbench("prepare", "tiny.toml", "--source", "folder:empty", "--json", expect=1).stdout
    )
    assert len(record["failed"]["not in the folder"]) == 30


def test_prepare_fails_if_any_clip_is_missing(avbench, tiny, tmp_path):
    tiny(per_class=5)
    write_video(tmp_path / "some" / "c0-000.mp4", seconds=1)
    result = avbench("prepare", "tiny.toml", "--source", "folder:some", expect=1)
    assert "1 of 30 clips are ready, with filterbank features" in result.stdout
    assert "29 failed: not in the folder" in result.stdout


def test_the_default_source_is_explained(avbench):
    lines = avbench("prepare", "ave-ci", "--proxy", "nonsense", expect=2).stderr.splitlines()
    assert lines[0].startswith("youtube is the default because")
    assert lines[1].endswith("--source archive:AVE_Dataset.zip")
    assert "proxy 'nonsense': write SCHEME://HOST:PORT" in lines[2]
    assert len(lines) == 3


def test_status_tells_how_far_and_exports(avbench, tiny, tmp_path):
    tiny(per_class=5)
    text = avbench("status", "tiny.toml").stdout
    assert "tiny: 0 of 30 clips ready (0.0%)" in text
    assert "30 not tried yet" in text
    (tmp_path / "empty").mkdir()
    avbench("prepare", "tiny.toml", "--source", "folder:empty", "--limit", "7", expect=1)
    text = avbench("status", "tiny.toml").stdout
    assert "23 not tried yet" in text
    assert "not in the folder  transient  7      c0-000" in text
    record = json.loads(avbench("status", "tiny.toml", "--json").stdout)
    assert record["failures"] == [
        {"reason": "not in the folder", "failure": "transient", "clips": 7, "example": "c0-000"}
    ]
    for name in ("clips.csv", "clips.parquet"):
        assert "30 clips" in avbench("status", "tiny.toml", "--export", name).stderr
    frames = [pd.read_csv(tmp_path / "clips.csv"), pd.read_parquet(tmp_path / "clips.parquet")]
    for frame in frames:
        assert len(frame) == 30
        assert frame["status"].value_counts().to_dict() == {"waiting": 23, "failed": 7}
    assert "end it in .parquet or .csv" in one_line(
        avbench("status", "tiny.toml", "--export", "clips.xls", expect=2)
    )


def test_stages_one_by_one(avbench, tmp_path):
    some = ["prepare", "toy-ci", "--split", "val", "--step", "1", "--limit", "3"]
    assert "3 of 3 clips are ready" in avbench(*some, "--stage", "trim").stdout
    assert not (tmp_path / "home" / "toy-ci" / "features").exists()
    assert "3 of 3 clips are sound" in avbench(*some, "--stage", "validate").stdout
    assert "with filterbank features" in avbench(*some, "--stage", "features").stdout
    assert (tmp_path / "home" / "toy-ci" / "features" / "filterbank" / "store.json").is_file()
    assert "3 of 3" in avbench(*some).stdout


def test_a_variant_is_prepared_as_its_benchmark(avbench, tiny, tmp_path):
    tiny(per_class=5)
    (tmp_path / "empty").mkdir()
    result = avbench("prepare", "tiny.toml:seed=3", "--source", "folder:empty", expect=1)
    assert one_line(result) == "tiny:seed=3 shares the clips and features of tiny."
    assert "particulars: avbench status " in result.stdout
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["tiny"]


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_run_is_one_line(
    avbench_apart, tiny, with_features, tmp_path
):
    import signal

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    with_features(tiny())
    command = ["evaluate", "--method", "finetune", "--benchmark", "tiny.toml", "--seeds", "0"]
    home = {"AVBENCH_HOME": os.environ["AVBENCH_HOME"]}
    options = ("--set", "epochs=1")
    result = avbench_apart(*command, *options, expect=1, env=home, preexec_fn=limit)
    assert "the disk or your quota is full" in one_line(result)
    assert not list((tmp_path / "runs" / "tiny" / "finetune").glob("seed-*"))
    assert not list((tmp_path / "runs" / "tiny" / "finetune").glob(".partial-*"))


def test_no_permission_is_one_line(avbench):
    # Nobody makes folders in /sys, not even root.
    result = avbench("prepare", "toy-ci", expect=1, env={"AVBENCH_HOME": "/sys/avbench"})
    assert "cannot write" in one_line(result)
    assert "no permission" in one_line(result)


def test_a_file_in_the_way_is_one_line(avbench, tmp_path):
    (tmp_path / "home").write_text("not a folder")
    assert "in the way" in one_line(avbench("prepare", "toy-ci", expect=1))


def test_corrupt_features_are_one_line(avbench, tmp_path):
    folder = tmp_path / "home" / "toy-ci" / "features" / "filterbank"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text("{")
    result = avbench("evaluate", "--method", "avcil", "--benchmark", "toy-ci", expect=1)
    assert "store.json" in one_line(result)


def test_features_that_changed_on_disk_are_named(avbench, tiny, with_features):
    store = with_features(tiny())
    home = {"AVBENCH_HOME": os.environ["AVBENCH_HOME"]}
    whole = avbench("features", "verify", "tiny.toml", env=home)
    assert whole.stdout == "120 of 120 clips are whole\n"
    means = Path(store.place) / "means.npy"
    np.save(means, np.zeros((120, store.dim), np.float32))
    wrong = avbench("features", "verify", "tiny.toml", env=home, expect=1).stdout
    assert f"delete {means}" in wrong
    record = avbench("features", "verify", "tiny.toml", "--json", env=home, expect=1).stdout
    assert json.loads(record)["damaged_means"] == [*store.clip_ids]
    means.unlink()
    visual = Path(store.place) / "visual.npy"
    content = bytearray(visual.read_bytes())
    content[-1] ^= 1
    visual.write_bytes(content)
    damaged = avbench("features", "verify", "tiny.toml", env=home, expect=1).stdout
    assert f"row 119, clip {store.clip_ids[-1]}: not what was written" in damaged
    assert "119 of 120 clips are whole" in damaged
    record = avbench("features", "verify", "tiny.toml", "--json", env=home, expect=1).stdout
    assert json.loads(record)["damaged"] == {store.clip_ids[-1]: 119}
    assert "no features" in one_line(
        avbench("features", "verify", "tiny.toml", "--preset", "avcil", env=home, expect=1)
    )


@pytest.mark.slow
def test_evaluate_in_full(avbench, tiny, with_features, tmp_path, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    with_features(tiny())
    command = ["evaluate", "--method", "avcil", "--benchmark", "tiny.toml", "--seeds", "0..1"]
    result = avbench(*command, "--set", "epochs=2")
    assert "mean accuracy" in result.stdout
    assert "average forgetting" in result.stdout
    assert result.stderr == ""  # quiet where nobody watches
    assert (tmp_path / "runs" / "tiny" / "avcil" / "matrix.png").stat().st_size > 1000
    record = json.loads(avbench(*command, "--set", "epochs=2", "--json").stdout)
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    assert record == json.loads((tmp_path / "runs" / "tiny" / "avcil" / "result.json").read_text())


@pytest.mark.slow
def test_progress_on_a_terminal(tiny, with_features, tmp_path):
    """In a pseudo-terminal there is a bar."""
    import pty

    with_features(tiny())
    controller, terminal = pty.openpty()
    command = [AVBENCH, "evaluate", "--method", "finetune", "--benchmark", "tiny.toml"]
    process = subprocess.Popen(
        [*command, "--set", "epochs=4", "--seeds", "0"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(controller, 4096):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    assert process.wait() == 0
    assert b"finetune, seed 0" in seen
    assert b"12/12" in seen


@pytest.mark.slow
def test_check_method(avbench, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from reference_methods.finetune import FineTuning\n"
        "class Lazy(FineTuning):\n"
        "    recipes = None\n"
        "    modalities = ('audio',)\n"
        "    def learn(self, task):\n"
        "        self.start(task)\n"
    )
    result = avbench("check-method", "mine.py:Lazy", expect=1)
    assert "FAIL learns above chance, audio: its accuracy is" in result.stdout
    replaced = "epochs=10, not 200; batch_size=8, not 256; learning_rate=0.01, not 0.001"
    assert f"settings replaced to be quick, audio: {replaced}" in result.stdout
    record = json.loads(avbench("check-method", "mine.py:Lazy", "--json", expect=1).stdout)
    failed = {check["name"] for check in record if check["failure"]}
    assert failed == {"learns above chance"}
    assert "ok" in avbench("check-method", "finetune", "--modality", "visual").stdout


def test_new_method_overwrites_nothing(avbench, tmp_path):
    (tmp_path / "my-method").mkdir()
    assert "is there already" in one_line(avbench("new-method", "my-method", expect=1))
    avbench("new-method", "my-method", "--out", "methods")
    written = sorted(p.relative_to(tmp_path / "methods") for p in tmp_path.glob("methods/**/*.*"))
    assert [str(path) for path in written] == [
        "my-method/README.md",
        "my-method/my_method/__init__.py",
        "my-method/my_method/recipes.toml",
        "my-method/pyproject.toml",
        "my-method/tests/test_my_method.py",
    ]


HUNGRY = """
import resource
import torch._dynamo  # as optimisers do when they are made; it needs 40 MB too
from reference_methods.finetune import FineTuning

class Hungry(FineTuning):
    recipes = None
    modalities = ("audio-visual",)

    def start(self, task):
        super().start(task)
        # From here on there is 40 MB more, where a batch needs hundreds.
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, resource.RLIM_INFINITY))
"""


@pytest.mark.slow
def test_out_of_memory_is_one_line(avbench_apart, tiny, with_features, tmp_path, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    with_features(tiny(classes=3, classes_per_step=1, per_class=400), dim=512)
    (tmp_path / "hungry.py").write_text(HUNGRY)
    command = ["evaluate", "--method", "hungry.py:Hungry", "--benchmark", "tiny.toml"]
    result = avbench_apart(*command, "--set", "batch_size=240", expect=1)
    assert "out of memory at step 1: reduce batch_size (now 240) with --set" in one_line(result)
