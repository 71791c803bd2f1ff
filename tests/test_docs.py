"""What the documentation tells a reader to do, done."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avbench.evaluation import reproduce as reproduction
from avbench.evaluation.evaluator import evaluate
from avbench.manifests.benchmark import Benchmark
from tests.helpers.cli import run_here
from tests.helpers.runs import run_job

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path) -> str:
    """Run avbench as a line of a console block says, in this process."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "avbench"
    assert not set("|<>&;$`") & set("".join(arguments)), "a shell would read this otherwise"
    return run_here(*arguments, folder=folder, env={"AVBENCH_HOME": str(folder / "home")}).stdout


def in_shell(command: str, folder: Path) -> str:
    """Run a line of a console block as whoever types it, in a process of its own."""
    paths = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "AVBENCH_HOME": str(folder / "home"),
    }
    result = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    return result.stdout


def film(path: Path, *, hue: float, pitch: float, rng: np.random.Generator) -> None:
    """Write a short video of one colour and one tone, with noise."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    seconds, rate, fps = 1.0, 16000, 10
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=rate)
        audio.codec_context.layout = "mono"
        for _ in range(int(seconds * fps)):
            image = rng.integers(0, 60, (64, 64, 3)) + np.array([180 * hue, 90, 180 * (1 - hue)])
            container.mux(video.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8))))
        container.mux(video.encode())
        t = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * pitch * t) + 0.02 * rng.standard_normal(len(t))
        for start in range(0, len(t), 1000):
            part = tone[None, start : start + 1000].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())


@pytest.mark.slow
def test_bring_your_own_dataset(tmp_path):
    page = "docs/bring-your-own-dataset.md"
    toml, hold_out = blocks(page, "toml")
    (example,) = blocks(page, "csv")
    rng = np.random.default_rng(0)
    rows = [example.splitlines()[0]]
    for label in range(10):
        for i in range(9):
            # Names as people have them: spaces, accents, a leading dash.
            name = f"dïgit {label}/-take_{label}_{i}.mp4"
            film(tmp_path / "videos" / name, hue=label / 9, pitch=200 * 1.4**label, rng=rng)
            rows.append(f"{name},digit {label},{('train', 'train', 'val', 'test')[min(i // 2, 3)]}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "digits.toml").write_text(toml)
    (console,) = blocks(page, "console")
    prepare, *evaluations = console.splitlines()
    outputs = [run(prepare, tmp_path)]
    outputs += [run(f"{command} --seeds 0", tmp_path) for command in evaluations]
    assert "90 of 90 clips are ready" in outputs[0]
    accuracy = {
        name: float(re.search(rf"^{name} +([\d.]+)", output, re.MULTILINE)[1])
        for name, output in zip(("finetune", "avcil", "oracle-audio"), outputs[1:], strict=True)
    }
    # The other way to say which clips are in which split.
    table = (tmp_path / "clips.csv").read_text(encoding="utf-8").replace("digit 0", "zero")
    table = table.replace("digit 1", "one").replace("digit 2", "two")
    (tmp_path / "clips.csv").write_text(table, encoding="utf-8")
    hold_out = hold_out.replace("= 5 ", "= 2 ").replace("= 10 ", "= 3 ")
    per_step = toml.replace("classes_per_step = 2", "classes_per_step = 1")
    (tmp_path / "held.toml").write_text(per_step.replace("classes = 10\n", "") + hold_out)
    shown = run("avbench splits show held.toml", tmp_path)
    for step, label in enumerate(("zero", "one", "two"), start=1):
        assert re.search(rf"^{step} +1 +4 +2 +3 +{label}$", shown, re.MULTILINE)
    # Tone and colour tell the classes apart: forgetting is all there is to see.
    assert accuracy["oracle-audio"] > 80
    assert accuracy["oracle-audio"] > accuracy["finetune"]
    assert (tmp_path / "runs" / "digits" / "avcil" / "accuracy.png").is_file()


@pytest.mark.slow
def test_add_a_method(tmp_path, with_features, monkeypatch):
    page = "docs/add-a-method.md"
    (code,) = blocks(page, "python")
    (toml,) = blocks(page, "toml")
    one_file, package = blocks(page, "console")
    (tmp_path / "replay.py").write_text(code)
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    with_features(Benchmark.load("toy-ci"))
    check, evaluate_it = one_file.splitlines()
    checks, evaluation = run(check, tmp_path), run(f"{evaluate_it} --seeds 0", tmp_path)
    assert checks.count(" ok\n") == 27
    assert float(re.search(r"^Replay +([\d.]+)", evaluation, re.MULTILINE)[1]) > 30
    assert "exemplars of Replay: at most 60 clips" in evaluation

    # Not into this environment; the folder is on the path.
    commands = package.replace("pip install", "python -m pip install --no-deps --target .")
    commands = commands.replace("python ", f"{sys.executable} ")
    lines = commands.splitlines()
    written, tested, _, listing, checked = (in_shell(line, tmp_path) for line in lines)
    assert "pip install -e my-replay" in written
    assert "4 passed" in tested
    assert "my_replay:MyReplay" in listing
    assert checked.count(" ok\n") == 9
    assert toml in (tmp_path / "my-replay" / "pyproject.toml").read_text()


@pytest.mark.slow
def test_the_readmes_tour(tmp_path, toy_ci):
    shutil.copytree(toy_ci, tmp_path / "home")
    console = next(b for b in blocks("README.md", "console") if "activate" in b)
    commands = {line.split()[1]: line for line in console.splitlines() if line.startswith("avb")}
    assert list(commands) == [
        "list",
        "prepare",
        "evaluate",
        "reproduce",
        "score",
        "submit",
        "leaderboard",
        "splits",
    ]
    assert "toy-ci" in run(commands["list"], tmp_path)
    assert "624 of 624 clips are ready" in run(commands["prepare"], tmp_path)
    assert "clip_id" in run(commands["score"], tmp_path)
    command = commands["evaluate"].replace("0,1,2", "0")
    in_shell(f"{command} --set epochs=1", tmp_path)
    reproduce = commands["reproduce"].partition("#")[0]
    assert "9 runs in runs/toy-ci" in run(f"{reproduce} --dry-run", tmp_path)
    assert "fill it in" in run(commands["submit"], tmp_path)
    assert (tmp_path / "entry.toml").is_file()
    assert "74.04" not in run(commands["leaderboard"], tmp_path)
    assert "1,627 test clips" in run(commands["splits"], tmp_path)
    (python,) = blocks("README.md", "python")
    (tmp_path / "tour.py").write_text(
        python.replace("seeds=[0]", 'seeds=[0], settings={"epochs": "1"}')
    )
    assert 0 < float(in_shell(f"{sys.executable} tour.py", tmp_path)) < 1


@pytest.mark.slow
def test_the_page_about_preparing(tmp_path):
    for console in blocks("docs/prepare.md", "console"):
        outputs = {command: run(command, tmp_path) for command in console.splitlines()}
        for command, output in outputs.items():
            if "prepare toy-ci" in command:
                count = re.search(r"--limit (\d+)", command)[1]
                assert f"{count} of {count} clips are ready" in output
    assert len(pd.read_parquet(tmp_path / "clips.parquet")) == 624


@pytest.mark.slow
def test_the_page_about_splits(tmp_path, with_features, monkeypatch):
    page = "docs/splits.md"
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    with_features(Benchmark.load("toy-ci"))
    for console in blocks(page, "console"):
        for command in console.splitlines():
            run(command, tmp_path)
    shipped = Benchmark.load("ave-ci").manifest_path
    assert (tmp_path / "splits" / "ave-ci.parquet").read_bytes() == shipped.read_bytes()
    result = tmp_path / "runs" / "toy-ci:seed=3,steps=6" / "finetune" / "result.json"
    assert '"benchmark": "toy-ci:seed=3,steps=6"' in result.read_text()
    rows = ["youtube_id,start_s,end_s,label"]
    for label in ("cat", "dog", "cow", "hen", "pig"):
        rows += [f"{label}{i // 2},{10 * (i % 2)},{10 * (i % 2) + 10},{label}" for i in range(10)]
        rows.append(f"{label}9,0,10,{label}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    build, query = blocks(page, "python")
    (tmp_path / "build.py").write_text(build)
    assert in_shell(f"{sys.executable} build.py", tmp_path) == "[]\n"
    (tmp_path / "query.py").write_text(query)
    counts = in_shell(f"{sys.executable} query.py", tmp_path)
    assert counts == "[('test', 12), ('train', 24), ('val', 8)]\n"


@pytest.mark.slow
def test_the_page_about_metrics(tmp_path, with_features, monkeypatch):
    page = "docs/metrics.md"
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    benchmark = Benchmark.load("toy-ci")
    with_features(benchmark)
    for method in ("avcil", "finetune"):
        out = tmp_path / "runs" / "toy-ci" / method
        evaluate(benchmark, method, seeds=[0, 1], out=out, settings={"epochs": "1"})
    parts = [
        pd.read_parquet(tmp_path / f"runs/toy-ci/avcil/seed-{seed}/predictions.parquet").assign(
            seed=seed
        )
        for seed in (0, 1)
    ]
    pd.concat(parts).to_parquet(tmp_path / "predictions.parquet")
    compare, score = blocks(page, "console")
    assert "By mean accuracy: " in run(compare, tmp_path)
    describe, measure = score.splitlines()
    assert "clip_id" in run(describe, tmp_path)
    mean = re.search(r"^mean accuracy +([\d.]+)", run(measure, tmp_path), re.MULTILINE)[1]
    (python,) = blocks(page, "python")
    (tmp_path / "metrics.py").write_text(python)
    printed = in_shell(f"{sys.executable} metrics.py", tmp_path).splitlines()
    assert f"{100 * float(printed[0].split()[0]):.2f}" == mean
    assert len(printed) == 3


@pytest.mark.slow
def test_the_page_about_reports(tmp_path, with_features, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reproduction, "run_apart", run_job)
    benchmark = Benchmark.load("toy-ci")
    with_features(benchmark)
    for method in ("avcil", "finetune"):
        out = tmp_path / "runs" / "toy-ci" / method
        evaluate(benchmark, method, seeds=[0], out=out, settings={"epochs": "1"})
    side_by_side, suites = blocks("docs/reports.md", "console")
    report, attention = side_by_side.splitlines()
    assert "report/report.html" in run(report, tmp_path)
    clip = re.search(r"--clip (\S+)", attention)[1]
    clips = tmp_path / "home" / "toy-ci" / "clips"
    film(clips / f"{clip}.mp4", hue=0.5, pitch=300, rng=np.random.default_rng(0))
    run(attention, tmp_path)
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    plan, make = (f"{c.partition('#')[0]} --seeds 0 --set epochs=1" for c in suites.splitlines())
    assert "its finished seeds" in run(plan, tmp_path)
    assert "figure: runs/toy-ci/figure6.png" in run(make, tmp_path)


@pytest.mark.slow
def test_the_page_about_leaderboards(tmp_path, with_features, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    benchmark = Benchmark.load("toy-ci")
    with_features(benchmark)
    out = tmp_path / "runs" / "toy-ci" / "avcil"
    evaluate(benchmark, "avcil", seeds=[0, 1], out=out, settings={"epochs": "1"})
    parts = [
        pd.read_parquet(out / f"seed-{seed}" / "predictions.parquet").assign(seed=seed)
        for seed in (0, 1)
    ]
    frame = pd.concat(parts)
    frame["prediction"] = 0  # other predictions than those of the run
    frame.to_parquet(tmp_path / "predictions.parquet")
    shutil.copytree(ROOT / "leaderboards", tmp_path / "leaderboards")
    show, submit, bundle, others = blocks("docs/leaderboards.md", "console")
    for command in show.splitlines():
        run(command, tmp_path)
    init, add, render = submit.splitlines()
    run(init, tmp_path)
    fill_in(tmp_path / "entry.toml", name="mine")
    metadata = add.partition("#")[0]
    run(f"{metadata} --output bundle.zip", tmp_path)
    assert "verified, fewer than 3 seeds" in run(add, tmp_path)
    run(render, tmp_path)
    assert "10 entries recomputed" in run("avbench leaderboard check", tmp_path)
    for name in ("toy-ci.json", "predictions/toy-ci/mine.parquet"):
        boards = tmp_path / "leaderboards"
        (boards / name).unlink()
    shutil.copy(ROOT / "leaderboards" / "toy-ci.json", boards)
    run(bundle, tmp_path)
    init, add = others.splitlines()
    run(init, tmp_path)
    known = {"modality": "audio", "access": "incremental", "preset": "other:own"}
    fill_in(tmp_path / "other.toml", name="other", exemplars=0, coverage=1.0, **known)
    assert "other" in run(add, tmp_path)
    run(render, tmp_path)
    assert "11 entries recomputed" in run("avbench leaderboard check", tmp_path)


def fill_in(path: Path, **values: str | float) -> None:
    """Fill in the form of an entry."""
    values = {"method": "M", "url": "https://example.org", "pretraining": "none"} | values
    text = path.read_text().replace("authors = []", 'authors = ["A. Author"]')
    for key, value in values.items():
        assert f'\n{key} = ""\n' in text
        text = text.replace(f'\n{key} = ""\n', f"\n{key} = {json.dumps(value)}\n")
    path.write_text(text)


@pytest.mark.slow
def test_the_page_about_python(tmp_path, with_features, monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", str(tmp_path / "home"))
    with_features(Benchmark.load("toy-ci"))
    (tmp_path / "api.py").write_text("".join(blocks("docs/python-api.md", "python")))
    printed = in_shell(f"{sys.executable} api.py", tmp_path).splitlines()
    assert printed[0].startswith("(3, 3, 3, 3) ")
    assert 0 < float(printed[1].split()[0]) < 1
    assert printed[4] in ("A", "B", "tie")


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT) for p in ROOT.glob("**/*.md") if ".venv" not in p.parts)
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_sizes_in_the_readme():
    """Features on disk follow from the encoder's shapes."""
    from avbench.features.encoders.filterbank import FilterbankEncoder

    encoder = FilterbankEncoder()
    clip = 2 * encoder.dim * (1 + encoder.frames * encoder.cells)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("ave-ci", "ks-ci", "vs100-ci"):
        size = len(Benchmark.load(name).manifest) * clip / 1e9
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert row.rstrip(" |").endswith(f"{size:.1f} GB")


def test_every_setting_in_the_documentation_is_one():
    """Each `key=value` of the pages that list settings, for a method that has it."""
    from avbench import registry
    from avbench.learning.method import resolve_settings
    from avbench.types import AvbenchError

    pages = ("README.md", "docs/decisions/paper-and-code.md", "docs/decisions/epoch-selection.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    pairs = set(re.findall(r"`(?:--set )?([a-z_]+)=([\w.,]+)`", text))
    assert ("kl_direction", "paper") in pairs
    assert {"i_avss", "c_avss", "vad", "memory", "margin", "n_init"} <= {key for key, _ in pairs}

    def accepts(name: str, key: str, value: str) -> bool:
        try:
            resolve_settings(
                registry.load("methods", name), name, "b", "audio-visual", {key: value}
            )
        except AvbenchError:
            return False
        return True

    methods = registry.registered("methods")
    for key, value in pairs - {("key", "value")}:
        assert any(accepts(name, key, value) for name in methods), (key, value)
